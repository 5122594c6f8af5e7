"""The policy of one worker: what a driver may have it run.

Rules:
- The first rule that matches decides about a graph; if none does, the graph is refused. Nothing of
  a refused graph runs.
- A rule that accepts says which driver, which graphs and which operations it means, if only as
  ``"*"``. Files and saved objects are open only if it says so, whatever its operations are.
- Whatever goes wrong while deciding refuses the graph.
- Nothing here knows MPLang: a graph is anything with operations, their attributes and regions.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Protocol

from pydantic import BaseModel, Field, PrivateAttr, field_validator, model_validator

from redislink.cluster.checked import as_value_error
from redislink.jobs.offer import check_digest
from redislink.jobs.rules import ANY, STRICT, NamedRule, Names, RuleFile, Window, check_each
from redislink.protocol.list_names import check_name
from redislink.text import one_line
from redislink.units import Duration

_PATTERN: Final = re.compile(r"[A-Za-z0-9_]+\.(?:[A-Za-z0-9_.]+\*?|\*)", re.ASCII)
_CUSTOM_CALL: Final = re.compile(r"(?<![\w.])stablehlo\.custom_call @([A-Za-z0-9_.]+)\(", re.ASCII)
_OF_SPU: Final = "spu."
"""Operations that SPU compiles, whose custom calls are its own functions; all others are XLA's."""
_MOST_OPERATIONS: Final = 1_000_000
UNKNOWN_CALL: Final = "xla.unknown"
"""Stands for a custom call whose target cannot be told from the program's text."""
READ: Final = "table.read"
STORE: Final = ("store.save", "store.load", "table.write")
"""Operations that need ``store``."""


class Operation(Protocol):
    """An operation of a graph, as MPLang has it."""

    opcode: str
    attrs: dict[str, Any]
    regions: Sequence[Graph]


class Graph(Protocol):
    """A graph, as MPLang has it."""

    operations: Sequence[Operation]


@dataclass(frozen=True, slots=True)
class Asked:
    """What running a graph would do, as far as a policy looks at it.

    Attributes:
        driver: who asks.
        graph: digest of the graph, ``sha256:…``.
        operations: the operations in it, at any depth; a call out of compiled code, such as
            LAPACK's, is ``xla.`` and its target.
        reads: the paths of the tables that it reads.
        store: whether it saves or loads something, or takes something saved as an input.
    """

    driver: str
    graph: str
    operations: frozenset[str]
    reads: tuple[str, ...] = ()
    store: bool = False


@dataclass(frozen=True, slots=True)
class Grant:
    """What the rule that accepted a graph allows.

    Attributes:
        rule: the rule's name.
        operations: patterns of the operations that may run.
        data: the file of each table that it may read, by the path that the graph states.
        store: whether values and tables may be saved and loaded.
        results: whether the driver may fetch what the graph gives.
        logs: whether the driver is told what an error says.
        wall: seconds that it may take; None: any.
        unrestricted: everything is allowed, and nothing is checked: for trials.
    """

    rule: str
    operations: tuple[str, ...] = (ANY,)
    data: Mapping[str, Path] = field(default_factory=dict)
    store: bool = False
    results: bool = False
    logs: bool = False
    wall: float | None = None
    unrestricted: bool = False

    def allows(self, operation: str) -> bool:
        """Whether an operation may run."""
        return any(_fits(operation, pattern) for pattern in self.operations)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a graph is not run.

    Attributes:
        reason: one line for the driver.
        details: one line for each rule that did not match, for people at this worker only.
    """

    reason: str
    details: tuple[str, ...] = ()


EVERYTHING: Final = Grant(
    "everything is allowed, for trials", store=True, results=True, logs=True, unrestricted=True
)


def look_at(driver: str, digest: str, graph: Graph, inputs: Sequence[str | None]) -> Asked:
    """What a graph would do.

    Args:
        driver: who asks.
        digest: of the graph.
        graph: the graph; it is untrusted.
        inputs: URIs of its inputs; None where this worker has none.

    Raises:
        ValueError: it is not as a graph is, or too large.
    """
    operations: set[str] = set()
    reads: list[str] = []
    for count, operation in enumerate(_walk(graph), start=1):
        if count > _MOST_OPERATIONS:
            raise ValueError(f"it has more than {_MOST_OPERATIONS} operations")
        if not isinstance(operation.opcode, str):
            raise ValueError("an operation's name is no text")
        operations.add(operation.opcode)
        if operation.opcode == READ:
            path = operation.attrs.get("path")
            if not isinstance(path, str):
                raise ValueError(f"{READ} without a path")
            reads.append(path)
        if not operation.opcode.startswith(_OF_SPU):
            for text in operation.attrs.values():
                if isinstance(text, str) and "custom_call" in text:
                    operations |= _custom_calls(text)
    store = bool(operations.intersection(STORE)) or any(
        uri is not None and not uri.startswith("mem://") for uri in inputs
    )
    return Asked(driver, digest, frozenset(operations), tuple(dict.fromkeys(reads)), store)


def _walk(graph: Graph) -> Iterator[Operation]:
    waiting = [graph]
    while waiting:
        for operation in waiting.pop().operations:
            yield operation
            waiting.extend(operation.regions)


def _custom_calls(text: str) -> set[str]:
    targets = _CUSTOM_CALL.findall(text)
    known = {f"xla.{target}" for target in targets}
    # Written otherwise, or from another dialect: nobody can say what it would call.
    return known if text.count("custom_call") == len(targets) else {*known, UNKNOWN_CALL}


def _fits(operation: str, pattern: str) -> bool:
    if pattern.endswith("*"):
        return operation.startswith(pattern[:-1])
    return operation == pattern


# -- the file --------------------------------------------------------------------------------


class Limits(BaseModel):
    """What running one graph may use.

    Attributes:
        wall: a duration from its beginning to its end. What takes longer ends the session, and
            the worker's process if it computes on.
    """

    model_config = STRICT
    wall: Duration | None = None


def _check(name: str, what: str) -> None:
    """Check one name in a condition.

    Raises:
        ValueError: it is not valid.
    """
    if what == "graph":
        as_value_error(lambda digest, _: check_digest(digest), name, what)
    elif what != "operations":
        as_value_error(check_name, name, what)
    elif not _PATTERN.fullmatch(name):
        raise ValueError(
            f"{name!r:.80} is no operation: write one such as spu.exec, or the beginning of some, "
            "such as tensor.*"
        )


class Rule(NamedRule):
    """One rule. A condition that is not given holds for all graphs; a rule with ``action: accept``
    gives those on ``driver``, ``graph`` and ``operations``, if only as ``"*"``.

    Attributes:
        name: what people call the rule; reasons and logs name it.
        action: ``accept`` or ``refuse``.
        driver: condition: the driver is one of these names.
        graph: condition: the graph is one of these: digests, ``sha256:…``, as a refusal shows them.
        operations: condition: the graph's operations are all among these, such as ``tensor.*`` or
            ``spu.exec``; with ``action: refuse``, at least one is.
        data: condition: the tables that it reads are all among these data sets; without it, the
            rule accepts only what reads none. With ``action: refuse``, at least one is.
        window: condition: the time at which the graph arrives.
        store: whether values and tables may be saved in the worker's directory and loaded from it.
        results: ``to_driver``: the driver may fetch what the graph gives; ``none``.
        logs: ``to_driver``: the driver is told what an error says, which may quote data; ``none``:
            only its type.
        limits: what it may use: ``wall`` (a duration).
    """

    action: Literal["accept", "refuse"]
    driver: Names | None = None
    graph: Names | None = None
    operations: Names | None = None
    data: Names | None = None
    window: Window | None = None
    store: bool = Field(default=False, strict=True)
    results: Literal["to_driver", "none"] = "none"
    logs: Literal["to_driver", "none"] = "none"
    limits: Limits = Limits()

    @field_validator("driver", "graph", "operations", "data")
    @classmethod
    def _valid(cls, names: tuple[str, ...] | None, info: Any) -> tuple[str, ...] | None:
        return names and check_each(names, partial(_check, what=info.field_name))

    @model_validator(mode="after")
    def _accepts_what_it_says(self) -> Rule:
        if self.action == "accept":
            for condition in ("driver", "graph", "operations"):
                if getattr(self, condition) is None:
                    raise ValueError(
                        f"accepts, but does not say which {condition}: add {condition}, with "
                        f'"{ANY}" if all are meant'
                    )
        return self

    def listed_data(self) -> tuple[str, ...]:
        """As `NamedRule.listed_data`."""
        return self.data or ()

    def mismatch(self, asked: Asked, now: float, sets: Mapping[str, str | None]) -> str:
        """Why the rule does not match, in words for people here; "" if it matches.

        Args:
            asked: what is asked for.
            now: UTC seconds since 1970.
            sets: the data set of each table that the graph reads; None: it is of none.
        """
        for what, text, listed in (
            ("driver", asked.driver, self.driver),
            ("graph", asked.graph, self.graph),
        ):
            if listed not in (None, (ANY,)) and text not in (listed or ()):
                return f"{what}: {text}"
        if self.window is not None and not self.window.holds(now):
            return "window: not at this time"
        if self.action == "refuse":
            return self._is_not_refused(asked, sets)
        patterns = self.operations or ()
        foreign = sorted(
            each for each in asked.operations if not any(_fits(each, p) for p in patterns)
        )
        if foreign:
            return f"operations: {', '.join(foreign)}"
        for path, name in sets.items():
            if name is None or (self.data != (ANY,) and name not in (self.data or ())):
                return f"data: {path}"
        return "store: it saves or loads values" if asked.store and not self.store else ""

    def _is_not_refused(self, asked: Asked, sets: Mapping[str, str | None]) -> str:
        if self.operations is not None and not any(
            _fits(each, pattern) for each in asked.operations for pattern in self.operations
        ):
            return "operations: none of them"
        if self.data not in (None, (ANY,)) and not set(sets.values()).intersection(self.data or ()):
            return "data: none of them"
        return ""


class Policy(RuleFile):
    """A policy file of a worker.

    Attributes:
        rules: the rules in order; the first that matches decides.
        data: path of each data set by its name; relative paths begin at the policy file. A graph
            names a table by the name or by the path.
    """

    WHAT: ClassVar[str] = "a worker's policy is a mapping with rules and data"
    rules: tuple[Rule, ...] = ()
    _unrestricted: bool = PrivateAttr(default=False)

    @classmethod
    def everything(cls) -> Policy:
        """Allows everything, and checks nothing: for trials, on one's own machine."""
        policy = cls()
        policy._unrestricted = True
        return policy

    @property
    def is_unrestricted(self) -> bool:
        """Whether it is that of `everything`."""
        return self._unrestricted

    @property
    def has_limits(self) -> bool:
        """Whether a rule limits the time that a graph may take."""
        return any(rule.limits.wall is not None for rule in self.rules)

    def decide(self, asked: Asked, now: float | None = None) -> Grant | Refusal:
        """Decide about a graph.

        Args:
            asked: what is asked for.
            now: UTC seconds since 1970; None: the present time.
        """
        if self._unrestricted:
            return EVERYTHING
        try:
            return self._first_match(asked, time.time() if now is None else now)
        except Exception as error:  # noqa: BLE001 - rather refuse than go on to a later rule
            detail = one_line(f"{type(error).__name__}: {error}")
            return Refusal("its policy cannot decide about this graph", (detail,))

    def _first_match(self, asked: Asked, now: float) -> Grant | Refusal:
        sets = {path: self._set_of(path) for path in asked.reads}
        details: list[str] = []
        for rule in self.rules:
            mismatch = rule.mismatch(asked, now, sets)
            if mismatch:
                details.append(one_line(f"rule {rule.name!r} does not match: {mismatch}"))
            elif rule.action == "refuse":
                return Refusal(f"rule {rule.name!r} of its policy refuses it", tuple(details))
            else:
                return Grant(
                    rule.name,
                    rule.operations or (),
                    {path: self.data[name] for path, name in sets.items() if name is not None},
                    rule.store,
                    rule.results == "to_driver",
                    rule.logs == "to_driver",
                    rule.limits.wall,
                )
        return Refusal("no rule of its policy matches it", tuple(details))

    def _set_of(self, path: str) -> str | None:
        """The data set that a graph means; None if there is none."""
        if path in self.data:
            return path
        return next((name for name, file in self.data.items() if str(file) == path), None)
