"""What the wheel carries."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from redislink import __version__, native
from redislink.cli.examples import PROGRAM, find_examples

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_wheel_carries_the_examples_and_the_types(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (wheel,) = tmp_path.glob("redislink-*.whl")
    assert __version__ in wheel.name
    files = set(zipfile.ZipFile(wheel).namelist())
    compiled = {name for name in files if name.startswith("redislink/_native.cpython-311")}
    assert len(compiled) == native.is_complete()
    assert wheel.name.endswith("-py3-none-any.whl") != bool(compiled), "of one platform only then"
    assert "redislink/_native.c" not in files
    assert "redislink/py.typed" in files
    examples = ROOT / "examples"
    for path in [*examples.glob("*.py"), *(examples / "data").glob("*.csv")]:
        assert f"redislink/_examples/{path.relative_to(examples)}" in files
    assert f"redislink/_examples/{PROGRAM}" in files
    assert any(name.endswith("licenses/LICENSE") for name in files)
    assert not any("__pycache__" in name or name.startswith("tests") for name in files)


def test_the_examples_are_found() -> None:
    assert (find_examples() / PROGRAM).is_file()


def test_the_command_and_the_version_are_installed() -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="redislink")
    assert script.value == "redislink.cli:main"
    assert importlib.metadata.version("redislink") == __version__


def test_no_text_sends_to_a_file_that_a_wheel_does_not_have() -> None:
    """Errors, remedies and help, which are what people see who have the wheel alone."""
    absent = re.compile(r"(?<![\w/.])(docs|deploy|tests|benchmarks|\.ci)/|\.env\.example|README")
    for path in (ROOT / "redislink").rglob("*.py"):
        text = path.read_text()
        if not absent.search(text):
            continue
        tree = ast.parse(text)
        of_commands = {
            id(node.body[0])
            for node in ast.walk(tree)
            if path.parent.name == "cli" and isinstance(node, ast.FunctionDef)
        }
        comments = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and id(node) not in of_commands
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                shown = "" if id(node) in comments else node.value
                assert not absent.search(shown), f"{path}:{node.lineno}: {shown}"
