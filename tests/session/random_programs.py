"""Random programs whose parties are killed at random steps, against the same in plain numbers.

``python -m tests.session.random_programs --cases 1000`` plays many; ``--seed N --cases 1 -v`` one.

A program has up to `MOST_STEPS` calls: private values, some of which cannot be loaded,
computations, reveals to some of the parties, handles that are dropped, and devices that are spawned
and used in turn with their parent or beside it. Numbers are whole, so every result is exact.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from redislink import ClusterSpec, LoadFailed, RedisLinkSettings, Session, Simulator
from redislink.session import simulator as simulator_module
from redislink.session.kills import Plan

NAMES: Final = ("alice", "bob", "carol")
MEMBERS: Final = {"SP0": ("alice", "bob"), "SP1": ("bob", "carol")}
MOST_STEPS: Final = 30
MOMENTS: Final = ("begins", "writes", "written")
CLUSTER: Final = ClusterSpec.parse(
    {
        "session": "random",
        "parties": list(NAMES),
        "devices": {
            name: {"kind": "SPU", "members": list(members), "config": {"protocol": "SEMI2K"}}
            for name, members in MEMBERS.items()
        },
    }
)
SETTINGS: Final = RedisLinkSettings.model_construct(recv_timeout=30.0, close_timeout=5.0)


def add(x: Any, y: Any) -> Any:
    return x + y


def subtract(x: Any, y: Any) -> Any:
    return x - y


def increment(x: Any) -> Any:
    return x + 1


FUNCTIONS: Final = ((add, 2), (subtract, 2), (increment, 1))
"""The same objects in every program, so that the parties need not be told of new ones."""


@dataclass(frozen=True)
class Call:
    """One call of a program.

    Attributes:
        what: private, fail, run, reveal, drop, spawn, close or beside.
        device: the name of the device, or of a spawned one.
        made: the name of the handle or device that it makes.
        given: what it is given.
    """

    what: str
    device: str = ""
    made: str = ""
    given: Any = None

    @property
    def is_step(self) -> bool:
        """Whether it is a step of the session's own chain."""
        return self.device in MEMBERS and self.what in ("private", "fail", "run", "reveal", "spawn")


@dataclass
class Maker:
    """Makes a program from a seed."""

    rng: random.Random
    calls: list[Call] = field(default_factory=list)
    handles: dict[str, str] = field(default_factory=dict)
    """By name, the device of each handle that is alive."""
    children: dict[str, str] = field(default_factory=dict)
    """By name, the parent of each spawned device that is open."""
    made: int = 0

    def program(self) -> list[Call]:
        length = self.rng.randint(4, MOST_STEPS - 3)
        while (
            sum(1 + len(call.given or ()) * (call.what == "beside") for call in self.calls) < length
        ):
            device = self.rng.choice([*MEMBERS, *self.children])
            self.calls.append(self.call(device))
        for name in sorted(self.handles):  # else some programs would show little
            if self.rng.random() < 0.3 and self.handles[name] in MEMBERS:
                self.calls.append(Call("reveal", self.handles[name], "", (name, self.some())))
        return self.calls

    def call(self, device: str, *, alone: bool = True) -> Call:
        """A call of a device; with ``alone`` False, one that a thread of its own may make."""
        usable = [
            n for n, home in self.handles.items() if home in (device, self.children.get(device))
        ]
        kinds = ["private", "private", "fail"] + ["run", "run", "run", "reveal", "reveal"] * bool(
            usable
        )
        if alone:
            kinds += ["drop"] * bool(usable) + ["spawn"] * (device in MEMBERS)
            kinds += ["close", "beside", "beside"] * (device in self.children)
        match self.rng.choice(kinds):
            case "private":
                return Call("private", device, self.new(device), (self.owner(), self.values()))
            case "fail":
                return Call("fail", device, "", self.owner())
            case "run":
                function, arity = self.rng.choice(FUNCTIONS)
                given = [self.rng.choice(usable) for _ in range(arity)]
                return Call("run", device, self.new(device), (function, given))
            case "reveal":
                return Call("reveal", device, "", (self.rng.choice(usable), self.some()))
            case "drop":
                name = self.rng.choice(usable)
                del self.handles[name]
                return Call("drop", device, name)
            case "spawn":
                name = f"child{len(self.calls)}"
                self.children[name] = device
                return Call("spawn", device, name)
            case "close":
                parent = self.children.pop(device)
                for name in [n for n, home in self.handles.items() if home == device]:
                    del self.handles[name]
                return Call("close", device, parent)
            case _:
                parent = self.children[device]
                mine = [self.call(device, alone=False) for _ in range(self.rng.randint(1, 3))]
                hidden = {n: self.handles.pop(n) for n in [c.made for c in mine] if n}
                theirs = [self.call(parent, alone=False) for _ in range(self.rng.randint(1, 3))]
                self.handles |= hidden
                return Call("beside", device, parent, (mine, theirs))

    def new(self, device: str) -> str:
        self.made += 1
        self.handles[f"x{self.made}"] = device
        return f"x{self.made}"

    def owner(self) -> str:
        return self.rng.choice(NAMES)

    def values(self) -> list[int]:
        return [self.rng.randint(-9, 9) for _ in range(2)]

    def some(self) -> tuple[str, ...]:
        return tuple(self.rng.sample(NAMES, self.rng.randint(1, 3)))


def flat(calls: Sequence[Call]) -> list[Call]:
    """All calls, with those of both sides of a ``beside``."""
    found: list[Call] = []
    for call in calls:
        if call.what == "beside":
            found += [*flat(call.given[0]), *flat(call.given[1])]
        else:
            found.append(call)
    return found


def expected(calls: Sequence[Call]) -> dict[str, list[Any]]:
    """What each party learns, in plain numbers."""
    values: dict[str, Any] = {}
    learnt: dict[str, list[Any]] = {name: [] for name in NAMES}
    for call in flat(calls):
        if call.what == "private":
            values[call.made] = np.array(call.given[1], np.int32)
        elif call.what == "run":
            function, given = call.given
            values[call.made] = function(*(values[name] for name in given))
        elif call.what == "reveal":
            name, to = call.given
            for party in NAMES:
                learnt[party].append([int(v) for v in values[name]] if party in to else "withheld")
        elif call.what == "fail":
            for party in NAMES:
                learnt[party].append("ValueError" if party == call.given else "LoadFailed")
    return learnt


class Played:
    """A program as the parties run it."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls = calls
        self.loads: dict[str, int] = {}
        self.ends: set[str] = set()

    def __call__(self, session: Session) -> list[Any]:
        try:
            return self.play(session)
        except BaseException as error:
            self.ends.add(type(error).__name__)
            raise

    def play(self, session: Session) -> list[Any]:
        devices: dict[str, Any] = {name: session.spu(name) for name in MEMBERS}
        handles: dict[str, Any] = {}
        learnt: list[Any] = []
        for call in self.calls:
            if call.what == "beside":
                mine, theirs = call.given
                with ThreadPoolExecutor(1) as pool:
                    beside = pool.submit(
                        lambda calls=mine: [self.one(c, devices, handles) for c in calls]
                    )
                    after = [self.one(c, devices, handles) for c in theirs]
                    learnt += [x for x in (*beside.result(), *after) if x is not None]
            else:
                found = self.one(call, devices, handles)
                learnt += [] if found is None else [found]
        return learnt

    def one(self, call: Call, devices: dict[str, Any], handles: dict[str, Any]) -> Any:
        device = devices.get(call.device)
        match call.what:
            case "private":
                owner, values = call.given

                def load() -> Any:
                    self.loads[call.made] = self.loads.get(call.made, 0) + 1
                    return np.array(values, np.int32)

                handles[call.made] = device.private(load, owner=owner)
            case "fail":
                try:
                    device.private(self.refuse, owner=call.given)
                except (LoadFailed, ValueError) as error:
                    return type(error).__name__
            case "run":
                function, given = call.given
                handles[call.made] = device.run(function)(*(handles[name] for name in given))
            case "reveal":
                name, to = call.given
                shown = device.reveal(handles[name], to=to)
                return [int(v) for v in shown] if isinstance(shown, np.ndarray) else "withheld"
            case "drop":
                del handles[call.made]
            case "spawn":
                devices[call.made] = device.spawn()
            case "close":
                device.close()
        return None

    @staticmethod
    def refuse() -> Any:
        raise ValueError("no such file")


class _Plan(Plan):
    """Kills at any moment of a step; what a journal has answered before is not written again."""

    def __init__(self, kills: Mapping[str, Sequence[tuple[int, str]]]) -> None:
        super().__init__({party: [n for n, _ in at] for party, at in kills.items()}, NAMES)
        self.kills = {party: list(at) for party, at in kills.items()}
        self.done = 0

    def is_due(self, party: str, number: int, moment: str) -> bool:
        left = self.kills.get(party)
        if not left or left[0] != (number, moment):
            return False
        del left[0]
        self.done += 1
        return True

    def check_done(self) -> None:
        pass


def play(seed: int, *, through: Any = "memory", shows: bool = False) -> int:
    """Play one program, and return how many parties were killed in it.

    Raises:
        AssertionError: a party has not learnt what it should, a value was loaded too often, or the
            parties waited for each other.
    """
    rng = random.Random(seed)
    calls = Maker(rng).program()
    last = len(MEMBERS) + sum(call.is_step for call in flat(calls)) + 1
    kills: dict[str, list[tuple[int, str]]] = {}
    for _ in range(rng.randint(1, 3)):
        kills.setdefault(rng.choice(NAMES), []).append((rng.randint(1, last), rng.choice(MOMENTS)))
    if shows:
        print(f"seed {seed}: kills {kills} in {last} steps")
        for call in calls:
            print("   ", call)
    plan, program = _Plan(kills), Played(calls)
    mortal = Simulator(CLUSTER, through=through, settings=SETTINGS, kill={"alice": [1]})
    before, simulator_module.Plan = simulator_module.Plan, lambda *_: plan  # type: ignore[misc,assignment]
    try:
        found = mortal.run(program)
    finally:
        simulator_module.Plan = before  # type: ignore[misc]
    assert found == expected(calls), f"seed {seed}"
    waits = program.ends & {"RecvTimeout", "SendTimeout"}
    assert not waits, f"seed {seed}: the parties waited for each other"
    assert all(times <= 1 + plan.done for times in program.loads.values()), f"seed {seed}"
    return plan.done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--through", default="memory", choices=("memory", "fakeredis", "embedded"))
    parser.add_argument("-v", "--verbose", action="store_true")
    options = parser.parse_args()
    started, killed, failed = time.monotonic(), 0, []
    for seed in range(options.seed, options.seed + options.cases):
        try:
            killed += play(seed, through=options.through, shows=options.verbose)
        except Exception as error:  # noqa: BLE001 - the next ones may tell more
            failed.append(seed)
            print(f"seed {seed}: {type(error).__name__}: {error}", flush=True)
        if seed % 20 == 0:
            gc.collect()
    took = time.monotonic() - started
    print(f"{options.cases} programs, {killed} kills, {took:.0f} s; failed: {failed or 'none'}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
