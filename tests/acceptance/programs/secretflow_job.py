"""A job of SecretFlow 1.14 in production mode: PYU objects of both parties, an SPU, PSI, reveals.

python secretflow_job.py PARTY PORT,PORT,PORT,PORT BACKEND
"""

import json
import sys
import time

import numpy as np
import secretflow as sf

party, ports, backend = sys.argv[1], sys.argv[2].split(","), sys.argv[3]
addresses = [f"127.0.0.1:{port}" for port in ports]
began = time.perf_counter()
sf.init(
    ray_mode=False,
    job_name="acceptance",
    logging_level="warning",
    cross_silo_comm_backend=backend,
    cluster_config={
        "parties": {
            "alice": {"address": addresses[0], "listen_addr": addresses[0]},
            "bob": {"address": addresses[1], "listen_addr": addresses[1]},
        },
        "self_party": party,
    },
)
alice, bob = sf.PYU("alice"), sf.PYU("bob")
device = sf.SPU(
    {
        "nodes": [
            {"party": "alice", "address": addresses[2]},
            {"party": "bob", "address": addresses[3]},
        ],
        "runtime_config": {"protocol": "SEMI2K", "field": "FM64"},
    }
)
x = alice(lambda: np.arange(6, dtype=np.float32))()
y = bob(lambda: np.full(6, 3.0, dtype=np.float32))()
passed = [sf.reveal(bob(lambda value: value + 1)(x.to(bob)))[5] == 6]
inner = device(lambda a, b: (a * b).sum())(x.to(device), y.to(device))
passed.append(abs(sf.reveal(inner) - 45.0) < 0.01)
passed.append(abs(sf.reveal(alice(lambda value: value * 2)(inner.to(alice))) - 90.0) < 0.01)
big = alice(lambda: np.arange(3 << 17, dtype=np.float64))()
passed.append(
    sf.reveal(bob(lambda value: value.sum())(big.to(bob))) == (3 << 17) * ((3 << 17) - 1) / 2
)


def steps(a, b):
    """Twenty steps of a linear regression with one weight."""
    weight = 0.0
    for _ in range(20):
        weight = weight - 0.02 * ((a * weight - b) * a).mean()
    return weight


weight = sf.reveal(device(steps)(x.to(device), y.to(device)))
passed.append(0.5 < weight < 1.5)
seconds = time.perf_counter() - began
print(json.dumps({"passed": int(sum(passed)), "total": len(passed), "job": seconds}), flush=True)
sf.shutdown()
