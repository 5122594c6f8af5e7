"""The site has every page, and what is made from the code is what the code says.

`make docs` builds it, and fails where a link or an anchor leads nowhere, or where a page would load
something from the network.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import jsonschema
import pytest
import yaml

ROOT: Final = Path(__file__).parent.parent
DOCS: Final = ROOT / "docs"


def _maker(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(DOCS))
    module = importlib.import_module(name)
    monkeypatch.delitem(sys.modules, name)
    return module


def _entries(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
        return
    for entry in nav.values() if isinstance(nav, dict) else nav:
        yield from _entries(entry)


def test_every_page_has_one_place_in_the_navigation() -> None:
    nav = list(_entries(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    pages = {
        path.relative_to(ROOT).as_posix()
        for where in ("*.md", "docs/**/*.md", "examples/**/*.md", "deploy/**/*.md")
        for path in ROOT.glob(where)
    }
    assert sorted(nav) == sorted(pages)


def test_the_reference_of_settings_is_what_the_code_says(monkeypatch: pytest.MonkeyPatch) -> None:
    maker = _maker("make_settings", monkeypatch)
    assert maker.PAGE.read_text() == maker.render(), "run: python docs/make_settings.py"
    assert set(maker.SECTIONS) <= set(maker.RedisLinkSettings.model_fields)


def test_the_reference_of_commands_is_what_the_code_says(monkeypatch: pytest.MonkeyPatch) -> None:
    maker = _maker("make_commands", monkeypatch)
    assert maker.PAGE.read_text() == maker.render(), "run: python docs/make_commands.py"


def test_the_pictures_are_as_drawn_and_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    maker = _maker("make_pictures", monkeypatch)
    page = (DOCS / "pictures.md").read_text()
    for name, picture in maker.PICTURES.items():
        drawn = (maker.DIRECTORY / f"{name}.svg").read_text()
        assert drawn == picture.svg(), "run: python docs/make_pictures.py"
        assert f"](images/{name}.svg)" in page


def test_the_schemas_are_what_the_code_says(monkeypatch: pytest.MonkeyPatch) -> None:
    maker = _maker("make_schemas", monkeypatch)
    for name in maker.MODELS:
        path = maker.DIRECTORY / f"{name}.schema.json"
        assert path.read_text() == maker.render(name), "run: python docs/make_schemas.py"
        schema = json.loads(path.read_text())
        jsonschema.Draft202012Validator.check_schema(schema)
        check = jsonschema.Draft202012Validator(schema)
        (example, *_) = re.findall(
            r"```yaml\n(.*?)```", (DOCS / f"{name}-file.md").read_text(), re.S
        )
        content = yaml.safe_load(example)
        check.validate(content)
        assert not check.is_valid(content | {"unknown": 1})
        assert all(field["description"] for field in schema["properties"].values())
    assert check.is_valid({"program": "train.py"})


def test_lists_are_indented_as_mkdocs_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = _maker("site_hooks", monkeypatch)
    text = "- a\n  - b\n\n  more of a\n- c\n\n1. d\n   e\n\nnone of it\n  as it is\n"
    assert hooks.indent_lists(text) == (
        "- a\n    - b\n\n    more of a\n\n- c\n\n1. d\n    e\n\nnone of it\n  as it is\n"
    )
    code = "- a\n\n  ```\n  b\n  ```\n\n```\n  c\n```\n"
    assert hooks.indent_lists(code) == code.replace("  ```", "    ```").replace("  b", "    b")
