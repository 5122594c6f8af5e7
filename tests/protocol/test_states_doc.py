"""docs/protocol.md is drawn from the code, and names what the code has."""

import re
import runpy
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from redislink.protocol import frame
from redislink.protocol.states import TABLE, Event, State

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "protocol.md").read_text(encoding="utf-8")
KINDS = (
    frame.Hello,
    frame.Data,
    frame.Ack,
    frame.Probe,
    frame.Heartbeat,
    frame.Abort,
    frame.Fin,
    frame.Sealed,
    frame.Fragment,
    frame.Move,
)


def check_drawing(docs: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(docs / "draw_states.py"), "--check"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_table_is_whole():
    assert TABLE.keys() == set(State)
    assert all(row.keys() == set(Event) for row in TABLE.values())
    for final in (State.CLOSED, State.FAILED):
        assert set(TABLE[final].values()) == {final}


def test_the_drawing_is_up_to_date():
    result = check_drawing(DOCS)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("old", "new"), [("CLOSING", "CLOSED"), ("<!-- end of drawing -->", ""), ("```mermaid", "")]
)
def test_a_drawing_that_is_not_is_noticed(tmp_path, monkeypatch, old, new):
    (tmp_path / "protocol.md").write_text(PAGE.replace(old, new), encoding="utf-8")
    program = tmp_path / "draw_states.py"
    program.write_text((DOCS / "draw_states.py").read_text())
    monkeypatch.setattr(sys, "argv", [str(program), "--check"])
    # Both end the program with code 1: that it is seen at all, and that it cannot be redrawn.
    with pytest.raises((SystemExit, ValueError), match=r"is not up to date|needs the lines"):
        runpy.run_path(str(program), run_name="__main__")


def test_every_arrow_is_drawn():
    for state, row in TABLE.items():
        for event, target in row.items():
            arrow = rf"    {state.name} --> {target.name}: .*{re.escape(event.value)}"
            assert bool(re.search(arrow, PAGE)) is (state is not target)


def test_the_page_names_every_kind_and_field():
    assert len(KINDS) == len(frame.FrameKind)
    for kind in KINDS:
        named = ", ".join(f"`{field.name}`" for field in fields(kind))
        assert f"| {kind.kind.name} | {kind.kind.value} | {named} |" in PAGE
    assert f"at most {frame.MAX_HEADER_BYTES}" in PAGE
    assert f"at most {frame.MAX_ACK_RANGES}" in PAGE
