"""Draw `redislink.protocol.states.TABLE` into docs/protocol.md.

python docs/draw_states.py            write the picture
python docs/draw_states.py --check    exit with 1 if the page does not hold it as it is
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path
from typing import Final

from redislink.protocol.states import TABLE, State

PAGE: Final = Path(__file__).with_name("protocol.md")
BEGIN: Final = "<!-- drawn by docs/draw_states.py -->"
END: Final = "<!-- end of drawing -->"


def draw() -> str:
    """The table as a mermaid diagram; what leaves a state as it is, is left out."""
    lines = ["```mermaid", "stateDiagram-v2"]
    lines += [f'    state "{state.value}" as {state.name}' for state in State]
    lines.append(f"    [*] --> {next(iter(State)).name}")
    for state, row in TABLE.items():
        arrows = defaultdict(list)
        for event, target in row.items():
            if target is not state:
                arrows[target].append(event.value)
        for target, events in arrows.items():
            lines.append(f"    {state.name} --> {target.name}: {' / '.join(events)}")
        if not arrows:
            lines.append(f"    {state.name} --> [*]")
    return "\n".join([*lines, "```"])


def with_drawing(page: str) -> str:
    """The page with the drawing as it should be.

    Raises:
        ValueError: the page does not have the two marks around it, once each, in order.
    """
    before, mark, rest = page.partition(BEGIN)
    _, end_mark, after = rest.partition(END)
    if not mark or not end_mark or BEGIN in rest or END in after:
        raise ValueError(f"{PAGE.name} needs the lines {BEGIN!r} and {END!r}, once each")
    return f"{before}{BEGIN}\n{draw()}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the table of states into the docs.")
    parser.add_argument("--check", action="store_true", help="only say whether it is up to date")
    arguments = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    drawn = with_drawing(page)
    if arguments.check:
        if drawn != page:
            sys.exit(f"{PAGE} is not up to date: run python docs/draw_states.py")
        return
    PAGE.write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main()
