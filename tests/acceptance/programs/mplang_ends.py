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
    """On bob's processor."""
    spin = lambda x: jax.lax.while_loop(lambda v: v < 2, lambda v: v * 1.0, x)  # noqa: E731
    return mp.device("P1").jax(spin)(mp.put("P1", jnp.float32(1)))


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
