"""What may import what: the table of layers in docs/architecture.md, held against every import.

Imports inside functions and under TYPE_CHECKING count too: a circle that is hidden is still one.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "redislink"
_ROW = re.compile(r"^\| (`[^|]*`) \|")
_PUBLIC = "redislink"
"""The package itself only re-exports, so it stands above all; `redislink.cli` may ask it."""


def _modules() -> dict[str, Path]:
    found = {}
    for path in sorted([*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.pyi")]):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _layers() -> list[list[str]]:
    """The rows of the table, lowest first: module or package names without ``redislink.``."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    section = page.split("## Layers", 1)[1].split("\n## ", 1)[0]
    rows = [match[1] for line in section.splitlines() if (match := _ROW.match(line))]
    return [
        [
            name.removesuffix(".py").rstrip("/").replace("/", ".")
            for name in re.findall(r"`([^`]*)`", row)
        ]
        for row in rows
    ]


MODULES = _modules()
LAYERS = _layers()


def _layer_of(module: str) -> int | None:
    """The row whose name is the longest that covers the module."""
    name = module.removeprefix("redislink.")
    covering = [
        (len(entry), row)
        for row, entries in enumerate(LAYERS)
        for entry in entries
        if name == entry or name.startswith(entry + ".")
    ]
    return max(covering)[1] if covering else None


@functools.cache
def _imports(module: str) -> list[str]:
    """Modules of redislink that a module imports, anywhere in its text."""
    return list(_find_imports(module))


def _find_imports(module: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            for alias in node.names:
                target = f"{node.module}.{alias.name}"
                yield target if target in MODULES else node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def _own(module: str) -> list[str]:
    return [name for name in _imports(module) if name.split(".")[0] == "redislink"]


def test_the_table_covers_every_module_once() -> None:
    assert len(LAYERS) > 10
    entries = [entry for row in LAYERS for entry in row]
    assert len(entries) == len(set(entries))
    uncovered = [name for name in MODULES if name != _PUBLIC and _layer_of(name) is None]
    assert uncovered == []
    names = {name.removeprefix("redislink.") for name in MODULES}
    assert [entry for entry in entries if entry not in names] == []


@pytest.mark.parametrize("module", [name for name in MODULES if name != _PUBLIC])
def test_a_module_imports_from_its_own_layer_and_those_below(module: str) -> None:
    mine = _layer_of(module)
    assert mine is not None
    climbing = {
        target
        for target in _own(module)
        if target != _PUBLIC and ((layer := _layer_of(target)) is None or layer > mine)
    }
    assert climbing == set()
    if _PUBLIC in _own(module):
        assert module.startswith("redislink.cli")


def test_no_modules_import_each_other_in_a_circle() -> None:
    after = {
        module: {target for target in _own(module) if target in MODULES and target != module}
        for module in MODULES
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module in done:
            return
        for target in sorted(after[module]):
            visit(target, (*path, module))
        done.add(module)

    for module in sorted(MODULES):
        visit(module, ())
