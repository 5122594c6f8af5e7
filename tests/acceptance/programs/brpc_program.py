"""A program of three parties that knows brpc and nothing of redislink.

Usage: brpc_program.py RANK ADDRESS ADDRESS ADDRESS. Prints what it computed and how long it took.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import spu
from spu import libspu
from spu.utils import frontend

NAMES = ("alice", "bob", "carol")
GATHERS = 20
LARGE = 3 << 20


def make_link(rank: int, addresses: list[str]) -> libspu.link.Context:
    """This party's end."""
    desc = libspu.link.Desc()
    desc.id = "hospitals"
    for name, address in zip(NAMES, addresses, strict=True):
        desc.add_party(name, address)
    return libspu.link.create_brpc(desc, rank)


def add_up(link: libspu.link.Context, rank: int) -> list[int]:
    """Each party's column, added up under ABY3."""
    config = libspu.RuntimeConfig(protocol=libspu.ProtocolKind.ABY3, field=libspu.FieldType.FM64)
    runtime, io = spu.Runtime(link, config), spu.Io(3, config)
    names = [f"x{n}" for n in range(3)]
    secret = [libspu.Visibility.VIS_SECRET] * 3
    zeros = [np.zeros(4, np.int32)] * 3
    executable, _ = frontend.compile(
        frontend.Kind.JAX, lambda x, y, z: x + y + z, zeros, {}, names, secret, lambda _: ["sum"]
    )
    mine = io.make_shares(np.arange(4, dtype=np.int32) * 10**rank, secret[0])
    for owner, name in enumerate(names):
        if owner == rank:
            for peer, share in enumerate(mine):
                if peer != rank:
                    link.send(peer, bytes(share.meta))
                    link.send(peer, b"".join(share.share_chunks))
            runtime.set_var(name, mine[rank])
        else:
            share = libspu.Share()
            share.meta, share.share_chunks = link.recv(owner), [link.recv(owner)]
            runtime.set_var(name, share)
    runtime.run(executable)
    return [int(value) for value in io.reconstruct(_shares(link, runtime.get_var("sum")))]


def _shares(link: libspu.link.Context, share: libspu.Share) -> list[libspu.Share]:
    # As text: that is what all_gather takes.
    metas = link.all_gather(bytes(share.meta).hex())
    chunks = link.all_gather(b"".join(share.share_chunks).hex())
    shares = []
    for meta, chunk in zip(metas, chunks, strict=True):
        each = libspu.Share()
        each.meta, each.share_chunks = bytes.fromhex(meta), [bytes.fromhex(chunk)]
        shares.append(each)
    return shares


def main() -> None:
    """Be one party."""
    rank = int(sys.argv[1])
    link = make_link(rank, sys.argv[2:])
    link.barrier()
    began = time.monotonic()
    for _ in range(GATHERS):
        link.all_gather("x")
    gathers = time.monotonic() - began
    began = time.monotonic()
    large = link.all_gather("x" * LARGE)
    sent = time.monotonic() - began
    assert [len(each) for each in large] == [LARGE] * 3
    print(json.dumps({"sum": add_up(link, rank), "gathers": gathers, "large": sent}), flush=True)
    link.stop_link()


if __name__ == "__main__":
    main()
