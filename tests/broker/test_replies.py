"""Pushes that the broker does not answer one by one: what is said of them, and when."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from redislink import BrokerUnreachable
from redislink.broker import Broker, EmbeddedBroker, Outbox
from redislink.broker.replies import MOST_QUIET, QUIET_BYTES
from redislink.broker.wire import ELEMENT
from redislink.errors import BrokerBusy, BrokerRefused
from redislink.operate import acl
from redislink.protocol import list_names
from redislink.testing import FaultyBroker
from tests.support.line import REPLY, Line

MARK = list_names.mark_list("s", "bob", "alice")
LIST = list_names.data_list("s", "bob", "alice", "0123456789abcdef", "t")
OFF, ON = [b"CLIENT", b"REPLY", b"OFF"], [b"CLIENT", b"REPLY", b"ON"]
LARGE = b"l" * (64 << 10)
SIZE = len(LARGE)


class QuietLine(Line):
    """As `Line`; it can be told to answer nothing, as far as the test plays along."""

    may_be_quiet = True

    def __init__(
        self,
        timeout: float = 10.0,
        answer: bytes = b"+OK\r\n+PONG\r\n",
        to_mark: bytes = REPLY * 3,
    ) -> None:
        super().__init__(timeout)
        self.answer = answer
        self.to_mark = to_mark

    def open_answering(self):  # type: ignore[no-untyped-def]
        connection = super().open_answering()
        # To the first mark, and to the question that comes next, if it does.
        self.server.sendall(self.to_mark + self.answer)
        return connection

    def take_question(self) -> None:
        self.take_mark()
        assert [self.command() for _ in range(3)] == [OFF, ON, [b"PING"]]

    def take_mark(self) -> None:
        assert self.command() == [b"RPUSH", MARK, b""]
        assert self.command()[:2] == [b"PEXPIRE", MARK]
        assert self.command() == [b"DEL", MARK]

    def quiet_push(self) -> bytes:
        """The element of a push that gets no answer."""
        verb, name, element = self.command()
        assert (verb, name) == (b"RPUSH", LIST)
        assert self.command()[0] == b"PEXPIRE"
        return element

    def large_push(self, reply: bytes = REPLY + REPLY) -> bytes:
        """The element of a push that is answered, and so are those that follow."""
        assert self.command() == ON
        element = self.quiet_push()
        self.server.sendall(b"+OK\r\n" + reply)
        return element

    def answered_push(self, reply: bytes = REPLY + REPLY) -> bytes:
        """The element of a push that is answered, although the line is quiet."""
        assert self.command() == ON
        element = self.quiet_push()
        assert self.command() == OFF
        self.server.sendall(b"+OK\r\n" + reply)
        return element

    def mark(self, reply: bytes = REPLY * 3) -> None:
        """A mark, which is answered."""
        self.unanswered_mark()
        self.server.sendall(b"+OK\r\n" + reply)

    def unanswered_mark(self) -> None:
        assert self.command() == ON
        self.take_mark()
        assert self.command() == OFF


def connected(line: QuietLine) -> Outbox:
    outbox = Outbox(line, 60, [MARK])  # type: ignore[arg-type]
    outbox.reconnect()
    return outbox


@pytest.fixture
def line() -> Iterator[QuietLine]:
    line = QuietLine()
    yield line
    line._close_both()


@pytest.fixture
def outbox(line: QuietLine) -> Iterator[Outbox]:
    """Its broker answers marks alone."""
    outbox = connected(line)
    assert outbox.collect() == []
    line.take_question()
    assert line.command() == OFF
    yield outbox
    outbox.close()


def test_a_new_connection_is_answered_until_somebody_collects(line: QuietLine) -> None:
    outbox = connected(line)
    line.take_question()
    outbox.push(LIST, (b"", b"first"), "first")
    assert line.pushed() == (LIST, b"first")
    assert outbox.flush()
    outbox.push(LIST, (b"", b"second"), "second")
    assert line.pushed() == (LIST, b"second")
    while len(outbox._replies.answered) < 2:
        outbox.flush()
    assert outbox.collect() == [("first", True), ("second", True)]
    assert line.command() == OFF
    outbox.push(LIST, (b"", b"third"))
    assert line.quiet_push() == b"third"
    outbox.close()


def test_what_was_taken_quietly_is_told_after_a_mark(line: QuietLine, outbox: Outbox) -> None:
    for number in range(3):
        outbox.push(LIST, (b"", b"%d" % number), number)
    assert outbox.has_unread
    assert outbox.collect() == []  # and marks them
    assert [line.quiet_push() for _ in range(3)] == [b"0", b"1", b"2"]
    assert outbox.collect() == [], "a second mark is of no use"
    line.mark()
    assert outbox.flush()
    assert outbox.collect() == [(0, True), (1, True), (2, True)]
    assert not outbox.has_unread


def test_a_flush_marks_too(line: QuietLine, outbox: Outbox) -> None:
    outbox.push(LIST, (b"", b"x"), "x")
    outbox.delete(LIST)
    assert not outbox.flush(0.05), "nobody has answered the mark"
    assert outbox.error is not None
    assert line.quiet_push() == b"x"
    assert line.command() == [b"DEL", LIST]
    line.unanswered_mark()


def test_every_so_often_a_push_is_answered_by_itself(line: QuietLine, outbox: Outbox) -> None:
    for number in range(MOST_QUIET + 2):
        outbox.push(LIST, (b"", b"%d" % number), number)
    for number in range(MOST_QUIET):
        assert line.quiet_push() == b"%d" % number
    assert line.answered_push() == b"%d" % MOST_QUIET
    assert line.quiet_push() == b"%d" % (MOST_QUIET + 1)
    told: list[tuple[object, bool]] = []
    while len(told) < MOST_QUIET + 1:
        told += outbox.collect()
    assert told == [(number, True) for number in range(MOST_QUIET + 1)]
    line.mark()


@pytest.mark.parametrize("clear", [False, True])
@pytest.mark.parametrize("size", [QUIET_BYTES, SIZE])
def test_large_pushes_are_answered(line: QuietLine, outbox: Outbox, clear: bool, size: int) -> None:
    large = b"l" * size
    outbox.push(LIST, (b"", b"small"), "small")
    outbox.push(LIST, (b"", large), "large", clear=clear)
    assert line.quiet_push() == b"small"
    if clear:
        assert line.command() == ON
        assert line.command() == [b"DEL", LIST]
        assert line.quiet_push() == large
        line.server.sendall(b"+OK\r\n" + REPLY * 3)
    else:
        assert line.large_push() == large
    assert outbox.flush()
    assert outbox.collect() == [("small", True), ("large", True)]
    assert line.command() == OFF, "the next may be small"


def test_between_large_pushes_nothing_turns_answers_off_and_on(
    line: QuietLine, outbox: Outbox
) -> None:
    large = b"l" * SIZE
    outbox.push(LIST, (b"", b"small"), "small")
    for number in range(3):
        outbox.push(LIST, (b"", large), number)
    for token in ("after", "quiet"):
        outbox.push(LIST, (b"", token.encode()), token)
    outbox.push(LIST, (b"", large), "last")
    assert line.quiet_push() == b"small"
    assert line.large_push() == large
    for _ in range(2):
        assert line.quiet_push() == large
        line.server.sendall(REPLY * 2)
    assert line.command() == OFF
    assert [line.quiet_push(), line.quiet_push()] == [b"after", b"quiet"]
    assert line.large_push() == large
    assert outbox.flush()
    told = ["small", 0, 1, 2, "after", "quiet", "last"]
    assert outbox.collect() == [(token, True) for token in told]


def test_a_refused_large_push_is_told_by_its_own_answer(line: QuietLine, outbox: Outbox) -> None:
    large = b"l" * SIZE
    for number in range(3):
        outbox.push(LIST, (b"", large), number)
    oom = b"-OOM command not allowed when used memory > 'maxmemory'.\r\n"
    assert line.large_push() == large
    for reply in (oom + REPLY, REPLY * 2):
        assert line.quiet_push() == large
        line.server.sendall(reply)
    assert outbox.flush()
    assert outbox.error is None
    assert outbox.collect() == [(0, True), (1, False), (2, True)]
    outbox.push(LIST, (b"", b"small"), "small")
    assert line.pushed() == (LIST, b"small"), "a broker that has refused something answers all"


def test_a_refused_large_push_leaves_quiet_ones_before_it_unknown(
    line: QuietLine, outbox: Outbox
) -> None:
    outbox.push(LIST, (b"", b"small"), "small")
    outbox.push(LIST, (b"", b"l" * SIZE), "large")
    assert line.quiet_push() == b"small"
    line.large_push(b"-OOM command not allowed when used memory > 'maxmemory'.\r\n" + REPLY)
    assert not outbox.flush()
    assert isinstance(outbox.error, BrokerBusy)
    assert outbox.collect() == []


def test_a_backlog_is_answered(line: QuietLine, outbox: Outbox) -> None:
    outbox.push(LIST, (b"", b"small"), "small")
    huge = b"h" * (1 << 20)  # more than a socket pair holds
    outbox.push(LIST, (b"", huge), "huge")
    outbox.push(LIST, (b"", b"waits"), "waits")
    outbox.push_later(LIST, lambda: (b"", b"later"), SIZE, "later")
    assert outbox.is_behind
    assert line.quiet_push() == b"small"
    assert line.large_push() == huge
    for element in (b"waits", b"later"):
        assert line.quiet_push() == element
        line.server.sendall(REPLY * 2)
    assert outbox.flush()
    assert outbox.collect() == [("small", True), ("huge", True), ("waits", True), ("later", True)]
    outbox.push(LIST, (b"", b"after"), "after")
    assert line.command() == OFF
    assert line.quiet_push() == b"after"


@pytest.mark.parametrize("when", ["mark", "push"])
def test_a_refusal_breaks_the_connection_and_the_next_one_is_answered(
    line: QuietLine, outbox: Outbox, when: str
) -> None:
    outbox.push(LIST, (b"", b"lost, perhaps"), "lost, perhaps")
    oom = b"-OOM command not allowed when used memory > 'maxmemory'.\r\n"
    if when == "mark":
        outbox.collect()
        line.quiet_push()
        line.mark(oom + REPLY * 2)
    else:
        outbox.push(LIST, (b"", LARGE), "large")
        line.quiet_push()
        line.large_push(oom + REPLY)
    assert not outbox.flush()
    assert isinstance(outbox.error, BrokerBusy)
    assert outbox.error.retryable
    outbox.reconnect()
    line.take_question()
    assert outbox.collect() == [], "of neither is it known whether it was taken"
    outbox.push(LIST, (b"", b"again"), "again")
    assert line.pushed(oom + REPLY) == (LIST, b"again")
    assert outbox.flush()
    assert outbox.collect() == [("again", False)]
    assert isinstance(outbox.refusal, BrokerBusy)
    line.take_mark()  # it asks whether pushes are accepted again
    line.server.sendall(REPLY * 3)
    assert outbox.flush()
    assert outbox.refusal is None
    outbox._replies.loud_until = 0.0  # a minute later
    assert outbox.collect() == []
    assert line.command() == OFF


def test_a_line_that_does_not_answer_a_mark_is_broken(line: QuietLine) -> None:
    line.timeout = 0.2
    outbox = connected(line)
    outbox.collect()
    outbox.push(LIST, (b"", b"x"), "x")
    while outbox.error is None:
        outbox.collect()
    assert "took and answered nothing for 0.2 s" in str(outbox.error)
    outbox.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"-ERR unknown command\r\n-NOPERM\r\n+PONG\r\n",
        b"+OK\r\n+OK\r\n+PONG\r\n",
        b"-ERR unknown subcommand\r\n+OK\r\n+PONG\r\n",
    ],
)
def test_a_broker_that_cannot_be_quiet_answers_everything(answer: bytes) -> None:
    line = QuietLine(answer=answer)
    outbox = connected(line)
    line.take_question()
    for number in range(3):
        assert outbox.collect() == [(number - 1, True)] * bool(number)
        outbox.push(LIST, (b"", b"%d" % number), number)
        assert line.pushed() == (LIST, b"%d" % number)
        assert outbox.flush()
    line.answer = b""
    outbox.reconnect()  # as after an outage
    line.take_mark()
    outbox.push(LIST, (b"", b"x"))
    assert line.pushed() == (LIST, b"x"), "not asked again"
    outbox.close()
    line._close_both()


def test_a_proxy_that_swallows_the_question_is_asked_once() -> None:
    line = QuietLine(timeout=0.1, answer=b"")
    outbox = Outbox(line, 60, [MARK])  # type: ignore[arg-type]
    with pytest.raises(BrokerUnreachable):
        outbox.reconnect()
    outbox.reconnect()
    outbox.collect()
    line.take_mark()
    outbox.push(LIST, (b"", b"x"))
    assert line.pushed() == (LIST, b"x")
    outbox.close()
    line._close_both()


# -- a real server ---------------------------------------------------------------------------------


@pytest.fixture
def real(valkey: EmbeddedBroker) -> Iterator[Outbox]:
    outbox = Outbox(Broker(valkey.url), 60, [MARK])
    outbox.reconnect()
    outbox.collect()
    yield outbox
    outbox.delete(LIST)
    outbox.close()


def elements(url: str) -> Iterator[bytes]:
    connection = Broker(url).open()
    while (element := connection.execute(b"LPOP", LIST, timeout=5, most=ELEMENT)) is not None:
        yield bytes(element)
    assert connection.execute(b"TYPE", MARK, timeout=5) == b"none"
    connection.close()


@pytest.mark.parametrize("sizes", [(1,), (1, SIZE), (SIZE, 1), (SIZE - 1, SIZE, 2 << 20, 5)])
def test_all_arrives_in_order(valkey: EmbeddedBroker, real: Outbox, sizes: tuple[int, ...]) -> None:
    sent = [
        bytes([number]) * size
        for number, size in zip(range(100), itertools.cycle(sizes), strict=False)
    ]
    for number, element in enumerate(sent):
        real.push(LIST, (element[:1], element[1:]), number)
    assert real.flush()
    assert real.collect() == [(number, True) for number in range(100)]
    assert list(elements(valkey.url)) == sent


def test_without_memory_small_pushes_are_lost_and_that_is_noticed() -> None:
    with EmbeddedBroker() as server:
        outbox = Outbox(Broker(server.url), 60, [MARK])
        outbox.reconnect()
        outbox.collect()
        admin = Broker(server.url).open()
        admin.execute(b"CONFIG", b"SET", b"maxmemory", b"1kb", timeout=5)
        for number in range(3):
            outbox.push(LIST, (b"", b"x"), number)
        assert not outbox.flush()
        assert isinstance(outbox.error, BrokerBusy)
        outbox.reconnect()
        outbox.push(LIST, (b"", b"x"), "refused")
        assert outbox.flush()
        assert outbox.collect() == [("refused", False)]
        assert list(elements(server.url)) == []
        admin.close()
        outbox.close()


def without_client(rules: tuple[str, ...]) -> list[str]:
    return [rule for rule in rules if "client" not in rule]


@pytest.mark.parametrize("allowed", [True, False])
def test_a_user_of_a_party_may_be_quiet_and_needs_not(
    real_server: EmbeddedBroker, allowed: bool
) -> None:
    user = acl.party_users("s", ["alice", "bob"])[0]
    rules = list(user.rules) if allowed else without_client(user.rules)
    password = acl.make_password()
    admin = Broker(real_server.url).open()
    command = ["ACL", "SETUSER", user.name, "on", acl.hash_rule(password), *rules]
    admin.execute(*command, timeout=5)
    outbox = Outbox(Broker(acl.party_url(real_server.url, user.name, password)), 60, [MARK])
    outbox.reconnect()
    assert outbox.collect() == []
    assert (outbox._replies.quiet is not None) is allowed
    outbox.push(LIST, (b"", b"x"), "x")
    assert outbox.flush()
    assert outbox.collect() == [("x", True)]
    assert list(elements(real_server.url)) == [b"x"]
    outbox.close()
    admin.execute("ACL", "DELUSER", user.name, timeout=5)
    admin.close()


def test_a_push_without_permission_is_told_at_once(real_server: EmbeddedBroker) -> None:
    """Before anything is quiet: a party says hello to every peer first."""
    outbox = Outbox(Broker(real_server.url), 60, [MARK])
    outbox.reconnect()
    admin = Broker(real_server.url).open()
    admin.execute(b"SET", LIST, b"not a list", timeout=5)
    outbox.push(LIST, (b"", b"x"))
    assert not outbox.flush()
    assert isinstance(outbox.error, BrokerRefused)
    admin.execute(b"DEL", LIST, timeout=5)
    admin.close()
    outbox.close()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Broker("redis+cluster://127.0.0.1:1"),
        lambda: Broker("redis+sentinel://127.0.0.1:1/name"),
        lambda: Broker("fakeredis://quiet"),
        lambda: FaultyBroker("redis://127.0.0.1:1"),
    ],
)
def test_brokers_that_answer_everything(make: Callable[[], Broker]) -> None:
    assert not make().may_be_quiet
