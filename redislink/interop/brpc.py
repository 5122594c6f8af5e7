"""Programs written for SPU's own links, unchanged: ``libspu.link.create_brpc`` gives a relay link.

``redislink run --brpc-programs PROGRAM``, or ``python -m redislink.interop.brpc PROGRAM``, which
takes everything from the environment. The processes that PROGRAM forks, spawns or starts with the
same interpreter do the same.

Rules:
- The parties of a link, and the rank, are those of the ``Desc``; the addresses in it are not used,
  and nobody listens. Where all parties are on this machine, the addresses tell links of the same
  id apart. Otherwise they may look different from each party: there it is their order of first
  use in this process.
- What the ``Desc`` says besides has its meaning here, or is ignored and said so once.
- A process that makes no link loads next to nothing: most of the imports are inside functions.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from redislink.errors import ConfigError, LinkError
from redislink.interop.running import check_program, run_program
from redislink.interop.startup import sitecustomize

if TYPE_CHECKING:
    from redislink.interop.parties import Parties
    from redislink.settings import RedisLinkSettings

_IGNORED: Final = {
    "brpc_channel_connection_type": "the relay has one kind of connection",
    "brpc_channel_protocol": "the relay speaks to the broker alone",
    "disable_msg_seq_id": "the relay numbers its messages itself",
    "enable_ssl": "links are sealed end to end with the parties' keys; for TLS to the broker write "
    "rediss:// in its URL",
    "http_max_payload_size": "REDISLINK_CHUNK_BYTES says how messages are cut",
    "http_timeout_ms": "REDISLINK_REPLY_TIMEOUT says how long a reply of the broker may take",
    "link_type": "the link goes through the relay",
}
"""Fields of a Desc that mean nothing here, and why."""
_addresses: Final[dict[tuple[str, ...], list[tuple[str, ...]]]] = {}
"""The lists of addresses that each id has had in this process with the same parties."""


def install(libspu: ModuleType) -> None:
    """Put `create_brpc` in place of SPU's own.

    Args:
        libspu: the module ``spu.libspu``.
    """
    libspu.link.create_brpc = create_brpc


def create_brpc(desc: Any, self_rank: int, *, log_details: bool = False) -> Any:  # noqa: ARG001
    """Make this party's end of a link over the relay. Returns once all its parties do the same.

    Args:
        desc: a ``libspu.link.Desc`` with an id and the parties.
        self_rank: the rank of the party that this is.
        log_details: for SPU's own link; ignored.

    Returns:
        The ``libspu.link.Context``.

    Raises:
        ConfigError: the link has no id, or parties that the cluster file has not, or the rank is
            another party's.
        LinkError: this SPU takes no links but its own, or the program still has such a link.
        HandshakeTimeout: a party did not make the link in time.
        PeerError, BrokerError: as `redislink.connect`.
    """
    import spu
    from spu import libspu

    if not hasattr(libspu.link, "IChannel"):
        raise LinkError(
            f"this spu ({getattr(spu, '__version__', 'version unknown')}) has no IChannel, so its "
            "links cannot go over the relay from inside: start redislink sidecar beside it, or "
            "install spu>=0.10.0.dev20251211"
        )
    from redislink.interop.links import make_room, open_link
    from redislink.interop.parties import Parties
    from redislink.logs import PartyLogger

    members = [(str(party.id), str(party.host)) for party in desc.parties]
    names = [name for name, _ in members]
    if not desc.id:
        raise ConfigError(
            f"a link of {', '.join(names) or 'nobody'} has no id: set desc.id to the same text at "
            "each of its parties"
        )
    what = f"link {desc.id!r:.80}"
    parties = Parties()
    if len(names) < 2:
        if int(self_rank) != 0 or not names:
            raise ConfigError(f"{what}: rank {self_rank} of {len(names)} parties: add_party first")
        return libspu.link.create_with_channels(desc, 0, [None])
    found = parties.named(names, what)
    me = parties.at(int(self_rank), found, what)
    said = ["brpc", desc.id, *sorted(found), *_which(parties, desc.id, found, members)]
    cluster = parties.cluster(found, said)
    make_room(cluster.session, me, what, found)
    _say_ignored(desc)
    settings = _settings(parties.settings, desc)
    endpoint = parties.connect(cluster, me, settings, what)
    PartyLogger(cluster.session, me).info(
        "%s: %s of %s is session %s", me, what, ", ".join(found), cluster.session
    )
    return open_link(
        endpoint,
        desc,
        what,
        recv_timeout=settings.recv_timeout,
        window=int(desc.throttle_window_size),
    )


def _which(
    parties: Parties, link_id: str, found: Sequence[str], members: Sequence[tuple[str, str]]
) -> list[str]:
    """What tells this link from others of the same id and parties."""
    addresses = tuple(f"{name} {host}" for name, host in members)
    if parties.party is None:
        return list(addresses)
    seen = _addresses.setdefault((link_id, *sorted(found)), [])
    if addresses not in seen:
        seen.append(addresses)
    return [str(seen.index(addresses))]


def _settings(settings: RedisLinkSettings, desc: Any) -> RedisLinkSettings:
    """This process's settings, with the times of a Desc where they do not say otherwise."""
    from redislink.settings import LONGEST_SECONDS

    changed: dict[str, float] = {}
    if desc.recv_timeout_ms and "recv_timeout" not in settings.model_fields_set:
        changed["recv_timeout"] = min(desc.recv_timeout_ms / 1000, LONGEST_SECONDS)
    patience = desc.connect_retry_times * desc.connect_retry_interval_ms / 1000
    if patience > settings.connect_timeout and "connect_timeout" not in settings.model_fields_set:
        changed["connect_timeout"] = min(patience, LONGEST_SECONDS)
    return settings.model_copy(update=changed)


def _say_ignored(desc: Any) -> None:
    from redislink.settings import say_once

    usual = type(desc)()
    for field, why in _IGNORED.items():
        given = getattr(desc, field, None)
        if given != getattr(usual, field, None):
            say_once(f"create_brpc: desc.{field} is ignored: {why}")


def main(words: Sequence[str] | None = None) -> None:
    """``python -m redislink.interop.brpc``.

    Args:
        words: the words of the command line; None: this process's.
    """
    from redislink.interop.trial import take_part

    parser = argparse.ArgumentParser(
        prog="python -m redislink.interop.brpc",
        description="Run a Python program whose SPU links go over redislink, as it is. Cluster "
        "file, party and key file are those of REDISLINK_CLUSTER_FILE, REDISLINK_PARTY and "
        "REDISLINK_IDENTITY_FILE.",
    )
    parser.add_argument(
        "--trial",
        action="store_true",
        help="all parties are on this machine: make keys and a broker for them (for trials only)",
    )
    parser.add_argument(
        "--trial-dir",
        type=Path,
        metavar="DIR",
        help="the same, for several commands that name the same directory; the first one ends last",
    )
    parser.add_argument("-m", action="store_true", dest="module", help="PROGRAM names a module")
    parser.add_argument("program", metavar="PROGRAM")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGS")
    given = parser.parse_args(words)
    check_program(given.program, module=given.module)
    with contextlib.ExitStack() as stack:
        if given.trial or given.trial_dir:
            os.environ.update(stack.enter_context(take_part(given.trial_dir)))
        sitecustomize.act("brpc")
        run_program(given.program, given.arguments, module=given.module)


if __name__ == "__main__":
    from redislink.interop import brpc  # the module of this name, not a second one

    brpc.main()
