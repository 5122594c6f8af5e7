"""The cluster file: the parties, their broker and their devices.

Every party has the same file. `ClusterSpec.digest` covers what must agree (all but the
broker's address, which may differ between parties) and goes into the handshake.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from redislink.cluster.checked import as_value_error, parse_checked, reading
from redislink.cluster.mask import Mask
from redislink.cluster.protocols import Protocol, advice, protocol_of
from redislink.cluster.runtime import SpuRuntime
from redislink.cluster.yaml_text import YamlText
from redislink.errors import ConfigError
from redislink.files import read_text
from redislink.identity.keypair import parse_public_key
from redislink.identity.signing import parse_signing_key
from redislink.protocol.list_names import check_name
from redislink.settings import SESSION_DIR

_STRICT = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)
_LONGEST_WITH_JOBS: Final = 50
"""Characters: a job's session is ``<session>.<job id>``, and a name has 64."""


class PartySpec(BaseModel):
    """One organisation.

    Attributes:
        name: 1 to 64 characters of ``A-Z a-z 0-9 _ . -``; the first is a letter or digit.
        public_key: ``x25519:…``, which ``redislink keygen`` prints; sealed sessions need it.
        signing_key: ``ed25519:…``, which ``redislink keygen`` prints; with it others can tell that
            an audit record is this party's.
        brpc_address: ``host:port`` where this party listens; only brpc links use it.
    """

    model_config = _STRICT
    name: str
    public_key: str | None = None
    signing_key: str | None = None
    brpc_address: str | None = None

    @field_validator("public_key")
    @classmethod
    def _valid_public_key(cls, text: str | None) -> str | None:
        return None if text is None else as_value_error(_checked_key, text, "party")

    @field_validator("signing_key")
    @classmethod
    def _valid_signing_key(cls, text: str | None) -> str | None:
        return None if text is None else as_value_error(_checked_signing_key, text, "party")

    @field_validator("name")
    @classmethod
    def _valid_name(cls, name: str) -> str:
        return as_value_error(check_name, name, "party")


class DriverSpec(BaseModel):
    """Who may submit jobs (docs/jobs.md) but computes nothing. Parties may submit jobs too.

    Attributes:
        name: as a party's; no party has it.
        public_key: ``x25519:…``, which ``redislink keygen NAME --driver`` prints.
        signing_key: as a party's.
    """

    model_config = _STRICT
    name: str
    public_key: str
    signing_key: str | None = None

    @field_validator("public_key")
    @classmethod
    def _valid_public_key(cls, text: str) -> str:
        return as_value_error(_checked_key, text, "driver")

    @field_validator("signing_key")
    @classmethod
    def _valid_signing_key(cls, text: str | None) -> str | None:
        return None if text is None else as_value_error(_checked_signing_key, text, "driver")

    @field_validator("name")
    @classmethod
    def _valid_name(cls, name: str) -> str:
        return as_value_error(check_name, name, "driver")


class SpuConfig(BaseModel):
    """Configuration of an SPU device.

    Attributes:
        protocol: one of SPU's protocols; ABY3 and SECURENN need 3 members, CHEETAH 2.
            docs/which-protocol.md says whom each trusts.
        field: size of the ring; see docs/numbers.md.
        fxp_fraction_bits: bits after the binary point, at most two less than the field has; 0
            means SPU's default for the field.
        use_redis_channel: ``true``: the device's traffic goes through the broker (``channels``);
            ``false``: through SPU's own brpc link, and each member needs a ``brpc_address``.
        runtime: further fields of ``spu.RuntimeConfig``.
    """

    model_config = _STRICT
    protocol: Literal["ABY3", "SEMI2K", "CHEETAH", "SECURENN", "REF2K"] = "ABY3"
    field: Literal["FM32", "FM64", "FM128"] = "FM64"
    fxp_fraction_bits: int = Field(default=0, ge=0, le=60)
    use_redis_channel: bool = True
    runtime: SpuRuntime = SpuRuntime()

    @model_validator(mode="after")
    def _fields_fit_the_protocol(self) -> SpuConfig:
        self.runtime.check(self.protocol)
        return self

    @model_validator(mode="after")
    def _room_for_fractions(self) -> SpuConfig:
        # The scale has to fit into the ring: in FM32, SPU would misread one of 2**31 or more.
        most = int(self.field.removeprefix("FM")) - 2
        if self.fxp_fraction_bits > most:
            raise ValueError(
                f"fxp_fraction_bits: {self.field} has room for {most} at most: use fewer, or a "
                "larger field"
            )
        return self

    @property
    def spu_protocol(self) -> Protocol:
        """The protocol's row: how many members it needs, and whom it trusts."""
        return protocol_of(self.protocol, self.runtime.beaver_type)


class DeviceSpec(BaseModel):
    """A device: an SPU that its members run together.

    Attributes:
        kind: the kind of device; always ``SPU``.
        members: names of the parties that compute; SPU ranks them in the order of ``parties``.
        config: its configuration.
    """

    model_config = _STRICT
    kind: Literal["SPU"]
    members: tuple[str, ...] = Field(min_length=2)
    config: SpuConfig = SpuConfig()

    @model_validator(mode="after")
    def _enough_members(self) -> DeviceSpec:
        if len(set(self.members)) != len(self.members):
            raise ValueError("members lists a party twice: list each party once")
        needed = self.config.spu_protocol.members
        if needed is not None and len(self.members) != needed:
            raise ValueError(
                f"{self.config.protocol} runs between {needed} members, not {len(self.members)}: "
                f"change members, or use another protocol, {advice()}"
            )
        return self


class ClusterSpec(BaseModel):
    """The parsed cluster file. Party i of ``parties`` has rank i.

    Attributes:
        session: name of the session; parties meet only in the same session.
        broker: URL of the broker, or a list of the URLs of several independent brokers. The
            setting ``REDISLINK_BROKER_URL`` takes precedence, and keeps passwords out of the file.
        parties: the parties in rank order; an entry may be a name alone.
        security: ``sealed``: the broker sees names, tags, sizes and times; ``none``: it sees
            and can change everything.
        devices: the devices by name; device names follow the rules for party names.
        drivers: who may submit jobs besides the parties. With it, even if it is ``[]``, ``redislink
            acl`` gives the parties the rights that jobs need, and ``session`` has at most 50
            characters, because each job has a session of its own.
    """

    model_config = _STRICT
    session: str
    security: Literal["sealed", "none"] = "sealed"
    broker: str | None = Field(default=None, repr=False)
    parties: tuple[PartySpec, ...] = Field(min_length=2, max_length=64)
    devices: dict[str, DeviceSpec] = {}
    drivers: tuple[DriverSpec, ...] | None = Field(default=None, max_length=64)

    @field_validator("session")
    @classmethod
    def _valid_session(cls, session: str) -> str:
        return as_value_error(check_name, session, "session")

    @field_validator("broker", mode="before")
    @classmethod
    def _several_as_text(cls, broker: Any) -> Any:
        """As in the setting: several URLs are one text, with spaces between them."""
        if not isinstance(broker, list | tuple):
            return broker
        if not broker or not all(isinstance(url, str) for url in broker):
            raise ValueError("broker is a URL, or a list of URLs: write each as text")
        return " ".join(broker)

    @field_validator("devices", mode="before")
    @classmethod
    def _nothing_below(cls, devices: Any) -> Any:
        return {} if devices is None else devices  # all of them are commented out

    @field_validator("parties", mode="before")
    @classmethod
    def _names_alone(cls, parties: Any) -> Any:
        if not isinstance(parties, list | tuple):
            return parties
        return tuple({"name": p} if isinstance(p, str) else p for p in parties)

    @field_validator("parties")
    @classmethod
    def _no_party_twice(cls, parties: tuple[PartySpec, ...]) -> tuple[PartySpec, ...]:
        names = [p.name for p in parties]
        doubles = sorted({name for name in names if names.count(name) > 1})
        if doubles:
            raise ValueError(f"party {doubles[0]!r} is listed twice: give each its own name")
        return parties

    @model_validator(mode="after")
    def _drivers_fit(self) -> ClusterSpec:
        if self.drivers is None:
            return self
        if self.security == "none":
            raise ValueError(
                "drivers: jobs need a sealed session: remove security: none, and give each party "
                "its public_key"
            )
        if len(self.session) > _LONGEST_WITH_JOBS:
            raise ValueError(
                f"session: with drivers, it has at most {_LONGEST_WITH_JOBS} characters, because a "
                "job's id is added to it: shorten it"
            )
        taken = set(self.party_names)
        for driver in self.drivers:
            if driver.name in taken:
                raise ValueError(
                    f"drivers: {driver.name!r} is a party or another driver: give each its own name"
                )
            taken.add(driver.name)
        self._keys_of_all()
        return self

    def _keys_of_all(self) -> None:
        owners: dict[bytes, str] = {}
        everybody: tuple[PartySpec | DriverSpec, ...] = (*self.parties, *(self.drivers or ()))
        for owner in everybody:
            if owner.public_key is None:
                continue
            other = owners.setdefault(parse_public_key(owner.public_key), owner.name)
            if other != owner.name:
                raise ValueError(
                    f"drivers: {owner.name!r} has the public_key of {other!r}: each needs a key of "
                    "its own"
                )

    @model_validator(mode="after")
    def _members_are_parties(self) -> ClusterSpec:
        names = [p.name for p in self.parties]
        for device_name, device in self.devices.items():
            as_value_error(check_name, device_name, "device")
            for member in device.members:
                if member not in names:
                    raise ValueError(
                        f"devices.{device_name}.members: {member!r} is not a party: "
                        f"use names from parties ({', '.join(names)})"
                    )
        return self

    @classmethod
    def parse(cls, content: Any, source: str = "cluster") -> ClusterSpec:
        """Validate a mapping.

        Args:
            content: the mapping, as parsed from YAML.
            source: its name in errors, usually the path of the file.

        Raises:
            ConfigError: the content is not valid; the message names the place and the remedy.
        """
        return cls._parse(content, source, None)

    @classmethod
    def load(cls, text: str, source: str) -> ClusterSpec:
        """Parse and validate a YAML text. Errors also name the line.

        Args:
            text: the contents of a cluster file.
            source: its name in errors, usually the path of the file.

        Raises:
            ConfigError: see `parse`.
        """
        written = YamlText(text, source)
        return cls._parse(written.content, source, written)

    @classmethod
    def _parse(cls, content: Any, source: str, written: YamlText | None) -> ClusterSpec:
        what = "a cluster file is a mapping with session, parties and devices"
        return parse_checked(cls, content, source, what, written)

    @property
    def world_size(self) -> int:
        """Number of parties."""
        return len(self.parties)

    @property
    def party_names(self) -> tuple[str, ...]:
        """The names of the parties in rank order."""
        return tuple(party.name for party in self.parties)

    def rank(self, party: str) -> int:
        """The rank of a party.

        Raises:
            ConfigError: no such party; the message lists the parties.
        """
        try:
            return self.party_names.index(party)
        except ValueError:
            raise ConfigError(
                f"party {party!r:.80} is not in session {self.session!r}: "
                f"use one of {', '.join(self.party_names)}"
            ) from None

    def public_keys(self) -> dict[str, bytes]:
        """Every party's public key, 32 bytes, by name.

        Raises:
            ConfigError: a party has no key, or two have the same.
        """
        keys: dict[str, bytes] = {}
        for party in self.parties:
            if party.public_key is None:
                raise ConfigError(
                    f"session {self.session!r} is sealed, but party {party.name!r} has no "
                    f"public_key: run redislink keygen {party.name} there and put the line that "
                    "it prints into the cluster file (or write security: none for a trial)"
                )
            key = parse_public_key(party.public_key)
            if key in keys.values():
                raise ConfigError(
                    f"session {self.session!r}: party {party.name!r} has another party's "
                    "public_key: each needs a key of its own"
                )
            keys[party.name] = key
        return keys

    @property
    def driver_names(self) -> tuple[str, ...]:
        """The names of the drivers, who compute nothing."""
        return tuple(driver.name for driver in self.drivers or ())

    def keys_for_jobs(self) -> dict[str, bytes]:
        """The public key, 32 bytes, of each party and each driver, by name.

        Raises:
            ConfigError: the session is not sealed, a party has no key, or two have the same.
        """
        if self.security == "none":
            raise ConfigError(
                f"session {self.session!r} has security: none, and jobs are sealed to their "
                "parties: remove it, and give each party its public_key"
            )
        drivers = {d.name: parse_public_key(d.public_key) for d in self.drivers or ()}
        return {**self.public_keys(), **drivers}

    def part(
        self, session: str, parties: Sequence[str], devices: Sequence[str] = ()
    ) -> dict[str, Any]:
        """The content of the cluster file of another session, of some of these parties.

        Args:
            session: its name.
            parties: names of the parties, in the order of their ranks there; a driver may be one.
            devices: names of the devices, whose members all take part.

        Raises:
            ConfigError: there is no such party or device.
        """
        whole = self.model_dump(mode="json", exclude_unset=True)
        drivers = {driver["name"]: driver for driver in whole.pop("drivers", None) or ()}
        return whole | {
            "session": session,
            "parties": [drivers.get(p) or whole["parties"][self.rank(p)] for p in parties],
            "devices": {name: whole["devices"][name] for name in devices if self.device(name)},
        }

    def device(self, name: str) -> DeviceSpec:
        """The device with this name.

        Raises:
            ConfigError: no such device; the message lists the devices.
        """
        try:
            return self.devices[name]
        except KeyError:
            known = ", ".join(self.devices) or "none; add it under devices"
            raise ConfigError(
                f"device {name!r:.80} is not in session {self.session!r}: it has {known}"
            ) from None

    def mask(self, device: str) -> Mask:
        """The ranks of a device's members."""
        return Mask.from_ranks(self.rank(member) for member in self.device(device).members)

    def digest(self) -> bytes:
        """SHA-256 (32 bytes) of what must be the same at every party."""
        content = self.model_dump(mode="json", exclude={"broker"}, exclude_none=True)
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).digest()


def load_cluster(path: str | Path) -> ClusterSpec:
    """Read and validate a cluster file.

    Raises:
        ConfigError: the file cannot be read or is not valid; the message names the place and
            the remedy.
    """
    source = f"cluster file {path}"
    remedy = "check the path given with --cluster or REDISLINK_CLUSTER_FILE"
    if Path(path).parent == SESSION_DIR:
        remedy = "redislink init, in this directory, says what is missing to make it"
    with reading(source, remedy):
        text = read_text(path)
    return ClusterSpec.load(text, source)


def _checked_key(text: str, _: str) -> str:
    parse_public_key(text)
    return text


def _checked_signing_key(text: str, _: str) -> str:
    parse_signing_key(text)
    return text
