"""What a program written for ``create_brpc`` sees, with all its parties as threads, or as forks."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from spu import libspu

from redislink import (
    ConfigError,
    HandshakeTimeout,
    LinkError,
    PeerAborted,
    RecvTimeout,
    RedisLinkSettings,
)
from redislink.broker import EmbeddedBroker
from redislink.interop import brpc, links
from redislink.interop.brpc import create_brpc
from redislink.interop.parties import Parties
from redislink.settings import LONGEST_SECONDS
from redislink.transport import closing
from tests.conftest import IDENTITIES, make_cluster, run_parties
from tests.interop.conftest import Describe
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("no_link_left")


@pytest.fixture
def no_link_left() -> Any:
    yield
    gc.collect()
    wait_until(lambda: not links.open_links(), 60)


def make(desc: Any, ranks: int = 2, **options: Any) -> list[Any]:
    """The contexts of all parties, which make the same link at once."""
    return run_parties(*(lambda r=r: create_brpc(desc, r, **options) for r in range(ranks)))


def gather(contexts: list[Any], word: str = "") -> list[Any]:
    return run_parties(
        *(lambda c=c, r=r: c.all_gather(f"{word}{r}") for r, c in enumerate(contexts))
    )


def stop(contexts: list[Any]) -> None:
    run_parties(*(context.stop_link for context in contexts))


@pytest.mark.usefixtures("trial")
class TestLinks:
    def test_the_context_is_that_of_the_description(self, describe: Describe) -> None:
        contexts = make(describe("alice", "node:1", "Bob & co", id="x"), 3, log_details=True)
        assert gather(contexts) == [["0", "1", "2"]] * 3
        assert [context.rank for context in contexts] == [0, 1, 2]
        assert contexts[1].id() == "x"
        stop(contexts)
        assert links.open_links() == []

    def test_the_same_description_makes_links_in_a_row(self, describe: Describe) -> None:
        desc = describe("alice", "bob")

        def program(rank: int) -> list[Any]:
            said = []
            for number in range(3):
                context = create_brpc(desc, rank)
                said.append(context.all_gather(f"{number}.{rank}"))
                context.stop_link()
            return said

        expected = [[f"{n}.0", f"{n}.1"] for n in range(3)]
        assert run_parties(lambda: program(0), lambda: program(1)) == [expected] * 2

    def test_addresses_tell_links_of_one_id_apart(self, describe: Describe) -> None:
        outer = make(describe("alice", "bob", id="twice", port=1))
        inner = make(describe("alice", "bob", id="twice", port=3))
        assert gather(inner, "inner ")[0] == ["inner 0", "inner 1"]
        stop(outer)
        assert gather(inner)[1] == ["0", "1"]
        stop(inner)

    def test_a_subset_of_the_parties_has_a_link_of_its_own(self, describe: Describe) -> None:
        all_three = make(describe("alice", "bob", "carol", id="part"), 3)
        two = make(describe("carol", "alice", id="part"))
        assert gather(two)[0] == ["0", "1"]
        assert gather(all_three)[0] == ["0", "1", "2"]
        stop(two)
        stop(all_three)

    def test_what_the_program_still_has_is_not_made_twice(self, describe: Describe) -> None:
        desc = describe("alice", "bob", id="kept")
        kept = make(desc)
        with pytest.raises(LinkError, match=r"^alice: link 'kept' of alice, bob is open .* stop"):
            create_brpc(desc, 0)
        assert gather(kept)[0] == ["0", "1"]

    def test_a_link_that_is_dropped_unstopped_ends_and_loses_nothing(
        self, describe: Describe
    ) -> None:
        desc = describe("alice", "bob")

        def program(rank: int) -> list[bytes]:
            got = []
            for number in range(2):
                context = create_brpc(desc, rank)
                context.send_async(1 - rank, f"{number} of {rank}".encode())
                got.append(context.recv(1 - rank))
                del context
            return got

        first, second = run_parties(lambda: program(0), lambda: program(1))
        assert (first, second) == ([b"0 of 1", b"1 of 1"], [b"0 of 0", b"1 of 0"])

    def test_a_link_lives_as_long_as_a_runtime_on_it(self, describe: Describe) -> None:
        desc = describe("alice", "bob")
        config = libspu.RuntimeConfig(
            protocol=libspu.ProtocolKind.SEMI2K, field=libspu.FieldType.FM64
        )
        runtimes = run_parties(
            *(lambda r=r: libspu.RuntimeWrapper(create_brpc(desc, r), config) for r in range(2))
        )
        gc.collect()
        assert len(links.open_links()) == 2
        assert not any(each.ending for each in links.open_links())
        del runtimes

    def test_after_a_failure_the_same_description_makes_a_new_one(self, describe: Describe) -> None:
        desc = describe("alice", "bob")
        failed = make(desc)
        links.open_links()[0].abort("alice or bob fails")
        wait_until(lambda: all(each.has_failed for each in links.open_links()), 60)
        again = make(desc)
        assert gather(again)[0] == ["0", "1"]
        stop(again)
        del failed

    def test_one_party_alone_needs_no_broker(
        self, describe: Describe, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("REDISLINK_BROKER_URL", "redis://127.0.0.1:1")
        assert create_brpc(describe("alice"), 0).world_size == 1

    def test_an_abort_reaches_the_other_party_and_is_logged_once(
        self, describe: Describe, caplog: pytest.LogCaptureFixture
    ) -> None:
        alice, bob = make(describe("alice", "bob", id="cut"))
        opened = next(each for each in links.open_links() if each.endpoint.party == "alice")
        opened.abort("no more")
        assert opened not in links.open_links()
        for _ in range(2):
            with pytest.raises(PeerAborted, match="no more"):
                bob.recv(0)
        said = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
        assert len([text for text in said if text.startswith("bob: link 'cut': ")]) == 1
        del alice, opened


@pytest.mark.usefixtures("trial")
class TestDescription:
    def test_its_receive_timeout_counts(self, describe: Describe) -> None:
        alice, bob = make(describe("alice", "bob", recv_timeout_ms=50))
        with pytest.raises(RecvTimeout, match=r"0\.05 s"):
            alice.recv(1)
        stop([alice, bob])

    def test_settings_that_are_set_count_more(
        self, describe: Describe, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("REDISLINK_CONNECT_TIMEOUT")
        desc = describe("alice", "bob", connect_retry_times=700)
        settings = brpc._settings(Parties().settings, desc)
        assert (settings.recv_timeout, settings.connect_timeout) == (30, 700)
        monkeypatch.setenv("REDISLINK_RECV_TIMEOUT", "7")
        monkeypatch.setenv("REDISLINK_CONNECT_TIMEOUT", "8")
        settings = brpc._settings(Parties().settings, desc)
        assert (settings.recv_timeout, settings.connect_timeout) == (7, 8)

    def test_for_ever_is_as_long_as_a_wait_can_be(self, describe: Describe) -> None:
        desc = describe("alice", "bob", recv_timeout_ms=2**63, connect_retry_times=2**31)
        usual = RedisLinkSettings(_env_file=None, _env_prefix="NO_")
        settings = brpc._settings(usual, desc)
        assert (settings.recv_timeout, settings.connect_timeout) == (LONGEST_SECONDS,) * 2

    def test_who_does_not_make_it_or_names_others_first_is_said(
        self, describe: Describe, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("REDISLINK_CONNECT_TIMEOUT", "0.1")
        with pytest.raises(HandshakeTimeout, match=r"bob .*\(this is link 'x' of alice, bob: each"):
            create_brpc(describe("alice", "bob", id="x"), 0)

    def test_what_means_nothing_here_is_said_once(
        self, describe: Describe, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("redislink.settings._said", set())
        brpc._say_ignored(describe("alice", "bob"))
        assert caplog.messages == []
        for _ in range(2):
            brpc._say_ignored(describe("alice", "bob", enable_ssl=True, http_timeout_ms=1))
        assert [text.split(":")[1].strip() for text in caplog.messages] == [
            "desc.enable_ssl is ignored", "desc.http_timeout_ms is ignored",
        ]  # fmt: skip
        assert "rediss://" in caplog.messages[0]

    @pytest.mark.parametrize(
        ("names", "rank", "fields", "said"),
        [
            (("alice", "bob"), 0, {"id": ""}, r"a link of alice, bob has no id: set desc\.id"),
            (("alice", "bob"), 2, {"id": "x"}, r"link 'x': rank 2 of 2 parties .* count from 0"),
            (("alice", "bob"), -1, {"id": "x"}, "rank -1 of 2 parties"),
            (("alice", "alice"), 0, {"id": "x"}, "alice takes part twice"),
            ((), 0, {"id": "x"}, "rank 0 of 0 parties: add_party first"),
        ],
    )
    def test_one_that_is_wrong_is_an_error(
        self, describe: Describe, names: Any, rank: int, fields: Any, said: str
    ) -> None:
        with pytest.raises(ConfigError, match=said):
            create_brpc(describe(*names, **fields), rank)


@pytest.fixture
def cluster_file(
    valkey: EmbeddedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """``cluster_file(**changes)``: settings for a cluster of alice, bob and carol, and keys."""

    def write(**changes: Any) -> None:
        cluster = make_cluster(valkey.url, **changes)
        path = tmp_path / "cluster.yaml"
        path.write_text(cluster.model_dump_json(exclude_none=True))
        for name in cluster.party_names:
            IDENTITIES[name].save(tmp_path / f"{name}.key", "of a test")
        monkeypatch.setenv("REDISLINK_CLUSTER_FILE", str(path))
        monkeypatch.setenv("REDISLINK_IDENTITY_FILE", str(tmp_path / "{party}.key"))
        monkeypatch.setenv("REDISLINK_BROKER_URL", valkey.url)

    return write


class TestWithClusterFile:
    def test_any_party_of_the_file_on_this_machine(
        self, cluster_file: Callable[..., None], describe: Describe
    ) -> None:
        cluster_file()
        contexts = make(describe("bob", "alice"))
        assert gather(contexts)[0] == ["0", "1"]
        sessions = {each.endpoint.session for each in links.open_links()}
        (session,) = sessions
        assert ".j" in session, "the rights for jobs cover it"
        stop(contexts)

    def test_who_is_not_in_it_is_named(
        self, cluster_file: Callable[..., None], describe: Describe, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cluster_file()
        with pytest.raises(ConfigError, match=r"r0, r1 are not in .*which has alice, bob, carol"):
            create_brpc(describe("r0", "r1", "alice"), 0)
        monkeypatch.setenv("REDISLINK_ALIASES", '{"r0": "bob", "r1": "carol"}')
        contexts = make(describe("r0", "r1"))
        assert {each.endpoint.party for each in links.open_links()} == {"bob", "carol"}
        stop(contexts)

    @pytest.mark.parametrize(
        ("names", "rank", "said"),
        [
            (("alice", "bob"), 0, "rank 0 is alice, and this process runs as bob: pass rank 1"),
            (("alice", "carol"), 0, "its parties are alice, carol, and .* as bob, who takes no"),
        ],
    )
    def test_a_process_is_its_party_and_no_other(
        self, cluster_file: Callable[..., None], describe: Describe,
        monkeypatch: pytest.MonkeyPatch, names: Any, rank: int, said: str,
    ) -> None:  # fmt: skip
        cluster_file()
        monkeypatch.setenv("REDISLINK_PARTY", "bob")
        with pytest.raises(ConfigError, match=said):
            create_brpc(describe(*names), rank)

    def test_apart_each_party_may_see_other_addresses(
        self, cluster_file: Callable[..., None], describe: Describe
    ) -> None:
        """As forks, which end without a word for the links that they leave open."""
        cluster_file()
        descs = {
            (rank, number): describe("alice", "bob", id="apart", port=10 * number + 100 * rank)
            for rank in range(2)
            for number in range(2)
        }
        fork = multiprocessing.get_context("fork")
        got = fork.SimpleQueue()

        def program(rank: int) -> None:
            os.environ["REDISLINK_PARTY"] = ("alice", "bob")[rank]
            first, second = (create_brpc(descs[rank, number], rank) for number in range(2))
            got.put((rank, first.all_gather(f"first {rank}"), second.all_gather(f"second {rank}")))
            if rank == 0:
                first.send_async(1, b"the last word")
            else:
                got.put(first.recv(0))

        parties = [fork.Process(target=program, args=(rank,)) for rank in range(2)]
        for party in parties:
            party.start()
        for party in parties:
            party.join(60)
        assert [party.exitcode for party in parties] == [0, 0]
        answers = [got.get() for _ in range(3)]
        assert b"the last word" in answers
        for rank in range(2):
            assert (rank, ["first 0", "first 1"], ["second 0", "second 1"]) in answers

    def test_a_child_that_fails_tells_its_peers_why(
        self, cluster_file: Callable[..., None], describe: Describe
    ) -> None:
        cluster_file()
        desc = describe("alice", "bob")
        fork = multiprocessing.get_context("fork")

        def program() -> None:
            link = create_brpc(desc, 0)
            link.recv(1)
            raise ZeroDivisionError

        child = fork.Process(target=program)
        child.start()
        bob = create_brpc(desc, 1)
        bob.send_async(0, b"go")
        with pytest.raises(PeerAborted, match="ZeroDivisionError"):
            bob.recv(0)
        child.join(60)
        assert child.exitcode == 1


def test_without_channels_the_sidecar_is_named(
    describe: Describe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(libspu.link, "IChannel")
    with pytest.raises(LinkError, match="redislink sidecar"):
        create_brpc(describe("alice", "bob"), 0)


@pytest.mark.usefixtures("trial")
def test_at_the_end_of_the_program_open_links_are_left_without_a_word(
    describe: Describe, caplog: pytest.LogCaptureFixture
) -> None:
    contexts = make(describe("alice", "bob"))
    with caplog.at_level(logging.WARNING):
        closing.leave_open_endpoints(None)
    assert caplog.messages == []
    del contexts
