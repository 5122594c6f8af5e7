"""All links of one sidecar, and the processes that made them.

Rules:
- A link belongs to the process that made it, and ends with it: delivered and left if the process
  ended well, aborted otherwise, so that the peers hear of it at once.
- Parties find each other's end of a link by its name: the id, the parties, the ports that the
  program gave, and how many of that name its process has made. No message says it.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from redislink.errors import PartyTaken, UsageError
from redislink.interop.objects import named
from redislink.interop.parties import Parties
from redislink.interop.sidecar.link import Link, Told

IDLE: Final = 3.0
"""Seconds without a pop after which a link that the program has dropped is left."""


@dataclass(slots=True)
class Client:
    """A process of the program.

    Attributes:
        number: the program's word for it.
        about: its process id, for messages.
        lasting: whether it may end without a word, as Ray's actors do.
        told: what it has yet to hear.
        ended: how it ended: empty if well; None if it has not said so.
    """

    number: int
    about: str
    lasting: bool
    told: queue.SimpleQueue[Told] = field(default_factory=queue.SimpleQueue)
    ended: str | None = None
    links: dict[int, Link] = field(default_factory=dict)
    made: Counter[tuple[str, ...]] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The link that a program asks for.

    Attributes:
        name: the id in its description.
        members: name and address of each party, in rank order, as the program gave them.
        rank: of the program's party.
    """

    name: str
    members: tuple[tuple[str, str], ...]
    rank: int

    @property
    def parties(self) -> tuple[str, ...]:
        """The names, in rank order."""
        return tuple(name for name, _ in self.members)

    @property
    def ports(self) -> str:
        """The ports of the addresses. They tell links apart, as each needs its own without us."""
        ends = [address.rpartition(":")[2] for _, address in self.members]
        return ",".join(end for end in ends if end.isdecimal())


class Links:
    """What a sidecar's server works on. Several threads may use it at once."""

    def __init__(
        self, parties: Parties, say: Callable[[str], None], *, by_ports: bool = True
    ) -> None:
        """Args:
        parties: who may take part, and which of them this sidecar is.
        say: shows the user one line.
        by_ports: whether the ports of a link's addresses are part of its name.
        """
        self._parties = parties
        self.party = parties.party or ""
        self._say = say
        self._by_ports = by_ports
        self._lock = threading.Lock()
        self._clients: dict[int, Client] = {}
        self._links: dict[int, Link] = {}
        self._sessions: set[str] = set()
        self._session_of: dict[int, str] = {}
        self._numbers = itertools.count(1)
        self._ends: list[threading.Thread] = []

    def enter(self, about: str, *, lasting: bool) -> Client:
        """Take note of a process of the program."""
        with self._lock:
            client = Client(next(self._numbers), about, lasting)
            self._clients[client.number] = client
        return client

    def client(self, number: int) -> Client:
        """The process with this number.

        Raises:
            UsageError: there is none, or it has ended.
        """
        with self._lock:
            client = self._clients.get(number)
        if client is None:
            raise UsageError(f"{self.party}: the sidecar knows no process {number}")
        return client

    def make(self, client: Client, wanted: Wanted) -> Link:
        """Make a process's end of a link. Returns once all its parties have come.

        Raises:
            ConfigError: the link is of parties that the cluster file has not, or is another
                party's.
            PartyTaken: another process of the program uses a link of this name.
            RedisLinkError: the parties do not meet.
        """
        what = f"link {wanted.name!r:.80}"
        parties = self._parties.named(wanted.parties, what)
        party = self._parties.at(wanted.rank, parties, what)
        ports = wanted.ports if self._by_ports else ""
        name = (wanted.name, ports, *sorted(parties))
        with self._lock:
            made_before = client.made[name]
        cluster = self._parties.cluster(parties, named(wanted.name, ports, parties, made_before))
        with self._lock:
            if cluster.session in self._sessions:
                raise PartyTaken(
                    f"{self.party}: another process of the program has {what} of these parties and "
                    "ports: give each link an id of its own"
                )
            self._sessions.add(cluster.session)
            client.made[name] += 1
        try:
            endpoint = self._parties.connect(cluster, party, self._parties.settings)
        except BaseException:
            with self._lock:
                self._sessions.discard(cluster.session)
                client.made[name] -= 1
            raise
        number = next(self._numbers)

        def tell(told: Told) -> None:
            self._say(told.text)
            client.told.put(told)

        link = Link(number, endpoint, tell)
        with self._lock:
            is_here = client.number in self._clients
            self._links[number] = client.links[number] = link
            self._session_of[number] = cluster.session
        if not is_here:
            self._end(client, link, "its program ended without a word")
            raise UsageError(f"{self.party}: {client.about} ended while {what} was made")
        link.start()
        return link

    def link(self, number: int) -> Link:
        """The link with this number.

        Raises:
            UsageError: there is none, or it has been left.
        """
        link = self._links.get(number)
        if link is None:
            raise UsageError(f"{self.party}: the sidecar knows no link {number}")
        return link

    def leave(self, client: Client) -> None:
        """A process of the program is gone: end its links."""
        failed = client.ended
        if failed is None and not client.lasting:
            failed = "its program ended without a word"
        if failed and client.links:
            self._say(f"{self.party}: {client.about}: {failed}: its links are ended")
        with self._lock:
            self._clients.pop(client.number, None)
            ends = self._begin_to_end([client], failed)
        for end in ends:
            end.join()

    def sweep(self) -> None:
        """Leave the links that the program has dropped. Call it about once a second."""
        before = time.monotonic() - IDLE
        with self._lock:
            clients = list(self._clients.values())
        for client in clients:
            for link in list(client.links.values()):
                if link.released and link.used_at < before:
                    self._end(client, link, None)

    def close(self, failed: str | None = None) -> None:
        """End all links, and wait for those that are being ended.

        Args:
            failed: why, for the peers; None: everything went well.
        """
        with self._lock:
            self._begin_to_end(list(self._clients.values()), failed)
            self._clients.clear()
            ends = list(self._ends)
        for end in ends:
            end.join()

    def _begin_to_end(
        self, clients: Sequence[Client], failed: str | None
    ) -> list[threading.Thread]:
        """End the links of processes, in threads. Needs the lock."""
        ends = [
            threading.Thread(
                target=self._end,
                args=(client, link, client.ended or failed),
                name="redislink-leave",
                daemon=True,
            )
            for client in clients
            for link in list(client.links.values())
        ]
        for end in ends:
            end.start()
        self._ends = [end for end in self._ends if end.is_alive()] + ends
        return ends

    def _end(self, client: Client, link: Link, failed: str | None) -> None:
        with contextlib.suppress(KeyError):
            del client.links[link.number]
        self._links.pop(link.number, None)
        if failed:
            link.abort(failed)
        else:
            link.close()
        with self._lock:
            self._sessions.discard(self._session_of.pop(link.number, ""))
