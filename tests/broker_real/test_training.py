"""A logistic regression of three processes goes on through what happens to brokers and lines.

`make chaos` runs all of it on each kind of server; here is one of each, to the end, with every
message checked and the model compared with that of an undisturbed run.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Final

import pytest

from redislink.broker import EmbeddedBroker
from tests.broker_real.conftest import MakeServer
from tests.support import training
from tests.support.forking import ForkedParty
from tests.support.training import Outcome, at_steps, differences

pytestmark = pytest.mark.slow
STEPS = 12
KILLED = (4, 6, 10, 12)
train: Final = functools.partial(training.train, steps=STEPS, party_process=ForkedParty)
CUT = tuple(step for step in range(1, STEPS + 1) if step not in KILLED)


@pytest.fixture(scope="module")
def undisturbed(valkey: EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    outcome = train(valkey.url, tmp_path_factory.mktemp("undisturbed"))
    assert outcome.problems == []
    assert outcome.comparison is not None
    assert outcome.comparison.clean
    assert outcome.comparison.sent > 1000
    assert outcome.total("frames_resent") == 0
    return outcome


def test_the_broker_is_killed_comes_back_empty_and_is_flushed(
    own_server: MakeServer, undisturbed: Outcome, tmp_path: Path
) -> None:
    server = own_server("valkey")
    outcome = train(
        server.url,
        tmp_path,
        injectors=[
            training.restarts(server, at_steps([5, 8, 12])),
            training.flushes(server, at_steps([1, 3])),
        ],
    )
    assert differences(outcome, undisturbed) == []
    assert outcome.faults["SIGKILL and empty restart"] == 3
    assert outcome.total("reconnects") >= 3
    assert outcome.faults["FLUSHALL"] == 2
    assert outcome.faults["keys flushed"] > 0


def test_connections_are_killed_cut_stalled_and_delayed(
    own_server: MakeServer, undisturbed: Outcome, tmp_path: Path
) -> None:
    server = own_server("redis-server")
    with training.proxied(server) as proxies:
        outcome = train(
            {name: proxy.url() for name, proxy in proxies.items()},
            tmp_path,
            injectors=[
                training.kill_clients(server, at_steps(KILLED)),
                *training.broken_lines(
                    proxies, cut=at_steps(CUT), stall=at_steps([2, 8]), delay=at_steps([1, 5, 7])
                ),
            ],
            # A half-open line is noticed after these.
            settings={"REPLY_TIMEOUT": "1", "BLPOP_TIMEOUT": "1"},
        )
    assert differences(outcome, undisturbed) == []
    assert outcome.faults.pop("connections killed") >= len(KILLED), "each time at least one"
    assert outcome.faults == {
        "CLIENT KILL": len(KILLED),
        "connections cut": len(CUT),
        "connections stalled half-open": 2,
        "connections delayed 5 ms": 3,
    }
