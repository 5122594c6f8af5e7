"""Policies: the first match decides, none refuses, and no rule matches more than it says."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import zoneinfo
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from redislink.errors import ConfigError
from redislink.jobs.offer import Offer
from redislink.jobs.policy import Action, AgentLimits, Decision, JobLimits, Policy
from redislink.jobs.rules import Window
from redislink.jobs.store import Entry
from redislink.values import encode_value
from tests.jobs.examples import NOW, POLICY, a_program, an_offer

DIGEST = an_offer().program
APPROVED = Entry(
    digest=DIGEST, name="lr-train", added=1.0, added_by="r", approved=2.0, approved_by="r"
)
UNAPPROVED = APPROVED.model_copy(update={"approved": None, "approved_by": None})
PACKED = encode_value([["main.py", b""]])
ATTACHED = {"source": PACKED, "program": a_program({"main.py": b""}).digest}


def policy(text: str = POLICY) -> Policy:
    return Policy.parse(text, "policy file p.yaml", Path("/etc/redislink"))


def rules(*rules: dict[str, Any]) -> Policy:
    named = [{"name": f"rule {n}", **rule} for n, rule in enumerate(rules)]
    return policy(yaml.safe_dump({"rules": named, "data": {"patients": "p", "loans": "l"}}))


def decide(
    by: Policy, offer: Offer | None = None, now: float = NOW, program: Entry | None = APPROVED
) -> Decision:
    return by.decide(offer or an_offer(), now, party="alice", program=program)


def test_the_whole_file() -> None:
    read = policy()
    assert read.data == {"patients": Path("/etc/redislink/data/patients.csv")}
    assert read.limits == AgentLimits(jobs=2, disk=50 << 30)
    assert read.longest_offer == 7 * 86400
    evening = datetime.datetime(2026, 9, 21, 22, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"))
    issued = int(evening.timestamp())
    decision = decide(read, an_offer(issued=issued, expires=issued + 60), issued)
    assert decision == Decision(
        Action.ACCEPT,
        "nightly training",
        "rule 'nightly training' of its policy: accept",
        JobLimits(wall=7200, cpu=14400, memory=8 << 30, disk=10 << 30),
        ("weights",),
        logs=True,
    )
    by_day = decide(read)
    assert (by_day.action, by_day.rule) == (Action.REFUSE, "")
    assert by_day.reason == "no rule of its policy matches this offer"
    assert by_day.details == ("rule 'nightly training' does not match: window: not at this time",)
    assert read.place("nightly training") == ", line 3"


ACCEPTS = {
    "action": "accept",
    "driver": "coordinator",
    "program": "lr-train",
    "data": ["patients"],
    "devices": ["spu"],
    "parties": ["alice", "bob"],
    "arguments": {
        "type": "object",
        "properties": {"epochs": {"type": "integer", "maximum": 10}},
        "additionalProperties": False,
    },
    "results": {"to_driver": ["weights"]},
}


def test_a_rule_accepts_what_it_names() -> None:
    decision = decide(rules(ACCEPTS))
    assert (decision.action, decision.rule) == (Action.ACCEPT, "rule 0")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"driver": "eve"}, "driver: eve"),
        ({"driver": "Coordinator"}, "driver: Coordinator"),
        ({"driver": "coordinator2"}, "driver"),
        ({"arguments": {"epochs": 11}}, "arguments.epochs"),
        ({"arguments": {"epochs": 3, "plaintext": True}}, "arguments"),
        ({"arguments": ["--epochs", "3"]}, "arguments"),
        ({"data": {"alice": ("patients", "loans")}}, "data: patients, loans"),
        ({"data": {"alice": ("loans",)}}, "data: loans"),
        ({"devices": ("spu", "psi")}, "devices: spu, psi"),
        ({"parties": ("alice", "bob", "carol")}, "parties: alice, bob, carol"),
    ],
)
def test_it_accepts_nothing_else(change: dict[str, Any], why: str) -> None:
    decision = decide(rules(ACCEPTS), an_offer(**change))
    assert (decision.action, decision.rule) == (Action.REFUSE, "")
    assert why in decision.details[0]
    assert why.partition(":")[0] not in decision.reason


def test_what_a_driver_calls_its_program_decides_nothing() -> None:
    other = APPROVED.model_copy(update={"name": "psi"})
    assert decide(rules(ACCEPTS), an_offer(program_name="lr-train"), program=other).rule == ""
    assert decide(rules(ACCEPTS), an_offer(program_name="psi")).action is Action.ACCEPT


def test_a_digest_is_one_program() -> None:
    rule = ACCEPTS | {"program": [DIGEST, "psi"]}
    assert decide(rules(rule)).action is Action.ACCEPT
    other = "sha256:" + "0" * 64
    entry = APPROVED.model_copy(update={"digest": other})
    assert decide(rules(rule), an_offer(program=other), program=entry).action is Action.REFUSE


def test_code_that_nobody_has_approved_is_at_best_a_question() -> None:
    anything = rules(
        {"action": "accept", "driver": "*", "program": "*", "arguments": "*", "data": "*"}
    )
    for offer, entry in (
        (an_offer(**ATTACHED), None),
        (an_offer(), UNAPPROVED),
        (an_offer(**ATTACHED), UNAPPROVED.model_copy(update={"digest": ATTACHED["program"]})),
    ):
        decision = decide(anything, offer, program=entry)
        assert decision.action is Action.ASK
        assert "nobody has approved" in decision.reason
    assert decide(anything).action is Action.ACCEPT


def test_an_attached_version_is_asked_about_under_its_name() -> None:
    """The name is the driver's claim; the person who is asked sees the digest and the source."""
    assert decide(rules(ACCEPTS), an_offer(**ATTACHED), program=None).action is Action.ASK
    claims = an_offer(**ATTACHED, program_name="psi")
    assert decide(rules(ACCEPTS), claims, program=None).action is Action.REFUSE
    by_digest = ACCEPTS | {"program": ATTACHED["program"]}
    assert decide(rules(by_digest), claims, program=None).action is Action.ASK


def test_what_is_nowhere_is_refused() -> None:
    decision = decide(rules(ACCEPTS), program=None)
    assert decision.action is Action.REFUSE
    assert "is not here, and was not attached" in decision.reason


def test_what_is_attached_and_no_program_is_refused() -> None:
    source = encode_value([["../main.py", b""]])
    offer = an_offer(source=source, program=f"sha256:{hashlib.sha256(source).hexdigest()}")
    decision = decide(rules(ACCEPTS), offer, program=None)
    assert decision.action is Action.REFUSE
    assert "an attached program is not valid" in decision.reason


def test_the_first_match_decides() -> None:
    refuses = {"action": "refuse", "driver": "coordinator"}
    asks = {"action": "ask"}
    assert decide(rules(refuses, ACCEPTS)).action is Action.REFUSE
    assert decide(rules(ACCEPTS, refuses)).action is Action.ACCEPT
    found = decide(rules(ACCEPTS, refuses), an_offer(arguments={"epochs": 11}))
    assert (found.rule, len(found.details)) == ("rule 1", 1)
    assert decide(rules(ACCEPTS, asks), an_offer(driver="eve")).action is Action.ASK
    assert decide(rules()).action is Action.REFUSE


@pytest.mark.parametrize(
    ("condition", "matching", "other"),
    [
        ({"data": "loans"}, {"data": {"alice": ("patients", "loans")}}, {}),
        ({"devices": "psi"}, {"devices": ("spu", "psi")}, {"devices": ()}),
        ({"parties": "carol"}, {"parties": ("alice", "bob", "carol")}, {}),
    ],
)
def test_one_of_several_is_enough_to_refuse(
    condition: dict[str, Any], matching: dict[str, Any], other: dict[str, Any]
) -> None:
    by = rules({"action": "refuse", **condition}, {"action": "ask"})
    assert decide(by, an_offer(**matching)).rule == "rule 0"
    assert decide(by, an_offer(**other)).rule == "rule 1"


def test_data_of_other_parties_is_theirs_to_decide() -> None:
    offer = an_offer(data={"alice": ("patients",), "bob": ("whatever",)})
    assert decide(rules(ACCEPTS), offer).action is Action.ACCEPT


def test_only_what_the_rule_names_leaves() -> None:
    offer = an_offer(results=("weights", "shares"))
    decision = decide(rules(ACCEPTS), offer)
    assert (decision.results, decision.logs) == (("weights",), False)
    everything = ACCEPTS | {"results": {"to_driver": "*"}, "logs": "to_driver"}
    decision = decide(rules(everything), offer)
    assert (decision.results, decision.logs) == (("weights", "shares"), True)
    assert decide(rules(everything | {"results": {}}), offer).results == ()
    refused = decide(rules(everything | {"action": "refuse"}), offer)
    assert (refused.results, refused.logs) == ((), False)


@pytest.mark.parametrize(
    ("change", "now", "reason"),
    [
        ({"parties": ("bob", "carol"), "data": {}}, NOW, "alice is none of the job's parties"),
        ({}, NOW + 3600, "has expired"),
        ({}, NOW - 301, "issued in the future"),
        ({"expires": NOW + 8 * 86400}, NOW, "longer than 7d"),
        ({"data": {"alice": ("secrets",)}}, NOW, "there is no data set 'secrets' here"),
    ],
)
def test_some_offers_are_refused_whatever_the_rules_say(
    change: dict[str, Any], now: int, reason: str
) -> None:
    by = rules({"action": "accept", "driver": "*", "program": "*", "arguments": "*", "data": "*"})
    assert decide(by).action is Action.ACCEPT
    assert decide(by, now=NOW - 299).action is Action.ACCEPT
    decision = decide(by, an_offer(**change), now)
    assert (decision.action, decision.rule) == (Action.REFUSE, "")
    assert reason in decision.reason


def test_whatever_goes_wrong_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    by = rules({"action": "refuse", "arguments": ACCEPTS["arguments"]}, {"action": "ask"})

    def breaks(*_: object) -> str:
        raise RecursionError("too deep\x1b[2J")

    monkeypatch.setattr("redislink.jobs.schema.ArgumentSchema.mismatch", breaks)
    decision = decide(by)
    assert (decision.action, decision.reason) == (
        Action.REFUSE,
        "its policy cannot decide about this offer",
    )
    assert decision.details[0].isprintable()
    wrong = APPROVED.model_copy(update={"digest": "sha256:" + "1" * 64})
    assert decide(rules(ACCEPTS), program=wrong).action is Action.REFUSE


# -- properties ------------------------------------------------------------------------------

_NAMES = st.sampled_from(["a", "b", "c"])
_LISTED = st.none() | st.just("*") | st.lists(_NAMES, min_size=0, max_size=3, unique=True)
_ARGUMENTS = {
    "none": {"type": "object", "properties": {}, "additionalProperties": False},
    "small": {
        "type": "object",
        "properties": {"n": {"type": "integer", "maximum": 5}},
        "additionalProperties": False,
    },
    "any": {},
}
_RULE = st.fixed_dictionaries(
    {
        "action": st.sampled_from(["accept", "ask", "refuse"]),
        "driver": _LISTED,
        "program": _LISTED,
        "data": _LISTED,
        "devices": _LISTED,
        "parties": st.none() | st.just("*") | st.just(["alice", "bob"]),
        "arguments": st.none() | st.sampled_from(sorted(_ARGUMENTS)),
    }
)
_OFFER = st.fixed_dictionaries(
    {
        "driver": _NAMES,
        "program_name": _NAMES,
        "data": st.lists(_NAMES, max_size=3, unique=True),
        "devices": st.lists(_NAMES, max_size=3, unique=True),
        "parties": st.sampled_from([("alice", "bob"), ("alice", "bob", "carol")]),
        "arguments": st.sampled_from([{}, {"n": 3}, {"n": 9}, {"n": "3"}, {"m": 1}]),
    }
)


def _says(rule: dict[str, Any], field: str, names: list[str]) -> bool:
    """What a reader of the rule expects, written without the code's help."""
    listed = rule[field]
    if listed is None or listed == "*":
        return True
    if rule["action"] == "refuse":
        return any(name in listed for name in names)
    return all(name in listed for name in names)


def _admits(schema: str | None, arguments: dict[str, Any]) -> bool:
    if schema in (None, "any"):
        return True
    return arguments == {} or (schema == "small" and arguments == {"n": 3})


@settings(max_examples=50)
@given(st.lists(_RULE, max_size=4), _OFFER, st.sampled_from(["a", "b", None]), st.booleans())
def test_the_first_rule_that_says_so_decides_and_no_other(
    written: list[dict[str, Any]], offered: dict[str, Any], name: str | None, is_approved: bool
) -> None:
    for rule in written:
        if rule["action"] == "accept":
            for field in ("driver", "program", "data", "arguments"):
                rule[field] = rule[field] or ("any" if field == "arguments" else [])
    text = yaml.safe_dump(
        {
            "rules": [
                {k: v for k, v in rule.items() if v is not None}
                | {"name": f"rule {n}"}
                | ({"arguments": _ARGUMENTS[rule["arguments"]]} if rule["arguments"] else {})
                for n, rule in enumerate(written)
            ],
            "data": dict.fromkeys("abc", "x"),
        }
    )
    by = policy(text)
    offer = an_offer(
        driver=offered["driver"], program_name=offered["program_name"],
        data={"alice": tuple(offered["data"]), "bob": ("z",)}, devices=tuple(offered["devices"]),
        parties=offered["parties"], arguments=offered["arguments"], **ATTACHED,
    )  # fmt: skip
    entry = None if name is None else APPROVED.model_copy(
        update={"digest": offer.program, "name": name, "approved": 2.0 if is_approved else None}
    )  # fmt: skip
    called = name or offered["program_name"]
    expected = next(
        (
            (n, rule["action"])
            for n, rule in enumerate(written)
            if _says(rule, "driver", [offered["driver"]])
            and _says(rule, "program", [called])
            and _says(rule, "data", offered["data"])
            and _says(rule, "devices", offered["devices"])
            and _says(rule, "parties", list(offered["parties"]))
            and _admits(rule["arguments"], offered["arguments"])
        ),
        None,
    )
    decision = decide(by, offer, program=entry)
    if expected is None:
        assert (decision.action, decision.rule) == (Action.REFUSE, "")
        assert len(decision.details) == len(written)
        return
    number, action = expected
    if action == "accept" and (name is None or not is_approved):
        action = "ask"
    assert (decision.rule, decision.action) == (f"rule {number}", Action(action))
    assert len(decision.details) == number


# -- time windows ----------------------------------------------------------------------------


def _at(text: str, zone: str = "Europe/Berlin", fold: int = 0) -> float:
    local = datetime.datetime.fromisoformat(text).replace(tzinfo=zoneinfo.ZoneInfo(zone), fold=fold)
    return local.timestamp()


def _window(**fields: Any) -> Window:
    return Window.model_validate({"zone": "Europe/Berlin"} | fields)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("2026-11-30T19:59:59", False),  # a Monday
        ("2026-11-30T20:00:00", True),
        ("2026-12-01T05:59:59", True),
        ("2026-12-01T06:00:00", False),
        ("2026-12-01T20:00:00", False),  # Tuesday
        ("2026-12-02T01:00:00", False),
        ("2026-11-30T01:00:00", False),  # the night of Sunday
        ("2026-12-07T23:00:00", True),
    ],
)
def test_a_window_past_midnight_belongs_to_its_first_day(text: str, holds: bool) -> None:
    window = _window(days=["mon"], **{"from": "20:00", "to": "06:00"})
    assert window.holds(_at(text)) is holds


def test_from_sunday_to_monday() -> None:
    window = _window(days=["sun"], **{"from": "22:00", "to": "02:00"})
    assert window.holds(_at("2026-11-29T23:00:00"))
    assert window.holds(_at("2026-11-30T01:59:00"))
    assert not window.holds(_at("2026-11-29T01:00:00"))


def test_whole_days() -> None:
    window = _window(days=["sat", "sun"], **{"from": "00:00", "to": "24:00"})
    assert window.holds(_at("2026-11-28T00:00:00"))
    assert window.holds(_at("2026-11-29T23:59:59"))
    assert not window.holds(_at("2026-11-30T00:00:00"))
    assert not window.holds(_at("2026-11-27T23:59:59"))


def test_the_zone_counts() -> None:
    window = _window(**{"from": "20:00", "to": "21:00", "zone": "Asia/Tokyo"})
    assert window.holds(_at("2026-11-30T12:30:00", "Europe/Berlin"))
    assert not window.holds(_at("2026-11-30T20:30:00", "Europe/Berlin"))


def test_an_hour_that_comes_twice_counts_twice_and_one_that_is_left_out_not_at_all() -> None:
    window = _window(**{"from": "02:00", "to": "03:00"})
    autumn = [_at("2026-10-25T02:30:00", fold=fold) for fold in (0, 1)]
    assert autumn[1] - autumn[0] == 3600
    assert all(window.holds(now) for now in autumn)
    midnight = _at("2026-03-29T00:00:00")
    assert not any(window.holds(midnight + minute * 60) for minute in range(23 * 60))
    evening = _window(**{"from": "20:00", "to": "06:00"})
    assert evening.holds(_at("2026-03-29T05:59:00"))
    assert not evening.holds(_at("2026-03-29T06:00:00"))


@given(st.integers(0, 4 * 10**9), st.integers(0, 1439), st.integers(1, 1440))
def test_a_window_and_the_rest_of_the_day_are_a_day(now: int, begins: int, length: int) -> None:
    def clock(minutes: int) -> str:
        return f"{minutes // 60:02}:{minutes % 60:02}"

    ends = begins + length
    first = clock(begins)
    second = "24:00" if ends == 1440 else clock(ends % 1440)
    if first == second:  # a whole day has no rest
        return
    window = _window(**{"from": first, "to": second})
    rest = _window(**{"from": "00:00" if second == "24:00" else second, "to": first}) if (
        second != "24:00" or first != "00:00"
    ) else None  # fmt: skip
    assert rest is None or window.holds(now) is not rest.holds(now)


# -- files -----------------------------------------------------------------------------------

_CHANGES = [
    (("driver: coordinator", "driver: a b"), r"line 4: rules\.0\.driver: driver name 'a b'"),
    (("driver: coordinator", 'driver: ["*", eve]'), r"line 4: rules\.0\.driver: .*write it alone"),
    (("    driver: coordinator\n", ""), r"line 3: rules\.0: accepts, but .*which driver"),
    (("    program: lr-train\n", ""), r"line 3: rules\.0: accepts, but does not say which program"),
    (("    data: [patients]\n", ""), r"line 3: rules\.0: accepts, but does not say which data"),
    (("program: lr-train", "program: sha256:12"), r"line 5: rules\.0\.program: program 'sha"),
    (("driver: c", "drivr: c"), r"line 4: rules\.0\.drivr: there is no such field"),
    (("maximum: 100", "maxmum: 100"),
     r"line 8: rules\.0\.arguments\.properties\.epochs\.maxmum: there is no such keyword"),
    (("additionalProperties: false", "title: x"), r"line 7: rules\.0\.arguments: .*what else"),
    (("data: [patients]", "data: [patient]"), r"line 10: rules\.0\.data: 'patient' is no data set"),
    (("action: accept", "action: allow"), r"rules\.0\.action: Input should be 'accept', 'ask'"),
    (("    action: accept\n", ""), r"line 3: rules\.0\.action: is missing: add it"),
    (("logs: to_driver", "logs: yes"), r'rules\.0\.logs: '),
    (("to_driver: [weights]", "to_drivr: [weights]"), r"results\.to_drivr: there is no such field"),
    (("wall: 2h", "wall: 7200"), r"rules\.0\.limits\.wall: is not a duration: .*unit"),
    (("memory: 8GiB", "memory: 8G"), r"rules\.0\.limits\.memory: is not a size: .*8GiB"),
    (("memory: 8GiB", "ram: 8GiB"), r"rules\.0\.limits\.ram: there is no such field"),
    (('from: "20:00"', "from: 20:00"), r"rules\.0\.window\.from: .*put it in quotes"),
    (('from: "20:00"', 'from: "8pm"'), r"window\.from: '8pm' is no time of day"),
    (('from: "20:00"', 'from: "06:00"'), r"rules\.0\.window: is empty"),
    (("mon, tue", "mon, tuesday"), r"window\.days\.1: Input should be 'mon'"),
    (("[mon, tue]", "[]"), r"window\.days: "),
    (("zone: Europe/Berlin", "zone: ../../etc/passwd"), r"window\.zone: .* is no time zone"),
    ((", zone: Europe/Berlin", ""), r"window\.zone: is missing"),
    (("{jobs: 2,", "{jobs: 0,"), r"line 17: limits\.jobs: "),
    (("{jobs: 2,", '{jobs: "2",'), r"line 17: limits\.jobs: "),
    (("longest_offer: 7d", "longest_offer: 2y"), r"line 18: longest_offer: is not a duration"),
    (("data: {patients: ", "data: {../x: "), r"line 16: data: data set name '../x'"),
    (("data: {patients: data/patients.csv}", "data: [patients]"), r"line 16: data: "),
    (("rules:", "rule:"), r"rule: there is no such field"),
    (("name: nightly training", 'name: "a\\nb"'), r"rules\.0\.name: is not one line"),
    (("name: nightly training", "name: no"), r'rules\.0\.name: no means false in YAML'),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), _CHANGES)
def test_an_error_names_line_field_and_remedy(change: tuple[str, str], message: str) -> None:
    assert change[0] in POLICY
    with pytest.raises(ConfigError, match=r"policy file p\.yaml.*" + message) as found:
        policy(POLICY.replace(*change))
    assert str(found.value).isprintable()


@pytest.mark.parametrize("text", ["", "[]", "text", "3"])
def test_what_is_no_mapping(text: str) -> None:
    with pytest.raises(ConfigError, match="a policy is a mapping with rules"):
        policy(text)


def test_a_policy_without_rules_refuses() -> None:
    for text in ("rules:\ndata:\n", "rules: []\n", "{}"):
        assert decide(policy(text), an_offer(data={})).action is Action.REFUSE


def test_two_rules_have_two_names() -> None:
    with pytest.raises(ConfigError, match=r"line 1: rules: two rules are named 'x'"):
        policy("rules: [{name: x, action: ask}, {name: x, action: refuse}]\ndata: {}\n")


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    path.chmod(0o640)
    assert Policy.load(path).data == {"patients": tmp_path / "data/patients.csv"}
    path.write_text(POLICY.replace("/data", "data"))
    path.chmod(0o660)
    with pytest.raises(ConfigError, match=r"others may write to it.*chmod go-w"):
        Policy.load(path)
    path.chmod(0o600)
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        Policy.load(path)
    for missing in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError, match="check the path given with --policy"):
            Policy.load(missing)


def test_a_decision_has_defaults_that_give_nothing() -> None:
    fields = {f.name: f.default for f in dataclasses.fields(Decision)}
    assert (fields["results"], fields["logs"]) == ((), False)


_PIECES = [
    "", "null", "[]", "3", "'*'", ": ", "- ", "\t", "yes", "2026-01-01", ".nan", "&a ", "*a", "'",
    "!!python/object:os.system x", "\u202e", "[[[", "<<: ", "$ref", "rules", "name",
]  # fmt: skip


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.integers(0, len(POLICY)), st.sampled_from([0, 1, 8]), st.sampled_from(_PIECES)
        ),
        min_size=1,
        max_size=3,
    )
)
def test_whatever_is_written_gives_a_policy_or_that_one_error(
    changes: list[tuple[int, int, str]],
) -> None:
    text = POLICY
    for place, length, piece in changes:
        text = text[:place] + piece + text[place + length :]
    found: object
    try:
        found = decide(policy(text)).action
    except ConfigError as error:
        found = error
    assert found in list(Action) or str(found).isprintable()


def test_a_window_has_no_other_names_than_those_of_the_page() -> None:
    with pytest.raises(ConfigError, match=r"window\.begins: there is no such field"):
        policy(POLICY.replace("from:", "begins: x, from:"))
