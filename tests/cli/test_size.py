"""``redislink size``: what it prints, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.cli.conftest import Call

ROOT = Path(__file__).parents[2]


def test_it_says_what_a_broker_needs(call: Call) -> None:
    words = ("size", "--parties", "3", "--sessions", "200", "--rtt", "20ms", "--bandwidth", "100M")
    code, out, err = call(*words)
    assert (code, err) == (0, "")
    names = [line.split("  ")[0] for line in out.splitlines()]
    assert names[:6] == ["for", "messages", "round trip", "broker", "connections", "memory"]
    assert "of each party's line" in out
    assert "set maxmemory " in out
    assert (
        "200 sessions of 3 parties, each sending as fast as it can (--rate), 20 ms from one to"
        in out
    )
    assert "lines of 100 Mbit/s" in out
    assert out.splitlines()[-1].startswith("model: ")


def test_it_says_what_it_assumes(call: Call) -> None:
    _, out, _ = call("size", "--rate", "100")
    assert "1 session of 3 parties, 100 messages per second each, 20 ms from one to another" in out
    assert "lines without limit" in out
    memory = next(line for line in out.splitlines() if line.startswith("set maxmemory"))
    assert "if all receivers stop reading while senders send ahead" in memory


def test_json_has_the_same(call: Call) -> None:
    code, out, _ = call("size", "--rate", "10", "--message", "16KiB", "--rtt", "0.02s", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["load"]["rtt"] == 0.02
    assert found["load"]["message_bytes"] == 16384
    assert found["flow"]["rate"] == pytest.approx(10)
    assert found["round_trip"] == pytest.approx(2 * found["flow"]["way"])
    assert {each["set"] for each in found["advice"]} == {"maxmemory"}
    assert set(found["broker"]) == {"servers", "io_threads", "cluster"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rtt", "20"], "--rtt 20: is not a time: write a number and its unit (s, ms, us)"),
        (["--rtt", "2h"], "--rtt 2h"),
        (["--bandwidth", "fast"], "--bandwidth fast: is not a rate: write a number and its unit"),
        (["--message", "1XB"], "--message 1XB: is not a size: write a number and its unit"),
        (["--message", "0B"], "--message 0B: 0B is less than a byte"),
        (["--rate", "nan"], "messages per second must be from"),
        (["--window", "1B"], "the bytes of the window must be from"),
        (["--parties", "1"], "should be greater than or equal to 2"),
        (["--sessions", "x"], "should be a valid integer"),
    ],
)
def test_what_it_refuses(call: Call, words: list[str], said: str) -> None:
    code, out, err = call("size", *words)
    assert (code, out) == (2, "")
    assert said in " ".join(err.split())


def test_the_page_shows_what_it_prints(call: Call) -> None:
    page = (ROOT / "docs" / "sizing.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| `(--[^`]*)` \| ([^|]*) \| ([^|]*) \| (\S+ ?\S*) \| ([^|]*) \|$", page, re.M
    )
    assert len(rows) > 5
    for options, *cells in rows:
        _, out, _ = call("size", *options.split())
        found = {line[:16].strip(): line[16:] for line in out.splitlines()}
        shown = [found[name] for name in ("messages", "broker", "connections", "memory")]
        assert [*shown[:3], shown[3].split(",")[0]] == cells, options


@pytest.mark.parametrize(("text", "bits"), [("100M", 1e8), ("2.5 Gbit/s", 2.5e9), ("64000", 64e3)])
def test_bandwidths(call: Call, text: str, bits: float) -> None:
    _, out, _ = call("size", "--bandwidth", text, "--json")
    assert json.loads(out)["load"]["bandwidth"] == bits
