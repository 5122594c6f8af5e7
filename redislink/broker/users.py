"""Names of the Redis users that parties log in as, one for each party of a session."""

from __future__ import annotations

from collections.abc import Iterable


def owner_of_user(user: str, session: str, parties: Iterable[str]) -> str | None:
    """Which of these parties a user of `party_users` was made for; None if for none of them."""
    return next((party for party in parties if user == user_name(session, party)), None)


def user_name(session: str, party: str) -> str:
    """Of the Redis user of a party, or operator; no two sessions share one."""
    return f"{session}~{party}"
