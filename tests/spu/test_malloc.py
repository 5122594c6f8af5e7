"""What malloc keeps is counted in page faults, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from redislink import RedisLinkSettings
from redislink.spu import create_link
from redislink.spu.malloc import keep_freed_memory
from tests.conftest import make_cluster, quick_settings

SIZE = 8 << 20
TIMES = 20
PROGRAM = f"""
import resource, sys
from redislink.spu.malloc import keep_freed_memory
kept = keep_freed_memory(int(sys.argv[1]))
copies = [b"x" * {SIZE} for _ in range(3)]  # glibc adapts to what is freed, but not to so much
del copies
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({TIMES}):
    copies = [b"x" * {SIZE} for _ in range(3)]
    del copies
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(most: int) -> tuple[bool, int]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(most)], capture_output=True, text=True, check=True
    )
    kept, count = done.stdout.split()
    return kept == "True", int(count)


def test_a_copy_finds_the_pages_of_the_one_before() -> None:
    assert faults(64 << 20)[0]
    pages = 3 * SIZE // 4096 * TIMES
    assert faults(0) == (False, pytest.approx(pages, rel=0.9))
    assert faults(64 << 20)[1] < pages / 20


def test_by_default_memory_is_kept() -> None:
    default = RedisLinkSettings.model_fields["kept_memory_bytes"].default
    assert faults(default)[1] < SIZE // 4096


def test_where_malloc_is_not_glibcs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    assert not keep_freed_memory(1 << 20)


def test_a_link_keeps_as_much_as_the_setting_says(monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked(Exception):
        pass

    def keep(most: int) -> None:
        raise Asked(most)

    monkeypatch.setattr("redislink.spu.link.keep_freed_memory", keep)
    settings = quick_settings(kept_memory_bytes=12_345)
    cluster = make_cluster("redis://127.0.0.1:1")
    with pytest.raises(Asked, match="12345"):
        create_link("SEMI2K", cluster=cluster, party="alice", mode="mem", settings=settings)
