"""Measures what SPU's protocols cost, for the table of ``docs/which-protocol.md``.

    python docs/measure_protocols.py

Prints what an operation costs, the mean of many after a first one: the processor time of all
members together, who are threads of one process, and what one member sends, which says what a
network adds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from redislink import ClusterSpec, Session, Simulator

NAMES = ("alice", "bob", "carol")
PROTOCOLS = (("CHEETAH", 2), ("ABY3", 3), ("SECURENN", 3), ("SEMI2K", 2), ("SEMI2K", 3))
COUNT = 1_000
ROUNDS = 20


def operations() -> dict[str, Callable[[Any], Any]]:
    """By what each is called in the table."""
    return {
        f"{COUNT:,} products": lambda x: x * x,
        f"{COUNT:,} comparisons": lambda x: x < 0,
        f"{COUNT:,} logistic functions": jax.nn.sigmoid,
        "matrix product 30 by 30": lambda x: jnp.matmul(
            x[:900].reshape(30, 30), x[:900].reshape(30, 30)
        ),
    }


def program(session: Session) -> dict[str, tuple[float, float, float]]:
    """Seconds of all, bytes and messages of one member, of each operation."""
    sp = session.spu("SP0")
    x = sp.private(lambda: np.linspace(-3, 3, COUNT, dtype=np.float32), owner="alice")
    found = {}
    for name, function in operations().items():
        compute, taken = sp.run(function), []
        compute(x)  # compiled, and what a protocol prepares once
        before = session.stats()
        for _ in range(ROUNDS):
            _meet(session)
            start = time.process_time()
            compute(x)
            _meet(session)
            taken.append(time.process_time() - start)
        after = session.stats()
        sent = (after.bytes_sent - before.bytes_sent) / ROUNDS
        messages = (after.messages_sent - before.messages_sent) / ROUNDS
        messages -= 2 * (session.world_size - 1)  # of meeting
        found[name] = (statistics.mean(taken), sent, messages)
    return found


def _meet(session: Session) -> None:
    others = [party for party in session.party_names if party != session.party]
    for party in others:
        session.communicator.send(party, "here", None)
    for party in others:
        session.communicator.recv(party, "here")


def main() -> None:
    """Measure, and print the rows."""
    for protocol, count in PROTOCOLS:
        names = list(NAMES[:count])
        device = {"kind": "SPU", "members": names, "config": {"protocol": protocol}}
        spec = ClusterSpec.parse({"session": "s", "parties": names, "devices": {"SP0": device}})
        found = Simulator(spec).run(program)
        for name in operations():
            rows = [told[name] for told in found.values()]
            seconds = max(row[0] for row in rows)
            sent = sum(row[1] for row in rows) / count
            messages = sum(row[2] for row in rows) / count
            print(
                f"{protocol:9}{count}  {name:28}{seconds * 1000:9.1f} ms"
                f"{sent / 1e6:10.3f} MB{messages:8.1f} messages",
                flush=True,
            )


if __name__ == "__main__":
    main()
