"""A session sends the commands that docs/broker.md lists, and no others: MONITOR has seen it."""

import re
import threading
from collections import Counter
from pathlib import Path

import pytest

from redislink.broker import Broker
from tests.conftest import join, make_cluster, run_parties
from tests.support.groups import ClusterGroup

DOCS = Path(__file__).resolve().parents[2] / "docs" / "broker.md"
_SEEN = re.compile(rb'\d+\.\d+ \[\d+ [^\]]*\] "([^"]*)"(?: "([^"]*)")?')
_END = b"the end of what is watched"
SIZES = (1, 5_000, 12_000)
"""MONITOR says each byte in up to four characters, all in one line."""


def listed():
    """The first column of the table, in capitals."""
    section = DOCS.read_text().split("## Commands used")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `([A-Z ]+)` \|", section, re.MULTILINE))


class Watch:
    """Every command that a server gets, from now until `end`."""

    def __init__(self, broker):
        self._broker = broker
        self._monitor = broker.open()
        assert self._monitor.execute(b"MONITOR", timeout=5) == b"OK"
        self.commands = Counter()
        self._whole = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def end(self):
        self._broker.open().execute(b"ECHO", _END, timeout=5)
        self._thread.join(20)
        assert self._whole
        self._monitor.close()
        return self.commands

    def _read(self):
        while True:
            seen = _SEEN.match(self._monitor.read(20))
            verb, first = seen[1].upper().decode(), seen[2]
            if first == _END:
                self._whole = True
                return
            self.commands[f"{verb} {first.decode().upper()}" if verb == "CLUSTER" else verb] += 1


def hold_session(url):
    """All that a session does: messages of all sizes, a look without waiting, a close, an abort."""
    cluster = make_cluster(url)
    alice, bob, carol = join(cluster, chunk_bytes=4096)

    def send(party):
        for size in SIZES:
            party.send("bob", "t", b"x" * size).wait(10)

    def receive():
        assert not bob.has_message("alice", "none")
        for peer in ("alice", "carol"):
            assert [len(bob.recv(peer, "t")) for _ in range(3)] == list(SIZES)

    run_parties(lambda: send(alice), lambda: send(carol), receive)
    run_parties(alice.close, bob.close, lambda: carol.abort("as a test"))


@pytest.mark.slow
def test_on_a_cluster():
    with ClusterGroup() as group:
        broker = Broker(group.url)
        watches = [Watch(broker.on(address)) for address in broker.addresses()]
        hold_session(group.url)
        seen = [set(watch.end()) - {"AUTH"} for watch in watches]
    assert set.union(*seen) <= listed()
    assert "CLUSTER SLOTS" in set.union(*seen)
