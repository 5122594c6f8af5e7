"""A driver that says READY and then waits: for a graph that never ends (``computes``), or asleep.

Runs under ``redislink mplang run``, with a cluster file of alice and bob.
"""

import sys
import time

import jax
import jax.numpy as jnp
import mplang as mp

SPEC = mp.ClusterSpec.from_dict(
    {
        "nodes": [{"name": n, "endpoint": f"{n}:1"} for n in ("alice", "bob")],
        "devices": {
            "P0": {"kind": "PPU", "members": ["alice"]},
            "P1": {"kind": "PPU", "members": ["bob"]},
        },
    }
)


def for_ever():
    """On bob's processor, for days. A loop without end that has no effect would be left out."""

    def spin(x):
        return jax.lax.fori_loop(0, 2**31 - 1, lambda _, v: jnp.sin(v) + 1, x)

    return mp.device("P1").jax(spin)(mp.put("P1", jnp.arange(10_000, dtype=jnp.float32)))


def main():
    """One small graph, and then what is asked for."""
    mp.set_root_context(mp.make_simulator(2, cluster_spec=SPEC))
    assert mp.fetch(mp.evaluate(lambda: mp.put("P1", 5))) == 5
    print("READY", flush=True)
    if sys.argv[1] == "computes":
        mp.evaluate(for_ever)
    time.sleep(600)


if __name__ == "__main__":
    main()
