"""A crash, a full disk or an error at each request to the disk: never a wrong body, none lost."""

from __future__ import annotations

import contextlib
import errno
import os
import random
from collections import Counter

import pytest

from redislink.journal import JournalStore, describe, drop, find_journals, store
from redislink.journal import format as layout
from tests.journal import program
from tests.journal.memory_disk import Crash, MemoryDisk
from tests.journal.program import BINDING, DIRECTORY, IDENTITY

CASES = 800
ERRORS = 100
GROUPS = 4
BODIES = [b"one", b"two"]


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


def test_a_kill_before_a_compaction_is_on_the_disk_and_a_crash_after_it() -> None:
    compactions = 0
    for seed in range(8):
        a_program = program.Program(seed)
        a_program.run()
        requests = a_program.disk.requests
        for place in range(1, len(requests) - 1):
            if requests[place - 1 : place + 2] == ["rename", "sync_directory", "unlink"]:
                compactions += 1
                for then in range(6, 12):
                    for luck in range(3):
                        program.killed_and_then_without_power(seed, place + 1, then, luck)
    assert compactions >= 4


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_an_error_at_every_request(code: int) -> None:
    errors = 0
    for seed, request in program.cases(ERRORS):
        try:
            errors += program.fail_and_go_on(
                seed, request, lambda: OSError(code, os.strerror(code))
            )
        except Exception as error:
            raise AssertionError(f"program {seed}, request {request}: {error}") from error
    assert errors > ERRORS * 3 // 4


def _with_entries(disk: MemoryDisk) -> None:
    a_store = JournalStore.open(DIRECTORY, BINDING, IDENTITY, disk=disk)
    for body in BODIES:
        a_store.append(body, [[body]])
    a_store.close()


def _found(disk: MemoryDisk) -> list[bytes]:
    a_store = JournalStore.open(DIRECTORY, BINDING, IDENTITY, disk=disk)
    found = [a_store.read(entry.blobs[0]) for entry in a_store.entries()]
    a_store.close()
    return found


@pytest.mark.parametrize("power_lost", [False, True])
def test_a_crash_while_one_is_put_aside_loses_none(power_lost: bool) -> None:
    outcomes = set()
    for request in range(1, 30):
        disk = MemoryDisk(random.Random(request))
        _with_entries(disk)
        disk.inject = program.after(request, Crash)
        with contextlib.suppress(Crash):
            JournalStore.open(DIRECTORY, BINDING, IDENTITY, fresh=True, disk=disk)
        disk.inject = lambda request: None
        disk.restart(power_lost=power_lost)
        found = _found(disk)
        aside = [path for path in find_journals(DIRECTORY, disk=disk) if "aside" in path.name]
        if found == []:
            (old,) = aside
            found = [entry.body for entry in describe(old, IDENTITY, disk=disk).entries]
            outcomes.add("aside")
        else:
            assert aside == []
            outcomes.add("in place")
        assert found == BODIES
    assert outcomes == {"aside", "in place"}


@pytest.mark.parametrize("power_lost", [False, True])
def test_a_crash_while_one_is_dropped_leaves_all_or_nothing(power_lost: bool) -> None:
    outcomes = set()
    for request in range(1, 15):
        disk = MemoryDisk(random.Random(request))
        _with_entries(disk)
        disk.inject = program.after(request, Crash)
        with contextlib.suppress(Crash):
            drop(DIRECTORY / BINDING.name, disk=disk)
        disk.inject = lambda request: None
        disk.restart(power_lost=power_lost)
        outcomes.add(tuple(_found(disk)))
    assert outcomes == {(), tuple(BODIES)}
