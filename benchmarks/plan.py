"""Which sessions there are: what is compared with what, how often, and how long each takes.

Counts are chosen for two cores: `QUICK` takes some four minutes, `FULL` some 25.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from benchmarks.brokers import CLUSTER, IO_THREADS, ONE
from benchmarks.netproxy import Profile
from benchmarks.runner import Session, Work
from benchmarks.transports import (
    BRPC,
    BRPC_KEPT,
    FLOOR,
    MEM,
    MPLANG,
    NAIVE,
    REDISLINK,
    REDISLINK_NONE,
    REDISLINK_UNIX,
)

LAN: Final = Profile("LAN", 0.001, 1e9)
WAN: Final = Profile("WAN", 0.020, 300e6)
THIN: Final = Profile("thin WAN", 0.020, 20e6)
LINE: Final = Profile("100 Mbit", 0.010, 100e6)
NETWORKS: Final = (LAN, WAN, THIN)
SMOOTH: Final = Profile("smooth", 0.020, 100e6)
_TCP: Final = replace(SMOOTH, slow_start=True)
TRUTHS: Final = (
    SMOOTH,
    replace(_TCP, name="slow start"),
    replace(_TCP, name="loss 0.1 %", loss=0.001),
    replace(_TCP, name="loss 1 %", loss=0.01),
    replace(_TCP, name="jitter 5 ms", jitter=0.005),
    replace(_TCP, name="near one party", near=0.1),
    replace(_TCP, name="asymmetric", up=20e6),
)
"""What a real line does, and the others here do not; the first is without any of it."""
LINE_BYTES: Final = 32 << 20
WITH_BARS: Final = ("lr-aby3", "lr-semi2k", "sort-cheetah")
MAIN: Final = (REDISLINK, BRPC)
BAR_SIZES: Final = {WAN: 1 << 20, THIN: 64 << 10}
"""Bytes of the round trip that a bar is about, by network."""
TURNS: Final = "turns-"
"""Begins the names of groups whose sessions run at once and take turns."""


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        runs: rounds of what the bars are about.
        turns: of each session in a round, where sessions take turns.
        in_turns: transports that take turns, by group.
        turn_sizes: bytes of the messages that take turns, by group.
        other_runs: rounds of the rest, at most.
        alone_runs: rounds of the programs with nothing beside them, at most.
        few_runs: rounds of what takes long and no bar is about, at most.
        others: transports besides `MAIN`, by group; the line has no others than these.
        sizes: bytes of messages on the loopback, through a link context.
        largest_of_others: bytes of the largest of these for other transports than ours and brpc.
        endpoint_sizes: bytes of messages on the loopback, by endpoint.
        network_sizes: bytes of messages on networks, by profile.
        line_bytes: of the message on `LINE`.
        seconds: for each size, for round trips and for one way each.
        repeats: of each SPU program in a session, after the first.
        psi_rows: rows of each party's file.
        bursts: numbers of messages.
        parties: what the SEMI2K program is scaled through.
        scaled: parties, sessions at once, bytes of a message (0 if they are idle), and
            the kind of broker.
        networks: profiles on which the ABY3 program runs.
        truths: those with what real lines do.
        programs: names, by number of parties.
    """

    runs: int
    turns: int
    in_turns: dict[str, tuple[str, ...]]
    turn_sizes: dict[str, tuple[int, ...]]
    other_runs: int
    alone_runs: int
    few_runs: int
    others: dict[str, tuple[str, ...]]
    sizes: tuple[int, ...]
    largest_of_others: int
    endpoint_sizes: tuple[int, ...]
    network_sizes: dict[str, tuple[int, ...]]
    line_bytes: int
    seconds: float
    repeats: int
    psi_rows: int
    bursts: tuple[int, ...]
    parties: tuple[int, ...]
    scaled: tuple[tuple[int, int, int, str], ...]
    networks: tuple[Profile, ...]
    truths: tuple[Profile, ...]
    programs: dict[int, tuple[str, ...]]


_KIB, _MIB = 1 << 10, 1 << 20
_MOST_PROCESSES: Final = 4
FULL: Final = Scale(
    runs=7,
    turns=4,
    in_turns={
        "link": (*MAIN, BRPC_KEPT, REDISLINK_NONE, FLOOR),
        "large": (REDISLINK, BRPC_KEPT),
        "one-way": MAIN,
        "programs3": (*MAIN, REDISLINK_NONE),
        "programs2": MAIN,
    },
    turn_sizes={
        "link": (64, 64 * _KIB, 256 * _KIB, _MIB),
        "large": (16 * _MIB, 64 * _MIB),
        "one-way": (4 * _MIB, 64 * _MIB),
    },
    other_runs=2,
    alone_runs=1,
    few_runs=1,
    others={
        "link": (BRPC_KEPT, FLOOR, REDISLINK_UNIX, REDISLINK_NONE, NAIVE, MPLANG, MEM),
        "programs3": (REDISLINK_UNIX, REDISLINK_NONE, NAIVE, MPLANG, MEM),
        "programs2": (REDISLINK_UNIX, NAIVE, MEM),
        "line": (REDISLINK, BRPC, NAIVE),
    },
    sizes=(64, _KIB, 16 * _KIB, 64 * _KIB, 256 * _KIB, _MIB, 4 * _MIB, 16 * _MIB, 64 * _MIB),
    largest_of_others=16 * _MIB,
    endpoint_sizes=(64, 64 * _KIB, _MIB, 16 * _MIB),
    network_sizes={
        LAN.name: (64, 64 * _KIB, _MIB, 16 * _MIB),
        WAN.name: (64, 64 * _KIB, _MIB, 16 * _MIB),
        THIN.name: (64, 64 * _KIB, _MIB),
    },
    line_bytes=LINE_BYTES,
    seconds=0.25,
    repeats=3,
    psi_rows=200_000,
    bursts=(1, 10, 100, 1000, 5000),
    parties=(2, 3, 5, 8),
    scaled=(
        *((2, sessions, 64, ONE) for sessions in (1, 8, 32, 100)),
        *((parties, sessions, 64, ONE) for parties, sessions in ((3, 24), (8, 4), (16, 4))),
        *((2, 8, size, ONE) for size in (16 * _KIB, 256 * _KIB)),
        (2, 50, 0, ONE),
        *((2, 32, 64, broker) for broker in (IO_THREADS, CLUSTER)),
        (4, 8, 64, CLUSTER),
    ),
    networks=NETWORKS,
    truths=TRUTHS,
    programs={3: ("lr-aby3", "lr-semi2k", "mlp-aby3"), 2: ("sort-cheetah",)},
)
QUICK: Final = replace(
    FULL,
    runs=1,
    turns=3,
    turn_sizes={"link": (64, _MIB), "large": (16 * _MIB,), "one-way": (4 * _MIB,)},
    other_runs=1,
    alone_runs=0,
    few_runs=1,
    others={
        "link": (FLOOR, NAIVE),
        "line": (REDISLINK, BRPC),
    },
    sizes=(64, 64 * _KIB, _MIB, 16 * _MIB),
    endpoint_sizes=(64, _MIB),
    network_sizes={},
    seconds=0.2,
    repeats=2,
    bursts=(1, 100, 1000),
    parties=(),
    scaled=((2, 8, 64, ONE),),
    networks=(WAN,),
    truths=(),
    programs={3: ("lr-aby3", "lr-semi2k"), 2: ("sort-cheetah",)},
)
TOY: Final = replace(
    QUICK,
    turns=2,
    in_turns={"link": (FLOOR,), "one-way": (FLOOR,)},
    turn_sizes={"link": (64,), "one-way": (_MIB,)},
    others={"line": (REDISLINK,)},
    sizes=(64, _MIB),
    endpoint_sizes=(64,),
    line_bytes=_MIB,
    seconds=0.02,
    repeats=1,
    psi_rows=1000,
    bursts=(1, 100),
    parties=(),
    scaled=((2, 1, 64, ONE),),
    networks=(),
    programs={2: ()},
)
"""For the test that keeps this from rotting."""


def sessions(scale: Scale, prepared: Path, psi_expected: int) -> list[Session]:
    """All sessions of a round, in the order in which they run.

    Args:
        scale: how much.
        prepared: directory with the prepared programs and PSI files.
        psi_expected: size of the intersection.
    """
    return [
        *_in_turns(scale, prepared),
        *_links(scale),
        *_programs(scale, prepared, psi_expected),
        *_line(scale),
        *_networks(scale),
        *_bars_on_networks(scale),
        *_programs_on_networks(scale, prepared),
        *_parties(scale, prepared),
        *_scale(scale),
        *_truths(scale, prepared),
    ]


GROUPS: Final = (
    *("turns-link", "turns-large", "turns-one-way", "turns-programs3", "turns-programs2"),
    *("link", "programs3", "programs2", "line", "network", "bars-network", "lr"),
    *("parties", "scale", "truths"),
    *("against-link", "against-lr"),
)
"""Names that ``--only`` takes."""
APART: Final = ("truths",)
"""Groups that run only if they are asked for, as they take long."""


def against(
    revisions: dict[str, Path], runs: int, prepared: Path, beside: Iterable[str] = ()
) -> list[Session]:
    """This revision, others, and other transports, at the same two things.

    Args:
        revisions: directories with their ``redislink``, by name.
        runs: rounds.
        prepared: directory with the prepared programs.
        beside: transports.
    """
    variants: list[tuple[str, str, Path | None]] = [(REDISLINK, REDISLINK, None)]
    variants += [(name, REDISLINK, directory) for name, directory in revisions.items()]
    variants += [(transport, transport, None) for transport in beside]
    found = []
    for group, works, world_size in (
        ("against-link", [in_turns("round_trips", (64, _MIB), 7)], 2),
        ("against-lr", [program_work("lr-aby3", 3, prepared, 7)], 3),
    ):
        for name, transport, directory in variants:
            found.append(
                Session(
                    group,
                    name,
                    transport,
                    tuple(works),
                    world_size=world_size,
                    runs=runs,
                    revision=directory,
                    in_turns=True,
                )
            )
    return found


def needed_programs(chosen: list[Session]) -> set[tuple[str, int]]:
    """(program, number of parties) that have to be prepared."""
    return {
        (work["program"], session.world_size)
        for session in chosen
        for work in session.works
        if work["kind"] == "program"
    }


def program_work(program: str, world_size: int, prepared: Path, repeats: int) -> Work:
    """A work that runs a prepared program."""
    return {
        "name": program,
        "kind": "program",
        "device": program,
        "program": program,
        "prepared": str(prepared / f"{program}-{world_size}"),
        "repeats": repeats,
    }


def link_works(sizes: tuple[int, ...], seconds: float) -> list[Work]:
    """Round trips and one way through a link context."""
    common = {"sizes": sizes, "seconds": seconds}
    return [
        {"name": "round_trips", "kind": "link_round_trips", "device": "L0"} | common,
        {"name": "one_ways", "kind": "link_one_ways", "device": "L1"} | common,
    ]


def in_turns(name: str, sizes: tuple[int, ...], turns: int) -> Work:
    """Messages through a link context, a fourth of a second each turn.

    Args:
        name: ``round_trips`` or ``one_ways``.
        sizes: bytes.
        turns: of each size.
    """
    return {
        "name": name,
        "kind": f"link_{name}",
        "device": "L0",
        "sizes": sizes,
        "seconds": 0.25,
        "repeats": turns,
    }


def _in_turns(scale: Scale, prepared: Path) -> list[Session]:
    """What the bars on loopback are about: all transports of a group at once, in turns."""
    works: dict[str, tuple[int, list[Work]]] = {}
    for name, sizes in scale.turn_sizes.items():
        kind = "one_ways" if name == "one-way" else "round_trips"
        # The large ones take more than a turn's time anyway.
        turns = scale.turns if name == "link" else min(scale.turns, 2)
        works[name] = 2, [in_turns(kind, sizes, turns)]
    for world_size, names in scale.programs.items():
        chosen = [
            program_work(name, world_size, prepared, scale.turns)
            for name in names
            if name in WITH_BARS
        ]
        if chosen:
            works[f"programs{world_size}"] = world_size, chosen
    return [
        Session(
            TURNS + name,
            transport,
            transport,
            tuple(mine),
            world_size=world_size,
            runs=scale.runs,
            timeout=180,
            in_turns=True,
        )
        for name, (world_size, mine) in works.items()
        for transport in scale.in_turns.get(name, ())
    ]


def _transports(scale: Scale, group: str) -> tuple[str, ...]:
    return (*MAIN, *scale.others.get(group, ()))


def _links(scale: Scale) -> list[Session]:
    found = []
    for transport in _transports(scale, "link"):
        ours = transport in (REDISLINK, REDISLINK_NONE)
        other = not ours and transport not in (BRPC, BRPC_KEPT, FLOOR)
        most = scale.largest_of_others if other else max(scale.sizes)
        works = link_works(tuple(size for size in scale.sizes if size <= most), scale.seconds)
        if transport not in (MEM, MPLANG):
            works.append(
                {"name": "bursts", "kind": "bursts", "device": "L2", "counts": scale.bursts}
            )
        if ours:
            common = {"sizes": scale.endpoint_sizes, "seconds": scale.seconds}
            works += [
                {"name": "endpoint_round_trips", "kind": "endpoint_round_trips"} | common,
                {"name": "endpoint_one_ways", "kind": "endpoint_one_ways"} | common,
            ]
        few = transport in (REDISLINK_UNIX, NAIVE, MPLANG, MEM)
        runs = min(scale.runs, scale.few_runs if few else scale.other_runs)
        found.append(Session("link", transport, transport, tuple(works), runs=runs))
    return found


def _programs(scale: Scale, prepared: Path, psi_expected: int) -> list[Session]:
    found = []
    for world_size, names in scale.programs.items():
        group = f"programs{world_size}"
        for transport in _transports(scale, group):
            # Over HTTP they take so long that one program, run twice, has to do.
            slow = transport == MPLANG
            chosen, repeats = (names[:1], 1) if slow else (names, scale.repeats)
            works = [program_work(name, world_size, prepared, repeats) for name in chosen]
            if world_size == 2:
                works.append(
                    {
                        "name": "psi",
                        "kind": "psi",
                        "device": "psi",
                        "prepared": str(prepared / "psi"),
                        "expected": psi_expected,
                    }
                )
            found.append(
                Session(
                    group,
                    transport,
                    transport,
                    tuple(works),
                    world_size=world_size,
                    runs=min(scale.runs, scale.alone_runs),
                )
            )
    return found


def _line(scale: Scale) -> list[Session]:
    work = {"name": "line", "kind": "line", "device": "L0", "size": scale.line_bytes}
    return [
        Session(
            "line",
            t,
            t,
            (work,),
            profile=LINE,
            runs=min(scale.runs, scale.other_runs),
        )
        for t in scale.others["line"]
    ]


def _networks(scale: Scale) -> list[Session]:
    found = []
    for profile in NETWORKS:
        if sizes := scale.network_sizes.get(profile.name):
            works = tuple(link_works(sizes, scale.seconds))
            runs = min(scale.runs, scale.few_runs)
            found += [
                Session("network", t, t, works, profile=profile, runs=runs)
                for t in _transports(scale, "network")
            ]
    return found


def _bars_on_networks(scale: Scale) -> list[Session]:
    return [
        Session(
            "bars-network",
            transport,
            transport,
            (in_turns("round_trips", (size,), 1) | {"seconds": 3 * scale.seconds},),
            profile=profile,
            runs=scale.runs,
        )
        for profile, size in BAR_SIZES.items()
        if profile in scale.networks
        for transport in MAIN
    ]


def _programs_on_networks(scale: Scale, prepared: Path) -> list[Session]:
    works = (program_work("lr-aby3", 3, prepared, 0),)
    found = []
    for profile in scale.networks:
        for transport in _transports(scale, "lr"):
            has_bar = profile in BAR_SIZES and transport in MAIN
            runs = scale.runs if has_bar else min(scale.runs, scale.few_runs)
            found.append(
                Session("lr", transport, transport, works, world_size=3, profile=profile, runs=runs)
            )
    return found


def _truths(scale: Scale, prepared: Path) -> list[Session]:
    sizes = (64 * _KIB, _MIB)
    messages: tuple[Work, ...] = (
        in_turns("round_trips", sizes, 1) | {"seconds": 2 * scale.seconds},
        {
            "name": "after_pauses",
            "kind": "link_after_pauses",
            "device": "L1",
            "sizes": sizes,
            "pause": 0.5,
            "count": 4,
        },
    )
    return [
        Session(
            "truths",
            transport,
            transport,
            works,
            world_size=world_size,
            profile=profile,
            runs=min(scale.runs, scale.few_runs),
        )
        for profile in scale.truths
        for world_size, works in ((2, messages), (3, (program_work("lr-aby3", 3, prepared, 0),)))
        for transport in MAIN
    ]


def _parties(scale: Scale, prepared: Path) -> list[Session]:
    return [
        Session(
            "parties",
            transport,
            transport,
            (program_work("lr-semi2k", count, prepared, 1),),
            world_size=count,
            runs=min(scale.runs, scale.few_runs),
        )
        for count in scale.parties
        for transport in MAIN
    ]


def _scale(scale: Scale) -> list[Session]:
    return [_sessions_at_once(scale, *each) for each in scale.scaled]


def _sessions_at_once(scale: Scale, parties: int, sessions: int, size: int, broker: str) -> Session:
    ranks = min(parties, _MOST_PROCESSES)
    groups = min(_MOST_PROCESSES // ranks, sessions)
    work = {
        "name": "sessions",
        "kind": "sessions",
        "count": sessions,
        "ranks": ranks,
        "groups": groups,
        "seconds": 6 * scale.seconds,
        "size": size,
    }
    return Session(
        "scale",
        f"{broker}: {sessions} of {parties}, {size} B",
        REDISLINK,
        (work,),
        world_size=parties,
        processes=ranks * groups,
        broker=broker,
        runs=min(scale.runs, scale.few_runs),
    )
