"""What malloc keeps is counted in page faults, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from redislink import RedisLinkSettings
from redislink.spu import create_link, malloc
from redislink.spu.channel import RelayChannel
from redislink.spu.malloc import keep_freed_memory
from tests.conftest import join, make_cluster, quick_settings, run_parties

SIZE = 8 << 20
LARGE = 40 << 20
TIMES = 8
# The module alone, since to import SPU takes longer than all of it.
PROGRAM = f"""
import resource, sys
sys.path.insert(0, {str(Path(malloc.__file__).parent)!r})
from malloc import keep_freed_memory, keep_large_blocks
most, size, large = map(int, sys.argv[1:])
kept = keep_freed_memory(most)
if large:
    keep_large_blocks(large)
copies = [b"x" * size for _ in range(3)]  # glibc adapts to what is freed, but not to so much
del copies
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({TIMES}):
    copies = [b"x" * size for _ in range(3)]
    del copies
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(most: int, size: int = SIZE, large: int = 0) -> tuple[bool, int]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, (most, size, large))],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
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


@pytest.mark.parametrize(("most", "is_kept"), [(256 << 20, True), (LARGE - 1, False)])
def test_large_blocks_are_kept_from_the_first_large_message_on(most: int, is_kept: bool) -> None:
    """Unless one alone is more than may be kept."""
    pages = 3 * LARGE // 4096 * TIMES
    assert (faults(most, LARGE, large=LARGE)[1] < pages / 20) is is_kept


def test_a_channel_says_how_large_its_messages_are(monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[int] = []
    monkeypatch.setattr("redislink.spu.channel.keep_large_blocks", noted.append)
    monkeypatch.setattr("redislink.spu.channel.LARGE_BYTES", 100)
    alice, bob = join(make_cluster("fakeredis://large-messages", 2))
    sends, receives = RelayChannel(alice, "bob", "L/", 20), RelayChannel(bob, "alice", "L/", 20)
    for size in (100, 101):
        sends.SendAsync(f"k{size}", b"x" * size)
        assert receives.Recv(f"k{size}") == b"x" * size
    assert noted == [101, 101]
    run_parties(alice.close, bob.close)


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
