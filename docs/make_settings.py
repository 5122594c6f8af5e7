"""Write the reference of the settings, from the model that reads them.

python docs/make_settings.py
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from fields import code

from redislink.settings import RedisLinkSettings

PAGE: Final = Path(__file__).parent / "settings.md"
SECTIONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "broker_url": "The broker, and the way there",
        "cluster_file": "Who this is",
        "link_mode": "Links of SPU devices",
        "connect_timeout": "How long to wait",
        "window_bytes": "Memory and messages",
        "status": "Status, logs, metrics, timelines",
        "audit_file": "Audit record and journal",
        "data": "Data, results, jobs",
        "aliases": "Programs for other links",
    }
)
"""The first setting of each section, in the order of the model."""
HEAD: Final = """\
# Settings

What can one party set for itself? Everything here is an environment variable, or a line in the file `.env` of the directory
in which redislink starts; the environment takes precedence. `redislink init` leaves such a file in `redislink-session/`, which is
read too, and comes last. [The cluster file](cluster-file.md) holds what all parties
share. [`.env.example`](../.env.example) lists the same settings, to copy from.

A `.env` is read only if nobody but its owner can write to it (`chmod 600 .env`). An unknown name is ignored, a wrong value
is an error that names the setting.

<!-- Written by docs/make_settings.py from the code. Do not edit: run it again. -->
"""


def render() -> str:
    """The page."""
    parts = [HEAD]
    for name, field in RedisLinkSettings.model_fields.items():
        if name in SECTIONS:
            parts.append(
                f"\n## {SECTIONS[name]}\n\n| setting | default | meaning |\n|---|---|---|\n"
            )
        description = code(field.description or "")
        parts.append(
            f"| `REDISLINK_{name.upper()}` | {_default(field.default)} | {description} |\n"
        )
    return "".join(parts)


def _default(value: Any) -> str:
    if value is None or value == {}:
        return "–"
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, bool):
        value = str(value).lower()
    if isinstance(value, float):
        value = f"{value:g}"
    return f"`{value}`"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
