"""What docstrings say of the fields of a model, for the pages that are made from them."""

from __future__ import annotations

import inspect
import re
import textwrap
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
PAGE: Final = re.compile(r"docs/([\w/-]+\.md)")
"""A page, as docstrings name it."""
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
    """A docstring's text in one line of a table; pages that it names become links."""
    line = " ".join(text.split()).replace("``", "`").replace("|", "\\|")
    return PAGE.sub(lambda found: f"[{title(found[1])}]({found[1]})", line)


def title(page: str) -> str:
    """The heading of a page in ``docs/``."""
    return (HERE / page).read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
