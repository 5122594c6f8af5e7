"""``redislink trace``: merges the timelines of a run's parties."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from redislink.cli.errors import EPILOG, Verbose, show
from redislink.cli.output import group

app = group("Merge the timelines that REDISLINK_TRACE_DIR or redislink run --trace recorded.")


@app.callback()
def _group() -> None:  # else a single command would stand for the group
    pass


@app.command("merge", epilog=EPILOG)
def merge_files(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="One file for each party.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="File to write.")],
    verbose: Verbose = False,
) -> None:
    """Put the parties' timelines on one time axis, with an arrow for each message.

    Clocks are aligned by the messages themselves. Open the result at https://ui.perfetto.dev,
    which keeps it in the browser, or in chrome://tracing.

        redislink trace merge traces/*.jsonl --out run.json
    """
    from redislink.observe.merge import merge

    merged = merge(files, out)
    show(f"{out}: {merged.messages} messages between {len(merged.traces)} parties")
    clocks = zip(merged.traces, merged.alignment.offsets, merged.alignment.uncertainty, strict=True)
    for party, offset, uncertainty in clocks:
        known = f"± {uncertainty / 1e3:.3f} ms" if math.isfinite(uncertainty) else "by wall clock"
        steps = [f"{len(party.steps)} steps"] if party.steps else []
        parts = [*steps, f"{len(party.calls)} calls", f"began at {offset / 1e3:.3f} ms {known}"]
        if party.cut_us is not None:
            parts.append(f"cut after {party.cut_us / 1e6:.3f} s (REDISLINK_TRACE_LIMIT)")
        elif not party.is_whole:
            parts.append("its end is missing: the process was killed, or still runs")
        show(f"  {party.party}: {', '.join(parts)}")
    there = {party.party for party in merged.traces}
    for name in merged.traces[0].parties:
        if name not in there:
            show(f"  {name}: no file was given, so nothing of it is shown")
    if merged.alignment.contradiction:
        show(
            f"  clocks ran at different speeds: some messages seem to arrive up to "
            f"{merged.alignment.contradiction / 1e3:.3f} ms before they were sent"
        )
