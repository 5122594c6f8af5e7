"""Who takes part in a link of a program that was written for other links, and in which session.

Rules:
- The cluster file says who takes part and whose keys are whose. The program says which of them a
  link has, and in which order; in a trial, which parties there are at all.
- A link has a session of its own, of its parties in the order of their ranks. All of them derive
  its name from what the program says of the link, and the broker's rights for jobs cover it.
- With ``REDISLINK_PARTY``, a process is that party and no other. Without, it is the party that the
  program says, for each link anew: all parties are then on this machine.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from redislink.cluster import ClusterSpec, load_cluster
from redislink.errors import (
    BrokerPermissionError,
    ClusterMismatch,
    ConfigError,
    HandshakeTimeout,
    PartyTaken,
)
from redislink.identity.keypair import Identity
from redislink.interop.trial import Trial, party_called
from redislink.jobs.offer import job_session
from redislink.joining import connect
from redislink.settings import RedisLinkSettings
from redislink.transport.endpoint import Endpoint

PATTERN: Final = "{party}"
"""Stands for the party's name in ``REDISLINK_IDENTITY_FILE``."""
_ID_CHARACTERS: Final = 12


class Parties:
    """Who may take part, and who this process is."""

    def __init__(self, settings: RedisLinkSettings | None = None, *, drives: bool = False) -> None:
        """Args:
        settings: this process's; None reads the environment and ``.env``.
        drives: whether this process may be one of the cluster file's drivers, too.

        Raises:
            ConfigError: they name neither a cluster file nor a trial, or what they name is wrong.
        """
        self.settings = settings or RedisLinkSettings.load()
        self._trial: Trial | None = None
        self._cluster: ClusterSpec | None = None
        self.party: str | None = None
        """The one party that this process is; None: any of them."""
        if self.settings.trial_dir is not None:
            self._trial = Trial(self.settings.trial_dir)
            return
        try:
            path = self.settings.cluster_file_to_use()
        except ConfigError as error:
            raise ConfigError(
                f"{error}; or try the program on this machine alone with redislink run "
                "--brpc-programs --trial"
            ) from None
        self._cluster = load_cluster(path)
        self.party = self.settings.party
        if self.party is not None:
            if not drives or self.party not in self._cluster.driver_names:
                self._cluster.rank(self.party)
        elif self._cluster.security != "none" and PATTERN not in str(self.settings.identity_file):
            raise ConfigError(
                f"no party: give --party NAME, or set REDISLINK_PARTY, to one of "
                f"{', '.join(self._cluster.party_names)}; to run all of them on this machine, name "
                f"their key files as in --identity 'keys/{PATTERN}.key'"
            )

    @property
    def ours(self) -> tuple[str, ...]:
        """The parties of the cluster file that this process may be; none in a trial."""
        if self._cluster is None:
            return ()
        return self._cluster.party_names if self.party is None else (self.party,)

    @property
    def is_trial(self) -> bool:
        """Whether all parties are on this machine, and their names the program's."""
        return self._trial is not None

    def others(self) -> list[str]:
        """The parties of the cluster file but this one; none in a trial."""
        names = () if self._cluster is None else self._cluster.party_names
        return [name for name in names if name != self.party]

    def named(self, names: Sequence[str], what: str) -> list[str]:
        """The parties that a program calls so, in the same order.

        Args:
            names: at least two, as the program says them.
            what: the link or the like, for errors, such as ``link 'root'``.

        Raises:
            ConfigError: one is not in the cluster file, or two are the same.
        """
        aliases = self.settings.aliases
        if self._cluster is None:
            found = [party_called(aliases.get(name, name)) for name in names]
        else:
            found = [aliases.get(name, name) for name in names]
            known = self._cluster.party_names
            if unknown := [n for n, party in zip(names, found, strict=True) if party not in known]:
                raise ConfigError(
                    f"{what}: {', '.join(unknown)} {'is' if len(unknown) == 1 else 'are'} not in "
                    f"session {self._cluster.session!r}, which has {', '.join(known)}: call the "
                    f"parties so in the program, or say who is who with --alias {unknown[0]}="
                    f"{known[0]} (REDISLINK_ALIASES)"
                )
        if doubles := sorted({party for party in found if found.count(party) > 1}):
            raise ConfigError(f"{what}: {doubles[0]} takes part twice: name each party once")
        return found

    def at(self, rank: int, parties: Sequence[str], what: str) -> str:
        """The party that this process is for a link.

        Args:
            rank: as the program says it.
            parties: from `named`.
            what: as there.

        Raises:
            ConfigError: there is no such rank, or it is not this process's party's.
        """
        listed = ", ".join(parties)
        if not 0 <= rank < len(parties):
            raise ConfigError(
                f"{what}: rank {rank} of {len(parties)} parties ({listed}): ranks count from 0"
            )
        if self.party in (None, parties[rank]):
            return parties[rank]
        if self.party not in parties:
            raise ConfigError(
                f"{what}: its parties are {listed}, and this process runs as {self.party}, who "
                "takes no part: let only its parties make it"
            )
        raise ConfigError(
            f"{what}: rank {rank} is {parties[rank]}, and this process runs as {self.party}: pass "
            f"rank {list(parties).index(self.party)} here, or run as {parties[rank]}"
        )

    def cluster(self, parties: Sequence[str], said: Sequence[str]) -> ClusterSpec:
        """The cluster of a link's own session.

        Args:
            parties: from `named`.
            said: what tells this link from others of the program, the same at each of its parties.

        Raises:
            ConfigError: the cluster file's session has a name that is too long.
        """
        whole = self._cluster if self._trial is None else self._trial.cluster(parties)
        if whole is None:  # never: one of the two is there
            raise ConfigError("no cluster file")
        return link_cluster(whole, parties, said)

    def connect(
        self, cluster: ClusterSpec, party: str, settings: RedisLinkSettings, what: str = ""
    ) -> Endpoint:
        """Join a link's session as one of its parties.

        Args:
            cluster: from `cluster`.
            party: from `at`.
            settings: for this link.
            what: the link, if the error of a meeting that fails is to name it.

        Raises:
            RedisLinkError: as `redislink.connect`.
        """
        try:
            return connect(cluster, party, settings, identity=self.identity(party))
        except (HandshakeTimeout, ClusterMismatch) as error:
            if not what:
                raise
            raise type(error)(
                f"{error} (this is {what} of {', '.join(cluster.party_names)}: each of them makes "
                "it, with the same id, and names them in this order)"
            ) from error
        except PartyTaken as error:
            raise PartyTaken(f"{error}; or give each link an id of its own") from error
        except BrokerPermissionError as error:
            if self._cluster is not None and party in self._cluster.driver_names:
                raise BrokerPermissionError(
                    f"{error} (redislink acl lets a driver do what jobs need, and no more: list "
                    f"{party} under parties in the cluster file, in place of drivers, and run it "
                    "again)"
                ) from error
            if self._cluster is None:
                raise
            raise explained(error, self._cluster) from error

    def identity(self, party: str) -> Identity | None:
        """The key pair of a party that this process may be; None if none is needed.

        Raises:
            ConfigError: its file cannot be used.
        """
        if self._trial is not None:
            return self._trial.identity(party)
        file = self.settings.identity_file
        if file is None or (self._cluster is not None and self._cluster.security == "none"):
            return None
        return Identity.load(Path(str(file).replace(PATTERN, party)))


def link_cluster(whole: ClusterSpec, parties: Sequence[str], said: Sequence[str]) -> ClusterSpec:
    """The cluster of a link's own session.

    Args:
        whole: the cluster file.
        parties: those of the link, in the order of their ranks there.
        said: what tells this link from others, the same at each of its parties.

    Raises:
        ConfigError: the cluster file's session has a name that is too long.
    """
    digest = hashlib.sha256(json.dumps(list(said)).encode()).digest()
    link = base64.b32encode(digest).decode().lower()[:_ID_CHARACTERS]
    session = job_session(whole.session, f"j{link}")
    return ClusterSpec.parse(whole.part(session, parties), session)


def explained(error: BrokerPermissionError, cluster: ClusterSpec) -> BrokerPermissionError:
    """The error with what to do about it, if the users were made without rights for such sessions.

    Args:
        error: what the broker said when a link's session was joined.
        cluster: the cluster file.
    """
    if cluster.drivers is not None:
        return error
    return BrokerPermissionError(
        f"{error} (a link has a session of its own: write drivers: [] in the cluster file, and run "
        "redislink acl again, so that the users may have such sessions)"
    )
