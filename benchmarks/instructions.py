"""Machine instructions of one round trip of a small message, both parties together.

A noisy machine times no two runs alike; instructions hardly vary. ``valgrind --tool=callgrind``
counts them, so it has to be installed. Each figure is the difference between a run of 2N round
trips and one of N, per round trip, so that imports and the start cancel out.

``python -m benchmarks.instructions`` measures three layers:

- ``core``: `Delivery` and codec of both parties, sealed, in one thread and without a broker.
- ``core-plain``: the same in clear, so that nothing of it is cryptography.
- ``endpoints``: ``send`` and ``recv`` of two sealed endpoints, which are threads of one process,
  over a broker's unix socket. The broker's own instructions do not count; threads that wake up by
  the clock do, so compare the lowest of several runs. It takes many minutes.

``--against REV`` measures another revision of ``redislink`` too, in turns with this one.

``--check`` counts ``core-plain`` once without native leaves and, where they were built, once with
them. It fails if either needs more than `MOST_GROWTH` of what ``benchmarks/instructions.json`` has
for an interpreter like this one; ``--record`` writes that file anew. Cryptography is left out:
which of its code runs depends on the processor.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import json
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from benchmarks import processes

# What is heavy to import is imported where it is used: it is far heavier under valgrind.

BODY: Final = b"x" * 64
LAYERS: Final = ("core", "core-plain", "endpoints")
_NAMES: Final = ["alice", "bob"]
_TIMEOUT: Final = 600.0
MOST_GROWTH: Final = 1.03
CHECKED: Final = "core-plain"
WITH_LEAVES: Final = ", with native leaves"
RECORD: Final = Path(__file__).parent / "instructions.json"
_ROUND_TRIPS_CHECKED: Final = 150
_COLLECTED: Final = re.compile(r"^==\d+== Collected : (\d+)", re.MULTILINE)


def run_core(round_trips: int, *, sealed: bool = True) -> None:
    """Round trips through `Delivery` and codec, as `Endpoint` calls them."""
    from redislink.protocol import list_names
    from redislink.protocol.delivery import Delivery, Timing
    from redislink.protocol.frame import Encoding
    from redislink.protocol.seal import PlainCodec, SealedCodec, SealKeys

    raw, now = Encoding.RAW, 0.0
    alice, bob = Delivery("bob", Timing(), now), Delivery("alice", Timing(), now)
    ours, theirs, our_control, their_control = (secrets.token_bytes(32) for _ in range(4))
    codecs = (
        (
            SealedCodec(SealKeys(ours, theirs, our_control, their_control)),
            SealedCodec(SealKeys(theirs, ours, their_control, our_control)),
        )
        if sealed
        else (PlainCodec(), PlainCodec())
    )
    epoch = "0123456789abcdef"
    to_bob = list_names.inbox_prefix("s", "bob", "alice", epoch)
    to_alice = list_names.inbox_prefix("s", "alice", "bob", epoch)
    ways = ((alice, bob, *codecs, to_bob), (bob, alice, *codecs[::-1], to_alice))
    for number in range(round_trips):
        tag = f"tag-{number}"
        for src, dst, encoder, decoder, prefix in ways:
            now += 20e-6
            name = prefix + list_names.encode_tag(tag)
            chunk = src.send_at_once(tag, BODY, raw)
            assert chunk is not None
            parts = encoder.encode_whole(name, chunk.seq, raw, chunk.acked, BODY)
            whole = decoder.decode_whole_untrusted(name, b"".join(parts))
            assert whole is not None
            assert dst.receive_whole(tag, whole, now) == (BODY, raw)
            assert tag not in dst.kept
            assert not dst.unpushed


def run_endpoints(round_trips: int, url: str) -> None:
    """Round trips between two endpoints that are threads of this process."""
    from benchmarks.transports import REDISLINK, connect_endpoint

    job = {
        "parties": _NAMES,
        "devices": [],
        "transport": REDISLINK,
        "keys": ["11" * 32, "22" * 32],
        "broker_urls": [url, url],
    }
    session = f"instructions-{secrets.token_hex(4)}"
    problems: list[BaseException] = []

    def play(rank: int) -> None:
        try:
            peer = _NAMES[1 - rank]
            with connect_endpoint(job, rank, session) as endpoint:
                for number in range(round_trips):
                    if rank == 0:
                        endpoint.send(peer, f"tag-{number}", BODY)
                    assert endpoint.recv(peer, f"tag-{number}") == BODY
                    if rank == 1:
                        endpoint.send(peer, f"tag-{number}", BODY)
        except BaseException as error:
            problems.append(error)
            raise

    threads = [threading.Thread(target=play, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]


def run(layer: str, round_trips: int, url: str) -> None:
    """Play round trips of a layer; what is counted."""
    if layer == "endpoints":
        run_endpoints(round_trips, url)
    else:
        run_core(round_trips, sealed=layer == "core")


def count(layer: str, round_trips: int, url: str, code: Path, *, native: bool = True) -> int:
    """Instructions of a process that plays so many round trips.

    Args:
        code: directory of the ``redislink`` to run.
        native: whether native leaves are used, where they were built.
    """
    arguments = ("--layer", layer, "--count", str(round_trips), "--url", url)
    if not native:
        arguments += ("--no-native",)
    done = subprocess.run(
        [
            *("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"),
            *processes.command("instructions", *arguments),
        ],
        env=processes.environment(code, processes.ROOT)
        | {"PYTHONHASHSEED": "0", "REDISLINK_BUSY_POLL": "0"},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
    )
    found = _COLLECTED.search(done.stderr)
    if done.returncode or found is None:
        raise RuntimeError(f"valgrind failed ({done.returncode}): {done.stderr[-2000:]}")
    return int(found[1])


def per_round_trip(round_trips: int, count_of: Callable[[int], int]) -> int:
    """Instructions of one round trip: what ``count_of`` gives for 2N, less what it gives for N."""
    return round((count_of(2 * round_trips) - count_of(round_trips)) / round_trips)


def judge(counted: int, interpreter: str, recorded: dict[str, int]) -> tuple[bool, str]:
    """Compare a count with the recorded one.

    Args:
        counted: instructions per round trip.
        interpreter: `sys.version` of the one that played them, and perhaps `WITH_LEAVES`.
        recorded: instructions per round trip, by interpreter.

    Returns:
        Whether it is good, and one line that says why.
    """
    was = recorded.get(interpreter)
    if was is None:
        return True, (
            f"{CHECKED}: {counted} instructions per round trip; none are recorded for Python "
            f"{interpreter}: compare with another revision by --against, or --record"
        )
    grown = counted / was
    said = f"{CHECKED}: {counted} instructions per round trip, {grown:.3f} of the recorded {was}"
    if grown > MOST_GROWTH:
        return False, (
            f"{said}, more than {MOST_GROWTH}: find what was added (--against REV), or record it "
            "with its reason (--record)"
        )
    return True, said


def _check(*, record: bool) -> bool:
    from redislink import native

    recorded: dict[str, int] = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    is_good = True
    for with_leaves in (False, True) if native.is_complete() else (False,):
        once = functools.partial(
            _count_of, layer=CHECKED, url="", code=processes.ROOT, native=with_leaves
        )
        counts = (_ROUND_TRIPS_CHECKED, 2 * _ROUND_TRIPS_CHECKED)
        with ThreadPoolExecutor() as pool:  # no clock is read, so they may run at the same time
            found = dict(zip(counts, pool.map(once, counts), strict=True))
        counted = per_round_trip(_ROUND_TRIPS_CHECKED, found.__getitem__)
        interpreter = sys.version + (WITH_LEAVES if with_leaves else "")
        if record:
            recorded[interpreter] = counted
        passes, said = judge(counted, interpreter, recorded)
        print(said)
        is_good = is_good and passes
    if record:
        RECORD.write_text(json.dumps(recorded, indent=2, sort_keys=True) + "\n")
    return is_good


def main() -> None:
    """Measure, and print one line for each layer and revision."""
    parser = argparse.ArgumentParser(description="Instructions of a 64 B round trip.")
    parser.add_argument("--layer", action="append", choices=LAYERS, help="only these")
    parser.add_argument("--against", action="append", default=[], metavar="GIT_REV")
    parser.add_argument("--round-trips", type=int, default=500, metavar="N")
    parser.add_argument("--runs", type=int, default=3, metavar="N")
    parser.add_argument("--check", action="store_true", help="compare with the recorded count")
    parser.add_argument("--record", action="store_true", help="record the count of this revision")
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)  # in the counted process
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--no-native", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    layers = options.layer or LAYERS
    if options.count is not None:
        if layers[0] == "endpoints":
            _let_lines_be_slow()
        else:
            _import_no_more_than_needed()
        if options.no_native:
            from redislink import native

            native.use(False)
        run(layers[0], options.count, options.url)
        return
    if shutil.which("valgrind") is None:
        sys.exit("valgrind is not installed: install it to count instructions")
    if options.check or options.record:
        sys.exit(not _check(record=options.record))
    from benchmarks.measure import check_out
    from redislink.broker import EmbeddedBroker

    with tempfile.TemporaryDirectory(prefix="instructions-") as scratch, EmbeddedBroker() as broker:
        revisions = {"this": processes.ROOT}
        for number, revision in enumerate(options.against):
            directory = Path(scratch, str(number))
            revisions[check_out(revision, directory)] = directory
        for layer in layers:
            figures: dict[str, list[int]] = {name: [] for name in revisions}
            for _ in range(options.runs):
                for name, code in revisions.items():
                    count_of = functools.partial(
                        _count_of, layer=layer, url=broker.unix_url, code=code
                    )
                    figures[name].append(per_round_trip(options.round_trips, count_of))
            for name, numbers in figures.items():
                lowest, highest = min(numbers), max(numbers)
                print(f"{layer:<12} {name:<12} {lowest} to {highest} in {len(numbers)} runs")


def _let_lines_be_slow() -> None:
    """Under valgrind an answer may take seconds; no connection has died of that."""
    with contextlib.suppress(ImportError):  # a revision that does not watch its lines
        from redislink.transport import lines

        vars(lines)["_PATIENCE"] = _TIMEOUT


def _import_no_more_than_needed() -> None:
    """Let ``redislink.protocol`` be imported without what ``import redislink`` imports."""
    found = importlib.util.find_spec("redislink")
    assert found is not None
    sys.modules["redislink"] = importlib.util.module_from_spec(found)  # and not executed


def _count_of(round_trips: int, *, layer: str, url: str, code: Path, native: bool = True) -> int:
    return count(layer, round_trips, url, code, native=native)


if __name__ == "__main__":
    main()
