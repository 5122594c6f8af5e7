"""Runs with journals whose parties are killed, for the measured part of docs/reliability.md.

Part of ``make chaos``; ``python -m benchmarks.chaos --only journal`` runs it alone.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.chaos_page import Page, span, version
from redislink.broker import EmbeddedBroker
from tests.support import resuming
from tests.support.resuming import Kill, Outcome, at_random, differences, weight_error
from tests.support.servers import make_server

STEPS = 60
EACH = 5
SEED = 18
RUNS = {"ABY3": resuming.PARTIES, "SEMI2K": resuming.PARTIES, "CHEETAH": resuming.PARTIES[:2]}


def journals(page: Page) -> None:
    """The table of all protocols."""
    with make_server("valkey") as server:
        page.head(
            f"Logistic regression with journals, killed and started again, {version(server)}",
            *("protocol, parties, steps", "what was done to it", "processes killed", "attempts"),
            *("steps run twice", "loads and PSI run twice", "equal result"),
            *("all compute again after", "seconds"),
        )
        for protocol, parties in RUNS.items():
            undisturbed = train(server, protocol, parties)
            row(page, protocol, "nothing", undisturbed, undisturbed)
            if undisturbed.problems:
                continue
            for what, kills in plans(parties).items():
                row(page, protocol, what, train(server, protocol, parties, kills), undisturbed)
    page.write(
        "",
        "*Attempts* are runs of the program, of all parties. *All compute again after*: from the "
        "start of the killed process, the last one if there are several, until every party has "
        "computed a step.",
    )


def plans(parties: Sequence[str]) -> dict[str, list[Kill]]:
    """What is done to a run of these parties."""
    ones = [(party,) for party in parties]
    twos = [(parties[i - 1], parties[i]) for i in range(len(parties))] if len(parties) > 2 else []
    all_of_them = [tuple(parties)] * 2
    pairs = "two at once, three times; " if twos else ""
    return {
        f"each killed {EACH} times": at_random(ones * EACH, STEPS, SEED),
        f"{pairs}all at once, twice": at_random([*twos, *all_of_them], STEPS, SEED),
        "each killed, and the broker with it, which comes back empty": at_random(
            ones, STEPS, SEED, broker=True
        ),
        "each killed, and another one while they come back": while_they_come_back(ones),
    }


def while_they_come_back(ones: Sequence[tuple[str]]) -> list[Kill]:
    """Each is killed, and before all compute again, the next one."""
    chance = random.Random(SEED)
    kills = []
    for number, first in enumerate(at_random(ones, STEPS, SEED)):
        kills += [first, Kill(ones[number - 1], None, chance.uniform(0.5, 5.0))]
    return kills


def train(
    server: EmbeddedBroker, protocol: str, parties: Sequence[str], kills: Sequence[Kill] = ()
) -> Outcome:
    """One run."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
        return resuming.train(
            server,
            Path(directory),
            steps=STEPS,
            protocol=protocol,
            parties=parties,
            kills=kills,
            timeout=300,
        )


def row(page: Page, protocol: str, what: str, outcome: Outcome, undisturbed: Outcome) -> None:
    """One run."""
    wrong = differences(outcome, undisturbed)
    page.row(
        f"{protocol}, {len(RUNS[protocol])}, {STEPS}",
        *(what, outcome.kills or "none", outcome.attempts, outcome.twice, outcome.loaded_again),
        f"yes, weights within {weight_error(outcome, undisturbed):.0e}" if not wrong else "**no**",
        span(outcome.recoveries, "{:.1f} s") if outcome.recoveries else "",
        f"{outcome.seconds:.1f}",
    )
    for text in wrong:
        page.problem(f"{protocol}, {what}: {text}")
