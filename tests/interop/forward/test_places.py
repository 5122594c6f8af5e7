"""The words of the command line: where a forwarder listens, what it may connect to."""

from __future__ import annotations

from pathlib import Path

import pytest

from redislink import ConfigError
from redislink.interop.forward.places import (
    Allowed,
    Forward,
    Targets,
    TcpPlace,
    UnixPlace,
    parse_allowed,
    parse_forward,
)
from tests.conftest import make_cluster

CLUSTER = make_cluster("redis://127.0.0.1", 3)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("8000:bob:web", TcpPlace("127.0.0.1", 8000)),
        ("localhost:8000:bob:web", TcpPlace("127.0.0.1", 8000)),
        ("127.1.2.3:0:bob:web", TcpPlace("127.1.2.3", 0)),
        ("[::1]:65535:bob:web", TcpPlace("::1", 65535)),
        ("unix:/run/a b:c.sock:bob:web", UnixPlace(Path("/run/a b:c.sock"))),
    ],
)
def test_where_programs_connect(text: str, place: TcpPlace | UnixPlace) -> None:
    assert parse_forward(text, CLUSTER, "alice") == Forward(place, "bob", "web")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "is not [HOST:]PORT:PARTY:NAME"),
        ("8000", "is not [HOST:]PORT:PARTY:NAME"),
        ("8000:bob", "is not [HOST:]PORT:PARTY:NAME"),
        ("8000:dave:web", "'dave' is no party of the cluster file: the others are bob, carol"),
        ("8000:alice:web", "'alice' is this party itself"),
        ("8000:bob:web/", "name"),
        ("8000:bob:", "name"),
        ("0.0.0.0:8000:bob:web", "not an address of this machine alone"),
        ("[::]:8000:bob:web", "not an address of this machine alone"),
        ("192.0.2.1:8000:bob:web", "not an address of this machine alone"),
        ("*:8000:bob:web", "not an address of this machine alone"),
        ("example.com:8000:bob:web", "not an address of this machine alone"),
        ("::1:8000:bob:web", "in brackets"),
        (":8000:bob:web", "is not HOST:PORT"),
        ("http:bob:web", "is not HOST:PORT"),
        ("-1:bob:web", "is not HOST:PORT"),
        ("٣:bob:web", "is not HOST:PORT"),
        ("65536:bob:web", "is not a port: take one from 0 to 65535"),
        ("unix::bob:web", "path of a unix socket"),
        (f"unix:/{'x' * 103}:bob:web", "not 104: take a shorter one"),
        ("8\x1b[31m:bob:web", "is not HOST:PORT"),
    ],
)
def test_what_is_no_place_to_listen(text: str, named: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_forward(text, CLUSTER, "alice")
    assert named in str(error.value)
    assert "\x1b" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ("web=127.0.0.1:80", Allowed(None, "web", TcpPlace("127.0.0.1", 80))),
        ("bob:web=intranet.example:80", Allowed("bob", "web", TcpPlace("intranet.example", 80))),
        ("web=[2001:db8::1]:80", Allowed(None, "web", TcpPlace("2001:db8::1", 80))),
        ("web=unix:/run/x=y", Allowed(None, "web", UnixPlace(Path("/run/x=y")))),
    ],
)
def test_what_others_may_reach(text: str, entry: Allowed) -> None:
    assert parse_allowed(text, CLUSTER, "alice") == entry


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("web", "is not [PARTY:]NAME=HOST:PORT"),
        ("=127.0.0.1:80", "name"),
        ("web=", "is not HOST:PORT"),
        ("web=80", "is not HOST:PORT"),
        ("web=:80", "is not HOST:PORT"),
        ("web=127.0.0.1:0", "take one from 1"),
        ("web=::1:80", "in brackets"),
        ("web=unix:", "path of a unix socket"),
        ("dave:web=127.0.0.1:80", "'dave' is no party"),
        ("alice:web=127.0.0.1:80", "this party itself"),
        (":web=127.0.0.1:80", "is no party"),
        ("../web=127.0.0.1:80", "name"),
    ],
)
def test_what_nobody_may_reach(text: str, named: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_allowed(text, CLUSTER, "alice")
    assert named in str(error.value)


def test_a_name_leads_each_party_where_it_may_go() -> None:
    texts = ["web=127.0.0.1:80", "bob:db=127.0.0.1:5432", "carol:db=127.0.0.1:5433"]
    targets = Targets([parse_allowed(each, CLUSTER, "alice") for each in texts], ["bob", "carol"])
    assert targets.parties == {"bob", "carol"}
    assert targets.find("carol", "web") == TcpPlace("127.0.0.1", 80)
    assert targets.find("bob", "db") == TcpPlace("127.0.0.1", 5432)
    assert targets.find("carol", "db") == TcpPlace("127.0.0.1", 5433)
    assert targets.find("dave", "web") is None
    assert targets.find("bob", "none") is None


def test_a_name_with_two_targets_is_an_error() -> None:
    texts = ["web=127.0.0.1:80", "bob:web=127.0.0.1:81"]
    with pytest.raises(ConfigError, match="'web' two targets for bob"):
        Targets([parse_allowed(each, CLUSTER, "alice") for each in texts], ["bob", "carol"])


def test_places_are_shown_as_they_are_given() -> None:
    assert str(TcpPlace("::1", 80)) == "[::1]:80"
    assert str(TcpPlace("127.0.0.1", 80)) == "127.0.0.1:80"
    assert str(UnixPlace(Path("/run/x"))) == "unix:/run/x"
