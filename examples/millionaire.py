"""Who is richest? Each party types in its own wealth; nobody learns anybody else's.

What is revealed: to every party of the session, which party is richest (of equals, the first in
the cluster file). Not how rich, not by how much, not who comes next.

In one terminal per party, or all at once on one machine::

    redislink run --cluster cluster.yaml --party alice millionaire.py --wealth 1000000
    redislink simulate --for "alice --wealth 3" --for "bob --wealth 5" --for "carol --wealth 4" \\
        millionaire.py
"""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from redislink import Session

MOST = 2**61
"""Largest wealth either way: the ring has 64 bits, and differences must fit too."""


def richest(*wealths: jax.Array) -> jax.Array:
    """Index of the largest of some scalars; of equals, the first.

    Not ``jnp.argmax``: for 64-bit integers it begins at the smallest there is, and what is then
    compared does not fit into the ring.
    """
    most, index = wealths[0], jnp.asarray(0)
    for i, wealth in enumerate(wealths):
        is_more = wealth > most
        most, index = jnp.where(is_more, wealth, most), jnp.where(is_more, i, index)
    return index


def main(session: Session, wealth: int, device: str = "SP0") -> str:
    """Find out who is richest.

    Args:
        session: of all parties.
        wealth: this party's, in whole units of one currency; not used if it is no member.
        device: the SPU device whose members compare themselves; two of them, or three, or more.

    Returns:
        Name of the richest member.
    """
    if abs(wealth) > MOST:
        raise ValueError(f"a wealth of {wealth} does not fit: give at most {MOST}")
    sp = session.spu(device)
    wealths = [sp.private(lambda: np.int64(wealth), owner=member) for member in sp.members]
    index = sp.reveal(sp.run(richest)(*wealths), to=session.party_names)
    return sp.members[int(index)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Who is richest?")
    parser.add_argument("--wealth", type=int, required=True, help="yours; it stays with you")
    parser.add_argument("--device", default="SP0", help="SPU device whose members take part")
    options = parser.parse_args()
    with Session.join() as own_session:
        winner = main(own_session, options.wealth, options.device)
        print(f"{winner} is the richest")
