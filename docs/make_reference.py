"""Write the API reference, as HTML, from the docstrings of the public names.

python docs/make_reference.py DIRECTORY
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Final

MODULES: Final = (
    "redislink",
    "redislink.spu",
    "redislink.broker",
    "redislink.testing",
    "redislink.testing.fixtures",
)
_BEGIN: Final = "Args:\n"


def indent_first_section(docstring: str) -> str:
    """A docstring whose first line is ``Args:``, as pdoc understands it; any other as it is.

    What follows that line stands in the margin, as Python takes the common indentation away.
    """
    if not docstring.startswith(_BEGIN):
        return docstring
    arguments, blank, rest = docstring.removeprefix(_BEGIN).partition("\n\n")
    return _BEGIN + textwrap.indent(arguments, "    ") + blank + rest


def write(directory: Path) -> None:
    """Write one page per module of `MODULES`, and ``index.html``."""
    import pdoc  # `MODULES` is of use without it
    from pdoc import docstrings

    convert = docstrings.google
    docstrings.google = lambda docstring: convert(indent_first_section(docstring))
    pdoc.render.configure(docformat="google", show_source=False)
    pdoc.pdoc(*MODULES, output_directory=directory)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
    print(Path(sys.argv[1], "index.html"))
