"""What a driver may ask of workers with a policy, and what it must not get: one line for each.

Runs under ``redislink mplang run``, with a cluster file of alice and bob. The argument is a
directory with ``open.csv``, which the policy opens, and ``secret.csv``, which it does not.
"""

import sys
from pathlib import Path

import jax.numpy as jnp
import mplang as mp
from mplang.dialects import store, table
from mplang.edsl.typing import TableType, i64

FILES = Path(sys.argv[1])
SPEC = mp.ClusterSpec.from_dict(
    {
        "nodes": [{"name": n, "endpoint": f"{n}:1"} for n in ("alice", "bob")],
        "devices": {
            "SP0": {
                "kind": "SPU",
                "members": ["alice", "bob"],
                "config": {"protocol": "SEMI2K", "field": "FM128"},
            },
            "P0": {"kind": "PPU", "members": ["alice"]},
            "P1": {"kind": "PPU", "members": ["bob"]},
        },
    }
)
SCHEMA = TableType({"a": i64})


def read(path):
    """A table of alice's, as numbers."""
    rows = mp.device("P0")(lambda: table.read(str(path), schema=SCHEMA, format="csv"))()
    return mp.device("P0")(lambda t: table.table2tensor(t, number_rows=2))(rows)


def sql(query):
    """A query on a table that alice has anyway."""
    given = mp.device("P0")(lambda: table.constant({"a": [1, 2]}))()
    rows = mp.device("P0")(lambda t: table.run_sql(query, out_type=SCHEMA, t=t))(given)
    return mp.device("P0")(lambda t: table.table2tensor(t, number_rows=1))(rows)


def save():
    """A value to alice's disk."""
    return mp.device("P0")(lambda x: store.save(x, "fs://kept"))(mp.put("P0", 1))


def call_out():
    """A call out of compiled code that is none of LAPACK's."""
    import jax
    import numpy as np

    def peek(x):
        return jax.pure_callback(lambda v: np.asarray(v), jax.ShapeDtypeStruct((), x.dtype), x)

    return mp.device("P0").jax(peek)(mp.put("P0", jnp.float32(1)))


def product():
    """Both parties' numbers on an SPU."""
    x = mp.put("P0", jnp.array([1.0, 2.0]))
    y = mp.put("P1", jnp.array([3.0, 4.0]))
    return mp.put("P0", mp.device("SP0")(lambda a, b: jnp.dot(a, b))(x, y))


def try_one(name, work):
    """Say what came of it."""
    try:
        value = mp.fetch(mp.evaluate(work))
    except Exception as error:  # noqa: BLE001 - it is what is looked at
        line = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"{name} | NOT | {line}", flush=True)
    else:
        print(f"{name} | GOT | {str(value)!r}", flush=True)


def main():
    """Try all."""
    mp.set_root_context(mp.make_simulator(2, cluster_spec=SPEC))
    try_one("product", product)
    try_one("open table by path", lambda: read(FILES / "open.csv"))
    try_one("open table by name", lambda: read("patients"))
    try_one("secret table", lambda: read(FILES / "secret.csv"))
    try_one("sql on a table", lambda: sql("select cast(sum(a) as bigint) as a from t"))
    try_one("sql on a file", lambda: sql(f"select a from read_csv('{FILES / 'secret.csv'}'), t"))
    try_one("save", save)
    try_one("call out", call_out)
    try_one("product again", product)


if __name__ == "__main__":
    main()
