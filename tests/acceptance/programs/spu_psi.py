"""A private set intersection over SPU's link: python spu_psi.py PARTY PORT,PORT."""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

from spu import libspu, psi

PARTIES = ("alice", "bob")
party, ports = sys.argv[1], sys.argv[2].split(",")
rank = PARTIES.index(party)
desc = libspu.link.Desc()
desc.recv_timeout_ms = 120_000
for name, port in zip(PARTIES, ports, strict=False):
    desc.add_party(name, f"127.0.0.1:{port}")
link = libspu.link.create_brpc(desc, rank)
with tempfile.TemporaryDirectory() as directory:
    os.chdir(directory)
    mine, found = Path(directory, "mine.csv"), Path(directory, "found.csv")
    ids = range(1000) if rank == 0 else range(600, 1600)
    mine.write_text("id\n" + "".join(f"patient {number}\n" for number in ids))
    began = time.perf_counter()
    psi.psi_execute(
        psi.PsiExecuteConfig(
            protocol_conf=psi.PsiProtocolConfig(
                protocol=psi.PsiProtocol.PROTOCOL_ECDH,
                receiver_rank=0,
                ecdh_params=psi.EcdhParams(curve=psi.EllipticCurveType.CURVE_25519),
                broadcast_result=True,
            ),
            input_params=psi.InputParams(
                type=psi.SourceType.SOURCE_TYPE_FILE_CSV,
                path=str(mine),
                selected_keys=["id"],
                keys_unique=True,
            ),
            output_params=psi.OutputParams(
                type=psi.SourceType.SOURCE_TYPE_FILE_CSV, path=str(found), disable_alignment=True
            ),
        ),
        link,
    )
    seconds = time.perf_counter() - began
    rows = {line.strip('"') for line in found.read_text().split("\n")[1:] if line}
os.chdir("/")
print(
    json.dumps(
        {
            "passed": int(rows == {f"patient {number}" for number in range(600, 1000)}),
            "total": 1,
            "psi": seconds,
        }
    ),
    flush=True,
)
