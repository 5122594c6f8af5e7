"""A party that waits for what never comes, or that fails; see `tests.support.spreading`.

Run by ``redislink run``. Roles: ``wait`` receives from the first other party; ``litter`` first
sends everybody what nobody takes; ``raise`` waits too, until SIGUSR1 makes it raise;
``hold`` and ``hold-announced`` keep the GIL from SIGUSR1 on, as compiling does, and then
send everybody what they wait for.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import signal
import threading
import time
from pathlib import Path
from typing import Any

import redislink

TAG = "what never comes"
SECRET = "data that nobody else may see"


def main() -> None:
    """Play the role."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--role", required=True)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--report", type=Path, required=True)
    options = parser.parse_args()

    def report(event: str, **more: Any) -> None:
        with options.report.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "at": time.monotonic()} | more) + "\n")

    asked = threading.Event()

    def on_signal(_number: int, _frame: object) -> None:
        asked.set()
        if options.role == "raise":
            raise RuntimeError(SECRET)

    signal.signal(signal.SIGUSR1, on_signal)
    with redislink.connect() as endpoint:
        others = [name for name in endpoint.cluster.party_names if name != endpoint.party]
        if options.role == "litter":
            for other in others:
                for number in range(5):
                    endpoint.send(other, f"unread {number}", bytes(1000))
            endpoint.flush()
        if options.role.startswith("hold"):
            report("blocks")
            asked.wait()
            if options.role == "hold-announced":
                with endpoint.announce_silence():
                    threading.Event().wait(0.3)  # heartbeats and acks go on for a while
                    hold_gil(options.seconds)
            else:
                hold_gil(options.seconds)
            report("held")
            for other in others:
                endpoint.send(other, TAG, b"after a silence")
            return
        try:
            report("blocks")  # the signal may come from here on
            endpoint.recv(others[0], TAG)
        except Exception as error:
            report("raised", type=type(error).__name__, text=str(error))
            raise
        report("received")


def hold_gil(seconds: float) -> None:
    """No other thread of this process runs meanwhile."""
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))


if __name__ == "__main__":
    main()
