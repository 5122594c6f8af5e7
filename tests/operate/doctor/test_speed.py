"""The doctor on the line, through a proxy that is slow on purpose; and on clocks."""

from __future__ import annotations

import re
import time

import pytest

from redislink import RedisLinkSettings
from redislink.broker import EmbeddedBroker
from redislink.operate.doctor import Case, Level, speed
from redislink.operate.doctor.examination import Examination
from redislink.testing.proxy import Proxy
from tests.conftest import make_cluster
from tests.operate.doctor.conftest import Ask
from tests.support.waiting import undisturbed


def examination(url: str) -> Examination:
    return Examination(
        Case(RedisLinkSettings(_env_file=None, broker_url=url), make_cluster(""), "alice"), 10
    )


def test_a_good_line(one_server: EmbeddedBroker, doctor: Ask) -> None:
    told = doctor(one_server.url)
    found = re.match(r"([\d.]+) ms, the median of 9$", told["round trip"].text)
    assert found
    assert 0 < float(found[1]) < 200
    told.check("bandwidth", Level.PASS, "MB/s to the broker", "MB/s from it")


@pytest.mark.slow
def test_a_far_broker(one_server: EmbeddedBroker) -> None:
    with Proxy(one_server.port, delay=0.11) as proxy:

        def told() -> float:
            exam = examination(proxy.url())
            verdict = speed.round_trip(exam)
            exam.close()
            assert verdict.level is Level.WARN
            assert "nearer" in verdict.remedy
            found = re.match(
                r"([\d.]+) ms, the median of 3: each round of a computation", verdict.text
            )
            assert found
            return float(found[1])

        assert undisturbed(told, lambda milliseconds: milliseconds < 400) >= 220


@pytest.mark.slow
def test_a_narrow_line(one_server: EmbeddedBroker) -> None:
    rate = 800e3
    with Proxy(one_server.port, rate=rate) as proxy:
        exam = examination(proxy.url())
        speed.round_trip(exam)
        started = time.monotonic()
        verdict = speed.bandwidth(exam)
        assert time.monotonic() - started < 4
        exam.close()
    assert verdict.level is Level.WARN
    found = re.match(r"([\d.]+) MB/s to the broker, ([\d.]+) MB/s from it: slow", verdict.text)
    assert found
    up, down = (float(measured) * 1e6 for measured in found.groups())
    # The proxy lets 64 KiB through at once, so the answer begins late and ends early.
    assert rate / 4 < up < rate * 1.2
    assert rate / 4 < down < rate * 4
    assert "what limits the line" in verdict.remedy


def test_a_line_that_takes_nothing_large(one_server: EmbeddedBroker) -> None:
    with Proxy(one_server.port) as proxy:
        exam = examination(proxy.url())
        exam.longest_wait = 0.3
        speed.round_trip(exam)
        proxy.connections[0].stall()
        verdict = speed.bandwidth(exam)
        exam.close()
    assert verdict.level is Level.WARN
    assert "an echo of 16384 bytes had not begun after 0.3 s" in verdict.text


@pytest.mark.parametrize(("ahead", "word"), [(60, "60 s ahead of"), (-90, "90 s behind")])
def test_a_clock_that_is_wrong(
    one_server: EmbeddedBroker, doctor: Ask, ahead: float, word: str
) -> None:
    told = doctor(one_server.url, clock=lambda: time.time() + ahead)
    told.check("clock", Level.WARN, f"this machine's is {word} the broker's", "NTP")
    doctor(one_server.url).check("clock", Level.PASS, "within 5 s")


@pytest.mark.parametrize(
    ("per_second", "text"),
    [(1.5e5, "0.15 MB/s"), (9.4567e8, "946 MB/s"), (3.69e9, "3,690 MB/s")],
)
def test_rates_are_written_without_an_exponent(per_second, text):
    assert speed._rate(per_second) == text
