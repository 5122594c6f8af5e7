"""The sidecar's service, asked over HTTP as SPU and the shim ask it."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import pytest

from redislink.interop.sidecar import link as link_module
from redislink.interop.sidecar import server as module
from redislink.interop.sidecar.blackbox import Code
from redislink.interop.sidecar.server import SidecarServer
from tests.interop.sidecar.conftest import TOKEN, MakeServer
from tests.support.waiting import wait_until


class Program:
    """A program beside a sidecar."""

    def __init__(self, server: SidecarServer, *, lasting: bool = False) -> None:
        self.server = server
        self.line = http.client.HTTPConnection(server.address, timeout=30)
        body = json.dumps({"pid": 17, "lasting": lasting})
        self.line.request("POST", "/v1/clients", body, {"x-ptp-token": TOKEN})
        self.told = self.line.getresponse()
        self.kept = http.client.HTTPConnection(server.address, timeout=30)
        self.first = json.loads(self.told.readline())

    def ask(
        self, path: str, body: Any = None, token: str | None = TOKEN, **headers: str
    ) -> tuple[int, bytes]:
        with contextlib.closing(
            http.client.HTTPConnection(self.server.address, timeout=30)
        ) as connection:
            content = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
            shown = {} if token is None else {"x-ptp-token": token}
            connection.request("POST", path, content, headers | shown)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def make(self, rank: int, name: str = "root") -> tuple[int, dict[str, Any]]:
        asked = {
            "client": self.first["client"],
            "id": name,
            "rank": rank,
            "parties": [["alice", "a:9001"], ["bob", "b:9002"]],
        }
        status, said = self.ask("/v1/links", asked)
        return status, json.loads(said)

    def blackbox(self, what: str, link: int, peer: str, body: bytes = b"") -> bytes:
        headers = {"x-ptp-token": TOKEN, "x-ptp-session-id": str(link)}
        path = f"/v1/interconn/chan/{what}"
        self.kept.request("POST", path, body, headers | {"x-ptp-target-inst-id": peer})
        answer = self.kept.getresponse()
        assert answer.status == 200
        return answer.read()

    def leave(self) -> None:
        self.told.close()
        self.line.close()
        self.kept.close()


@pytest.fixture(scope="module")
def server_of_all() -> Iterator[SidecarServer]:
    """One for all tests that get no further than its door."""
    server = SidecarServer(types.SimpleNamespace(sweep=lambda: None), TOKEN)  # type: ignore[arg-type]
    server.start()
    yield server
    server.stop()


@pytest.fixture
def linked(make_server: MakeServer) -> Iterator[list[tuple[Program, int]]]:
    """Programs of alice and bob, each with its number of their link."""
    programs = [Program(make_server(name)) for name in ("alice", "bob")]
    with ThreadPoolExecutor() as pool:
        made = list(pool.map(lambda rank: programs[rank].make(rank), range(2)))
    assert [status for status, _ in made] == [200, 200]
    assert made[0][1]["parties"] == ["alice", "bob"]
    yield [(program, said["link"]) for program, (_, said) in zip(programs, made, strict=True)]
    for program in programs:
        program.leave()


def test_it_listens_on_loopback(make_server: MakeServer) -> None:
    server = make_server("alice")
    assert server.socket.getsockname() == ("127.0.0.1", int(server.address.split(":")[1]))


def test_who_has_no_token_gets_nothing(make_server: MakeServer) -> None:
    server = make_server("alice")
    for path in ("/v1/clients", "/v1/links", "/v1/interconn/chan/push", "/"):
        for token in (None, "", "another", TOKEN[:-1], "häßlich"):
            with contextlib.closing(http.client.HTTPConnection(server.address)) as connection:
                headers = {} if token is None else {"x-ptp-token": token.encode()}
                connection.request("POST", path, b"{}", headers)
                answer = connection.getresponse()
                assert answer.status == 403, (path, token)
                assert b"token" in answer.read()


def test_what_is_pushed_is_popped_at_the_other_side(linked: list[tuple[Program, int]]) -> None:
    (alice, a), (bob, b) = linked
    nothing = bob.blackbox("pop?timeout=0", b, "alice")
    assert Code.OK.encode() in nothing
    assert alice.blackbox("push", a, "bob", b"three words here") == nothing
    assert b"three words here" in bob.blackbox("pop?timeout=9", b, "alice")
    assert bob.blackbox("pop?timeout=0", b, "alice") == nothing


def test_a_push_without_room_is_to_be_tried_again(
    linked: list[tuple[Program, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (alice, a), _ = linked
    monkeypatch.setattr(link_module.Link, "push", lambda *_: False)
    assert Code.QUEUE_FULL.encode() in alice.blackbox("push", a, "bob", b"x")


def test_objects_travel_by_their_tags(linked: list[tuple[Program, int]]) -> None:
    (alice, a), (bob, b) = linked
    tag = quote("1#0:2 ä")
    assert alice.ask(f"/v1/links/{a}/send?to=bob&tag={tag}", b"an object") == (200, b"{}")
    assert bob.ask(f"/v1/links/{b}/recv?from=alice&tag={tag}&timeout=9", b"") == (200, b"an object")
    assert bob.ask(f"/v1/links/{b}/recv?from=alice&tag={tag}&timeout=0", b"") == (204, b"")


def test_a_message_is_given_again_if_its_answer_was_lost(
    linked: list[tuple[Program, int]],
) -> None:
    (alice, a), (bob, b) = linked
    alice.blackbox("push", a, "bob", b"once more")
    host, _, port = bob.server.address.partition(":")
    with socket.create_connection((host, int(port))) as lost:
        lost.sendall(
            f"POST /v1/interconn/chan/pop?timeout=9 HTTP/1.1\r\nContent-Length: 0\r\n"
            f"x-ptp-token: {TOKEN}\r\nx-ptp-session-id: {b}\r\n"
            "x-ptp-target-inst-id: alice\r\n\r\n".encode()
        )
        answered = b""
        while b"once more" not in answered:
            answered += lost.recv(4096)
    wait_until(lambda: bob.server.links.link(b)._lanes["alice"].arrived)
    assert b"once more" in bob.blackbox("pop?timeout=9", b, "alice")


def test_a_connection_that_asks_again_has_had_its_answer(
    linked: list[tuple[Program, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (alice, a), (bob, b) = linked
    given: list[bytes] = []
    monkeypatch.setattr(link_module.Link, "give_back", lambda _, __, message: given.append(message))
    ended = []
    finish = module._Connection.finish
    monkeypatch.setattr(
        module._Connection, "finish", lambda self: (finish(self), ended.append(self))
    )
    alice.blackbox("push", a, "bob", b"heard")
    headers = {"x-ptp-token": TOKEN, "x-ptp-session-id": str(b), "x-ptp-target-inst-id": "alice"}
    with contextlib.closing(
        http.client.HTTPConnection(bob.server.address, timeout=30)
    ) as connection:
        for seconds in (9, 0):
            connection.request("POST", f"/v1/interconn/chan/pop?timeout={seconds}", b"", headers)
            connection.getresponse().read()
    wait_until(lambda: ended)
    assert given == []


def test_a_program_that_goes_without_a_word_fails_its_links(
    linked: list[tuple[Program, int]],
) -> None:
    (alice, _), (bob, b) = linked
    alice.leave()
    told = json.loads(bob.told.readline())
    assert told["link"] == b
    assert told["failed"] is True
    assert "ended without a word" in told["text"]
    status, said = bob.ask(f"/v1/links/{b}/recv?from=alice&tag=t&timeout=9", b"")
    assert status == 502
    assert json.loads(said)["kind"] == "PeerAborted"


def test_a_program_that_says_goodbye_does_not(linked: list[tuple[Program, int]]) -> None:
    (alice, a), (bob, b) = linked
    alice.blackbox("push", a, "bob", b"last words")
    assert alice.ask(f"/v1/clients/{alice.first['client']}/end", {"failed": ""})[0] == 200
    alice.leave()
    told = json.loads(bob.told.readline())
    assert (told["link"], told["failed"]) == (b, False)
    assert b"last words" in bob.blackbox("pop?timeout=9", b, "alice")


def test_links_that_cannot_be_are_refused_with_a_reason(make_server: MakeServer) -> None:
    alice = Program(make_server("alice"))
    status, said = alice.make(1)
    assert status == 400
    assert "rank 1 is bob, and this process runs as alice" in said["error"]
    alice.leave()


def test_a_link_is_released(linked: list[tuple[Program, int]]) -> None:
    (alice, a), _ = linked
    assert alice.ask(f"/v1/links/{a}/release") == (200, b"{}")
    assert alice.server.links.link(a).released


NONSENSE: list[tuple[str, Any]] = [
    ("/", {}),
    ("/v1/links", {}),
    ("/v1/links", {"client": 1, "id": "x", "rank": 0, "parties": ["alice"]}),
    ("/v1/links", b"[]"),
    ("/v1/links", b"{"),
    ("/v1/links/x/release", {}),
    ("/v1/links/999/release", {}),
    ("/v1/links/999/send?to=bob", b""),
    ("/v1/clients/999/end", {"failed": ""}),
    ("/v1/clients", {"pid": "x"}),
]
OF_BLACKBOX: list[tuple[str, dict[str, str]]] = [
    ("push", {}),
    ("push", {"x-ptp-session-id": "x", "x-ptp-target-inst-id": "bob"}),
    ("push", {"x-ptp-session-id": "999", "x-ptp-target-inst-id": "bob"}),
    ("invoke", {"x-ptp-session-id": "1", "x-ptp-target-inst-id": "bob"}),
]


def test_requests_that_make_no_sense(make_server: MakeServer) -> None:
    alice = Program(make_server("alice"))
    for path, body in NONSENSE:
        status, said = alice.ask(path, body)
        assert status == 400, (path, body)
        assert "sidecar" in json.loads(said)["error"]
    for path, headers in OF_BLACKBOX:
        status, said = alice.ask(f"/v1/interconn/chan/{path}", b"", **headers)
        assert status == 200, "yacl reads the code in the body"
        assert Code.BAD_REQUEST.encode() in said, (path, headers)
    alice.leave()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (f"POST /v1/links HTTP/1.1\r\nx-ptp-token: {TOKEN}\r\n\r\n", 411),
        (f"POST /v1/links HTTP/1.1\r\nx-ptp-token: {TOKEN}\r\nContent-Length: x\r\n\r\n", 411),
        (
            f"POST /v1/links HTTP/1.1\r\nx-ptp-token: {TOKEN}\r\nContent-Length: {1 << 40}\r\n\r\n",
            411,
        ),
        ("nonsense\r\n\r\n", 400),
        ("POST / HTTP/3\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\n" + "x: y\r\n" * 200, 400),
        ("POST / HTTP/1.1\r\nx: " + "y" * (1 << 21), 400),
        ("GET / HTTP/1.1\r\n\r\n", 501),
    ],
)
def test_requests_that_are_not_http_as_it_should_be(
    server_of_all: SidecarServer, request_: str, status: int
) -> None:
    host, _, port = server_of_all.address.partition(":")
    with socket.create_connection((host, int(port))) as connection:
        with contextlib.suppress(OSError):  # it may close before it has all
            connection.sendall(request_.encode())
        assert connection.recv(4096).startswith(f"HTTP/1.1 {status} ".encode())


@pytest.mark.parametrize("closes", ["HTTP/1.0\r\n", "HTTP/1.1\r\nConnection: close\r\n"])
def test_a_connection_is_closed_if_the_request_says_so(
    server_of_all: SidecarServer, closes: str
) -> None:
    host, _, port = server_of_all.address.partition(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"x-ptp-token: {TOKEN}\r\nContent-Length: 0\r\n\r\n"
        connection.sendall(f"POST /nowhere {closes}{head}".encode())
        answered = b""
        while more := connection.recv(4096):
            answered += more
    assert answered.startswith(b"HTTP/1.1 400 ")
