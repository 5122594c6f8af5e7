"""Which files belong to one run, and which run of those in a record."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from redislink import AuditError, ConfigError
from redislink.report import gather
from redislink.report.page import make_page
from tests.observe.test_timeline import record as record_timelines
from tests.report.conftest import BEGAN, NAMES, Story


def test_all_files_of_a_run_in_any_order(story: Story, tmp_path: Path) -> None:
    paths = story.write(tmp_path)
    found = gather(reversed(paths))
    assert found.session == "hospitals"
    assert [part.name for part in found.parties] == list(NAMES)
    for part in found.parties:
        assert part.record is not None
        assert part.record.is_good
        assert part.run is not None
        assert part.account is not None
        assert part.start is not None
        assert [step.said.number for step in part.steps] == list(range(1, 9))
    assert found.began() == BEGAN
    assert found.ended() == pytest.approx(BEGAN + 3.02, abs=0.2)
    assert {path for path, _ in found.files} == set(paths)


def test_a_directory_stands_for_its_files(story: Story, tmp_path: Path) -> None:
    paths = story.write(tmp_path)
    (tmp_path / "notes.txt").write_text("of no interest")
    assert [path for path, _ in gather([tmp_path]).files] == sorted(paths)


@pytest.mark.parametrize("kind", [".audit.jsonl", ".stats.json"])
def test_one_file_is_enough(kind: str, story: Story, tmp_path: Path) -> None:
    story.write(tmp_path)
    found = gather([tmp_path / f"bob{kind}"])
    assert [part.name for part in found.parties] == list(NAMES), "in rank order"
    alice, bob, _ = found.parties
    assert (alice.run, alice.account) == (None, None)
    assert (bob.run is None, bob.account is None) == (kind == ".stats.json", kind != ".stats.json")


def test_a_timeline_stands_for_statistics(tmp_path: Path) -> None:
    record_timelines(tmp_path)
    found = gather([tmp_path])
    assert found.session == "traced"
    for part in found.parties:
        assert part.account is not None
        assert part.is_timed_by_trace
        assert part.account.waiting > 0
    assert found.ended() > found.began()


def test_a_timeline_that_was_cut_says_so(tmp_path: Path) -> None:
    record_timelines(tmp_path, trace_limit=20)
    bob = tmp_path / "traced.bob.trace.jsonl"
    bob.write_text(bob.read_text()[:-10])
    remarks = make_page(gather([tmp_path])).remarks
    assert re.fullmatch(r"alice's times are .* that was cut after [\d.]+ [mµ]?s", remarks[0])
    assert remarks[1] == "bob's times are those of a timeline whose end is missing"


def test_the_newest_run_or_that_of_a_session(story: Story, tmp_path: Path) -> None:
    story.write(tmp_path, stats=False)
    story.but(began=BEGAN + 100, epoch="f" * 16).write(tmp_path, stats=False)
    story.but(session="other", began=BEGAN + 200).write(tmp_path, stats=False)
    assert gather([tmp_path]).session == "other"
    found = gather([tmp_path], session="hospitals")
    assert found.began() == BEGAN + 100
    with pytest.raises(ConfigError, match="tells of no run of session 'nobody'"):
        gather([tmp_path], session="nobody")
    with pytest.raises(ConfigError, match="tells of no run: check"):
        gather([tmp_path], since=BEGAN + 1000)


def test_the_run_of_the_others_is_that_with_the_same_epoch(story: Story, tmp_path: Path) -> None:
    """Alice has gone on to another run; her record is older than bob's is."""
    story.write(tmp_path, stats=False)
    later = tmp_path / "later"
    later.mkdir()
    story.but(began=BEGAN + 50, epoch="f" * 16).write(later, stats=False)
    with pytest.raises(ConfigError, match="are of different runs"):
        gather([tmp_path / "alice.audit.jsonl", later / "bob.audit.jsonl"])
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes((later / "alice.audit.jsonl").read_bytes())
    with pytest.raises(ConfigError, match="both are the audit record of alice"):
        gather([later / "alice.audit.jsonl", copy])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    story.but(session="other").write(elsewhere, stats=False)
    with pytest.raises(ConfigError, match=r"tells of no run of session \w+, as .* does"):
        gather([elsewhere / "alice.audit.jsonl", tmp_path / "bob.audit.jsonl"])


def test_what_was_changed_is_shown_with_what_is_wrong(story: Story, tmp_path: Path) -> None:
    path, *_ = story.write(tmp_path, stats=False)
    text = path.read_text()
    path.write_text(text.replace('"receivers":["alice"]', '"receivers":["carol"]'))
    alice = gather([path]).parties[0]
    assert alice.record is not None
    assert "signature" in " ".join(alice.record.problems)
    assert alice.run is not None


@pytest.mark.parametrize("text", ["", "hello\n", "{}\n", "[1]\n", "\x00\x01", "[" * 100_000])
def test_what_is_none_of_these_is_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.audit.jsonl"
    path.write_text(text)
    with pytest.raises((ConfigError, AuditError), match=r"x\.audit\.jsonl"):
        gather([path])


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        gather([tmp_path / "none.json"])
    with pytest.raises(ConfigError, match="there is no file"):
        gather([tmp_path])
    with pytest.raises(ConfigError, match="no file to report about"):
        gather([])


def test_decisions_from_the_record_of_an_agent(story: Story, tmp_path: Path) -> None:
    """It has no run, and tells of other jobs and other sessions too."""
    run = tmp_path / "run"
    run.mkdir()
    paths = story.but(job=False).write(run, stats=False)
    agents = tmp_path / "agents"
    agents.mkdir()
    story.but(session="another", began=BEGAN - 50).write_agents(agents)
    records = story.write_agents(agents)
    story.but(session="later", began=BEGAN + 50).write_agents(agents)
    found = gather([*records, *paths], since=BEGAN)
    for part in found.parties:
        assert part.start is not None
        assert part.start.session == "hospitals"
        assert part.job is not None
        assert part.agent_record is not None
        assert part.record is not None
        assert part.record.path != part.agent_record.path
    assert (records[0], "audit record of the agent of alice") in found.files
    with pytest.raises(ConfigError, match="tells of no run"):
        gather(records)
    strange = tmp_path / "strange.jsonl"
    strange.write_bytes(records[0].read_bytes().replace(b'"party":"alice"', b'"party":"eve"', 1))
    with pytest.raises(ConfigError, match=r"strange\.jsonl: is of eve, who took no part"):
        gather([strange, *paths])
