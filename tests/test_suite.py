"""What lets the tests run in several processes at once."""

from __future__ import annotations

import execnet
import pytest
from hypothesis import settings


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


def test_no_example_has_a_deadline() -> None:
    """Of `hypothesis`: 0.2 s, which a process that waits for a core may need."""
    assert settings().deadline is None
