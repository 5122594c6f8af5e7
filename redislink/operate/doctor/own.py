"""Checks of what this party has: the cluster file, its keys, and the broker's URL."""

from __future__ import annotations

from redislink import native
from redislink.cluster.trust import REMEDY, warnings, whom_it_trusts
from redislink.identity import Identity
from redislink.identity.signing import check_signing_key
from redislink.operate.doctor.examination import Case, Examination
from redislink.operate.doctor.finding import Verdict, fingerprints, passed, warned
from redislink.transport.security import make_handshake

DIGEST_DIGITS = 12
"""How many digits of a digest are shown; the same as in the parties' own errors."""


def cluster_file(case: Case) -> Verdict:
    """Show what to compare; the cluster file has been read already."""
    spec = case.spec
    return passed(
        f"session {spec.session}, {case.party} of {', '.join(spec.party_names)}; digest "
        f"{spec.digest().hex()[:DIGEST_DIGITS]}, which must be the same at every party"
    )


def own_keys(exam: Examination) -> Verdict:
    """Read the keys that a session needs, in the way a session does.

    Raises:
        ConfigError: a key is missing, is not this party's, or cannot be read.
    """
    case = exam.case
    if case.spec.security == "none":
        return warned(
            "the session has security none: the broker can read and change everything",
            "remove security: none from the cluster file, and give each party a key "
            "(redislink keygen)",
        )
    make_handshake(case.spec, case.party, case.settings, None, bytes(8))
    written = case.spec.parties[case.spec.rank(case.party)].signing_key
    path = case.settings.identity_file_of(case.party)
    if written is not None and path is not None:
        check_signing_key(case.party, written, Identity.load(path))
    shown = (f"{name} {text}" for name, text in fingerprints(case.spec).items())
    return passed(
        f"the identity is {case.party}'s; fingerprints, for their owners to read out: "
        + ", ".join(shown)
    )


def native_leaves(exam: Examination) -> Verdict:
    """Say whether the compiled twins of the hot path's functions run."""
    native.use(exam.case.settings.native)
    status = native.status()
    if native.is_complete():
        return passed(status)
    return warned(
        f"{status}: the same runs as Python, and a small message costs more time",
        "if speed matters, install a C compiler and the headers of Python and OpenSSL (Debian: gcc "
        "python3.11-dev libssl-dev), and then redislink from source (pip install --no-binary "
        "redislink redislink)",
    )


def protocols(exam: Examination) -> Verdict:
    """Check which protocol each device runs, and whom that protocol trusts."""
    spec = exam.case.spec
    weak = warnings(spec)
    if weak:
        return warned("; ".join(weak), REMEDY)
    shown = [f"{name} runs {whom_it_trusts(spec, name)}" for name in spec.devices]
    return passed("; ".join(shown) or "the cluster file has no devices")


def broker_url(exam: Examination) -> Verdict:
    """Check that there is a usable URL.

    Raises:
        ConfigError: there is none, or it is not usable.
    """
    label = exam.broker.label
    if exam.case.is_of_broker:
        return passed(label)
    source = "REDISLINK_BROKER_URL" if exam.case.settings.broker_url else "the cluster file"
    if source == "the cluster file" and exam.url.password:
        return warned(
            f"{label}, with a password in the cluster file, which every party has",
            "remove the password from the cluster file, and set REDISLINK_BROKER_URL instead",
        )
    return passed(f"{label}, from {source}")
