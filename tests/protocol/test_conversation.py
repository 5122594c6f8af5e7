"""`Timing`: tests that leave out a size mean the one that users get."""

from dataclasses import FrozenInstanceError

import pytest

from redislink.protocol.conversation import Timing
from redislink.settings import RedisLinkSettings


@pytest.mark.parametrize(
    "name", ["window_bytes", "chunk_bytes", "peer_memory_bytes", "peer_timeout"]
)
def test_the_defaults_are_those_of_the_settings(name: str) -> None:
    assert getattr(Timing(), name) == RedisLinkSettings.model_fields[name].default


def test_by_default_messages_are_cut_as_on_one_machine() -> None:
    assert Timing().least_chunk_bytes == Timing().chunk_bytes


def test_both_halves_share_one_so_neither_changes_it() -> None:
    with pytest.raises(FrozenInstanceError):
        Timing().window_bytes = 1  # type: ignore[misc]
