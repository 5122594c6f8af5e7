"""docs/architecture.md lists every thread that redislink starts, and every lock it makes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "redislink"
_LOCKS = {"Lock", "RLock", "Condition"}


def _section() -> str:
    page = (ROOT / "docs" / "architecture.md").read_text()
    return page.split("## Threads and locks", 1)[1].split("\n## ", 1)[0]


def _makes_a_lock(value: ast.AST | None) -> bool:
    return (
        isinstance(value, ast.Call)
        and isinstance(value.func, ast.Attribute)
        and value.func.attr in _LOCKS
        and isinstance(value.func.value, ast.Name)
        and value.func.value.id == "threading"
    )


def _locks() -> Iterator[tuple[str, str]]:
    """Module and name of each lock that is made, and is not the condition of another."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Assign | ast.AnnAssign) or not _makes_a_lock(node.value):
                continue
            assert isinstance(node.value, ast.Call)
            if node.value.args:
                continue
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                name = target.attr if isinstance(target, ast.Attribute) else ast.unparse(target)
                yield path.relative_to(PACKAGE).as_posix(), name


def _thread_names() -> Iterator[tuple[str, str]]:
    pattern = re.compile(r"(?:name=f?|THREADS: Final = )\"((?:redislink|simulated)-[a-z]*)")
    for path in sorted(PACKAGE.rglob("*.py")):
        for name in pattern.findall(path.read_text()):
            yield path.relative_to(PACKAGE).as_posix(), name


def test_every_lock_is_listed_with_its_module() -> None:
    rows = [line for line in _section().splitlines() if line.startswith("|")]
    found = set(_locks())
    assert len(found) > 20
    for module, name in sorted(found):
        here = [row for row in rows if f"`{module}`" in row]
        assert any(re.search(rf"[`.]{name}`", row) for row in here), (module, name)


def test_every_lock_that_is_listed_is_there() -> None:
    table = _section().split("| lock |", 1)[1].split("\n\n", 1)[0]
    named = 0
    for row in table.splitlines()[2:]:
        for entry in row.split("|")[1].split(";"):
            module, *names = re.findall(r"`([^`]+)`", entry)
            source = (PACKAGE / module).read_text()
            for name in names:
                owner, _, attribute = name.rpartition(".")
                assert re.search(rf"\b{attribute}\b", source), (module, name)
                assert not owner or f"class {owner}" in source, (module, name)
                named += 1
    assert named > 20


def test_every_thread_is_listed_with_its_module() -> None:
    rows = [line for line in _section().splitlines() if line.startswith("|")]
    found = set(_thread_names())
    assert len(found) > 8
    for module, name in sorted(found):
        place = "testing/" if module.startswith("testing/") else module
        assert any(f"`{name}" in row and f"`{place}`" in row for row in rows), (module, name)


def test_every_thread_has_a_name_of_ours() -> None:
    """But those that end before the call does that starts them."""
    unnamed = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "threading.Thread"
        and not any(keyword.arg == "name" for keyword in node.keywords)
    }
    assert sorted(unnamed) == [
        "cli/simulate.py", "cli/termination.py", "spu/psi_child.py", "transport/closing.py",
    ]  # fmt: skip
