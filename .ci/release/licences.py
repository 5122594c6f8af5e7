"""The licences of what is installed with redislink, as each package states its own.

What a wheel holds besides its own code (scipy's libgfortran, say) is in that wheel's licence files.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable

from common import ReleaseError, normal

ALLOWED = {
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "ISC", "LicenseRef-BSD",
    "MIT", "MIT-0", "PSF-2.0", "Zlib",
}  # fmt: skip
"""Licences that ask for no more than their text and the authors' names."""
BY_NAME = {
    "pygal": (
        "LGPL-3.0-or-later",
        "only for redislink[report]; it is imported as its authors publish it, in source",
    ),
}
"""Packages with another licence, and why they are taken all the same."""
_OLD_NAMES = {
    "apache 2": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "apache-2.0": "Apache-2.0",
    "bsd license": "LicenseRef-BSD",
    "bsd-3-clause": "BSD-3-Clause",
    "gnu lesser general public license v3 or later (lgplv3+)": "LGPL-3.0-or-later",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "mit": "MIT",
    "mit license": "MIT",
}
"""As SPDX names them: what packages wrote before there was License-Expression (PEP 639)."""


def licence(distribution: importlib.metadata.Distribution) -> str:
    """The licence as an SPDX expression; "" if the package states none that is known here."""
    about = distribution.metadata
    if expression := about.get("License-Expression"):
        return str(expression)
    stated = [(about.get("License") or "").strip()]
    stated += [
        each.rpartition(" :: ")[2]
        for each in about.get_all("Classifier") or []
        if each.startswith("License ::")
    ]
    return next((_OLD_NAMES[s.lower()] for s in stated if s.lower() in _OLD_NAMES), "")


def is_allowed(name: str, expression: str) -> bool:
    """Whether a package may be there under this licence."""
    if normal(name) in BY_NAME:
        return expression == BY_NAME[normal(name)][0]
    names = set(re.split(r"[()\s]+", expression)) - {"", "AND", "OR"}
    is_choice = " OR " in expression and " AND " not in expression
    return bool(names) and (bool(names & ALLOWED) if is_choice else names <= ALLOWED)


def table(distributions: Iterable[importlib.metadata.Distribution]) -> str:
    """The licences as a table in Markdown.

    Raises:
        ReleaseError: one is not allowed, or not stated.
    """
    found = {each.name: (each.version, licence(each)) for each in distributions}
    wrong = [
        f"{name}: {stated or 'states no licence that is known here'}"
        for name, (_, stated) in found.items()
        if not is_allowed(name, stated)
    ]
    if wrong:
        raise ReleaseError(
            "licences that are not allowed (.ci/release/licences.py says which are):\n"
            + "\n".join(wrong)
        )
    rows = [
        f"| {name} | {version} | {stated} | {BY_NAME.get(normal(name), ('', ''))[1]} |"
        for name, (version, stated) in sorted(found.items(), key=lambda item: item[0].lower())
    ]
    return "\n".join(["| package | version | licence | note |", "|---|---|---|---|", *rows, ""])
