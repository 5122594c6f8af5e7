"""What a process does at its start, in an interpreter that has nothing but the standard library."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from redislink.interop.startup import sitecustomize

PYTHON = Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """Modules that stand for SPU and for redislink."""
    for path, text in {
        "spu/__init__.py": "from . import libspu",
        "spu/libspu.py": "def create_brpc(): return 'listens'",
        "redislink/__init__.py": "",
        "redislink/interop/__init__.py": "",
        "redislink/interop/brpc.py": "def install(libspu): libspu.create_brpc = lambda: 'relay'",
        "hidden/sitecustomize.py": "import builtins, sys; builtins.hidden = sys.modules[__name__]",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    return tmp_path


def run(there: Path, code: str, *paths: str, names: str = "brpc") -> str:
    """What a process prints; the part of its error that counts, if it fails."""
    ran = subprocess.run(
        [PYTHON, "-c", code],
        cwd=there,
        env={
            "PYTHONPATH": os.pathsep.join([sitecustomize.HERE, *(str(there / p) for p in paths)]),
            sitecustomize.VARIABLE: names,
        },
        capture_output=True,
        text=True,
    )
    return (ran.stdout or ran.stderr.splitlines()[-1]).strip()


@pytest.mark.parametrize(
    "code",
    [
        "import spu; print(spu.libspu.create_brpc())",
        "from spu.libspu import create_brpc; print(create_brpc())",
    ],
)
def test_the_stand_in_is_there_before_the_program_has_the_module(there: Path, code: str) -> None:
    assert run(there, code, ".") == "relay"
    assert run(there, code, ".", names="") == "listens", "nothing acts that was not asked for"


def test_nothing_is_imported_until_the_program_does(there: Path) -> None:
    code = "import sys; print([m for m in ('spu', 'redislink') if m in sys.modules])"
    assert run(there, code, ".") == "[]"


def test_the_one_that_it_hides_is_imported_too(there: Path) -> None:
    code = "import sitecustomize; print(sitecustomize is hidden, hidden.__file__)"
    assert run(there, code, "hidden") == f"True {there / 'hidden' / 'sitecustomize.py'}"
    # Whether or not the interpreter has another one, as Debian's has.
    assert run(there, "import sys; print(type(sys.meta_path[0]).__name__)", "hidden") == "_Finder"
    assert run(there, "import sys; print(type(sys.meta_path[0]).__name__)") == "_Finder"


def test_a_program_that_asks_for_it_itself_was_started_by_one_that_did(there: Path) -> None:
    """So there are two copies of this module."""
    path = f"{sitecustomize.HERE}/sitecustomize.py"
    code = f"import runpy; runpy.run_path({path!r})['act']('brpc'); import spu; "
    assert run(there, f"{code}print(spu.libspu.create_brpc())", ".") == "relay"


def test_without_redislink_the_modules_own_links_are_not_taken(there: Path) -> None:
    (there / "redislink" / "interop" / "brpc.py").unlink()
    said = run(there, "import spu", ".")
    assert said.startswith("ImportError: spu.libspu was to run over redislink, which ")


def test_the_first_process_asks_for_it_in_those_that_it_starts(
    there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (sitecustomize.VARIABLE, "PYTHONPATH"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setenv("PYTHONPATH", str(there))
    monkeypatch.setitem(sitecustomize.STAND_INS, "brpc", ("no_such_module", "none"))
    for _ in range(2):
        sitecustomize.act("brpc")
    assert os.environ["PYTHONPATH"].split(os.pathsep) == [sitecustomize.HERE, str(there)]
    assert os.environ[sitecustomize.VARIABLE] == "brpc"
