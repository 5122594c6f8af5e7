"""How the parties of a session come to the same cluster file, without anybody who writes it.

Each party writes an *introduction*: what it understood the session to be, and its public keys.
When a party has those of all others, it makes the cluster file from them. Two parties that did so
from the same introductions have the same file.

Rules: an introduction holds nothing secret. What others wrote is refused if it differs in anything
but the party's own name and keys; that the keys are theirs, only comparing fingerprints can tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel, ConfigDict

from redislink.cluster.checked import parse_checked, reading
from redislink.cluster.spec import ClusterSpec
from redislink.cluster.yaml_text import YamlText
from redislink.errors import ConfigError
from redislink.files import EVERYBODY_READS, open_new, read_text
from redislink.protocol.list_names import check_name
from redislink.text import one_line

_COMMENT: Final = """\
# {party}'s introduction to the other parties: nothing here is secret. Give them a copy of it.
"""
_MOST_BYTES: Final = 1 << 20


class Introduction(BaseModel):
    """What one party tells the others.

    Attributes:
        party: who tells it.
        public_key: its public key, ``x25519:…``.
        signing_key: the key that verifies its audit records, ``ed25519:…``.
        session: name of the session.
        parties: names of all parties, in rank order.
        devices: as in the cluster file.
        drivers: names of those who submit jobs and compute nothing; each has an introduction, too.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)
    party: str
    public_key: str
    signing_key: str
    session: str
    parties: tuple[str, ...]
    devices: dict[str, Any]
    drivers: tuple[str, ...] = ()

    @property
    def everybody(self) -> tuple[str, ...]:
        """The names of all who introduce themselves."""
        return self.parties + self.drivers

    @classmethod
    def read(cls, path: Path) -> Introduction:
        """Read the file of a party.

        Raises:
            ConfigError: it cannot be read, or is not an introduction, or of another party than
                its name says.
        """
        source = f"introduction {path}"
        with reading(source, "ask that party for its file again"):
            text = read_text(path, _MOST_BYTES)
        written = YamlText(text, source)
        what = "an introduction is a file that redislink init wrote at that party"
        found = parse_checked(cls, written.content, source, what, written)
        if found.party != path.stem:
            name = one_line(found.party, 80)
            raise ConfigError(f"{source}: is {name}'s: name it {name}.yaml")
        found.check(source)
        return found

    def check(self, source: str) -> None:
        """Check what the cluster file would be.

        Raises:
            ConfigError: it would not be valid.
        """
        for name in self.drivers:
            check_name(name, "driver")
        spec = self._cluster({self.party: self}, source)
        if self.party not in self.drivers:
            spec.rank(self.party)

    def write(self, path: Path) -> None:
        """Write the file, which must not be there yet.

        Raises:
            OSError: it cannot be written.
        """
        content = yaml.safe_dump(
            self.model_dump(mode="json", exclude_defaults=True),
            sort_keys=False,
            default_flow_style=None,
            width=100,
        )
        with open_new(path, EVERYBODY_READS) as file:
            file.write(_COMMENT.format(party=self.party) + content)

    def assemble(self, others: Mapping[str, Introduction], broker: str | None) -> dict[str, Any]:
        """The content of the cluster file.

        Args:
            others: the introductions of all other parties, by name.
            broker: the URL of the broker, without password; the parties may have different ones.

        Raises:
            ConfigError: one of them understood the session differently.
        """
        for name, other in others.items():
            for field in ("parties", "session", "devices", "drivers"):
                ours, theirs = getattr(self, field), getattr(other, field)
                if ours != theirs:
                    raise ConfigError(
                        f"{name} has {one_line(f'{field}: {theirs}', 200)}, and {self.party} has "
                        f"{one_line(f'{field}: {ours}', 200)}: all must name the same parties in "
                        "the same order, which numbers them, and the same drivers; where it is "
                        "wrong, move that party's directory away, run redislink init --as … again "
                        "(with --identity and its old key), and pass the new introduction on"
                    )
        everybody = {self.party: self, **others}
        self._cluster(everybody, "cluster").public_keys()  # each has one, and its own
        return self._content(everybody) | ({} if broker is None else {"broker": broker})

    def _content(self, known: Mapping[str, Introduction]) -> dict[str, Any]:
        parties: list[dict[str, str]] = []
        for name in self.parties:
            party = {"name": name}
            if name in known:
                party |= {
                    "public_key": known[name].public_key,
                    "signing_key": known[name].signing_key,
                }
            parties.append(party)
        content = {"session": self.session, "parties": parties, "devices": self.devices}
        drivers = [
            {"name": name, "public_key": known[name].public_key}
            for name in self.drivers
            if name in known
        ]
        return content | ({"drivers": drivers} if drivers else {})

    def _cluster(self, known: Mapping[str, Introduction], source: str) -> ClusterSpec:
        return ClusterSpec.parse(self._content(known), source)
