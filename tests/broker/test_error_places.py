"""Each error reply of a server means the same at every place where it may come."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest

from redislink.broker import Broker, Inbox, Outbox
from redislink.broker.error_map import ANY_OTHER, UNKNOWN_COMMAND, ServerError, classify
from redislink.broker.outage import Outage
from redislink.errors import BrokerBusy, BrokerError, BrokerPermissionError
from redislink.logs import PartyLogger
from redislink.operate import acl
from redislink.operate.doctor import Blame, Case, Level
from redislink.operate.doctor.examination import Examination
from redislink.operate.doctor.finding import failed_with
from redislink.operate.doctor.rights import commands
from redislink.operate.survey import Survey
from redislink.operate.watch import Watch
from redislink.protocol import list_names
from redislink.transport.claim import PartyClaim
from tests.broker.test_error_map import REPLIES
from tests.conftest import make_cluster, quick_settings
from tests.support.resp_server import HOST, OK, RespServer, encode

LIST = list_names.data_list("s", "bob", "alice", "0123456789abcdef", "t")
MARK = list_names.mark_list("s", "bob", "alice")
WORKS = {
    b"PING": b"+PONG\r\n",
    b"RPUSH": b":1\r\n",
    b"PEXPIRE": b":1\r\n",
    b"DEL": b":1\r\n",
    b"PTTL": b":-2\r\n",
    b"CLIENT": b"-ERR unknown command\r\n",
    b"SCAN": encode(["0", []]),
}


def push(broker: Broker) -> None:
    outbox = Outbox(broker, 60, [MARK])
    outbox.reconnect()
    with contextlib.closing(outbox):
        outbox.push(LIST, (b"", b"x"))
        outbox.flush()
        error = outbox.error or outbox.refusal
        if error is not None:
            raise error


def pop(broker: Broker) -> None:
    inbox = Inbox(broker)
    inbox.acquire().pop_one(LIST, 0.1)


def pop_now(broker: Broker) -> None:
    Inbox(broker).acquire().pop_now(LIST)


def claim(broker: Broker) -> None:
    log = PartyLogger("s", "alice")
    claimed = PartyClaim(broker, b"claim", b"instance", "party 'alice'", log)
    claimed.acquire(Outage("alice", 0.001))
    claimed.release()


def operate_acl(broker: Broker) -> None:
    acl.remove_users(broker, acl.party_users("s", ["alice", "bob"]))


def top(broker: Broker) -> None:
    with contextlib.closing(Survey(broker)) as survey:
        Watch(survey, "s", ["alice", "bob"]).read()


def purge(broker: Broker) -> None:
    with contextlib.closing(Survey(broker)) as survey:
        survey._remove_on(broker.open(), [LIST])


PLACES: dict[str, tuple[Callable[[Broker], None], set[bytes]]] = {
    "a new connection": (lambda broker: broker.open_answering().close(), {b"PING"}),
    "a push": (push, {b"RPUSH"}),
    "a pop": (pop, {b"BLPOP"}),
    "a pop without waiting": (pop_now, {b"LPOP"}),
    "a claim": (claim, {b"SET"}),
    "acl": (operate_acl, {b"ACL"}),
    "top": (top, {b"SCAN", b"GET"}),
    "purge": (purge, {b"UNLINK", b"DEL"}),
}
OF_OPERATORS = ("acl", "top", "purge")


def refusing(reply: str, refused: set[bytes]) -> RespServer:
    return RespServer(
        lambda command: (
            f"-{reply}\r\n".encode() if command[0] in refused else WORKS.get(command[0], OK)
        )
    )


def kind_after(place: str, row: ServerError) -> type[BrokerError]:
    """A claim gives up what lasts, as a broker that refuses; the rest raise what came."""
    if place == "purge" and row is UNKNOWN_COMMAND:
        return BrokerPermissionError
    return BrokerBusy if place == "a claim" and row.retryable else row.kind


@pytest.mark.parametrize("place", PLACES)
def test_at_every_place(place: str) -> None:
    act, refused = PLACES[place]
    for reply in REPLIES:
        row = classify(reply)
        with refusing(reply, refused) as server:
            broker = Broker(f"redis://{HOST}:{server.port}", timeout=5)
            with pytest.raises(BrokerError) as caught:
                act(broker)
        error = caught.value
        assert type(error) is kind_after(place, row), reply
        assert error.retryable == row.retryable, reply
        if place in OF_OPERATORS and row.kind is BrokerPermissionError:
            assert "this user may" in str(error), reply
        elif place == "purge" and row is UNKNOWN_COMMAND:
            assert "UNLINK or DEL" in str(error)
        else:
            assert error.refusal == row.called, reply
            assert row.called in str(error), reply
            extra = place == "acl" and row in (UNKNOWN_COMMAND, ANY_OTHER)
            assert extra or str(error).endswith(f": {row.remedy}"), reply


def test_the_doctor_says_it_too() -> None:
    settings = quick_settings()
    for reply in REPLIES:
        row = classify(reply)
        with refusing(reply, {b"RPUSH"}) as server:
            spec = make_cluster(f"redis://{HOST}:{server.port}", 2)
            exam = Examination(Case(settings, spec, "alice"), 20)
            exam.begin_check(20)
            try:
                verdict = commands(exam)
            except BrokerError as error:
                verdict = failed_with(error, Blame.BROKER)
            finally:
                exam.close()
        assert verdict.level is Level.FAIL
        if row.kind is BrokerPermissionError:
            assert "permission missing for the" in verdict.text
        elif row is UNKNOWN_COMMAND:
            assert "this broker does not have it" in verdict.text
        else:
            assert row.called in verdict.text, reply
            assert verdict.remedy == row.remedy, reply
