"""The constants of redislink's modules, as they were when each module was first seen."""

from __future__ import annotations

import sys
from typing import Any, Final

_KINDS: Final = (int, float, str, bytes, tuple, frozenset)
_known: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
"""By the module's name: its variables, and those of them that are constants."""
_modules_seen = 0


def restore_changed() -> list[str]:
    """Return which constants have changed since they were first seen, and change them back."""
    global _modules_seen
    if len(sys.modules) != _modules_seen:
        _modules_seen = len(sys.modules)
        _look_for_modules()
    changed = []
    for module, (variables, constants) in _known.items():
        for name, value in constants.items():
            if variables.get(name) is not value:
                variables[name] = value
                changed.append(f"{module}.{name}")
    return changed


def _look_for_modules() -> None:
    for name, module in list(sys.modules.items()):
        if name in _known or not name.startswith("redislink"):
            continue
        variables = vars(module)
        _known[name] = (
            variables,
            {
                key: value
                for key, value in variables.items()
                if key.lstrip("_").isupper() and isinstance(value, _KINDS)
            },
        )
