"""Where the tests are, and what lets them run in several processes at once."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import execnet
import pytest
from hypothesis import settings

from redislink.transport import lines
from tests.support import constants

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "redislink"
_OF_SEVERAL_PACKAGES = {
    "acceptance", "benchmarks", "broker_real", "deploy", "examples", "mutation",
    "security", "support",
}  # fmt: skip


def test_they_mirror_the_package() -> None:
    """A file that is named for a module stands where the module does."""
    homes: dict[str, set[str]] = {}
    for module in PACKAGE.rglob("*.py"):
        homes.setdefault(module.stem, set()).add(module.parent.relative_to(PACKAGE).as_posix())
    for file in TESTS.rglob("test_*.py"):
        folder = file.parent.relative_to(TESTS)
        if folder.parts[:1] and folder.parts[0] in _OF_SEVERAL_PACKAGES:
            continue
        assert (PACKAGE / folder).is_dir(), f"{folder} is no package of redislink"
        home = homes.get(file.stem.removeprefix("test_"))
        assert home is None or folder.as_posix() in home, f"{file.name} belongs in {home}"


@pytest.mark.parametrize("place", ["logged", "raised"])
def test_a_report_reaches_the_other_process_whatever_was_said(
    request: pytest.FixtureRequest, place: str
) -> None:
    """As xdist hands it over; what cannot be encoded would end the whole run."""
    said = "é\udc80\n"
    report = pytest.TestReport(
        "tests/test_x.py::test_x", ("tests/test_x.py", 1, "test_x"), {},
        "failed", said if place == "raised" else None, "call",
        sections=[("Captured log call", said)] if place == "logged" else [],
    )  # fmt: skip
    data = request.config.hook.pytest_report_to_serializable(config=request.config, report=report)
    received = execnet.loads(execnet.dumps(data))
    again = request.config.hook.pytest_report_from_serializable(
        config=request.config, data=received
    )
    assert "é\\udc80" in (again.longreprtext + again.caplog)


@pytest.mark.slow
@pytest.mark.parametrize("dies", ["first", "middle", "last"])
def test_a_worker_that_dies_takes_one_test_with_it(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, dies: str
) -> None:
    """It is said at once, the others run, on whatever worker, and the run ends."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS.parent))
    pytester.makeconftest(
        dedent("""
            from tests.support.scheduling import ByTest, TellAtOnce

            def pytest_configure(config):
                if not hasattr(config, "workerinput"):
                    config.pluginmanager.register(TellAtOnce(config))

            def pytest_xdist_make_scheduler(config, log):
                return ByTest(config, log)
        """)
    )
    count = 24
    number = {"first": 0, "middle": count // 2, "last": count - 1}[dies]
    pytester.makepyfile(
        dedent(f"""
            import os, pytest
            @pytest.mark.parametrize("number", range({count}))
            def test_dies(number):
                if number == {number}:
                    os._exit(1)
        """)
    )
    ran = pytester.runpytest_subprocess("-n2", "-p", "no:cacheprovider", timeout=60)
    ran.assert_outcomes(passed=count - 1, failed=1)
    ran.stdout.fnmatch_lines(
        [
            f"*test_dies?{number}? failed*",
            f"*crashed while running*test_dies?{number}?*",
            "*= FAILURES =*",
        ]
    )


@pytest.mark.slow
def test_a_test_that_hangs_says_where(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS.parent))
    pytester.makeconftest(
        dedent("""
            from tests.support.hanging import SayWhereItHangs

            def pytest_configure(config):
                if hasattr(config, "workerinput"):
                    config.pluginmanager.register(SayWhereItHangs())
        """)
    )
    pytester.makepyfile(
        dedent("""
            import threading

            def test_hangs():
                threading.Event().wait()
        """)
    )
    ran = pytester.runpytest_subprocess("-n1", "-p", "no:cacheprovider", "--timeout=1", timeout=60)
    ran.assert_outcomes(failed=1)
    ran.stderr.fnmatch_lines(
        ["*::test_hangs took over 1 s; its threads:", "*, line 4 in test_hangs"]
    )


def test_no_example_has_a_deadline() -> None:
    """Of `hypothesis`: 0.2 s, which a process that waits for a core may need."""
    assert settings().deadline is None


def test_a_constant_that_a_test_leaves_changed_is_found_and_changed_back() -> None:
    was = lines._PATIENCE
    vars(lines)["_PATIENCE"] = was + 1
    assert constants.restore_changed() == ["redislink.transport.lines._PATIENCE"]
    assert was == lines._PATIENCE
    assert constants.restore_changed() == []
