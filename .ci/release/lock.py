"""Writes deploy/requirements*.txt: the versions of constraints.txt, with the hash of each file.

``constraints.txt`` itself has none: pip checks all hashes or none, and a checkout, which is what it
is used with (``--editable .``), has no hash.
"""

from __future__ import annotations

import re

from common import REQUIREMENTS, REQUIREMENTS_DEMO, ROOT, run, tool

PARTY_EXTRAS = ("metrics", "report")
_HEAD = """\
# {what} for CPython 3.11 on Linux: the versions of constraints.txt, and
# the SHA-256 of each of their files. Made by 'make lock'; do not edit.
#   pip install --require-hashes {options}-r {name}
"""


def compiled(*extras: str) -> dict[str, str]:
    """The lines of each package, by its name."""
    text = run(
        [
            *(tool("uv"), "pip", "compile", "--quiet", "pyproject.toml"),
            *(word for extra in extras for word in ("--extra", extra)),
            *("--constraint", "constraints.txt", "--python-version", "3.11"),
            *("--python-platform", "linux", "--prerelease", "if-necessary-or-explicit"),
            *("--generate-hashes", "--no-header", "--no-annotate", "--no-config"),
        ],
        cwd=ROOT,
    )
    blocks = re.split(r"\n(?=\S)", text.strip())
    return {block.partition("==")[0]: block for block in blocks}


def write() -> None:
    """Write both files."""
    party = compiled(*PARTY_EXTRAS)
    demo = compiled(*PARTY_EXTRAS, "demo")
    for path, what, more, blocks in (
        (REQUIREMENTS, "What a party needs", "", party.values()),
        (
            REQUIREMENTS_DEMO,
            "What the demo needs besides,",
            f"-r {REQUIREMENTS.name} ",
            [block for name, block in demo.items() if name not in party],
        ),
    ):
        head = _HEAD.format(what=what, options=more, name=path.name)
        (ROOT / path).write_text(head + "\n".join(blocks) + "\n")
        print(f"{path}: {len(blocks)} packages")
