"""The reference has what the pages tell users to import."""

from __future__ import annotations

import importlib
import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]
_IMPORT = re.compile(
    r"^from (redislink[\w.]*) import (?:\((?P<lines>[^)]*)\)|(?P<line>.*))$", re.MULTILINE
)


def test_what_the_pages_import_stands_in_the_reference() -> None:
    reference = runpy.run_path(str(ROOT / "docs" / "make_reference.py"))
    imported = {
        (found[1], name)
        for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]
        for found in _IMPORT.finditer(page.read_text(encoding="utf-8"))
        for name in re.findall(r"\w+", found["lines"] or found["line"])
    }
    assert ("redislink", "Session") in imported
    for module, name in sorted(imported):
        if f"{module}.{name}" in reference["MODULES"]:
            continue  # a module as a whole
        assert module in reference["MODULES"], (module, name)
        assert name in importlib.import_module(module).__all__, (module, name)
        assert name not in reference["INTERNAL"].get(module, ()), (module, name)
