"""`create_link`: an SPU link context for one device, in one of three modes.

``channels`` goes through the broker. ``brpc`` is SPU's own network stack, for which each member
listens on a port; it is never taken unless it is asked for by name. ``mem`` links threads of one
process.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final
from weakref import WeakKeyDictionary

from spu import libspu

from redislink.cluster import ClusterSpec, DeviceSpec
from redislink.cluster.trust import REMEDY, warnings
from redislink.errors import ConfigError, LinkError, RedisLinkError
from redislink.forking import (
    Dead,
    dies_in_child,
    never_destroy,
    renew_in_child,
    used_after_fork,
)
from redislink.logs import PartyLogger
from redislink.settings import LinkMode, RedisLinkSettings
from redislink.spu.log import limit_log
from redislink.spu.malloc import keep_freed_memory
from redislink.transport.endpoint import Endpoint

_link_numbers: Final[WeakKeyDictionary[Endpoint, Counter[str]]] = WeakKeyDictionary()
_links_lock: Final = threading.Lock()
renew_in_child(_links_lock)


class SpuLink:
    """One member's end of an SPU link. Keep it for as long as the link is in use.

    Attributes:
        context: the ``libspu.link.Context`` for ``spu.Runtime`` and ``spu.psi``.
        mode: how the members are linked.
        rank: this member's rank within the device.
        world_size: the number of members.
    """

    def __init__(
        self, context: Any, mode: LinkMode, rank: int, world_size: int, channels: list[Any]
    ) -> None:
        """Not for users: call `create_link`."""
        self.context = context
        self.mode = mode
        self.rank = rank
        self.world_size = world_size
        self._channels = channels  # libspu does not keep them alive
        self._closed = False
        dies_in_child(self)

    def die_in_child(self) -> None:
        """In the child of a fork: `close` tells the peers nothing, and does not wait for SPU's
        threads, which do not exist there."""
        self._closed = True
        never_destroy(self.context)
        self.context = Dead(used_after_fork("the link"))

    def close(self) -> None:
        """Wait until everything sent is delivered, then stop the link. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self.context.stop_link()

    def __enter__(self) -> SpuLink:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            # The error that ends the block matters more than how the link ends.
            with contextlib.suppress(Exception):
                self.close()


def create_link(
    device: str,
    endpoint: Endpoint | None = None,
    *,
    cluster: ClusterSpec | None = None,
    party: str | None = None,
    mode: LinkMode | str | None = None,
    settings: RedisLinkSettings | None = None,
) -> SpuLink:
    """Make this member's end of a device's link. Every member must make the same call.

    Args:
        device: the name of an SPU device of the cluster.
        endpoint: this party's endpoint, which ``channels`` needs. It also provides the cluster,
            the party and the settings.
        cluster: the cluster, if you pass no endpoint; for ``brpc`` and ``mem``.
        party: the name of this party, if you pass no endpoint.
        mode: ``channels``, ``brpc`` or ``mem``; None means ``REDISLINK_LINK_MODE``, or else the
            device's ``use_redis_channel``. All members must use the same mode.
        settings: this party's settings, if you pass no endpoint; None reads the environment and
            ``.env``.

    Raises:
        ConfigError: there is no such device, this party is not a member, or a member has no brpc
            address.
        LinkError: the link cannot be made in this mode, or the installed spu takes no links but its
            own.
    """
    if endpoint is not None:
        cluster, party, settings = endpoint.cluster, endpoint.party, endpoint.settings
    if cluster is None or party is None:
        raise LinkError("create_link needs an endpoint, or cluster and party: pass either")
    settings = settings or RedisLinkSettings.load()
    spec = cluster.device(device)
    if party not in spec.members:
        raise ConfigError(
            f"party {party!r} is not a member of device {device!r}: only "
            f"{', '.join(spec.members)} make its link"
        )
    log = PartyLogger(cluster.session, party)
    if endpoint is None:  # otherwise `connect` has logged it
        for warning in warnings(cluster, device):
            log.warning("%s: %s: %s", party, warning, REMEDY)
    chosen = _choose_mode(mode, settings, spec, party)
    members = [cluster.party_names[rank] for rank in cluster.mask(device)]
    return _join(device, members, chosen, endpoint, cluster, party, settings)


def link_members(name: str, members: Sequence[str], endpoint: Endpoint) -> SpuLink:
    """Make this member's end of a link through the relay, without a device. All must call it.

    Args:
        name: tells the link from others between the same members; the same at all of them.
        members: parties of the endpoint's cluster, in the order of their ranks in the link.
        endpoint: this member's.

    Raises:
        LinkError: this spu has no channels, or a member does not make the link.
    """
    if not has_channels():
        raise LinkError("this spu has no IChannel: install spu>=0.10.0.dev20251211")
    return _join(
        name, list(members), LinkMode.CHANNELS, endpoint, endpoint.cluster, endpoint.party,
        endpoint.settings,
    )  # fmt: skip


def _join(
    name: str,
    members: list[str],
    chosen: LinkMode,
    endpoint: Endpoint | None,
    cluster: ClusterSpec,
    party: str,
    settings: RedisLinkSettings,
) -> SpuLink:
    limit_log(settings.spu_log_level)
    keep_freed_memory(settings.kept_memory_bytes)
    rank = members.index(party)
    desc = libspu.link.Desc()
    desc.recv_timeout_ms = int(settings.recv_timeout * 1000)
    channels: list[Any] = []
    try:
        if chosen is LinkMode.CHANNELS:
            context = _join_channels(desc, name, endpoint, members, rank, channels)
        elif chosen is LinkMode.BRPC:
            context = _join_brpc(desc, name, cluster, members, rank, settings)
        else:
            desc.id = f"{cluster.session}.{name}"
            for member in members:
                desc.add_party(member, member)
            context = libspu.link.create_mem(desc, rank)
    except RedisLinkError:
        raise
    except RuntimeError as error:
        raise LinkError(
            f"{party}: no {chosen} link for {name!r} ({' '.join(str(error).split())[:200]}"
            f"): check that {', '.join(m for m in members if m != party)} make it too"
        ) from error
    return SpuLink(context, chosen, rank, len(members), channels)


def runtime_config(device: DeviceSpec) -> Any:
    """The ``libspu.RuntimeConfig`` that a device's ``config`` describes.

    Raises:
        ConfigError: the installed spu does not know a field or a value of ``config.runtime``.
    """
    given = device.config.runtime.model_dump(exclude_none=True)
    config = libspu.RuntimeConfig()
    # As JSON: spu's Python attributes cannot set all fields of these two that its C++ reads.
    nested = {name: given.pop(name) for name in _NESTED if name in given}
    content = {name: _plain(getattr(config, name)) for name in _fields(config)} | {
        "protocol": device.config.protocol,
        "field": device.config.field,
        "fxp_fraction_bits": device.config.fxp_fraction_bits,
    }
    for name, value in given.items():
        if name not in content:
            raise ConfigError(
                f"config.runtime: the installed spu has no field {name}: remove it, or install "
                "another spu"
            )
        content[name] = value
    if not config.ParseFromJsonString(json.dumps(content | nested)):
        raise ConfigError(
            f"config.runtime: the installed spu refuses {', '.join([*given, *nested])}: remove "
            "what it does not know, or install another spu"
        )
    return config


_NESTED: Final = ("ttp_beaver_config", "cheetah_2pc_config")


def _fields(config: Any) -> list[str]:
    """The fields of a RuntimeConfig that are a number, a text or a choice."""
    fields = (
        name
        for name, member in vars(type(config)).items()
        if isinstance(member, property) and name not in _NESTED
    )
    return list(fields)


def _plain(value: Any) -> Any:
    return getattr(value, "name", value)


def _choose_mode(
    mode: LinkMode | str | None,
    settings: RedisLinkSettings,
    spec: DeviceSpec,
    party: str,
) -> LinkMode:
    try:
        chosen = LinkMode(mode) if mode is not None else settings.link_mode
    except ValueError:
        raise LinkError(
            f"there is no link mode {mode!r:.40}: use {', '.join(m.value for m in LinkMode)}"
        ) from None
    if chosen is None:
        chosen = LinkMode.CHANNELS if spec.config.use_redis_channel else LinkMode.BRPC
    if chosen is LinkMode.CHANNELS and not has_channels():
        raise LinkError(
            f"{party}: this spu ({getattr(libspu, '__version__', 'version unknown')}) has no "
            "IChannel, so its links cannot go over the relay from inside: start the program with "
            "redislink sidecar, or install spu>=0.10.0.dev20251211, or choose mode=brpc, for which "
            "every member listens"
        )
    return chosen


def has_channels() -> bool:
    """Whether the installed spu accepts custom channels (0.9 does not)."""
    return hasattr(libspu.link, "create_with_channels") and hasattr(libspu.link, "IChannel")


def _next_link_number(endpoint: Endpoint, device: str) -> int:
    """How many links of a device an endpoint has made, this one included.

    Links to the same device are made in the same order everywhere, so the number keeps their
    equal tags apart.
    """
    with _links_lock:
        numbers = _link_numbers.setdefault(endpoint, Counter())
        numbers[device] += 1
        return numbers[device]


def _join_channels(
    desc: Any,
    device: str,
    endpoint: Endpoint | None,
    members: list[str],
    rank: int,
    channels: list[Any],
) -> Any:
    # Imported here, because the class cannot be defined if spu has no IChannel.
    from redislink.spu.channel import RelayChannel

    if endpoint is None:
        raise LinkError(
            "a channels link needs an endpoint: pass the one from redislink.connect(), "
            "or choose mode brpc or mem"
        )
    namespace = f"{device}.{_next_link_number(endpoint, device)}/"
    for member in members:
        desc.add_party(member, member)
    channels += [
        None
        if relative == rank
        else RelayChannel(endpoint, member, namespace, endpoint.settings.recv_timeout)
        for relative, member in enumerate(members)
    ]
    return libspu.link.create_with_channels(desc, rank, channels)


def _join_brpc(
    desc: Any,
    device: str,
    cluster: ClusterSpec,
    members: list[str],
    rank: int,
    settings: RedisLinkSettings,
) -> Any:
    for member in members:
        address = cluster.parties[cluster.rank(member)].brpc_address
        if address is None:
            raise ConfigError(
                f"device {device!r} in brpc mode: party {member!r} has no brpc_address: "
                "add it to the cluster file, or use channels"
            )
        desc.add_party(member, address)
    desc.id = f"{cluster.session}.{device}"
    desc.connect_retry_interval_ms = 500
    desc.connect_retry_times = max(1, int(settings.connect_timeout * 2))
    return libspu.link.create_brpc(desc, rank)
