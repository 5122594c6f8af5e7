"""A crash, a full disk or an error at each request to the disk: never a wrong body, none lost."""

from __future__ import annotations

import errno
import os
from collections import Counter

import pytest

from redislink.journal import format as layout
from redislink.journal import store
from tests.journal import program

CASES = 1000
GROUPS = 4


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few hundred bytes have pieces, compactions and many segments."""
    monkeypatch.setattr(layout, "PIECE_BYTES", 64)
    monkeypatch.setattr(store, "LEAST_WASTED", 400)
    monkeypatch.setattr(store, "MOST_SEGMENTS", 3)


def test_the_programs_reach_every_kind_of_request() -> None:
    reached: Counter[str] = Counter()
    for seed in range(20):
        a_program = program.Program(seed)
        a_program.run()
        reached.update(a_program.disk.requests)
    wanted = ("create", "write", "sync", "rename", "sync_directory", "unlink", "make_directory")
    assert all(reached[request] >= 20 for request in wanted), reached


@pytest.mark.parametrize("group", range(GROUPS))
def test_a_crash_at_every_request(group: int) -> None:
    for seed, request in program.cases(CASES)[group::GROUPS]:
        try:
            program.crash_and_go_on(seed, request)
        except Exception as error:
            raise AssertionError(f"program {seed}, request {request}: {error}") from error


def test_a_crash_between_a_new_name_and_its_sync_and_another_one() -> None:
    """At first only the process is killed, so its successor sees what is not on the disk yet."""
    for seed in range(6):
        a_program = program.Program(seed)
        a_program.run()
        requests = a_program.disk.requests
        for number, (request, before) in enumerate(zip(requests[1:], requests, strict=False), 2):
            if (before, request) == ("rename", "sync_directory"):
                for second in range(3, 10):
                    program.crash_and_go_on(seed, number, second, power_lost=False)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_an_error_at_every_request(code: int) -> None:
    errors = 0
    for seed, request in program.cases(CASES // 10):
        try:
            errors += program.fail_and_go_on(
                seed, request, lambda: OSError(code, os.strerror(code))
            )
        except Exception as error:
            raise AssertionError(f"program {seed}, request {request}: {error}") from error
    assert errors > 80
