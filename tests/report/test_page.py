"""What the page says, and that nothing that anybody wrote becomes anything but text."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from redislink import ConfigError
from redislink.audit.records import EndSaid
from redislink.report import gather, write_report
from redislink.report.page import Page, make_page
from redislink.report.writing import render
from tests.report.conftest import NAMES, Story

HOSTILE = "'\"><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}\u202e\x1b[31m&lt;"


class Reader(HTMLParser):
    """Collects tags, attributes and texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: dict[str, set[str]] = {}
        self.text = ""
        self._within: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, set()).add(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(story: Story, directory: Path, **files: bool) -> Page:
    story.write(directory, **files)
    return make_page(gather([directory]))


class TestWhatItSays:
    def test_a_run_that_went_well(self, story: Story, tmp_path: Path) -> None:
        page = page_of(story, tmp_path)
        assert page.verdict == "Ended in good order at all parties"
        assert page.is_good
        assert not page.warnings
        assert [row[0] for row in page.parties.rows] == list(NAMES)
        assert all(row[1].startswith("SHA256:") for row in page.parties.rows)
        assert {row[2] for row in page.parties.rows} == {"as it was written, signed"}
        assert page.reveals is not None
        psi, reveal = page.reveals.rows
        assert psi[:3] == ["1", "intersection", "alice and bob"]
        assert reveal == ["8", "SP0", "alice", "30 float32, one int32"]
        assert ("Program", f"lr-train, sha256:{'12' * 32}") in page.program
        assert ("Arguments, their digest", f"sha256:{'34' * 32}") in page.program
        assert page.data is not None
        assert [row[:2] for row in page.data.rows] == [["alice", "patients"], ["bob", "patients"]]
        assert page.decisions is not None
        assert page.decisions.rows[0][2:4] == ["accepted", "dr.meier"]
        assert page.steps is not None
        assert page.steps.rows[1] == [
            *("2", "SP0.run(step)(f32[280,15], f32[30])", "300 ms", "320 ms", "340 ms")
        ]
        assert page.times is not None
        assert page.times.rows[0] == [
            *("alice", "1.50 s (50 %)", "250 ms (8 %)", "1.25 s (42 %)", "3.00 s")
        ]
        assert page.waits is not None
        assert page.waits.rows[0] == ["alice", "", "625 ms", "625 ms"]
        assert page.faults is None
        assert page.faults_text.startswith("Nothing had to be healed")
        assert page.traffic is not None
        assert page.traffic[0][0] is None
        cells = [cell for row in page.traffic for cell in row if cell is not None]
        assert {(cell.bytes, cell.messages, cell.heat) for cell in cells} == {
            ("400 kB", "20 messages", 0.333), ("800 kB", "40 messages", 0.667),
            ("1.20 MB", "60 messages", 1.0),
        }  # fmt: skip
        assert {what: value for value, what in page.facts} == {
            "duration": "2.88 s", "parties": "3", "steps": "8", "reveals": "2",
            "exchanged": "4.80 MB",
        }  # fmt: skip

    def test_one_partys_record_alone(self, story: Story, tmp_path: Path) -> None:
        """The usual case: each organisation has its own files only."""
        story.write(tmp_path)
        page = make_page(gather([tmp_path / "bob.audit.jsonl", tmp_path / "bob.stats.json"]))
        assert page.verdict == "Ended in good order, as bob recorded"
        assert [row[2] for row in page.parties.rows] == [
            *("not given", "as it was written, signed", "not given")
        ]
        assert page.traffic is not None
        assert page.traffic_unknown == ["alice to carol", "carol to alice"]
        assert page.faults_text.endswith("Of alice and carol it is not known.")

    def test_without_records_it_says_what_is_not_known(self, story: Story, tmp_path: Path) -> None:
        page = page_of(story, tmp_path, audit=False)
        assert page.verdict.startswith("How it ended is not known")
        assert (page.reveals, page.steps, page.program) == (None, None, [])
        text = render(gather([tmp_path]))
        assert text.count("Not known: there is no audit record.") == 3

    def test_without_statistics(self, story: Story, tmp_path: Path) -> None:
        page = page_of(story, tmp_path, stats=False)
        assert (page.times, page.times_chart) == (None, None)
        assert page.faults_text == "Not known: there is no statistics file."
        assert page.traffic is not None, "the ends of the records count too"

    def test_a_failed_run_names_the_cause(self, story: Story, tmp_path: Path) -> None:
        lost = EndSaid(how="failed", error="PeerLost", by="carol", seconds=1, steps=3)
        aborted = EndSaid(how="aborted", error="ValueError", seconds=1, steps=3)
        page = page_of(story.but(hows={"alice": lost, "bob": lost, "carol": aborted}), tmp_path)
        assert not page.is_good
        assert page.verdict == ("carol: was ended by its own program or operator (ValueError)")
        assert page.parties.rows[0][3] == "failed (PeerLost), because of carol"

    def test_a_run_without_an_end(self, story: Story, tmp_path: Path) -> None:
        page = page_of(story.but(hows={"bob": None}), tmp_path)
        assert not page.is_good
        assert page.verdict == "No end is recorded by bob"
        assert any("has no end" in remark for remark in page.remarks)

    def test_records_that_tell_different_stories(self, story: Story, tmp_path: Path) -> None:
        page = page_of(story.but(receivers={"carol": ["alice", "carol"]}), tmp_path)
        assert page.reveals is not None
        assert [row[2:] for row in page.reveals.rows[1:]] == [
            ["alice", "30 float32, one int32 (as alice and bob recorded)"],
            ["alice and carol", "30 float32, one int32 (as carol recorded)"],
        ]
        assert page.warnings == ["The parties' records differ in what was revealed to whom"]
        assert ("2", "reveals") in page.facts

    def test_a_changed_record_is_the_first_thing_to_be_seen(
        self, story: Story, tmp_path: Path
    ) -> None:
        path, *_ = story.write(tmp_path)
        path.write_text(path.read_text().replace('"receivers":["alice"]', '"receivers":["eve"]'))
        page = make_page(gather([tmp_path]))
        assert page.warnings[0].startswith("alice's audit record is not to be trusted: line ")
        assert page.parties.rows[0][2] == "not to be trusted"

    def test_faults_that_were_healed(self, story: Story, tmp_path: Path) -> None:
        page = page_of(story.but(healed=(2, 7)), tmp_path)
        assert page.faults is not None
        assert page.faults.rows[1] == ["bob", "2", "7", "0", "0", "2"]
        assert "sent again" in page.faults_text

    def test_many_steps_are_folded_and_bounded(
        self, story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("redislink.report.page._MOST_ROWS", 20)
        page = page_of(story.but(calls=50, job=False), tmp_path, stats=False)
        assert page.steps is not None
        assert not page.steps_unfolded
        assert (len(page.steps.rows), page.steps.more) == (20, 32)
        assert "32 more are not shown" in render(gather([tmp_path]))


class TestThePage:
    def test_it_is_one_file_that_asks_for_nothing(self, story: Story, tmp_path: Path) -> None:
        story.write(tmp_path)
        out = tmp_path / "run.html"
        write_report([tmp_path], out)
        page = out.read_text()
        assert out.stat().st_mode & 0o777 == 0o600
        assert len(page) < 100_000
        read = Reader(page)
        assert not read.tags & {"script", "link", "img", "iframe", "object", "form", "a", "base"}
        assert not read.attributes.keys() & {"src", "href", "srcset", "action", "data"}
        assert "default-src 'none'" in page
        assert re.findall(r"https?://[^\s\"']+", page) == ["http://www.w3.org/2000/svg"] * 12
        assert "@import" not in page
        assert "url(" not in page

    @pytest.mark.parametrize("healed", [(0, 0), (1, 1)])
    def test_no_text_becomes_anything_else(
        self, story: Story, healed: tuple[int, int], tmp_path: Path
    ) -> None:
        """A program, its name, a data set, a reason, a version, a session, a receiver."""
        hostile = story.but(
            session=HOSTILE, text=HOSTILE, healed=healed,
            hows={"bob": EndSaid(how="failed", error=HOSTILE, by=HOSTILE, seconds=1, steps=1)},
        )  # fmt: skip
        hostile.write(tmp_path, stats=False)
        page = render(gather([tmp_path]))
        read = Reader(page)
        assert not read.tags & {"script", "img"}
        assert not [name for name in read.attributes if name.startswith("on")]
        assert read.text.count("<script>alert(1)</script>") > 20
        assert "{{ 7 * 7 }}" in read.text
        assert "&lt;" in read.text, "what was escaped already stays what it was"
        assert not {"\u202e", "\x1b"} & set(page)
        assert "alert(1)" not in "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))

    def test_times_that_cannot_be(self, story: Story, tmp_path: Path) -> None:
        path, *_ = story.write(tmp_path, stats=False)
        text = path.read_text()
        for wrong in ("1e999", "-5.0", "NaN", "1e300"):
            path.write_text(text.replace('"previous_seconds":0.3', f'"previous_seconds":{wrong}'))
            assert "not to be trusted" in render(gather([tmp_path]))

    def test_too_many_parties(self, story: Story, tmp_path: Path) -> None:
        path = story.write(tmp_path, audit=False)[0]
        names = ",".join(f'"p{number}"' for number in range(300))
        path.write_text(
            path.read_text().replace('"parties":["alice"', f'"parties":[{names},"alice"')
        )
        with pytest.raises(ConfigError, match="names 303 parties"):
            gather([path])

    def test_it_does_not_replace_what_it_is_made_from(self, story: Story, tmp_path: Path) -> None:
        path, *_ = story.write(tmp_path)
        with pytest.raises(ConfigError, match="is one of the files to report about"):
            write_report([tmp_path], path)
        with pytest.raises(ConfigError, match="cannot write"):
            write_report([tmp_path], tmp_path / "no" / "run.html")

    @pytest.mark.parametrize("package", ["pygal", "jinja2"])
    def test_without_the_extra(
        self, package: str, story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delitem(sys.modules, "redislink.report.charts", raising=False)
        monkeypatch.delattr("redislink.report.charts", raising=False)
        with pytest.raises(ConfigError, match=r"pip install 'redislink\[report\]'"):
            write_report(story.write(tmp_path), tmp_path / "run.html")
