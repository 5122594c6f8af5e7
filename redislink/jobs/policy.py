"""The policy of one organisation: which offers it accepts, asks a person about, or refuses.

Rules:
- The first rule that matches decides; if none does, the offer is refused.
- A rule matches if each of its conditions holds. To accept or ask, all data sets, devices and
  parties of the job are among those of the rule; to refuse, one of them is enough. A rule that
  accepts states its conditions on
  driver, program, arguments and data, if only as ``"*"``: none is open because it was forgotten.
- A decision depends on the policy, the offer, the time and what this agent holds of the program.
  What the driver calls its program never makes it run: code that nobody here has approved is at
  best a question to a person.
- Whatever goes wrong while deciding refuses the offer.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from redislink.cluster.checked import as_value_error, error_at
from redislink.cluster.yaml_text import YamlText
from redislink.errors import ValueDecodeError
from redislink.jobs.offer import Offer, check_digest
from redislink.jobs.program import Program
from redislink.jobs.rules import (
    ANY,
    STRICT,
    NamedRule,
    Names,
    RuleFile,
    Window,
    check_each,
)
from redislink.jobs.schema import ArgumentSchema, SchemaProblem
from redislink.jobs.store import Entry
from redislink.protocol.list_names import check_name
from redislink.text import one_line
from redislink.units import Duration, Size, show_duration

CLOCKS_DIFFER: Final = 300
"""Seconds by which a driver's clock may be ahead of this machine's."""


class Action(enum.StrEnum):
    """What becomes of an offer."""

    ACCEPT = "accept"
    ASK = "ask"
    """A person at the agent's machine decides."""
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class JobLimits:
    """What one job may use. What is not given has no limit.

    Attributes:
        wall: seconds from its start to its end.
        cpu: seconds of CPU of all its processes together.
        memory: bytes of all its processes together.
        disk: bytes in its work directory.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")
    wall: Duration | None = None
    cpu: Duration | None = None
    memory: Size | None = None
    disk: Size | None = None


@dataclass(frozen=True, slots=True)
class AgentLimits:
    """What all jobs of an agent may use together. What is not given has no limit.

    Attributes:
        jobs: jobs that run at the same time.
        disk: bytes in all work directories.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")
    jobs: Annotated[int, Field(ge=1, le=1000, strict=True)] | None = None
    disk: Size | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policy says about an offer.

    Attributes:
        action: accept, ask or refuse.
        rule: name of the rule that decided; empty if none did.
        reason: one line for the driver, which may see it.
        limits: what the job may use here.
        results: names of results that the driver wants and may have.
        logs: whether the job's log may go to the driver.
        details: one line for each rule that did not match, for people at this agent only.
    """

    action: Action
    rule: str
    reason: str
    limits: JobLimits = JobLimits()
    results: tuple[str, ...] = ()
    logs: bool = False
    details: tuple[str, ...] = ()


# -- the file --------------------------------------------------------------------------------


def _check_each(values: tuple[str, ...], what: str) -> tuple[str, ...]:
    def check(value: str) -> None:
        if what == "program" and value.startswith("sha256:"):
            as_value_error(lambda digest, _: check_digest(digest), value, what)
        else:
            as_value_error(check_name, value, what)

    return check_each(values, check)


class Results(BaseModel):
    """Which results leave this organisation.

    Attributes:
        to_driver: names of results that the driver may have.
    """

    model_config = STRICT
    to_driver: Names = ()

    @field_validator("to_driver")
    @classmethod
    def _valid(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _check_each(names, "result")


class Rule(NamedRule):
    """One rule. A condition that is not given holds for all offers; a rule with ``action: accept``
    gives those on ``driver``, ``program``, ``arguments`` and ``data``, if only as ``"*"``.

    Attributes:
        name: what people call the rule; reasons and records name it.
        action: ``accept``: the job runs; ``ask``: a person here decides; ``refuse``.
        driver: condition: the driver is one of these names.
        program: condition: the program is one of these: names under which this agent has
            programs, or digests, ``sha256:…``.
        arguments: condition: the arguments match this JSON Schema (Draft 2020-12).
        data: condition: the data sets that the job asks for here are all among these; with
            ``action: refuse``, at least one is.
        devices: condition: likewise, the devices that the job uses.
        parties: condition: likewise, the parties of the job.
        window: condition: the time at which the offer arrives.
        results: which results leave this organisation; none, if not given.
        logs: ``to_driver``: the job's log may leave; ``none``: it stays here.
        limits: what the job may use: ``wall`` and ``cpu`` (durations), ``memory`` and ``disk``
            (sizes).
    """

    action: Action
    driver: Names | None = None
    program: Names | None = None
    arguments: Annotated[
        dict[str, Any] | None,
        WithJsonSchema({"anyOf": [{"type": "object"}, {"const": ANY}]}),
    ] = None
    data: Names | None = None
    devices: Names | None = None
    parties: Names | None = None
    window: Window | None = None
    results: Results = Results()
    logs: Literal["to_driver", "none"] = "none"
    limits: JobLimits = JobLimits()
    _schema: ArgumentSchema | None = PrivateAttr(default=None)

    @field_validator("arguments", mode="before")
    @classmethod
    def _any_arguments(cls, arguments: Any) -> Any:
        return {} if arguments == ANY else arguments

    @field_validator("driver", "program", "data", "devices", "parties")
    @classmethod
    def _valid_names(cls, names: tuple[str, ...] | None, info: Any) -> tuple[str, ...] | None:
        singular = {"data": "data set", "devices": "device", "parties": "party"}
        return names and _check_each(names, singular.get(info.field_name, info.field_name))

    @model_validator(mode="after")
    def _accepts_what_it_says(self) -> Rule:
        if self.action is Action.ACCEPT:
            for field in ("driver", "program", "arguments", "data"):
                if getattr(self, field) is None:
                    raise ValueError(
                        f"accepts, but does not say which {field}: add {field}, with "
                        f'"{ANY}" if all are meant'
                    )
        return self

    def listed_data(self) -> tuple[str, ...]:
        """As `NamedRule.listed_data`."""
        return self.data or ()

    def mismatch(self, offer: Offer, now: float, party: str, name: str) -> str:
        """Why the rule does not match, in words for people here; "" if it matches.

        Args:
            offer: what is offered.
            now: UTC seconds since 1970.
            party: this agent's party.
            name: what the program is called.
        """
        if not _is_among((offer.driver,), self.driver):
            return f"driver: {offer.driver}"
        if not (_is_among((offer.program,), self.program) or _is_among((name,), self.program)):
            return f"program: {offer.program}" + (f" ({name})" if name else "")
        for field, names in (
            ("data", offer.data_of(party)),
            ("devices", offer.devices),
            ("parties", offer.parties),
        ):
            if not self._covers(names, getattr(self, field)):
                return f"{field}: {', '.join(names) or 'none'}"
        if self.window is not None and not self.window.holds(now):
            return "window: not at this time"
        return self._schema.mismatch(offer.arguments) if self._schema else ""

    def _covers(self, names: tuple[str, ...], listed: tuple[str, ...] | None) -> bool:
        if self.action is Action.REFUSE and listed is not None and listed != (ANY,):
            return not set(names).isdisjoint(listed)
        return _is_among(names, listed)

    def compile(self) -> None:
        """Make ready to match arguments.

        Raises:
            SchemaProblem: ``arguments`` is not a schema that can be used.
        """
        if self.arguments is not None:
            self._schema = ArgumentSchema(self.arguments)


class Policy(RuleFile):
    """A policy file.

    Attributes:
        rules: the rules in order; the first that matches decides.
        data: path of each data set by its name; relative paths begin at the policy file.
        limits: what all jobs may use together: ``jobs`` (how many run at the same time) and
            ``disk`` (a size).
        longest_offer: how long offers may be valid; agents remember an offer for as long.
    """

    WHAT: ClassVar[str] = "a policy is a mapping with rules and data"
    rules: tuple[Rule, ...] = ()
    limits: AgentLimits = AgentLimits()
    longest_offer: Duration = 7 * 86400
    _places: tuple[str, ...] = PrivateAttr(default=())

    @field_validator("rules", "data", mode="before")
    @classmethod
    def _nothing_below(cls, value: Any, info: Any) -> Any:
        if value is not None:
            return value  # else all of them are commented out
        return {} if info.field_name == "data" else ()

    def _check_rule(self, index: int, source: str, written: YamlText) -> None:
        super()._check_rule(index, source, written)
        try:
            self.rules[index].compile()
        except SchemaProblem as problem:
            path = ("rules", index, "arguments", *problem.path)
            raise error_at(source, path, problem.text, written) from None
        self._places = (*self._places, written.place(("rules", index)))

    def place(self, rule: str) -> str:
        """``, line N`` of the rule with a name."""
        names = [r.name for r in self.rules]
        return self._places[names.index(rule)] if rule in names else ""

    def decide(self, offer: Offer, now: float, *, party: str, program: Entry | None) -> Decision:
        """Decide about an offer.

        Args:
            offer: what the driver offers.
            now: UTC seconds since 1970.
            party: this agent's party.
            program: what the program store has of ``offer.program``; None if it has nothing.
        """
        try:
            reason = next(self._objections(offer, now, party, program), "")
            if reason:
                return Decision(Action.REFUSE, "", reason)
            return self._first_match(offer, now, party, program)
        except Exception as error:  # noqa: BLE001 - rather refuse than go on to a later rule
            return Decision(
                Action.REFUSE,
                "",
                "its policy cannot decide about this offer",
                details=(one_line(f"{type(error).__name__}: {error}"),),
            )

    def _objections(
        self, offer: Offer, now: float, party: str, program: Entry | None
    ) -> Iterator[str]:
        """Why an offer is refused whatever the rules say."""
        if party not in offer.parties:
            yield f"{party} is none of the job's parties"
        if offer.expires <= now:
            yield "the offer has expired"
        if offer.issued > now + CLOCKS_DIFFER:
            yield "the offer was issued in the future: set the clocks"
        if offer.expires - offer.issued > self.longest_offer:
            yield f"the offer is valid for longer than {show_duration(self.longest_offer)}"
        for name in offer.data_of(party):
            if name not in self.data:
                yield f"there is no data set {name!r} here"
        if program is not None and program.digest != offer.program:
            raise ValueError("the entry of another program")
        if program is None and offer.source is None:
            yield f"the program {offer.program} is not here, and was not attached"
        if program is None and offer.source is not None:
            try:
                Program.unpack_untrusted(offer.source)
            except ValueDecodeError as error:
                yield str(error)

    def _first_match(self, offer: Offer, now: float, party: str, program: Entry | None) -> Decision:
        is_approved = program is not None and program.approved is not None
        name = program.name if program is not None else offer.program_name
        details: list[str] = []
        for rule in self.rules:
            mismatch = rule.mismatch(offer, now, party, name)
            if mismatch:
                details.append(one_line(f"rule {rule.name!r} does not match: {mismatch}"))
                continue
            action, reason = rule.action, f"rule {rule.name!r} of its policy: {rule.action}"
            if action is Action.ACCEPT and not is_approved:
                action = Action.ASK
                reason = f"rule {rule.name!r} of its policy: nobody has approved this program yet"
            granted = action is not Action.REFUSE
            allowed = rule.results.to_driver
            return Decision(
                action,
                rule.name,
                reason,
                rule.limits,
                tuple(n for n in offer.results if granted and _is_among((n,), allowed)),
                granted and rule.logs == "to_driver",
                tuple(details),
            )
        return Decision(
            Action.REFUSE, "", "no rule of its policy matches this offer", details=tuple(details)
        )


def _is_among(names: tuple[str, ...], allowed: tuple[str, ...] | None) -> bool:
    return allowed is None or allowed == (ANY,) or set(names) <= set(allowed)
