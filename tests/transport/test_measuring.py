"""How the line to the broker is measured: on a clock of its own, over a line of any speed."""

import pytest

from redislink.errors import BrokerRefused
from redislink.transport import measuring
from redislink.transport.core import frame_cost
from redislink.transport.measuring import measure_round_trip, measure_uplink


class Line:
    """Answers after a round trip and the time that the question takes on the line."""

    def __init__(self, monkeypatch, round_trip: float, rate: float, slow_start: int = 0) -> None:
        self.now = 100.0
        self.asked: list[int] = []
        self._round_trip, self._rate, self._slow_start = round_trip, rate, slow_start
        monkeypatch.setattr(measuring.time, "monotonic", lambda: self.now)

    def ask(self, size: int) -> None:
        self.asked.append(size)
        slow = self._round_trip if size and len(self.asked) <= self._slow_start else 0.0
        self.now += self._round_trip + size / self._rate + slow


@pytest.mark.parametrize(("round_trip", "pings"), [(5e-5, 30), (0.002, 16), (0.01, 4), (1.0, 3)])
def test_a_round_trip(monkeypatch, round_trip, pings):
    line = Line(monkeypatch, round_trip, 1e9)
    assert measure_round_trip(line.ask) == pytest.approx(round_trip)
    assert abs(len(line.asked) - pings) <= 2


@pytest.mark.parametrize("rate", [125e3, 2.5e6, 37.5e6, 125e6])
@pytest.mark.parametrize("round_trip", [0.0005, 0.01, 0.2])
def test_an_uplink(monkeypatch, round_trip, rate):
    line = Line(monkeypatch, round_trip, rate, slow_start=1)
    assert measure_uplink(line.ask, round_trip) == pytest.approx(rate, rel=1e-3)
    assert len(line.asked) == (2 if rate == 125e3 else 3)


def test_a_broker_that_is_near_is_not_asked(monkeypatch):
    line = Line(monkeypatch, 0.0001, 1e9)
    assert measure_uplink(line.ask, 0.0001) == float("inf")
    assert line.asked == []


def test_what_the_broker_refuses_is_passed_on():
    def refuse(size: int) -> None:
        raise BrokerRefused("too long a name")

    with pytest.raises(BrokerRefused):
        measure_uplink(refuse, 0.01)


def test_what_a_frame_costs():
    assert [frame_cost(rate) for rate in (2.5e6, 37.5e6, float("inf"))] == [550, 2650, 1150]
