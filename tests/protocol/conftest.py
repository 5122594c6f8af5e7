"""Deliveries for the tests of the protocol."""

import pytest

from redislink.protocol.delivery import Delivery, Timing
from tests.protocol.pair import SMALL, Pair


@pytest.fixture
def pair() -> Pair:
    return Pair()


@pytest.fixture
def alone() -> Delivery:
    """One delivery, whose peer the test plays itself."""
    return Delivery("bob", SMALL, 0.0)


@pytest.fixture
def roomy() -> Delivery:
    """As `alone`, but no number of bytes in these tests makes an ack due at once."""
    return Delivery("bob", Timing(), 0.0)
