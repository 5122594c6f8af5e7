"""Lines of audit records: written, read, and what is none."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redislink.audit import jobs_of, read_records, runs_of
from redislink.audit.records import (
    KINDS,
    StepSaid,
    UnknownSaid,
    encode_line,
    make_said,
    parse_line_untrusted,
    with_signature,
)
from redislink.errors import AuditError, UsageError
from redislink.identity.signing import SigningKey, is_signed
from tests.audit.writing import JOB, a_job, a_run, begin, step, write
from tests.conftest import IDENTITIES

KEY = SigningKey(IDENTITIES["alice"])


@pytest.mark.parametrize("line", [*a_run("alice"), *a_job("alice")], ids=lambda line: line[0])
def test_what_is_written_is_read(line: tuple[str, dict[str, Any]]) -> None:
    kind, fields = line
    said = make_said(kind, fields)
    whole = with_signature(encode_line(7, 1_764_470_000.25, said, "ab"), KEY)
    record = parse_line_untrusted(whole)
    assert (record.n, record.time, record.kind, record.prev) == (7, 1_764_470_000.25, kind, "ab")
    assert record.said == said
    assert record.sig is not None
    assert is_signed(record.signed, record.sig, KEY.public_key)
    assert whole.isascii()
    assert b"\n" not in whole


def test_times_are_those_of_utc() -> None:
    line = encode_line(0, 0.0, make_said(*step(1)), "")
    assert b'"time":"1970-01-01T00:00:00.000000Z"' in line


@pytest.mark.parametrize(
    ("kind", "fields", "says"),
    [
        ("values", {}, "no kind 'values'"),
        ("step", step(1)[1] | {"value": 3}, "step has no field value"),
        ("step", step(1)[1] | {"text": 3.5}, r"step\.text"),
        ("step", step(1)[1] | {"text": b"bytes"}, "not JSON serializable"),
        ("step", step(1)[1] | {"text": np.array([3.5])}, "not JSON serializable"),
        ("step", {"chain": ""}, r"step\.number"),
        ("reveal", {"chain": "", "number": 1, "device": "d", "receivers": "alice"}, "receivers"),
    ],
)
def test_nothing_else_can_be_written(kind: str, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        make_said(kind, fields)
    assert "3.5" not in str(caught.value)


def test_a_kind_of_a_later_version_is_read_as_unknown() -> None:
    line = encode_line(3, 1.0, make_said(*step(1)), "x").replace(b'"step"', b'"later"')
    record = parse_line_untrusted(line)
    assert (record.kind, record.said) == ("later", UnknownSaid())


def test_a_field_of_a_later_version_is_ignored() -> None:
    line = encode_line(3, 1.0, make_said(*step(1)), "x").replace(b'"chain"', b'"new":[1],"chain"')
    assert parse_line_untrusted(line).said == make_said(*step(1))


GOOD = with_signature(encode_line(7, 1.5, make_said(*begin("alice")), "ab"), KEY)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"{}",
        b"nothing",
        "é".encode(),
        b'{"n":1}',
        GOOD[:-1],
        GOOD.replace(b'"n":7', b'"n":"7"'),
        GOOD.replace(b'"n":7', b'"n":7,"n":7'),
        GOOD.replace(b'"n":7', b'"n":true'),
        GOOD.replace(b'"n":7', b'"n": 7,"sig":"x"'),
        GOOD.replace(b"1970-01-01T", b"T"),
        GOOD.replace(b".500000Z", b""),
        GOOD.replace(b'"session":"trial"', b'"session":1'),
        GOOD.replace(b'"prev":"ab"', b'"prev":null'),
        b"[" * 100_000,
        b'{"n":' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_no_line_is_refused(line: bytes) -> None:
    with pytest.raises(AuditError):
        parse_line_untrusted(line)


@given(st.binary(max_size=40), st.integers(0, len(GOOD)), st.integers(0, 40))
def test_any_bytes_are_a_line_or_an_error(noise: bytes, place: int, removed: int) -> None:
    with contextlib.suppress(AuditError):
        parse_line_untrusted(GOOD[:place] + noise + GOOD[place + removed :])


def test_runs_and_jobs_are_put_together(tmp_path: Path) -> None:
    late = [begin("alice", session="later"), step(1)]
    lines = [*a_job("alice"), *a_run("alice"), *late]
    records = read_records(write(tmp_path / "a", lines))
    first, last = runs_of(records)
    assert (first.begin.session, last.begin.session) == ("trial", "later")
    assert first.end is not None
    assert last.end is None
    assert [s.said.number for s in first.steps()] == [1, 2, 3, 4]
    assert [s.seconds for s in first.steps()] == [0.25, None, None, None]
    assert [s.reveal and s.reveal.receivers for s in first.steps()] == [
        None, ["alice"], None, ["alice", "bob"],
    ]  # fmt: skip
    (job,) = jobs_of(records)
    assert (job.job, len(job.offers), len(job.decisions), len(job.starts)) == (JOB, 1, 1, 1)


def test_every_kind_says_what_it_is_about() -> None:
    for said in KINDS.values():
        assert said.__doc__
        for name in said.model_fields:
            assert name in said.__doc__, (said, name)
    assert StepSaid.kind == "step"


def test_a_last_line_that_was_torn_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a", a_run("alice"))
    whole = read_records(path)
    path.write_bytes(path.read_bytes()[:-1])
    assert read_records(path) == whole[:-1]


@pytest.mark.parametrize("content", [b"", b"one\ntwo\n", GOOD + b"\n"])
def test_what_is_no_record_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(AuditError, match=r"audit record .*notes\.txt"):
        read_records(path)
    with pytest.raises(AuditError, match="No such file"):
        read_records(tmp_path / "missing")
