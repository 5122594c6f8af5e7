"""What benchmarks/instructions.py counts runs, a few times and without valgrind."""

from __future__ import annotations

import json
import subprocess
import sys
from unittest.mock import ANY

import pytest

from benchmarks import instructions, processes


@pytest.mark.parametrize("layer", ["core", "core-plain", "endpoints"])
def test_each_layer_plays_its_round_trips(layer: str, valkey) -> None:
    instructions.run(layer, 5, valkey.unix_url)


def test_the_counted_process_imports_little() -> None:
    """What it imports is counted, and thrown away, twice per figure."""
    command = processes.command("instructions", "--layer", "core", "--count", "3")
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command[1:]],
        env=processes.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "redislink.protocol.delivery" in done.stderr
    assert "redislink.broker" not in done.stderr


def test_imports_and_start_cancel_out() -> None:
    assert instructions.per_round_trip(500, lambda count: 10_000_000 + 1_234 * count) == 1_234


@pytest.mark.parametrize(
    ("counted", "is_good", "said"),
    [(100, True, "1.000 of the recorded 100"), (103, True, "1.030"), (104, False, "find what was")],
)
def test_more_than_a_little_growth_fails(counted: int, is_good: bool, said: str) -> None:
    found, text = instructions.judge(counted, "3.11.2", {"3.11.2": 100, "3.11.7": 200})
    assert found is is_good
    assert said in text


def test_an_interpreter_without_a_record_is_said() -> None:
    assert instructions.judge(100, "3.11.9", {"3.11.2": 50}) == (True, ANY)
    assert "none are recorded for Python 3.11.9" in instructions.judge(100, "3.11.9", {})[1]


def test_what_is_recorded_is_of_interpreters() -> None:
    recorded = json.loads(instructions.RECORD.read_text())
    assert all(name.startswith("3.11.") for name in recorded)
    assert all(10_000 < count < 200_000 for count in recorded.values())
