"""What docstrings say of the fields of a model, for the pages that are made from them."""

from __future__ import annotations

import inspect
import re
import textwrap
from typing import Final

_ARGUMENT: Final = re.compile(r"^(\w+(?:, \w+)*): (.*)$")


def descriptions(model: type) -> dict[str, str]:
    """What the docstring says of each field."""
    found: dict[str, str] = {}
    _, _, listed = inspect.cleandoc(model.__doc__ or "").partition("Attributes:\n")
    names: tuple[str, ...] = ()
    for line in textwrap.dedent(listed).splitlines():
        begin = _ARGUMENT.match(line)
        if begin is not None:
            names = tuple(begin[1].split(", "))
            found |= dict.fromkeys(names, begin[2])
        else:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def code(text: str) -> str:
    """A docstring's text in one line of a table."""
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|")
