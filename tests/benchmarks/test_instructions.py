"""What benchmarks/instructions.py counts runs, a few times and without valgrind."""

from __future__ import annotations

import subprocess
import sys

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
