"""A run of three parties, recorded and merged: every message has its arrow, and time goes on."""

from __future__ import annotations

import itertools
import json
import os
import stat
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pytest

from redislink import ConfigError, Endpoint, RecvTimeout, Session, UsageError
from redislink.files import open_in_place_of
from redislink.observe.merge import merge, read_trace
from redislink.observe.record import FIELDS
from redislink.transport.receiving import Receiving
from redislink.transport.sending import Sending
from tests.conftest import connect_as, in_thread, join, make_cluster, quick_settings, run_parties
from tests.support.waiting import wait_until

Event = dict[str, Any]
SECRET = b"a payload that no file may hold"
ROUNDS = 20


def play(me: Endpoint) -> None:
    """Ring and mesh, in two threads each; tags that come again, and one for each message."""
    others = [name for name in me.cluster.party_names if name != me.party]

    def ping(tag: str) -> None:
        for number in range(ROUNDS):
            for other in others:
                me.send(other, tag, SECRET)
                me.send(other, f"{tag}/{number}", SECRET[:number])
            for other in others:
                assert me.recv(other, f"{tag}/{number}") == SECRET[:number]
                assert me.recv(me.cluster.rank(other), tag) == SECRET

    second = threading.Thread(target=ping, args=("second",), name="second")
    second.start()
    ping('first "ü\n')
    second.join()


def record(directory: Path, program: Callable[[Endpoint], None] = play, **changes: Any) -> None:
    """Run it as three parties that meet in fakeredis; the files are in the directory."""
    cluster = make_cluster(f"fakeredis://{directory.name}", 3, session="traced")
    endpoints = join(cluster, trace_dir=directory, **changes)
    run_parties(*(lambda e=e: program(e) for e in endpoints))
    run_parties(*(endpoint.close for endpoint in endpoints))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("traces") / "made"
    record(directory)
    return directory


def merged(directory: Path, out: Path) -> list[Event]:
    merge(sorted(directory.glob("*.trace.jsonl")), out)
    events: list[Event] = json.loads(out.read_text())["traceEvents"]
    return events


def check_arrows(events: list[Event], messages: int) -> None:
    """Each message has an arrow, from within a send to within a wait that ends after it."""
    slices: dict[tuple[int, int], list[Event]] = {}
    for event in events:
        if event["ph"] == "X":
            assert event["dur"] >= 0
            slices.setdefault((event["pid"], event["tid"]), []).append(event)

    def enclosing(arrow: Event, kind: str) -> Event:
        (found,) = (
            event
            for event in slices[arrow["pid"], arrow["tid"]]
            if event["cat"] == kind and event["ts"] <= arrow["ts"] <= end_of(event)
        )
        return found

    starts = {event["id"]: event for event in events if event["ph"] == "s"}
    ends = {event["id"]: event for event in events if event["ph"] == "f"}
    assert len(starts) == len(ends) == messages
    names = {event["pid"]: event["args"]["name"] for event in events if _names_a_process(event)}
    received = Counter()
    for number, start in starts.items():
        send, wait = enclosing(start, "send"), enclosing(ends[number], "wait")
        assert end_of(wait) >= send["ts"]
        assert start["ts"] <= ends[number]["ts"]
        for key in ("tag", "bytes"):
            assert send["args"][key] == wait["args"][key]
        assert send["args"]["peer"] == names[wait["pid"]]
        assert wait["args"]["peer"] == names[send["pid"]]
        received[wait["pid"], wait["tid"], wait["ts"]] += 1
    waits = [e for events in slices.values() for e in events if e["cat"] == "wait"]
    assert set(received) == {(e["pid"], e["tid"], e["ts"]) for e in waits}
    assert set(received.values()) == {1}


def end_of(event: Event) -> float:
    return float(round(event["ts"] + event["dur"], 3))  # nanoseconds, of microseconds


def _names_a_process(event: Event) -> bool:
    return bool(event["ph"] == "M" and event["name"] == "process_name")


def test_every_receive_has_its_send_and_ends_after_it_began(recorded: Path, tmp_path: Path) -> None:
    events = merged(recorded, tmp_path / "out.json")
    check_arrows(events, messages=3 * 2 * 2 * 2 * ROUNDS)
    threads = {event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert "second" in threads
    assert {event["name"] for event in events if event["ph"] == "X"} >= {
        "compute", "send second", "wait second/3",
    }  # fmt: skip
    assert min(event["ts"] for event in events if "ts" in event) == 0


def test_slices_of_a_thread_follow_each_other(recorded: Path, tmp_path: Path) -> None:
    """Also to who adds in floating point (speedscope), or cuts to nanoseconds before adding."""
    by_thread: dict[tuple[int, int], list[Event]] = {}
    for event in merged(recorded, tmp_path / "out.json"):
        if event["ph"] == "X":
            by_thread.setdefault((event["pid"], event["tid"]), []).append(event)
    assert len(by_thread) == 6
    for events in by_thread.values():
        events.sort(key=lambda event: event["ts"])
        for before, after in itertools.pairwise(events):
            assert before["ts"] + before["dur"] < after["ts"]
            began, took, follows = (
                int(us * 1000) for us in (before["ts"], before["dur"], after["ts"])
            )
            assert began + took < follows


def a_session(endpoint: Endpoint) -> None:
    """Steps in the main thread, and one of a spawned device in another."""
    with Session.from_endpoint(endpoint) as session:
        device = session.spu("SEMI2K")
        x = device.private(lambda: np.arange(3.0), owner="alice")

        with device.spawn() as other:
            thread, outcome = in_thread(lambda: other.reveal(x, to="bob"))
            thread.join()
            assert len(outcome) == 1
        device.reveal(x, to="bob")


def test_a_step_encloses_what_is_sent_and_waited_for_in_it(tmp_path: Path) -> None:
    record(tmp_path / "steps", a_session)
    by_thread: dict[tuple[int, int], list[Event]] = {}
    for event in merged(tmp_path / "steps", tmp_path / "out.json"):
        if event["ph"] == "X":
            by_thread.setdefault((event["pid"], event["tid"]), []).append(event)
    assert {pid for pid, _ in by_thread} == {1, 2, 3}
    found: dict[int, list[str]] = {1: [], 2: [], 3: []}
    for (pid, _), events in by_thread.items():
        open_: list[Event] = []
        for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
            while open_ and end_of(open_[-1]) < event["ts"]:
                open_.pop()
            assert not open_ or end_of(event) < end_of(open_[-1])
            assert [outer["cat"] for outer in open_] in ([], ["step"])
            open_.append(event)
            if event["cat"] == "step":
                found[pid].append(event["name"])
                inside = {e["cat"] for e in events if event["ts"] < e["ts"] < end_of(event)}
                assert inside & {"send", "wait"} or "reveal(" not in event["name"]
    assert sorted(found[1]) == sorted(found[2]) == sorted(found[3])
    for begins in (
        "spu(SEMI2K)",
        "SEMI2K.private(",
        "SEMI2K.reveal(",
        "SEMI2K~1: SEMI2K~1.reveal(",
    ):
        assert [name for name in found[1] if name.startswith(begins)], (begins, found[1])


def test_a_timeline_of_the_version_before_is_read(recorded: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.alice.trace.jsonl"
    text = (recorded / "traced.alice.trace.jsonl").read_text()
    old.write_text(text.replace('"redislink_trace": 2', '"redislink_trace": 1', 1))
    assert read_trace(old).calls == read_trace(recorded / "traced.alice.trace.jsonl").calls


def test_events_are_as_the_format_has_them(recorded: Path, tmp_path: Path) -> None:
    """Google's "Trace Event Format": what each phase must have, and of which type."""
    needs: dict[str, dict[str, Any]] = {
        "X": {"ts": (int, float), "dur": (int, float), "cat": str, "name": str},
        "M": {"name": str, "args": dict},
        "s": {"ts": (int, float), "id": int, "cat": str, "name": str},
        "f": {"ts": (int, float), "id": int, "cat": str, "name": str, "bp": str},
    }
    events = merged(recorded, tmp_path / "out.json")
    assert {event["ph"] for event in events} == set(needs)
    for event in events:
        fields = needs[event["ph"]] | {"ph": str, "pid": int, "tid": int}
        assert all(isinstance(event[name], kind) for name, kind in fields.items()), event
        assert set(event) <= {*fields, "args"}, event
    assert all(event["bp"] == "e" for event in events if event["ph"] == "f")
    about = {(event["name"], *event["args"]) for event in events if event["ph"] == "M"}
    assert about == {
        ("process_name", "name"),
        ("process_sort_index", "sort_index"),
        ("thread_name", "name"),
    }


def test_clocks_that_are_wrong_by_an_hour_change_nothing(recorded: Path, tmp_path: Path) -> None:
    skewed = tmp_path / "skewed"
    skewed.mkdir()
    for path in recorded.iterdir():
        hours = {"alice": 0, "bob": 1, "carol": -2}[path.name.split(".")[1]]
        lines = path.read_text().splitlines(keepends=True)
        for place, line in enumerate(lines):
            if '"wall_ns"' in line:
                head = json.loads(line)
                head["wall_ns"] += hours * 3_600_000_000_000
                head["monotonic_ns"] += hours  # another machine has another, but so little matters
                lines[place] = json.dumps(head) + "\n"
        (skewed / path.name).write_text("".join(lines))
    check_arrows(merged(skewed, tmp_path / "out.json"), messages=3 * 2 * 2 * 2 * ROUNDS)
    found = merge(sorted(skewed.iterdir()), tmp_path / "found.json")
    first = found.traces[0].monotonic_ns
    for trace, offset in zip(found.traces, found.alignment.offsets, strict=True):
        truth = (trace.monotonic_ns - first) / 1000  # one machine has one monotonic clock
        assert abs(offset - truth) < 50_000, "microseconds"


def test_a_partys_file_by_itself(recorded: Path, tmp_path: Path) -> None:
    paths = sorted(recorded.iterdir())
    assert [path.name for path in paths] == [
        f"traced.{name}.trace.jsonl" for name in ("alice", "bob", "carol")
    ]
    for path in paths:
        merge([path], tmp_path / "out.json")
        events = json.loads((tmp_path / "out.json").read_text())["traceEvents"]
        calls = Counter(e["cat"] for e in events if e["ph"] == "X" and e["cat"] != "compute")
        assert calls == {"send": 160, "wait": 160}
        assert {"MainThread", "second"} & {
            e["args"]["name"] for e in events if e["name"] == "thread_name"
        }


def test_no_file_holds_a_payload(recorded: Path, tmp_path: Path) -> None:
    merged(recorded, tmp_path / "out.json")
    for path in [*recorded.iterdir(), tmp_path / "out.json"]:
        assert SECRET[:10] not in path.read_bytes()


def test_calls_that_fail_are_shown_and_have_no_arrow(tmp_path: Path) -> None:
    def program(me: Endpoint) -> None:
        if me.party == "alice":
            with pytest.raises(RecvTimeout):
                me.recv("bob", "late", timeout=0.01)
            with pytest.raises(UsageError):
                me.send("alice", "self", b"")
            with pytest.raises(UsageError):
                me.recv(17, "nobody")
        me.send((me.rank + 1) % 3, "late", memoryview(b"12345678").cast("I"))
        assert len(me.recv((me.rank + 2) % 3, "late")) == 8

    record(tmp_path / "traces", program)
    events = merged(tmp_path / "traces", tmp_path / "out.json")
    assert sum(event["ph"] == "s" for event in events) == 3
    failed = {
        (e["cat"], e["args"]["peer"], e["args"]["error"])
        for e in events
        if e["ph"] == "X" and "error" in e.get("args", {})
    }
    assert failed == {
        ("wait", "bob", "RecvTimeout"),
        ("send", "alice", "UsageError"),
        ("wait", "17", "UsageError"),
    }
    calls = [e for e in events if e["ph"] == "X" and e["cat"] != "compute"]
    assert {e["args"]["bytes"] for e in calls if "error" not in e["args"]} == {8}


def test_a_trace_that_becomes_too_large_is_cut_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record(tmp_path / "traces", trace_limit=100)
    assert "REDISLINK_TRACE_LIMIT" in caplog.text
    for path in (tmp_path / "traces").iterdir():
        trace = read_trace(path)
        assert (len(trace.calls), trace.is_whole) == (100, True)
        assert trace.cut_us is not None
    events = merged(tmp_path / "traces", tmp_path / "out.json")
    assert sum(event["name"] == "the trace was cut here" for event in events) == 3
    assert sum(event["ph"] == "s" for event in events) > 10


def test_calls_that_the_disk_does_not_keep_up_with_do_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("redislink.observe.record._MOST_PENDING", 50)
    monkeypatch.setattr("redislink.observe.record._WRITE_INTERVAL", 60)
    record(tmp_path / "traces")
    assert caplog.text.count("allow more of them") == 3
    for path in (tmp_path / "traces").iterdir():
        trace = read_trace(path)
        assert 50 < len(trace.calls) < 60
        assert trace.cut_us is not None


def test_a_full_disk_ends_the_trace_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "traces"

    def open_full_for_alice(path: Path) -> TextIO:
        return Path("/dev/full").open("w") if "alice" in path.name else open_in_place_of(path)

    monkeypatch.setattr("redislink.observe.record.open_in_place_of", open_full_for_alice)
    record(directory)
    assert "alice: the trace" in caplog.text
    assert "No space left on device" in caplog.text
    assert len(read_trace(directory / "traced.bob.trace.jsonl").calls) == 320


def test_off_the_endpoint_is_as_it_was_and_on_only_until_its_end(tmp_path: Path) -> None:
    cluster = make_cluster("fakeredis://off", 2)
    alice, bob = run_parties(
        lambda: connect_as(cluster, "alice"),
        lambda: connect_as(cluster, "bob", quick_settings(trace_dir=tmp_path)),
    )
    assert type(alice.parts.sending) is Sending
    assert type(alice.parts.receiving) is Receiving
    recorder = bob.parts.sending._recorder  # type: ignore[attr-defined]
    assert recorder is bob.parts.receiving._recorder  # type: ignore[attr-defined]
    assert recorder.is_on
    run_parties(alice.close, bob.close)
    assert not recorder.is_on


def test_a_process_that_is_killed_leaves_what_it_had(recorded: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    killed.mkdir()
    for path in recorded.iterdir():
        text = path.read_text()
        if ".bob." in path.name:
            *lines, _ = text.splitlines(keepends=True)
            values = [value for line in lines if line[0] == "[" for value in json.loads(line)]
            whole, torn = values[: 200 * FIELDS], values[200 * FIELDS :]
            others = "".join(line for line in lines if line[0] != "[")
            text = f"{others}{json.dumps(whole)}\n{json.dumps(torn)[:-1000]}"
        (killed / path.name).write_text(text)
    bob = read_trace(killed / "traced.bob.trace.jsonl")
    assert (len(bob.calls), bob.is_whole) == (200, False)
    assert sum(e["ph"] == "f" for e in merged(killed, tmp_path / "out.json")) > 250


def test_it_is_on_disk_while_the_run_lasts(tmp_path: Path) -> None:
    cluster = make_cluster("fakeredis://lasting", 2)
    alice, bob = join(cluster, trace_dir=tmp_path)
    alice.send("bob", "t", b"")
    path = tmp_path / f"{cluster.session}.alice.trace.jsonl"
    wait_until(lambda: b'"bob", "t", 0, 1]' in path.read_bytes())
    run_parties(alice.close, bob.close)


def test_a_party_that_cannot_join_leaves_no_file(tmp_path: Path) -> None:
    cluster = make_cluster("fakeredis://alone", 2)
    with pytest.raises(Exception, match="bob"):
        connect_as(cluster, "alice", quick_settings(trace_dir=tmp_path, connect_timeout=0.3))
    assert not list(tmp_path.iterdir())


def test_it_is_for_its_owner_alone_and_writes_through_no_link(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        directory = tmp_path / "traces"
        directory.mkdir()
        victim = tmp_path / "victim"
        victim.write_text("precious")
        (directory / "traced.alice.trace.jsonl").symlink_to(victim)
        record(directory)
        record(tmp_path / "made")
    finally:
        os.umask(before)
    assert victim.read_text() == "precious"
    assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0o700
    for path in (*directory.iterdir(), *(tmp_path / "made").iterdir()):
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
        assert not path.is_symlink()
    assert len(merge([*directory.iterdir()], tmp_path / "out").traces) == 3


def test_a_directory_that_cannot_be_is_said_before_joining(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    settings = quick_settings(trace_dir=tmp_path / "file")
    with pytest.raises(ConfigError, match="REDISLINK_TRACE_DIR"):
        connect_as(make_cluster("fakeredis://nowhere", 2), "alice", settings)


class TestWrongFiles:
    def test_of_different_runs(self, recorded: Path, tmp_path: Path) -> None:
        record(tmp_path / "again", lambda _: None)
        paths = [
            recorded / "traced.alice.trace.jsonl",
            tmp_path / "again" / "traced.bob.trace.jsonl",
        ]
        with pytest.raises(ConfigError, match="of different runs"):
            merge(paths, tmp_path / "out.json")
        assert not (tmp_path / "out.json").exists()

    def test_twice_the_same_party_or_another_session(self, recorded: Path, tmp_path: Path) -> None:
        alice = recorded / "traced.alice.trace.jsonl"
        with pytest.raises(ConfigError, match="both of alice"):
            merge([alice, alice], tmp_path / "out.json")
        other = tmp_path / "other"
        text = (recorded / "traced.bob.trace.jsonl").read_text()
        other.write_text(text.replace('"session": "traced"', '"session": "other"'))
        with pytest.raises(ConfigError, match=r"of session traced.* of other"):
            merge([alice, other], tmp_path / "out.json")

    def test_the_output_is_an_input(self, recorded: Path) -> None:
        alice = recorded / "traced.alice.trace.jsonl"
        with pytest.raises(ConfigError, match="--out"):
            merge([alice], alice)
        assert read_trace(alice).is_whole

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\xff\xfe",
            b"hello",
            b"[]",
            b"[]\n",
            b"{}\n[]\n",
            b'{"traceEvents": []}\n',
            b'{"redislink_trace": 3}\n[]\n',
            b'{"redislink_trace": 2}\n[]\n',
            b'{"redislink_trace": 1, "session": "s", "party": "x", "parties": ["y"], "epochs": {},'
            b' "monotonic_ns": 1, "wall_ns": 1}\n[]\n',
            b"[" * 100_000 + b"\n",
        ],
    )
    def test_what_is_no_trace(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "x.jsonl"
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"x\.jsonl"):
            read_trace(path)

    @pytest.mark.parametrize(
        "broken",
        [
            "{",
            "3",
            '{"cut_ns": "now", "calls": 3}',
            '{"thread": "x"}',
            '[0, 1, 2, 3, "bob", "t", 0]',
            '[7, 1, 2, 3, "bob", "t", 0, 0]',
            '[0, 1.5, 2, 3, "bob", "t", 0, 0]',
            '[0, NaN, 2, 3, "bob", "t", 0, 0]',
            f'[0, {10**30}, 2, 3, "bob", "t", 0, 0]',
            '[0, 1, 2, [], "bob", "t", 0, 0]',
            '[0, 1, 2, 3, "bob", "t", "many", 0]',
            '[0, 1, 2, 3, "bob", "t", 0, null]',
        ],
    )
    def test_a_line_in_the_middle(self, recorded: Path, tmp_path: Path, broken: str) -> None:
        first, *rest = (recorded / "traced.bob.trace.jsonl").read_text().splitlines()
        path = tmp_path / "x.jsonl"
        path.write_text("\n".join([first, broken, *rest]))
        with pytest.raises(ConfigError, match="line 2"):
            read_trace(path)

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="check the path"):
            read_trace(tmp_path / "none.json")
