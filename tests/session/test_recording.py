"""What a session writes into audit records: calls and receivers, never a value."""

from __future__ import annotations

import fcntl
import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redislink import (
    AuditError,
    ClusterSpec,
    ConfigError,
    LoadFailed,
    ProgramDiverged,
    RedisLinkError,
    RedisLinkSettings,
    Session,
    Simulator,
)
from redislink.audit import (
    AuditLog,
    AuditRun,
    FileSaid,
    Verification,
    compare_records,
    read_records,
    verify_file,
)
from redislink.audit.chain import read_head
from redislink.identity.signing import SigningKey, format_signing_key, parse_signing_key
from redislink.session.recording import SessionAudit
from redislink.session.steps import Steps
from tests.conftest import IDENTITIES, connect_as, make_cluster, quick_settings, run_parties

PARTIES = ("alice", "bob", "carol")
FORMAT = (Path(__file__).parents[2] / "docs" / "audit.md").read_text()


def scale(x: Any, y: Any) -> Any:
    return x * y


def a_program(session: Session) -> None:
    device = session.spu("SP0")
    x = device.private(lambda: np.array([77.5, 78.5]), owner="alice")
    device.reveal(device.run(scale)(x, 3.0), to=["bob"])
    session.psi({"id": [10_001, 10_002]}, "id", parties=["alice", "bob"])
    with device.spawn() as other:
        other.reveal({"a": other.run(scale)(x, x)}, to=["carol", "alice"])


def _simulate(directory: Path, program: Callable[[Session], Any], **options: Any) -> None:
    chosen = RedisLinkSettings.model_construct(
        connect_timeout=30, audit_file=directory / "{session}.{party}.jsonl"
    )
    Simulator(3, settings=chosen, **options).run(program)


def _records(directory: Path) -> dict[str, Verification]:
    found = {name: verify_file(directory / f"simulator.{name}.jsonl") for name in PARTIES}
    for each in found.values():
        assert each.problems == []
    return found


def _agree(found: dict[str, Verification]) -> None:
    for name, other in (("alice", "bob"), ("bob", "carol"), ("carol", "alice")):
        compared = compare_records(found[name], found[other])
        assert compared.differences == []
        assert compared.agreed


def _run(found: Verification) -> AuditRun:
    (run,) = found.runs()
    return run


@pytest.mark.parametrize("through", ["memory", "fakeredis"])
def test_all_parties_tell_the_same_story(
    tmp_path: Path, through: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [__file__])
    _simulate(tmp_path, a_program, through=through)
    found = _records(tmp_path)
    _agree(found)
    for name, each in found.items():
        run = _run(each)
        steps = {(step.said.chain, step.said.number): step for step in run.steps()}
        assert [step.said.text for step in run.steps() if not step.said.chain] == [
            "spu(SP0)",
            "SP0.private(owner=alice)",
            "SP0.run(scale)(f64[2], f32[])",
            "SP0.reveal(f64[2]; to=bob)",
            "psi(RR22, 1 keys; alice, bob)",
            "SP0.spawn()",
            "close()",
        ]
        first, second = steps["", 4].reveal, steps["SP0~1", 2].reveal
        assert first is not None
        assert second is not None
        assert (first.receivers, first.shapes, first.dtypes) == (["bob"], [[2]], ["float64"])
        assert (second.receivers, second.device) == (["carol", "alice"], "SP0~1")
        psi = steps["", 5].psi
        assert psi is not None
        assert (psi.protocol, psi.parties) == ("RR22", ["alice", "bob"])
        assert run.begin.party == name
        assert [party.name for party in run.begin.parties] == list(PARTIES)
        assert run.begin.script is not None
        assert run.begin.script.name == "test_recording.py"
        assert run.end is not None
        assert (run.end.how, run.end.error, run.end.steps) == ("closed", None, 7)
        assert all(step.seconds is not None for step in run.steps() if not step.said.chain)
    if through == "fakeredis":
        sent = _run(found["alice"]).end
        got = _run(found["bob"]).end
        assert sent is not None
        assert got is not None
        assert sent.peers["bob"].bytes_sent == got.peers["alice"].bytes_received > 0
        assert _run(found["alice"]).begin.epochs["bob"] == _run(found["bob"]).begin.epochs["alice"]
        for record in found["alice"].records:
            for key in json.loads(record.line):
                assert f"`{key}`" in FORMAT


def test_it_is_signed_with_the_keys_of_the_cluster_file(tmp_path: Path) -> None:
    _simulate(tmp_path, lambda session: None)
    for each in _records(tmp_path).values():
        (known,) = (p for p in _run(each).begin.parties if p.name == each.party)
        assert known.signing_key == each.key is not None


def test_what_is_revealed_is_on_disk_before_a_share_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the head pointer, which names only what is on disk, says at each message."""
    send = Steps.send
    seen: list[str] = []

    def check(steps: Steps, peer: str, body: Any) -> Any:
        path = tmp_path / f"simulator.{steps._me}.jsonl"
        first, *_, last = read_records(path)
        if steps._current and re.search(r"\.reveal\(|^psi\(", steps._current.text):
            assert isinstance(first.said, FileSaid)
            assert first.said.key is not None
            head = read_head(path, parse_signing_key(first.said.key))
            assert head is not None
            assert head.digest == last.digest
            seen.append(last.kind)
        return send(steps, peer, body)

    monkeypatch.setattr(Steps, "send", check)
    _simulate(tmp_path, a_program)
    assert {*seen} == {"reveal", "psi"}


class Stop(Exception):
    """Ends a program."""


def test_how_it_ended_and_by_whom(tmp_path: Path) -> None:
    def program(session: Session) -> None:
        session.spu("SP0")
        if session.party == "bob":
            raise Stop("a secret of bob's")
        session.spu("SP0").private(lambda: np.zeros(2), owner="bob")

    with pytest.raises(Stop):
        _simulate(tmp_path, program)
    ends = {name: _run(each).end for name, each in _records(tmp_path).items()}
    assert all(end is not None for end in ends.values())
    told = {name: (end.how, end.error, end.by) for name, end in ends.items() if end}
    assert told["bob"] == ("aborted", "Stop", None)
    for name in ("alice", "carol"):
        assert told[name] == ("failed", "PeerAborted", "bob")
    for each in tmp_path.iterdir():
        assert "secret" not in each.read_text()


class Signal(SystemExit):
    """What a handler of signals raises, wherever the main thread is."""


@pytest.mark.parametrize("place", [SessionAudit.begin, Steps.__init__], ids=lambda f: f.__name__)
def test_one_that_a_signal_ends_while_it_is_made_has_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Callable[..., None]
) -> None:
    def interrupted(self: Any, *args: Any, **named: Any) -> None:
        place(self, *args, **named)
        raise Signal(143)

    owner = SessionAudit if place is SessionAudit.begin else Steps
    monkeypatch.setattr(owner, place.__name__, interrupted)
    with pytest.raises(Signal):
        _simulate(tmp_path, lambda session: None)
    for each in _records(tmp_path).values():
        end = _run(each).end
        assert end is not None
        assert (end.how, end.error) == ("aborted", "Signal")


def test_one_that_never_met_the_others_has_neither_begin_nor_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise Signal(143)

    monkeypatch.setattr(SessionAudit, "begin", interrupted)
    with pytest.raises(Signal):
        _simulate(tmp_path, lambda session: None)
    for found in _records(tmp_path).values():
        assert found.runs() == []
        with found.path.open() as file:  # which is closed
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_load_that_failed_is_a_step_like_any_other(tmp_path: Path) -> None:
    def program(session: Session) -> None:
        def load() -> Any:
            raise Stop("a secret of alice's")

        with pytest.raises((Stop, LoadFailed)):
            session.spu("SP0").private(load, owner="alice")

    _simulate(tmp_path, program)
    _agree(_records(tmp_path))
    assert all("secret" not in each.read_text() for each in tmp_path.iterdir())


def test_one_that_reveals_to_another_is_found(tmp_path: Path) -> None:
    def program(session: Session) -> None:
        device = session.spu("SP0")
        x = device.private(lambda: np.ones(2), owner="alice")
        device.reveal(x, to="bob" if session.party == "bob" else "alice")

    with pytest.raises(ProgramDiverged):
        _simulate(tmp_path, program)
    found = _records(tmp_path)
    differences = compare_records(found["alice"], found["bob"]).differences
    assert any("step 3: alice revealed to alice, bob to bob" in line for line in differences)
    assert compare_records(found["alice"], found["carol"]).is_same_story


def test_one_that_runs_another_function_is_found(tmp_path: Path) -> None:
    def program(session: Session) -> None:
        device = session.spu("SP0")
        x = device.private(lambda: np.ones(2), owner="alice")
        factor = 4.0 if session.party == "carol" else 3.0
        device.reveal(device.run(scale)(x, factor), to="alice")

    with pytest.raises(ProgramDiverged):
        _simulate(tmp_path, program)
    found = _records(tmp_path)
    (difference,) = compare_records(found["alice"], found["carol"]).differences
    assert "both called SP0.run(scale)(f64[2], f32[]); what differs: argument 2" in difference


def test_what_the_journal_answers_is_said(tmp_path: Path) -> None:
    _simulate(tmp_path, a_program, kill={"bob": [6]})
    found = _records(tmp_path)
    _agree(found)
    for each in found.values():
        first, *_, last = each.runs()
        assert first.begin.resumed_after == 0
        assert last.begin.resumed_after == 5
        steps = [step for step in last.steps() if not step.said.chain]
        assert [step.said.from_journal for step in steps] == [True] * 5 + [False] * 2
        reveal, psi = steps[3].reveal, steps[4].psi
        assert reveal is not None
        assert psi is not None
        assert reveal.from_journal
        assert psi.from_journal
        assert last.end is not None
        assert last.end.how == "closed"


@pytest.mark.parametrize("failing", ["nothing", "load", "trace", "program", "abort"])
def test_no_value_gets_into_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """Not from arguments, keys of dicts, loads, tables, reveals, closures, nor from errors."""
    chosen = random.Random(failing)
    first, second, third = chosen.sample(range(10**11, 10**12), 3)
    word = f"patient{third}"
    revealed: list[Any] = []

    def program(session: Session) -> None:
        device = session.spu("SP0")

        def load() -> Any:
            if failing == "load":
                raise ValueError(word, first)
            return {word: np.array([first, second])}

        def hide(a: Any, b: Any, c: int, *, named: Any) -> Any:
            if failing == "trace":
                raise ValueError(word, first)
            return a + b[word] + named + np.array([third, first]) + c

        x = device.private(load, owner="alice")[word]
        shown = {word: np.array([second, third])}
        y = device.run(hide, static_argnums=2)(x, shown, third, named=np.array([first, third]))
        revealed.append(device.reveal({word: y}, to="bob"))
        session.psi({word: [first, second], "other": [word, word]}, word, parties=["bob", "carol"])
        if failing == "program" and session.party == "carol":
            raise ValueError(word, second)
        if failing == "abort" and session.party == "carol":
            session.abort(f"bad row {second} of {word}")

    monkeypatch.setattr(sys, "argv", [sys.argv[0], "--wealth", str(first), word])
    if failing == "nothing":
        _simulate(tmp_path, program)
    else:
        with pytest.raises((ValueError, RedisLinkError)):
            _simulate(tmp_path, program)
    assert bool(revealed) == (failing not in ("load", "trace"))
    for name in PARTIES:
        text = (tmp_path / f"simulator.{name}.jsonl").read_text()
        assert len(_run(verify_file(tmp_path / f"simulator.{name}.jsonl")).steps()) >= 2
        for number in (first, second, third):
            for form in (str(number), f"{number:x}", f"{float(number):e}"[:8]):
                assert form not in text
        assert "patient" not in text
        assert "wealth" not in text


def test_from_settings_and_from_arguments(tmp_path: Path, valkey: Any) -> None:
    cluster = make_cluster(valkey.url)
    chosen = quick_settings(audit_file=tmp_path / "{party}")

    def by_settings(name: str) -> None:
        endpoint = connect_as(cluster, name, chosen)
        with Session.from_endpoint(endpoint, identity=IDENTITIES[name]):
            pass

    run_parties(*(lambda name=name: by_settings(name) for name in PARTIES))
    other = make_cluster(valkey.url)

    def by_argument(name: str) -> None:
        audit = tmp_path / "{party}"
        identity = IDENTITIES[name]
        with Session.join(other, name, quick_settings(), identity=identity, audit=audit):
            pass

    run_parties(*(lambda name=name: by_argument(name) for name in PARTIES))
    for name in PARTIES:
        found = verify_file(tmp_path / name)
        assert found.problems == []
        assert [run.begin.session for run in found.runs()] == [cluster.session, other.session]
        assert found.key == format_signing_key(SigningKey(IDENTITIES[name]).public_key)
    pair = [verify_file(tmp_path / name) for name in ("alice", "carol")]
    assert compare_records(*pair).is_same_story


def test_a_key_that_is_not_the_cluster_files_is_refused(tmp_path: Path) -> None:
    parties = [
        {"name": name, "signing_key": format_signing_key(SigningKey(IDENTITIES[name]).public_key)}
        for name in PARTIES
    ]
    cluster = ClusterSpec.parse({"session": "s", "security": "none", "parties": parties})
    chosen = quick_settings(audit_file=tmp_path / "a", broker_url="redis://127.0.0.1:9")
    for identity, says in ((IDENTITIES["bob"], "has another one"), (None, "is no identity here")):
        with pytest.raises(ConfigError, match=says):
            Session.join(cluster, "alice", chosen, identity=identity)
    assert not (tmp_path / "a").exists()


def test_a_record_that_cannot_be_opened_ends_it_before_anybody_is_met(tmp_path: Path) -> None:
    chosen = quick_settings(audit_file=tmp_path / "none" / "a", broker_url="redis://127.0.0.1:9")
    cluster = ClusterSpec.parse({"session": "s", "security": "none", "parties": list(PARTIES)})
    with pytest.raises(AuditError, match=r"cannot be opened \(No such file"):
        Session.join(cluster, "alice", chosen)


def test_a_disk_that_fails_ends_the_session_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = AuditLog.append

    def fail_once(log: AuditLog, said: Any, *, durable: bool) -> None:
        if log.party == "bob" and said.kind == "reveal":
            raise AuditError("audit record: cannot be written (No space left)")
        append(log, said, durable=durable)

    monkeypatch.setattr(AuditLog, "append", fail_once)
    revealed: list[Any] = []

    def program(session: Session) -> None:
        device = session.spu("SP0")
        x = device.private(lambda: np.ones(2), owner="alice")
        revealed.append(device.reveal(x, to="alice"))

    with pytest.raises(AuditError, match="No space left"):
        _simulate(tmp_path, program)
    assert not [each for each in revealed if isinstance(each, np.ndarray)], "no share left bob"
    end = _run(_records(tmp_path)["alice"]).end
    assert end is not None
    assert (end.how, end.by) == ("failed", "bob")


def test_without_a_record_nothing_is_written_or_signed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("an audit record, though nobody asked for one")

    for name in ("append", "_open", "close"):
        monkeypatch.setattr(AuditLog, name, fail)
    monkeypatch.setattr(SigningKey, "sign", fail)
    monkeypatch.chdir(tmp_path)
    Simulator(3).run(a_program)
    assert list(tmp_path.iterdir()) == []
