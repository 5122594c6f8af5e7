"""The leaves of the hot path: functions with a twin in C (`redislink/_native.c`).

A *leaf* is written in Python, which is its definition. Where the optional extension was built, the
twin does the usual case, and calls the definition for any other: so a leaf means the same with and
without it. `redislink/_native.c` has the rules for twins.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from redislink.text import one_line

_NAME: Final = "redislink._native"
_FunctionT = TypeVar("_FunctionT", bound=Callable[..., Any])


def _load() -> tuple[Any, str]:
    """Return the extension and "", or None and why it is not there."""
    if importlib.util.find_spec(_NAME) is None:
        return None, "not built: no C compiler or no Python.h where redislink was installed"
    try:
        return importlib.import_module(_NAME), ""
    except ImportError as error:  # a library of another system, or none
        return None, f"does not load: {one_line(str(error), 200)}"


_extension, _why_not = _load()
_is_used = _extension is not None

if TYPE_CHECKING:
    from redislink._native import Cipher as Cipher
elif hasattr(_extension, "Cipher"):
    Cipher = _extension.Cipher
else:

    class Cipher:
        """Stands in for a key in C, where there is none."""

        def __init__(self, key: bytes, header: bytes, encodings: tuple[object, ...]) -> None:
            pass


def leaf(definition: _FunctionT) -> _FunctionT:
    """Return what to call in place of a definition: its leaf, if it has a twin here.

    The definition is the leaf's ``__self__``.
    """
    if _extension is None:
        return definition
    made: _FunctionT = _extension.leaf(definition)
    return made


def use(on: bool) -> None:  # noqa: FBT001 - the setting, as it is
    """Set for this process whether leaves use their twins; see the setting ``native``."""
    global _is_used
    if _extension is not None:
        _extension.use(on)
        _is_used = on


def is_complete() -> bool:
    """Whether every leaf has its twin here, used or not."""
    return _extension is not None and bool(_extension.OPENSSL)


def status() -> str:
    """Say whether leaves use their twins, and why not; for people."""
    if _extension is None:
        return f"no ({_why_not})"
    if not _is_used:
        return "no (turned off by REDISLINK_NATIVE)"
    if not _extension.OPENSSL:
        return "yes, but for sealing (no headers of OpenSSL where redislink was installed)"
    return f"yes, with {_extension.OPENSSL}"
