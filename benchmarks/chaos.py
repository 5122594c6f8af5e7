"""Faults on purpose, and what came of them: writes the measured part of docs/reliability.md.

``make chaos``, or ``python -m benchmarks.chaos [--only WORD]``. Everything runs on this machine,
over 127.0.0.1. Exit code 1 if a message was lost or doubled, or a result was another one.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from benchmarks.chaos_journal import journals
from benchmarks.chaos_page import Page, span, version
from benchmarks.pages import JOURNAL, write_part
from redislink.broker import EmbeddedBroker
from redislink.testing import Proxy
from tests.support import training
from tests.support.bulk import MB, BulkOutcome, transfer
from tests.support.groups import ClusterGroup, SentinelGroup
from tests.support.servers import KINDS, Admin, debian_redis, make_server
from tests.support.spreading import PARTIES, trio
from tests.support.traffic import Talk, talk
from tests.support.training import (
    Injector,
    Outcome,
    Two,
    at_steps,
    differences,
    every,
    weight_error,
)

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"
STEPS = 30
SEVERAL_RUNS = 5
HALF_OPEN = {"REPLY_TIMEOUT": "2", "BLPOP_TIMEOUT": "2"}


REFUSALS: dict[str, tuple[bytes, ...]] = {
    "has no memory": (b"CONFIG", b"SET", b"maxmemory", b"100kb"),
    "has too few replicas": (b"CONFIG", b"SET", b"min-replicas-to-write", b"1"),
    "became a replica": (b"REPLICAOF", b"127.0.0.1", b"1"),
}


def machine(page: Page) -> None:
    """Say where and on what this was measured."""
    cpu = next(
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    page.write(
        f"Measured {datetime.now(UTC):%Y-%m-%d %H:%M} UTC at {git.stdout.strip() or 'no commit'}: "
        f"{cpu}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start, "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}. "
        "All parties and the broker on this machine, over 127.0.0.1.",
    )


# ---- training ----


def train(
    server: EmbeddedBroker | SentinelGroup | ClusterGroup,
    make: Callable[[], list[Injector]],
    through_proxies: bool = False,
    session: str | None = None,
) -> Outcome:
    """One run of three processes."""
    one_server = through_proxies and isinstance(server, EmbeddedBroker)
    proxied = training.proxied(server) if one_server else nullcontext({})
    with tempfile.TemporaryDirectory(prefix="chaos-") as directory, proxied as proxies:
        injectors = make()
        if through_proxies:
            injectors += training.broken_lines(
                proxies, cut=every(0.2, 0.6), stall=every(2.0, 6.0), delay=every(0.35, 1.05)
            )
        return training.train(
            {name: proxy.url() for name, proxy in proxies.items()} or server.url,
            Path(directory),
            steps=STEPS,
            injectors=injectors,
            settings=HALF_OPEN if through_proxies else None,
            session=session,
            timeout=300,
        )


def under_faults(page: Page, kind: str) -> None:
    """The table of one kind of server."""
    with make_server(kind) as server:
        begin_training(page, version(server))
        undisturbed = train(server, list)
        if undisturbed.problems:
            page.problem("; ".join(undisturbed.problems))
            return
        every_sixth = at_steps([3, 9, 15, 21, 27])
        runs: list[tuple[str, Callable[[], list[Injector]], bool]] = [
            ("nothing", list, False),
            (
                "killed with SIGKILL and started empty, 5 times",
                lambda: [training.restarts(server, every_sixth)],
                False,
            ),
            (
                "CLIENT KILL TYPE normal every 200 ms",
                lambda: [training.kill_clients(server, every(0.2))],
                False,
            ),
            (
                "FLUSHALL every 0.5 to 2.5 s, at random",
                lambda: [training.flushes(server, every(0.5, 2.5))],
                False,
            ),
            ("lines cut, gone half-open, slowed down, one at a time", list, True),
            (
                "all of these at once",
                lambda: [
                    training.restarts(server, every_sixth),
                    training.kill_clients(server, every(1.0)),
                    training.flushes(server, every(1.0, 4.0)),
                ],
                True,
            ),
        ]
        for what, make, through_proxies in runs:
            outcome = train(server, make, through_proxies)
            training_row(page, what, outcome, undisturbed)


def begin_training(page: Page, title: str) -> None:
    """The head of a table of `training_row`."""
    page.head(
        f"Logistic regression of three processes, {title}",
        *("what was done to it", "faults injected", "messages sent", "frames resent"),
        *("came again, dropped", "lost", "doubled", "equal result", "seconds"),
    )


def sentinel(page: Page) -> None:
    """The table of failovers; each run has servers of its own."""
    with make_server("valkey") as server:
        name = version(server)
    begin_training(page, f"three sentinels, a master and a replica, {name}")
    runs: list[tuple[str, list[int]]] = [
        ("nothing", []),
        ("master killed with SIGKILL, replica promoted, 3 times", [3, 12, 21]),
    ]
    undisturbed = None
    for what, steps in runs:
        with SentinelGroup(sentinels=3) as group:
            outcome = train(group, partial(list, [training.failovers(group, at_steps(steps))]))
        undisturbed = undisturbed or outcome
        training_row(page, what, outcome, undisturbed)


def redis_cluster(page: Page) -> None:
    """The table of slot moves and lost nodes; each run has servers of its own."""
    with make_server("valkey") as server:
        name = version(server)
    begin_training(page, f"a Redis Cluster of three masters and a replica, {name}")
    undisturbed = None
    moves, restarts, lost = "slots", "restarts", "lost"
    for what, kinds in [
        ("nothing", ()),
        ("a party's slot moved to another node every 0.3 s", (moves,)),
        ("nodes killed with SIGKILL and started empty, 3 times", (restarts,)),
        ("a node killed for good, its replica promoted", (lost,)),
        ("slots moved every 0.5 s, then a node lost", (moves, lost)),
    ]:
        with ClusterGroup(replicas=1) as group:
            session = group.spread_session(PARTIES)
            seconds = 0.3 if kinds == (moves,) else 0.5
            injectors = {
                moves: training.slot_moves(group, session, every(seconds)),
                restarts: training.node_restarts(group, at_steps([3, 12, 21])),
                lost: training.node_lost(group, at_steps([9])),
            }
            make = partial(list, [injectors[kind] for kind in kinds])
            outcome = train(group, make, session=session)
        undisturbed = undisturbed or outcome
        training_row(page, what, outcome, undisturbed)


def several_brokers(page: Page) -> None:
    """The tables of two independent brokers: the parties move from one to the other."""
    with make_server("valkey") as server:
        name = version(server)
    begin_training(page, f"two independent brokers, {name}")
    undisturbed = train_on_two(lambda _: [])
    training_row(page, "nothing", undisturbed, undisturbed)
    for what, inject in [
        ("the first killed with SIGKILL, for good", training.killed_for_good),
        ("the first stays away, silently: its connections stand", training.silent_for_good),
    ]:
        outcome = train_on_two(lambda two, inject=inject: [inject(two, at_steps([9]))])
        training_row(page, what, outcome, undisturbed)
    page.head(
        f"Three parties, messages of 1 B to 64 kB, two independent brokers, {name}",
        *("what was done to them", "runs", "messages sent", "frames resent"),
        *("came again, dropped", "lost", "doubled", "longest gap"),
    )
    for what, harm in TWO_BROKERS:
        talks = []
        for _ in range(SEVERAL_RUNS):
            with Two() as two:
                talks.append(talk(two.urls, *harm(two)))
        page.row(*talk_cells(page, what, talks))


def half_open(page: Page) -> None:
    """The table of connections that stall for good, with nothing closed."""
    with make_server("valkey") as server:
        page.head(
            f"Three parties, 1 B to 64 kB, alice's connections stall, {version(server)}",
            *("which", "runs", "messages sent", "frames resent", "came again, dropped"),
            *("lost", "doubled", "longest gap"),
        )
        for what, harms in STALLS.items():
            talks = []
            for _ in range(SEVERAL_RUNS):
                with Proxy(server.port) as proxy:
                    urls = dict.fromkeys(PARTIES, server.url) | {"alice": proxy.url()}
                    talks.append(talk(urls, *harms(proxy)))
            page.row(*talk_cells(page, what, talks))


def stall_each(proxy: Proxy) -> list[Callable[[], None]]:
    """One after the other, those that are there when its turn comes."""

    def stall(place: int) -> None:
        flowing = [line for line in proxy.connections if not line.stalled]
        flowing[place % len(flowing)].stall()

    return [partial(stall, place) for place in range(_STALLED_IN_TURN)]


def stall_all(proxy: Proxy) -> list[Callable[[], None]]:
    """All that are there; new ones work."""

    def stall() -> None:
        for line in proxy.connections:
            line.stall()

    return [stall]


_STALLED_IN_TURN = 8
STALLS = {
    f"one, {_STALLED_IN_TURN} times, each another": stall_each,
    "all at once": stall_all,
}


def talk_cells(page: Page, what: str, talks: list[Talk]) -> list[object]:
    """A row about some runs of one kind."""

    def total(name: str) -> list[int]:
        return [sum(getattr(stats, name) for stats in one.stats) for one in talks]

    for one in talks:
        if not one.comparison.clean:
            page.problem(f"{what}: {one.comparison}")
    return [
        what,
        len(talks),
        span([one.comparison.sent for one in talks], "{:,.0f}"),
        span(total("frames_resent"), "{:,.0f}"),
        span(total("duplicates_dropped"), "{:,.0f}"),
        sum(one.comparison.lost for one in talks),
        sum(one.comparison.doubled for one in talks),
        span([one.longest_gap for one in talks], "{:.2f} s"),
    ]


def train_on_two(make: Callable[[Two], list[Injector]]) -> Outcome:
    """One run of three processes on two brokers."""
    with Two() as two, tempfile.TemporaryDirectory(prefix="chaos-") as directory:
        return training.train(
            two.urls, Path(directory), steps=STEPS, injectors=make(two), timeout=300
        )


def cut_off_in_turn(two: Two) -> list[Callable[[], None]]:
    """Cut alice off from the first broker, then bob from the second, then carol from the first."""
    lines = [two.lines[0]["alice"], two.lines[1]["bob"], two.lines[0]["carol"]]
    back = [None, *lines]

    def change(cut: Proxy, mended: Proxy | None) -> None:
        if mended is not None:
            mended.come_back()
        cut.go_away()

    return [partial(change, cut, mended) for cut, mended in zip(lines, back, strict=False)]


def flap(two: Two) -> None:
    """Take the first broker away for 2 s, every 2 s, 4 times."""
    for _ in range(4):
        two.go_away(0)
        time.sleep(2)
        two.come_back(0)
        time.sleep(2)


def all_away(two: Two) -> None:
    """Take both brokers away, and give the second one back after 6 s."""
    two.go_away(0)
    two.go_away(1)
    time.sleep(6)
    two.come_back(1)


Harm = Callable[[], object]
TWO_BROKERS: list[tuple[str, Callable[[Two], list[Harm]]]] = [
    ("nothing", lambda _: []),
    (
        "the first killed with SIGKILL, for good",
        lambda two: [partial(two.kill, 0)],
    ),
    (
        "the first falls silent, its connections stand",
        lambda two: [partial(two.go_away, 0, silently=True)],
    ),
    ("each party cut off from one of them, in turn", cut_off_in_turn),
    (
        "the first killed; it comes back empty; the second killed",
        lambda two: [
            partial(two.kill, 0),
            two.servers[0].start,
            partial(two.kill, 1),
        ],
    ),
    ("the first away for 2 s, every 2 s, 4 times", lambda two: [partial(flap, two)]),
    ("both away; the second comes back after 6 s", lambda two: [partial(all_away, two)]),
]


def training_row(page: Page, what: str, outcome: Outcome, undisturbed: Outcome) -> None:
    """One run."""
    wrong = differences(outcome, undisturbed)
    faults = ", ".join(f"{count} {name}" for name, count in sorted(outcome.faults.items()))
    if outcome.comparison is None:
        page.row(what, faults, *["?"] * 5, "**no**", f"{outcome.seconds:.1f}")
    else:
        page.row(
            what,
            faults or "none",
            f"{outcome.comparison.sent:,}",
            f"{outcome.total('frames_resent'):,}",
            f"{outcome.total('duplicates_dropped'):,}",
            outcome.comparison.lost,
            outcome.comparison.doubled,
            f"yes, weights within {weight_error(outcome, undisturbed):.0e}" if not wrong else "no",
            f"{outcome.training_seconds:.1f}",
        )
    for text in wrong:
        page.problem(text)


# ---- bulk ----


def bulk(page: Page, kind: str) -> None:
    """Brokers smaller than a window; and a slow reader."""
    rows: list[tuple[str, dict[str, str], int, bool]] = [
        ("1 GB to a slow reader", {}, 1000, True),
        ("200 MB, 8 MB `noeviction`", small("noeviction"), 200, False),
        ("200 MB, 8 MB `noeviction`, slow reader", small("noeviction"), 200, True),
        ("200 MB, 8 MB `volatile-lru`, slow reader", small("volatile-lru"), 200, True),
    ]
    with make_server(kind) as server:
        title = f"Messages of 2 MB from alice to bob, {version(server)}"
    page.head(
        title,
        *("what", "messages sent", "refused", "evicted", "frames resent"),
        *("lost", "doubled", "broker's peak", "windows", "keys after close"),
        *("longest gap", "seconds"),
    )
    for what, options, megabytes, slow in rows:
        with make_server(kind, options) as server:
            outcome = transfer(server, megabytes * MB, slow=slow)
        bulk_row(page, what, outcome)


def small(policy: str) -> dict[str, str]:
    """Options of a server with less memory than a window."""
    return {"maxmemory": "8mb", "maxmemory-policy": policy}


def bulk_row(page: Page, what: str, outcome: BulkOutcome) -> None:
    """One transfer."""
    used = outcome.peak_bytes - outcome.base_bytes
    page.row(
        what,
        outcome.comparison.sent,
        outcome.alice.frames_refused,
        outcome.evicted,
        outcome.alice.frames_resent,
        outcome.comparison.lost,
        outcome.comparison.doubled,
        f"{used / MB:.1f} MB",
        f"{used / outcome.window_bytes:.2f} of {outcome.window_bytes / MB:.1f} MB",
        len(outcome.keys_left),
        f"{outcome.longest_gap:.2f} s",
        f"{outcome.seconds:.1f}",
    )
    if not outcome.comparison.clean:
        page.problem(f"{what}: {outcome.comparison}")
    if used >= 2 * outcome.window_bytes:
        page.problem(f"{what}: the broker held more than two windows")
    if outcome.keys_left:
        page.problem(f"{what}: {len(outcome.keys_left)} keys left after a clean close")


# ---- failures ----


def spreading(page: Page) -> None:
    """Carol fails; how soon alice and bob have raised, and what their users see."""
    page.head(
        "Carol fails while all three are blocked in `recv`, Valkey",
        *("how", "`peer_timeout`", "party", "raised after", "error", "what its user sees"),
    )
    cases = [
        ("exception in its `with` block", "raise", signal.SIGUSR1, 30.0),
        ("`kill -9`", "wait", signal.SIGKILL, 30.0),
        ("`kill -9`", "wait", signal.SIGKILL, 2.0),
        ("`kill -9`, and started again", "wait", signal.SIGKILL, 30.0),
    ]
    for how, role, number, timeout in cases:
        with (
            make_server("valkey") as server,
            tempfile.TemporaryDirectory(prefix="chaos-") as directory,
            trio(server.url, Path(directory), {"carol": role}, peer_timeout=timeout) as three,
        ):
            failed_at = three.signal("carol", number)
            if "again" in how:
                three.start("carol", "wait")
            three.wait_for("raised", "alice", "bob")
            for party in ("alice", "bob"):
                raised = three.find("raised", party) or {}
                after = raised["at"] - failed_at
                page.row(
                    *(how, f"{timeout:g} s", party, f"{after:.3f} s", raised["type"]),
                    f"`{three.said(party)}`",
                )
                if after > (1.0 if role == "raise" else timeout + 1.5):
                    page.problem(f"{how}: {party} was told only after {after:.1f} s")


def refusing(page: Page) -> None:
    """A broker answers and refuses for good: when each party ends, and what it blames."""
    timeout = 40.0  # longer than `peer_timeout`
    page.head(
        "A broker refuses for good while all three are blocked in `recv`, Valkey",
        *("what it does", "`broker_timeout`", "connections of all per second"),
        *("party", "raised after", "error", "what its user sees"),
    )
    for what, command in REFUSALS.items():
        with (
            make_server("valkey") as server,
            tempfile.TemporaryDirectory(prefix="chaos-") as directory,
            trio(server.url, Path(directory), {}, broker_timeout=timeout) as three,
        ):
            admin, began = Admin(server), time.monotonic()
            dialled = -int(admin.info("stats")["total_connections_received"])
            admin(*command)
            three.wait_for("raised", *PARTIES)
            dialled += int(admin.info("stats")["total_connections_received"])
            rate = dialled / (time.monotonic() - began)
            admin.close()
            for party in PARTIES:
                raised = three.find("raised", party) or {}
                after = raised["at"] - began
                page.row(
                    *(what, f"{timeout:g} s", f"{rate:.1f}", party, f"{after:.1f} s"),
                    *(raised["type"], f"`{three.said(party)}`"),
                )
                if raised["type"] != "BrokerBusy" or after > timeout + 5:
                    page.problem(f"{what}: {party} ended with {raised['type']} at {after:.1f} s")


def crash(page: Page) -> None:
    """What is left when all three are killed at once."""
    with (
        make_server("valkey") as server,
        tempfile.TemporaryDirectory(prefix="chaos-") as directory,
        trio(server.url, Path(directory), dict.fromkeys(PARTIES, "litter")) as three,
    ):
        admin = Admin(server)
        for party in PARTIES:
            three.signal(party, signal.SIGKILL)
        lives = [admin(b"PTTL", key) / 1000 for key in admin(b"KEYS", b"*")]
        admin.close()
    page.write("", "### All three parties killed with `kill -9`, with unread messages about", "")
    page.write(
        f"{len(lives)} keys were left on the broker; the shortest-lived expires after "
        f"{min(lives):.0f} s, the longest-lived after {max(lives):.0f} s."
    )
    if min(lives) < 0:
        page.problem("a key does not expire")


def brokers(page: Page, only: str | None) -> None:
    """Brokers and lines that fail, and parties without journals that do; all parts or one."""
    started = time.monotonic()
    machine(page)
    for kind in KINDS:
        if kind == "redis-server" and debian_redis() is None:
            page.write("", "Debian's redis-server was not installed: its tables are missing.")
            continue
        if only in (None, "training"):
            under_faults(page, kind)
        if only in (None, "bulk"):
            bulk(page, kind)
    if only in (None, "sentinel"):
        sentinel(page)
    if only in (None, "cluster"):
        redis_cluster(page)
    if only in (None, "several"):
        several_brokers(page)
    if only in (None, "refusing"):
        refusing(page)
    if only in (None, "half-open"):
        half_open(page)
    if only in (None, "failures"):
        spreading(page)
        crash(page)
    page.write("", f"All of it took {time.monotonic() - started:.0f} s.")


def main() -> int:
    """Run everything and write the page; returns the exit code."""
    parser = argparse.ArgumentParser(description="Faults on purpose; writes docs/reliability.md")
    parser.add_argument(
        "--only",
        choices=[
            *("training", "sentinel", "cluster", "several", "bulk", "failures", "refusing"),
            *("half-open", JOURNAL),
        ],
        help="one part; only journal is written to the page by itself",
    )
    only = parser.parse_args().only
    parts: dict[str, Page] = {}
    if only != JOURNAL:
        parts["measured"] = Page()
        brokers(parts["measured"], only)
    if only in (None, JOURNAL):
        parts[JOURNAL] = Page()
        machine(parts[JOURNAL])
        journals(parts[JOURNAL])
    for name, page in parts.items():
        if only in (None, name):
            write_part(PAGE, name, "\n".join(page.lines))
            print(f"written to {PAGE}: {name}")
    return 1 if any(page.failed for page in parts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
