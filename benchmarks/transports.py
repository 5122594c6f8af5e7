"""How parties are joined, by name: each gives libspu link contexts, some an endpoint too.

Rules: everything is imported where it is needed, since MPLang's parties have an interpreter
without redislink, and parties of another revision have that revision's redislink.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.turns import Turns

REDISLINK: Final = "redislink"
REDISLINK_NONE: Final = "redislink-none"
REDISLINK_UNIX: Final = "redislink-unix"
"""As `REDISLINK`, through the broker's unix socket instead of TCP."""
REDISLINK_TRACED: Final = "redislink-traced"
"""As `REDISLINK`, and every party records its timeline meanwhile."""
BRPC: Final = "brpc"
BRPC_KEPT: Final = "brpc-kept"
"""As `BRPC`, in processes that keep freed memory, as those of `REDISLINK` do."""
MEM: Final = "mem"
NAIVE: Final = "naive"
FLOOR: Final = "floor"
"""The least that a relay of lists takes, from Python: see `benchmarks.floor`."""
MPLANG: Final = "mplang"
ALL: Final = (
    *(REDISLINK, REDISLINK_NONE, REDISLINK_UNIX, REDISLINK_TRACED),
    *(FLOOR, BRPC, BRPC_KEPT, NAIVE, MPLANG, MEM),
)
THROUGH_BROKER: Final = (
    *(REDISLINK, REDISLINK_NONE, REDISLINK_UNIX, REDISLINK_TRACED),
    *(NAIVE, FLOOR),
)
LISTENING: Final = (BRPC, BRPC_KEPT, MPLANG)
RECV_TIMEOUT: Final = 120.0

Job = dict[str, Any]


class Joined:
    """One party of a session, joined to the others by some transport."""

    endpoint: Any = None
    """The `redislink.Endpoint`, where there is one."""

    takes_text = True
    """If its links send str, as libspu's binding does, and not bytes."""

    def __init__(self, job: Job, rank: int) -> None:
        self.job = job
        self.rank = rank
        self.names: list[str] = job["parties"]
        self.turns = Turns(*job["turns"][rank]) if job["turns"] else None
        """If other sessions run at once."""

    def next_turn(self) -> None:
        """What comes next is measured, or no longer: let the other sessions come as far."""
        if self.turns is not None:
            self.turns.next()

    @property
    def world_size(self) -> int:
        """Number of parties."""
        return len(self.names)

    @contextlib.contextmanager
    def link(self, device: str) -> Iterator[Any]:
        """A link context between all parties; ``device`` is one of the job's."""
        context, channels = self._open(device)
        yield context
        context.stop_link()
        del channels  # libspu does not keep them alive

    def close(self) -> None:
        """Leave."""

    def _open(self, device: str) -> tuple[Any, Any]:
        raise NotImplementedError

    def _desc(self, device: str) -> Any:
        from spu import libspu

        desc = libspu.link.Desc()
        desc.id = f"{self.job['session']}.{device}"
        desc.recv_timeout_ms = int(RECV_TIMEOUT * 1000)
        return desc


class _Redislink(Joined):
    def __init__(self, job: Job, rank: int) -> None:
        super().__init__(job, rank)
        self.endpoint = connect_endpoint(job, rank, job["session"])

    def _open(self, device: str) -> tuple[Any, Any]:
        from redislink.spu import create_link

        link = create_link(device, self.endpoint)
        return link.context, link

    def close(self) -> None:
        self.endpoint.close()


class _Brpc(Joined):
    def _open(self, device: str) -> tuple[Any, Any]:
        from redislink import ClusterSpec, RedisLinkSettings
        from redislink.spu import create_link

        ports = self.job["ports"][self.rank][device]
        content = {
            "session": self.job["session"],
            "parties": [
                {"name": name, "brpc_address": f"127.0.0.1:{port}"}
                for name, port in zip(self.names, ports, strict=True)
            ],
            "devices": {device: _device(self.names)},
        }
        kept = {} if self.job["transport"] == BRPC_KEPT else {"kept_memory_bytes": 0}
        link = create_link(
            device,
            cluster=ClusterSpec.parse(content),
            party=self.names[self.rank],
            mode="brpc",
            settings=RedisLinkSettings(_env_file=None, recv_timeout=RECV_TIMEOUT, **kept),
        )
        return link.context, link


class _Mem(Joined):
    def _open(self, device: str) -> tuple[Any, Any]:
        from spu import libspu

        desc = self._desc(device)
        for name in self.names:
            desc.add_party(name, name)
        return libspu.link.create_mem(desc, self.rank), None


class _Naive(Joined):
    def __init__(self, job: Job, rank: int) -> None:
        import redis

        super().__init__(job, rank)
        self._broker = redis.Redis.from_url(job["broker_urls"][rank])

    def _open(self, device: str) -> tuple[Any, Any]:
        from spu import libspu

        from benchmarks.naive import NaiveChannel

        desc = self._desc(device)
        for name in self.names:
            desc.add_party(name, name)
        channels = [
            None
            if peer == self.rank
            else NaiveChannel(
                self._broker,
                f"{device}/{self.rank}>{peer}/",
                f"{device}/{peer}>{self.rank}/",
                RECV_TIMEOUT,
            )
            for peer in range(self.world_size)
        ]
        return libspu.link.create_with_channels(desc, self.rank, channels), channels

    def close(self) -> None:
        self._broker.close()


class _Floor(Joined):
    takes_text = False

    def __init__(self, job: Job, rank: int) -> None:
        from urllib.parse import urlsplit

        super().__init__(job, rank)
        url = urlsplit(job["broker_urls"][rank])
        self._address = (url.hostname, url.port)

    @contextlib.contextmanager
    def link(self, device: str) -> Iterator[Any]:
        from benchmarks.floor import FloorLink

        with contextlib.closing(FloorLink(self._address, device, self.rank)) as link:
            yield link


class _Mplang(Joined):
    def __init__(self, job: Job, rank: int) -> None:
        from benchmarks.mplang_http import MplangWorker

        super().__init__(job, rank)
        ports = job["ports"][rank]["http"]
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        self._worker = MplangWorker(rank, ports[rank], urls)

    def _open(self, device: str) -> tuple[Any, Any]:
        from spu import libspu

        desc = self._desc(device)
        for name in self.names:
            desc.add_party(name, name)
        channels = self._worker.channels(self.rank, self.world_size, device)
        return libspu.link.create_with_channels(desc, self.rank, channels), channels

    def close(self) -> None:
        self._worker.close()


_CLASSES: Final[dict[str, type[Joined]]] = {
    REDISLINK: _Redislink,
    REDISLINK_NONE: _Redislink,
    REDISLINK_UNIX: _Redislink,
    REDISLINK_TRACED: _Redislink,
    BRPC: _Brpc,
    BRPC_KEPT: _Brpc,
    MEM: _Mem,
    NAIVE: _Naive,
    FLOOR: _Floor,
    MPLANG: _Mplang,
}


def join(job: Job, rank: int) -> Joined:
    """Join the session of a job as one party, by the transport that it names."""
    return _CLASSES[job["transport"]](job, rank)


def connect_endpoint(job: Job, rank: int, session: str) -> Any:
    """This party's endpoint in a session, sealed unless the job's transport says otherwise."""
    import redislink

    names = job["parties"]
    parties: list[dict[str, Any]] = [{"name": name} for name in names]
    content = {
        "session": session,
        "parties": parties,
        "devices": {device: _device(names) for device in job["devices"]},
    }
    options = {}
    try:
        from redislink.identity import Identity, format_public_key
    except ImportError:  # a revision before sealing
        pass
    else:
        if job["transport"] == REDISLINK_NONE:
            content["security"] = "none"
        else:
            identities = [Identity(bytes.fromhex(key)) for key in job["keys"]]
            for party, identity in zip(parties, identities, strict=True):
                party["public_key"] = format_public_key(identity.public_key)
            options["identity"] = identities[rank]
    observed = {}
    if job["transport"] == REDISLINK_TRACED:
        observed = {"trace_dir": Path("traces")}
    settings = redislink.RedisLinkSettings(
        _env_file=None,
        broker_url=job["broker_urls"][rank],
        connect_timeout=60,
        recv_timeout=RECV_TIMEOUT,
        **observed,
    )
    return redislink.connect(redislink.ClusterSpec.parse(content), names[rank], settings, **options)


def _device(members: list[str]) -> dict[str, Any]:
    # The protocol only matters to redislink's checks: programs bring their own configuration.
    return {"kind": "SPU", "members": members, "config": {"protocol": "SEMI2K"}}
