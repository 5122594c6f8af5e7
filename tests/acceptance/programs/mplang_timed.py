"""A program of MPLang that says how long each kind of work takes, as one line of JSON.

It knows nothing of redislink: its cluster is that of ``mplang.cli up``.
"""

import json
import sys
import time

import jax.numpy as jnp
import mplang as mp
from mplang.dialects import simp
from mplang.edsl.context import push_context

PORT = int(sys.argv[1])
NODES = ["alice", "bob"]
SPEC = mp.ClusterSpec.from_dict(
    {
        "nodes": [{"name": n, "endpoint": f"127.0.0.1:{PORT + i}"} for i, n in enumerate(NODES)],
        "devices": {
            "SP0": {
                "kind": "SPU",
                "members": NODES,
                "config": {"protocol": "SEMI2K", "field": "FM128"},
            },
            "P0": {"kind": "PPU", "members": ["alice"]},
            "P1": {"kind": "PPU", "members": ["bob"]},
        },
    }
)


def dot():
    """Shares of both parties, a product, and the result in clear."""
    x = mp.put("P0", jnp.arange(100, dtype=jnp.float32))
    y = mp.put("P1", jnp.arange(100, dtype=jnp.float32))
    return mp.put("P0", mp.device("SP0")(lambda a, b: jnp.dot(a, b))(x, y))


def chain():
    """Fifty steps, each a request of its own."""
    x = mp.put("P0", 0)
    for _ in range(50):
        x = mp.device("P0").jax(lambda a: a + 1)(x)
    return x


def large():
    """3 MiB from one party to the other."""
    return mp.put("P1", mp.put("P0", jnp.zeros(3 << 18, dtype=jnp.float32)))


def timed(work, times):
    """Seconds of each run after the first, which compiles; and what the last one gave."""
    seconds = []
    for _ in range(times + 1):
        began = time.perf_counter()
        value = mp.fetch(mp.evaluate(work))
        seconds.append(time.perf_counter() - began)
    return sorted(seconds[1:]), value


def main():
    """Run all, and say so."""
    driver = simp.make_driver(
        [f"http://127.0.0.1:{PORT + i}" for i in range(len(NODES))], cluster_spec=SPEC
    )
    push_context(driver)
    said = {}
    for name, work, times in (
        ("dot, a request for each step", dot, 5),
        ("dot, one graph", mp.function(dot), 10),
        ("50 steps", chain, 3),
        ("3 MiB", large, 5),
    ):
        seconds, value = timed(work, times)
        said[name] = {"seconds": seconds, "median": seconds[len(seconds) // 2]}
        if "dot" in name:
            value = value[0] if isinstance(value, list) else value
            assert abs(float(value) - 328350) < 1, value
    print("TIMES " + json.dumps(said), flush=True)
    driver.get_dialect_state("simp").shutdown()


if __name__ == "__main__":
    main()
