"""Statuses: what arrives from others is checked, and where a job is as a whole."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redislink.errors import FrameError
from redislink.jobs.replication import Note
from redislink.jobs.requests import Answer, Ask
from redislink.jobs.status import State, Status, whole

OFFER = "sha256:" + "ab" * 32
FULL = Status(
    3, State.RUNNING, OFFER, 7, "bob", "why", 4, "reveal", ("carol",), ("weights",)
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


def a(state: State, by: str = "", reason: str = "") -> Status:
    return Status(1, state, OFFER, by=by, reason=reason)


def test_a_status_survives_the_way() -> None:
    assert Status.from_value_untrusted(FULL.to_value()) == FULL


@pytest.mark.parametrize("field", FULL.to_value())
@pytest.mark.parametrize("value", [None, -1, 1.5, "\x1b[31m", [1], {"a": 1}, b"x", True, 1 << 70])
def test_a_field_of_another_kind_is_refused_or_made_safe(field: str, value: Any) -> None:
    try:
        status = Status.from_value_untrusted(FULL.to_value() | {field: value})
    except FrameError:
        return
    assert all(text.isprintable() for text in (status.reason, status.text, *status.waits_for))


@given(JSON)
def test_nothing_else_is_one(value: Any) -> None:
    for kind in (Status, Note, Ask, Answer):
        with pytest.raises(FrameError):
            kind.from_value_untrusted(value)


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ({}, ("offered", "", ("alice", "bob"), ("alice", "bob"))),
        ({"alice": a(State.ACCEPTED)}, ("offered", "", ("bob",), ("bob",))),
        ({"alice": a(State.ACCEPTED), "bob": a(State.WAITING)}, ("waiting", "", ("bob",), ())),
        ({"alice": a(State.ACCEPTED), "bob": a(State.ACCEPTED)}, ("accepted", "", (), ())),
        (
            {"alice": a(State.STARTING), "bob": a(State.ACCEPTED)},
            ("starting", "", ("alice", "bob"), ()),
        ),
        ({"alice": a(State.RUNNING), "bob": a(State.FINISHED)}, ("running", "", ("alice",), ())),
        ({"alice": a(State.FINISHED), "bob": a(State.FINISHED)}, ("finished", "", (), ())),
        ({"alice": a(State.FINISHED)}, ("running", "", ("bob",), ("bob",))),
        ({"alice": a(State.FINISHED), "bob": a(State.FAILED, "bob")}, ("failed", "bob", (), ())),
        (
            {"alice": a(State.FAILED, "bob", "said"), "bob": a(State.CANCELLED, "dora")},
            ("cancelled", "dora", (), ()),
        ),
        (
            {"alice": a(State.REFUSED, "bob", "heard"), "bob": a(State.REFUSED, "bob", "mine")},
            ("refused", "bob", (), ()),
        ),
    ],
)
def test_where_a_job_is_as_a_whole(states: dict[str, Status], expected: tuple[Any, ...]) -> None:
    found = whole(("alice", "bob"), states)
    assert (found.state, found.by, found.waits_for, found.unknown) == expected


def test_who_ended_it_says_why_itself() -> None:
    heard, said = a(State.REFUSED, "bob", "as alice heard"), a(State.REFUSED, "bob", "as bob says")
    assert whole(("alice", "bob"), {"alice": heard, "bob": said}).reason == "as bob says"
