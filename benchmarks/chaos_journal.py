"""Runs with journals whose parties are killed, for the measured part of docs/reliability.md.

Part of ``make chaos``; ``python -m benchmarks.chaos --only journal`` runs it alone.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.chaos_page import Page, span, version
from redislink.broker import EmbeddedBroker
from tests.support import resuming
from tests.support.resuming import Kill, Outcome, at_random, differences, weight_error
from tests.support.servers import make_server

EACH = 5
SEED = 18
ALL, PAIR = resuming.PARTIES, resuming.PARTIES[:2]


@dataclass(frozen=True)
class Training:
    """Which training: the protocol, its parties, and how many steps."""

    protocol: str
    parties: tuple[str, ...]
    steps: int

    def run(self, server: EmbeddedBroker, kills: Sequence[Kill] = ()) -> Outcome:
        """Train."""
        with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
            return resuming.train(
                server,
                Path(directory),
                steps=self.steps,
                protocol=self.protocol,
                parties=self.parties,
                kills=kills,
                timeout=300,
            )

    def plans(self) -> dict[str, list[Kill]]:
        """What is done to it."""
        ones = [(party,) for party in self.parties]
        pairs = [(self.parties[i - 1], party) for i, party in enumerate(self.parties)]
        together, what = [self.parties] * 2, "all at once, twice"
        if len(self.parties) > 2:
            together, what = [*pairs, *together], f"two at once, three times; {what}"
        drawn = partial(at_random, steps=self.steps, seed=SEED)
        return {
            f"each killed {EACH} times": drawn(ones * EACH),
            what: drawn(together),
            "each killed, and the broker with it, which comes back empty": drawn(ones, broker=True),
            "each killed, and another one while they come back": while_they_come_back(drawn(ones)),
        }


TRAININGS = [Training("ABY3", ALL, 60), Training("SEMI2K", ALL, 60), Training("CHEETAH", PAIR, 20)]


def journals(page: Page) -> None:
    """The table of all protocols."""
    with make_server("valkey") as server:
        page.head(
            f"Logistic regression with journals, killed and started again, {version(server)}",
            *("protocol, parties, steps", "what was done to it", "processes killed", "attempts"),
            *("steps run twice", "loads and PSI run twice", "equal result"),
            *("all compute again after", "seconds"),
        )
        for training in TRAININGS:
            undisturbed = training.run(server)
            row(page, training, "nothing", undisturbed, undisturbed)
            if undisturbed.problems:
                continue
            for what, kills in training.plans().items():
                row(page, training, what, training.run(server, kills), undisturbed)
    page.write(
        "",
        "*Attempts* are runs of the program, of all parties. *All compute again after*: from the "
        "start of the killed process, the last one if there are several, until every party has "
        "computed a step.",
    )


def while_they_come_back(kills: Sequence[Kill]) -> list[Kill]:
    """After each kill, and before all compute again, the next one's victims are killed too."""
    chance = random.Random(SEED)
    found = []
    for number, first in enumerate(kills):
        found += [first, Kill(kills[number - 1].parties, None, chance.uniform(0.5, 5.0))]
    return found


def row(page: Page, training: Training, what: str, outcome: Outcome, undisturbed: Outcome) -> None:
    """One run."""
    wrong = differences(outcome, undisturbed)
    page.row(
        f"{training.protocol}, {len(training.parties)}, {training.steps}",
        *(what, outcome.kills or "none", outcome.attempts, outcome.twice, outcome.loaded_again),
        f"yes, weights within {weight_error(outcome, undisturbed):.0e}" if not wrong else "**no**",
        span(outcome.recoveries, "{:.1f} s") if outcome.recoveries else "",
        f"{outcome.seconds:.1f}",
    )
    for text in wrong:
        page.problem(f"{training.protocol}, {what}: {text}")
