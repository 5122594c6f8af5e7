"""Write the JSON Schemas of cluster files, policies and job files, from the models that read them.

python docs/make_schemas.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from fields import descriptions
from pydantic import BaseModel

from redislink import ClusterSpec
from redislink.jobs.policy import Policy
from redislink.jobs.spec import JobSpec

DIRECTORY: Final = Path(__file__).parent / "schemas"
MODELS: Final[Mapping[str, type[BaseModel]]] = MappingProxyType(
    {"cluster": ClusterSpec, "policy": Policy, "job": JobSpec}
)


def schema(name: str) -> dict[str, Any]:
    """The schema of one kind of file, with what docstrings say of each field."""
    made = MODELS[name].model_json_schema()
    for model in (made, *made.get("$defs", {}).values()):
        told = model.get("description", "")
        model["description"] = told.partition("\n")[0].replace("``", "`")
        for field, text in descriptions(type("", (), {"__doc__": told})).items():
            if field in model.get("properties", {}):
                model["properties"][field]["description"] = text.replace("``", "`")
        _without_titles(model)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


def _without_titles(model: dict[str, Any]) -> None:
    """Take away the titles that only say a field's name again."""
    for field in model.get("properties", {}).values():
        field.pop("title", None)


def render(name: str) -> str:
    """The file."""
    return json.dumps(schema(name), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name in MODELS:
        (DIRECTORY / f"{name}.schema.json").write_text(render(name), encoding="utf-8")
