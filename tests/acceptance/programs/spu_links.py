"""A program written for SPU's own links: it makes three, computes, and says how long it took.

python spu_links.py PARTY PORT,PORT,… [BYTES]
"""

import hashlib
import json
import sys
import time

import numpy as np
import spu
import spu.utils.frontend as frontend
from spu import libspu

PARTIES = ("alice", "bob")
party, ports = sys.argv[1], sys.argv[2].split(",")
large = int(sys.argv[3]) if len(sys.argv) > 3 else 0
rank = PARTIES.index(party)
other = 1 - rank
passed = []


def make_link(first_port):
    desc = libspu.link.Desc()
    desc.recv_timeout_ms = 120_000
    for name, port in zip(PARTIES, ports[first_port:], strict=False):
        desc.add_party(name, f"127.0.0.1:{port}")
    return libspu.link.create_brpc(desc, rank)


def send_share(link, share):
    link.send(other, bytes(share.meta))
    link.send(other, str(len(share.share_chunks)))
    for chunk in share.share_chunks:
        link.send(other, chunk)


def recv_share(link):
    share = libspu.Share()
    share.meta = link.recv(other)
    share.share_chunks = [link.recv(other) for _ in range(int(link.recv(other)))]
    return share


def multiply(link):
    """The inner product of alice's and bob's vectors."""
    config = libspu.RuntimeConfig()
    config.protocol, config.field = libspu.ProtocolKind.SEMI2K, libspu.FieldType.FM64
    runtime, io = spu.Runtime(link, config), spu.Io(2, config)
    values = np.arange(4, dtype=np.float32), np.full(4, 2.5, dtype=np.float32)
    secret = libspu.Visibility.VIS_SECRET
    for owner, name in enumerate("xy"):
        if rank == owner:
            shares = io.make_shares(values[owner], secret, owner)
            send_share(link, shares[other])
            runtime.set_var(name, shares[rank])
        else:
            runtime.set_var(name, recv_share(link))
    program, _ = frontend.compile(
        frontend.Kind.JAX,
        lambda x, y: (x * y).sum(),
        values,
        {},
        ["x", "y"],
        [secret] * 2,
        lambda _: ["z"],
    )
    runtime.run(program)
    mine = runtime.get_var("z")
    send_share(link, mine)
    theirs = recv_share(link)
    return float(io.reconstruct([mine, theirs] if rank == 0 else [theirs, mine]))


link = make_link(0)
versions = link.all_gather(spu.__version__)
passed.append(versions[rank] == spu.__version__)

began = time.perf_counter()
passed.append(all(link.all_gather(party) == list(PARTIES) for _ in range(20)))
gathers = time.perf_counter() - began

block = "redislink"[:8] * (3 << 17)
began = time.perf_counter()
passed.append(link.all_gather(block) == [block] * 2)
mebibytes = time.perf_counter() - began

passed.append(multiply(link) == 15.0)
nested = make_link(2)
passed.append(nested.all_gather("nested") == ["nested"] * 2 and link.all_gather("") == [""] * 2)
nested.stop_link()
del nested  # SPU's own link listens until then
again = make_link(2)
passed.append(again.all_gather("again") == ["again"] * 2)
again.stop_link()

seconds = 0.0
if large:
    began = time.perf_counter()
    if rank == 0:
        message = np.random.default_rng(7).bytes(large)
        link.send(other, message)
        passed.append(link.recv(other) == hashlib.sha256(message).digest())
    else:
        message = link.recv(other)
        link.send(other, hashlib.sha256(message).digest())
        passed.append(len(message) == large)
    seconds = time.perf_counter() - began
link.stop_link()
print(
    json.dumps(
        {
            "passed": sum(passed),
            "total": len(passed),
            "versions": versions,
            "20 all_gathers": gathers,
            "3 MiB": mebibytes,
            "large": seconds,
        }
    ),
    flush=True,
)
