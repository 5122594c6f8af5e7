"""SPU's protocols: how many members each needs, and whom each trusts.

Rule: this table is the only one; errors, warnings (`trust.py`), ``doctor``, ``fingerprint`` and
``docs/which-protocol.md`` all read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Protocol:
    """A protocol of SPU. All of them assume that the members follow the protocol.

    Attributes:
        name: SPU's name for it, used as ``protocol`` in the cluster file.
        beaver_type: the ``beaver_type`` that this row is about; None if there is no choice.
        members: the number of members that it needs; None means two or more.
        trusts: whom the members must trust, or who must not collude; ``{first}`` stands for the
            first member in rank order, ``{members}`` for all of them.
        is_weak: whether one party alone can read everybody's data; it is then never a default.
    """

    name: str
    beaver_type: str | None
    members: int | None
    trusts: str
    is_weak: bool = False

    @property
    def label(self) -> str:
        """The name, with the source of the beavers if there is a choice."""
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
    """The row for the ``protocol`` and ``runtime.beaver_type`` of a cluster file."""
    beavers = beaver_type or "TrustedFirstParty"
    return next(row for row in PROTOCOLS if row.name == name and row.beaver_type in (None, beavers))


def advice() -> str:
    """The rows that are not weak, in one line for error messages."""
    return "; ".join(
        f"between {row.members or 'any number of'} members {row.label} "
        f"({row.trusts.format(first='it', members='them')})"
        for row in PROTOCOLS
        if not row.is_weak
    )
