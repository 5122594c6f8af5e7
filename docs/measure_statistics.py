"""Measures how exact statistics on shares are, for the table of ``docs/numbers.md``.

    python docs/measure_statistics.py            # some 30 s; writes the table
    python docs/measure_statistics.py --print

Each statistic is computed on FM64 by ABY3 between three parties, who are threads of one process,
and up to 30,000 rows also by CHEETAH between two, three times; the largest relative error counts.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from redislink import Session, Simulator

PAGE: Final = Path(__file__).with_name("numbers.md")
ROWS: Final = (600, 30_000, 1_000_000)
MOST_CHEETAH: Final = 30_000
RUNS: Final = 3

Statistic = Callable[[Any, Any, Any], Any]
STATISTICS: Final[dict[str, tuple[Statistic, str]]] = {
    "`jnp.sum(x)`": (lambda x, y, g: jnp.sum(x), ""),
    "`jnp.mean(x)`": (lambda x, y, g: jnp.mean(x), ""),
    "`jnp.mean(g)`, a share of all": (lambda x, y, g: jnp.mean(g), ""),
    "`jnp.mean(x * g) / jnp.mean(g)`, of a group": (
        lambda x, y, g: jnp.mean(x * g) / jnp.mean(g),
        "for groups of less than a tenth, both sums revealed and divided in the clear: the error "
        "grows to 2^-18 · n / size of the group",
    ),
    "`jnp.sum(x * g) / jnp.sum(g)`": (
        lambda x, y, g: jnp.sum(x * g) / jnp.sum(g),
        "both sums revealed and divided in the clear: divided by a secret above 2^18, everything is 0",
    ),
    "`jnp.sum(x / n)`": (
        lambda x, y, g: jnp.sum(x / x.shape[0]),
        "`jnp.sum(x) / n`, or `jnp.mean`: each quotient is cut to a unit",
    ),
    "`jnp.var(x)`": (lambda x, y, g: jnp.var(x), ""),
    "`jnp.mean(x * x) - jnp.mean(x) ** 2`": (
        lambda x, y, g: jnp.mean(x * x) - jnp.mean(x) ** 2,
        "`jnp.var`: this is the small difference of two large numbers",
    ),
    "`jnp.std(x)`": (lambda x, y, g: jnp.std(x), "the root of the revealed variance, for more"),
    "`c = jnp.mean((x - jnp.mean(x)) * (y - jnp.mean(y)))`": (
        lambda x, y, g: jnp.mean((x - jnp.mean(x)) * (y - jnp.mean(y))),
        "",
    ),
    "`c / jnp.var(x)`, a slope": (
        lambda x, y, g: jnp.mean((x - jnp.mean(x)) * (y - jnp.mean(y))) / jnp.var(x),
        "",
    ),
    "`c / (jnp.std(x) * jnp.std(y))`, a correlation": (
        lambda x, y, g: jnp.mean((x - jnp.mean(x)) * (y - jnp.mean(y))) / (jnp.std(x) * jnp.std(y)),
        "`c` and both variances revealed, for more",
    ),
    "`jnp.corrcoef(x, y)[0, 1]`": (
        lambda x, y, g: jnp.corrcoef(x, y)[0, 1],
        "the line above: `@` inside of it sums products beyond 67 million",
    ),
    "`(jnp.mean(x) - jnp.mean(y)) / jnp.sqrt((jnp.var(x) + jnp.var(y)) / n)`": (
        lambda x, y, g: (
            (jnp.mean(x) - jnp.mean(y)) / jnp.sqrt((jnp.var(x) + jnp.var(y)) / x.shape[0])
        ),
        "means and variances revealed: the root is of a few units only",
    ),
    "`jnp.exp(jnp.mean(jnp.log(x)))`, a geometric mean": (
        lambda x, y, g: jnp.exp(jnp.mean(jnp.log(x))),
        "the mean of the logs revealed, and `exp` in the clear",
    ),
    "`jnp.mean(x * g) / jnp.mean(g) - jnp.mean(x * (1 - g)) / jnp.mean(1 - g)`": (
        lambda x, y, g: jnp.mean(x * g) / jnp.mean(g) - jnp.mean(x * (1 - g)) / jnp.mean(1 - g),
        "both means revealed: their errors stay while the difference is small",
    ),
    "`jnp.max(x)`": (lambda x, y, g: jnp.max(x), ""),
}


def data(rows: int) -> tuple[Any, Any, Any]:
    """Around 120, spread 15; around 120, spread 17, which follows the first; 40 % ones."""
    chance = np.random.default_rng(rows)
    x = chance.normal(120, 15, rows)
    y = 0.5 * x + chance.normal(60, 15, rows)
    return x, y, (chance.random(rows) < 0.4).astype(np.float64)


def errors() -> dict[tuple[str, int], float]:
    """By statistic and rows, the largest relative error."""

    def program(session: Session) -> dict[tuple[str, int], float]:
        found: dict[tuple[str, int], float] = {}
        for rows in ROWS:
            given = data(rows)
            for name in ("SP0", "PSI0") if rows <= MOST_CHEETAH else ("SP0",):
                sp = session.spu(name)
                shared = [sp.private(lambda column=column: column, "alice") for column in given]
                for what, (statistic, _) in STATISTICS.items():
                    with jax.enable_x64(True):
                        right = float(statistic(*map(jnp.asarray, given)))
                    for _ in range(RUNS):
                        got = sp.reveal(sp.run(statistic)(*shared), to=["alice"])
                        if session.party == "alice":
                            error = abs(float(got) / right - 1)
                            found[what, rows] = max(error, found.get((what, rows), 0.0))
        return found

    return Simulator(3).run(program)["alice"]


def table(found: dict[tuple[str, int], float]) -> str:
    """The table in Markdown."""
    sizes = " | ".join(f"{rows:,} rows" for rows in ROWS)
    lines = [f"| statistic | {sizes} | instead |", "|" + "---|" * (len(ROWS) + 2)]
    for what, (_, instead) in STATISTICS.items():
        cells = " | ".join(shown(found[what, rows]) for rows in ROWS)
        lines.append(f"| {what} | {cells} | {instead} |")
    return "\n".join(lines)


def shown(error: float) -> str:
    """An error as a power of ten that it does not pass; **wrong** from 1 % on."""
    if error >= 0.01:
        return "**wrong**"
    return f"{error:.0e}".replace("e-0", " · 10^-") if error > 1e-7 else "below 10^-7"


def main() -> None:
    """Measure, and write the table or print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--print", action="store_true", dest="only_print")
    made = table(errors())
    if parser.parse_args().only_print:
        print(made)
        return
    page = PAGE.read_text(encoding="utf-8")
    marks = r"(<!-- statistics: begin -->\n).*?(<!-- statistics: end -->)"
    page = re.sub(marks, lambda at: f"{at[1]}\n{made}\n\n{at[2]}", page, flags=re.DOTALL)
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
