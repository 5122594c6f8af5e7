"""Dashboard and alerts: each metric and label that they name is one that a party exports."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import promql_parser
import pytest
import yaml

from redislink.observe.metrics import EndpointCollector
from redislink.transport.stats import PeerStats

MONITORING: Final = Path(__file__).parents[2] / "deploy" / "monitoring"
OTHERS: Final = {"push_time_seconds": {"session", "party"}}
"""Metrics of the push gateway, with the labels of a group of ours."""
ADDED: Final = {"job", "instance"}
"""Labels that Prometheus adds."""


def exported() -> dict[str, set[str]]:
    """The labels of each metric that a party exports."""
    fields = dict.fromkeys(PeerStats.__dataclass_fields__, 0) | {"waiting": {}}
    stats = SimpleNamespace(reconnects=0, peers={"bob": PeerStats(**fields)})
    endpoint: Any = SimpleNamespace(session="s", party="alice", stats=lambda: stats)
    found = {
        sample.name: set(sample.labels)
        for family in EndpointCollector(endpoint).collect()
        for sample in family.samples
    }
    assert found["redislink_info"] == {"session", "party", "version"}
    assert found["redislink_sent_bytes_total"] == {"session", "party", "peer"}
    return found


KNOWN: Final = exported() | OTHERS


def problems(expression: str, *texts: str) -> list[str]:
    """What an expression, and texts that show its labels, name and nobody exports."""
    wrong: list[str] = []
    parts: list[Any] = []
    # What Grafana fills in.
    plain = re.sub(r"\$__(rate_interval|range)", "5m", expression)
    promql_parser.walk(promql_parser.parse(plain), parts.append)
    there = set(ADDED)
    for part in parts:
        if not isinstance(part, promql_parser.VectorSelector):
            continue
        if part.name not in KNOWN:
            wrong.append(f"no metric {part.name}")
            continue
        there |= KNOWN[part.name]
        matched = {each.name for each in part.matchers.matchers}
        wrong += [f"no label {x} of {part.name}" for x in matched - KNOWN[part.name] - ADDED]
    grouped: set[str] = set()
    for part in parts:
        modifier = getattr(part, "modifier", None)
        matching = getattr(modifier, "matching", modifier)
        grouped |= set(getattr(matching, "labels", ()))
    shown = {
        label
        for text in texts
        for label in re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)[^}$]*\}\}", text)
    }
    return wrong + [f"no label {label} there" for label in (grouped | shown) - there]


def rules() -> list[dict[str, Any]]:
    text = (MONITORING / "redislink.rules.yml").read_text()
    return [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


def targets() -> Iterator[tuple[str, str, str]]:
    """Title, expression and legend of each line that a panel draws."""
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"], target["legendFormat"]


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((MONITORING / "redislink.dashboard.json").read_text())
    return found


def test_what_nobody_exports_is_found() -> None:
    assert problems("rate(redislink_sent_bytes_total[5m])", "{{session}} {{ $labels.peer }}") == []
    assert problems("rate(redislink_sent_bytes[5m])") == ["no metric redislink_sent_bytes"]
    assert problems('redislink_session_open{peer="bob"}')
    assert problems("count by (device) (redislink_session_open)") == ["no label device there"]
    assert problems("redislink_session_open", "{{ $labels.peer }}") == ["no label peer there"]
    assert problems("redislink_unacked_bytes and on (who) redislink_session_open")
    with pytest.raises(ValueError, match="braces"):
        problems("redislink_session_open{")


def test_the_alerts_name_what_is_exported() -> None:
    assert len(rules()) > 5
    for rule in rules():
        assert problems(rule["expr"], *rule["annotations"].values()) == [], rule["alert"]
        assert rule["labels"]["severity"] in ("info", "warning", "critical")


def test_each_alert_is_tried_and_described() -> None:
    tried = (MONITORING / "redislink.rules.test.yml").read_text()
    page = (MONITORING.parents[1] / "docs" / "how-to" / "observe.md").read_text()
    for rule in rules():
        assert rule["alert"] in tried
        assert f"`{rule['alert']}`" in page


def test_the_dashboard_names_what_is_exported_and_leaves_nothing_out() -> None:
    expressions = list(targets())
    for title, expression, legend in expressions:
        assert problems(expression, legend) == [], title
    everything = " ".join(expression for _, expression, _ in expressions)
    assert all(re.search(rf"\b{name}\b", everything) for name in KNOWN.keys() - OTHERS.keys())


def test_the_dashboard_is_in_order() -> None:
    board = dashboard()
    variables = {each["name"]: each for each in board["templating"]["list"]}
    assert set(variables) == {"datasource", "session", "party"}
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(set(numbers)) == len(numbers)
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} lies on another"
        assert place["x"] + place["w"] <= 24
        taken |= cells
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["description"]
