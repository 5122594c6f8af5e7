"""SPU's protocols: between how many members each runs, and whom each trusts.

Rule: this table is the one place; errors, warnings (`trust.py`), ``doctor``, ``fingerprint`` and
``docs/which-protocol.md`` all read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Protocol:
    """A way to compute on shares; all of them assume members that follow the protocol.

    Attributes:
        name: SPU's; what the cluster file has as ``protocol``.
        beaver_type: with which this row is meant; None where there is no choice.
        members: how many it takes; None: two or more.
        trusts: who has to be trusted, or must not work together; ``{first}`` stands for the first
            member in rank order, ``{members}`` for all of them.
        is_weak: one party alone can read the data of all, so it has to be asked for by name.
    """

    name: str
    beaver_type: str | None
    members: int | None
    trusts: str
    is_weak: bool = False

    @property
    def label(self) -> str:
        """Name, and whose beavers it takes if that can be chosen."""
        return f"{self.name} with {self.beaver_type}" if self.beaver_type else self.name


PROTOCOLS: Final = (
    Protocol("CHEETAH", None, 2, "nobody is trusted, each member is safe from the other"),
    Protocol("ABY3", None, 3, "no two of {members} may work together"),
    Protocol("SECURENN", None, 3, "no two of {members} may work together"),
    Protocol(
        "SEMI2K",
        "TrustedThirdParty",
        None,
        "the third party that makes the beavers may work together with no member",
    ),
    Protocol(
        "SEMI2K",
        "TrustedFirstParty",
        None,
        "{first}, the first member, makes the beavers and can read the data of all",
        is_weak=True,
    ),
    Protocol("REF2K", None, None, "nothing is secret, every member has all data", is_weak=True),
)


def protocol_of(name: str, beaver_type: str | None) -> Protocol:
    """The row of what the cluster file has as ``protocol`` and ``runtime.beaver_type``."""
    beavers = beaver_type or "TrustedFirstParty"
    return next(row for row in PROTOCOLS if row.name == name and row.beaver_type in (None, beavers))


def advice() -> str:
    """The rows that are not weak in one line, for errors."""
    return "; ".join(
        f"between {row.members or 'any number of'} members {row.label} "
        f"({row.trusts.format(first='it', members='them')})"
        for row in PROTOCOLS
        if not row.is_weak
    )
