"""Names the Redis users that parties log in as: one user for each party of a session."""

from __future__ import annotations

from collections.abc import Iterable


def owner_of_user(user: str, session: str, parties: Iterable[str]) -> str | None:
    """Return the one of these parties that has this Redis user; None if none has."""
    return next((party for party in parties if user == user_name(session, party)), None)


def user_name(session: str, party: str) -> str:
    """Return the name of a party's or operator's Redis user. No two sessions share a user."""
    return f"{session}~{party}"
