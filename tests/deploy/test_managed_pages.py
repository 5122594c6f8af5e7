"""The pages on managed services: each says what matters, from where, and what nobody checked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from redislink.broker import Broker, EmbeddedBroker
from redislink.operate import acl
from tests.conftest import connect_as, make_cluster, quick_settings, run_parties

MANAGED: Final = Path(__file__).parents[2] / "deploy" / "managed"
PAGES: Final = sorted(path for path in MANAGED.glob("*.md") if path.name != "README.md")
SERVICES: Final = (
    *("ElastiCache", "MemoryDB", "Memorystore", "Azure", "Tair", "Redis Cloud", "Upstash"),
)


def test_there_is_a_page_for_each_service() -> None:
    index = (MANAGED / "README.md").read_text()
    titles = [page.read_text().splitlines()[0] for page in PAGES]
    for service in SERVICES:
        assert sum(service in title for title in titles) == 1, service
    assert len(PAGES) == len(SERVICES)
    for page in PAGES:
        assert f"]({page.name})" in index


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_every_page_says_what_matters_and_from_where(page: Path) -> None:
    text = page.read_text()
    sections = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert sections[0].startswith("Settings")
    assert sections[-3:] == ["Users", "Not verified", "Sources"]
    for what in (r"rediss(\+cluster)?://", "eviction", "commands", "TLS", "slot|cluster|shard"):
        assert re.search(what, text, re.IGNORECASE), what
    body, _, sources = text.partition("## Sources")
    numbers = [int(number) for number in re.findall(r"^(\d+)\. <https://", sources, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    used = {int(number) for number in re.findall(r"\[(\d+)\](?!\()", body)}
    assert used == set(numbers), "each source is used, and each number has a source"


def test_the_rules_without_selectors_are_enough_for_a_session() -> None:
    """What the page of ElastiCache gives to services that take no selectors."""
    (rules,) = re.findall(
        r"`on (resetchannels -@all [^`]*)`", (MANAGED / "elasticache.md").read_text()
    )
    cluster = make_cluster("redis://placeholder")
    with EmbeddedBroker(password="of a test") as server:
        admin = Broker(server.url).open()
        words = rules.replace("SESSION", cluster.session).split()
        for name in cluster.party_names:
            user = (
                b"ACL",
                b"SETUSER",
                name.encode(),
                b"reset",
                b"on",
                acl.hash_rule("pw").encode(),
            )
            admin.execute(*user, *(word.encode() for word in words), timeout=5)
        admin.close()

        def join(name: str) -> object:
            url = acl.party_url(server.url, name, "pw")
            return connect_as(cluster, name, quick_settings(broker_url=url))

        alice, bob, carol = run_parties(*(lambda n=n: join(n) for n in cluster.party_names))
        alice.send("bob", "t", b"hello")
        assert bob.recv("alice", "t") == b"hello"
        assert not carol.has_message("alice", "t")
        run_parties(alice.close, bob.close, carol.close)
