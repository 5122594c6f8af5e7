"""alice is killed, while bob waits for her inside SPU: python spu_peer_dies.py PARTY PORT,PORT."""

import os
import signal
import sys

from spu import libspu

PARTIES = ("alice", "bob")
party, ports = sys.argv[1], sys.argv[2].split(",")
desc = libspu.link.Desc()
desc.recv_timeout_ms = 600_000
for name, port in zip(PARTIES, ports, strict=False):
    desc.add_party(name, f"127.0.0.1:{port}")
link = libspu.link.create_brpc(desc, PARTIES.index(party))
link.all_gather(party)
if party == "alice":
    os.kill(os.getpid(), signal.SIGKILL)
link.recv(0)
