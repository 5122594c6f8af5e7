"""Draws the pictures of ``docs/pictures.md``.

python docs/make_pictures.py
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

DIRECTORY: Final = Path(__file__).parent / "images"
WIDTH: Final = 960
# The colours of overview.svg, which stand in the light and in the dark.
_STYLE: Final = """\
    .card { fill: #ffffff; stroke: #d0d7de }
    .plain { fill: #f6f8fa; stroke: #57606a; stroke-width: 1.5 }
    .broker { fill: #fff8e5; stroke: #9a6700; stroke-width: 1.5 }
    .good { fill: #dafbe1; stroke: #1a7f37; stroke-width: 1.5 }
    .bad { fill: #ffebe9; stroke: #cf222e; stroke-width: 1.5 }
    .note { fill: none; stroke: none }
    .wall { fill: none; stroke: #cf222e; stroke-width: 2; stroke-dasharray: 10 5 }
    .arrow { fill: none; stroke: #0969da; stroke-width: 2.5 }
    .quietly { fill: none; stroke: #57606a; stroke-width: 1.8; stroke-dasharray: 4 4 }
    .sealed { fill: none; stroke: #1a7f37; stroke-width: 2.5; stroke-dasharray: 2 5; stroke-linecap: round }
    text { fill: #1f2328 }
    .head { font-size: 17px; font-weight: 600 }
    .quiet { fill: #57606a }
    .tip { fill: #0969da }
    .quiettip { fill: #57606a }
    .sealedtip { fill: #1a7f37 }
    @media (prefers-color-scheme: dark) {
      .card { fill: #0d1117; stroke: #3d444d }
      .plain { fill: #161b22; stroke: #9198a1 }
      .broker { fill: #272115; stroke: #d29922 }
      .good { fill: #12261e; stroke: #3fb950 }
      .bad { fill: #25171c; stroke: #f85149 }
      .wall { stroke: #f85149 }
      .arrow { stroke: #58a6ff }
      .quietly { stroke: #9198a1 }
      .sealed { stroke: #3fb950 }
      text { fill: #f0f6fc }
      .quiet { fill: #9198a1 }
      .tip { fill: #58a6ff }
      .quiettip { fill: #9198a1 }
      .sealedtip { fill: #3fb950 }
    }"""
_LINE: Final = 20


class Picture:
    """An SVG, to which boxes, arrows and words are added."""

    def __init__(self, height: int, title: str, words: str) -> None:
        """Args:
        height: in pixels; every picture is `WIDTH` wide.
        title: what it shows, in a line.
        words: the same as text, for those who cannot see it.
        """
        self._height = height
        self._title = title
        self._words = words
        self._parts: list[str] = []

    def box(
        self, x: int, y: int, width: int, height: int, lines: Sequence[str], kind: str = "plain"
    ) -> None:
        """A box with words in its middle, the first line as a heading."""
        self._parts.append(
            f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="8"/>'
        )
        top = y + height / 2 - _LINE * (len(lines) - 1) / 2 + 5
        for number, line in enumerate(lines):
            look = "head" if number == 0 else "quiet"
            self.words(x + width // 2, round(top + _LINE * number), line, look)

    def words(self, x: int, y: int, line: str, look: str = "", anchor: str = "middle") -> None:
        """A line of words."""
        self._parts.append(
            f'<text class="{look}" x="{x}" y="{y}" text-anchor="{anchor}">{html.escape(line)}</text>'
        )

    def arrow(self, path: str, kind: str = "arrow", *, both: bool = False) -> None:
        """An arrow along a path of SVG; ``both``: with a tip at either end."""
        start = f' marker-start="url(#{kind})"' if both else ""
        self._parts.append(f'<path class="{kind}" d="{path}" marker-end="url(#{kind})"{start}/>')

    def wall(self, path: str) -> None:
        """A border."""
        self._parts.append(f'<path class="wall" d="{path}"/>')

    def svg(self) -> str:
        """The whole file."""
        tips = "".join(
            f'<marker id="{kind}" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="5" '
            f'markerHeight="5" orient="auto-start-reverse"><path class="{tip}" d="M0 0 10 5 0 10z"/>'
            "</marker>"
            for kind, tip in (("arrow", "tip"), ("quietly", "quiettip"), ("sealed", "sealedtip"))
        )
        parts = "\n  ".join(self._parts)
        return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self._height}" role="img"
     aria-labelledby="title words" font-size="15"
     font-family="Segoe UI, Helvetica, Arial, DejaVu Sans, sans-serif">
  <title id="title">{html.escape(self._title)}</title>
  <desc id="words">{html.escape(self._words)}</desc>
  <style>
{_STYLE}
  </style>
  <defs>{tips}</defs>
  <rect class="card" x="1" y="1" width="{WIDTH - 2}" height="{self._height - 2}" rx="12"/>
  {parts}
</svg>
"""


def dials() -> Picture:
    """Who dials whom."""
    it = Picture(
        430,
        "Who dials whom",
        "Parties and agents, drivers, operators and the administrator dial the broker's one port. "
        "The broker dials nobody; nobody dials a party.",
    )
    it.box(340, 30, 280, 80, ["broker", "listens on one port: 6379"], "broker")
    who = [
        ("party or agent", "alice"), ("party or agent", "bob"), ("driver", "submits jobs"),
        ("operator", "redislink top"), ("administrator", "redislink acl"),
    ]  # fmt: skip
    for number, (name, what) in enumerate(who):
        x = 25 + number * 184
        it.box(x, 250, 170, 70, [name, what])
        it.arrow(f"M{x + 85} 248 L{400 + number * 40} 114")
    it.wall("M20 200 H940")
    it.words(22, 172, "each one's firewall:", "", "start")
    it.words(22, 190, "only out, to one port", "", "start")
    it.words(480, 360, "No arrow leads down: the broker dials nobody, and nothing dials a party.")
    it.words(
        480, 385, "On the way: TLS if you use rediss://, an egress proxy if you have one.", "quiet"
    )
    it.words(
        480,
        408,
        "Only with link mode brpc, or a beaver server, do parties dial each other.",
        "quiet",
    )
    return it


def trust() -> Picture:
    """Trust boundaries."""
    it = Picture(
        560,
        "Trust boundaries",
        "Inside each organisation: its data in clear, its private key, its policy. Between the "
        "organisations: shares and sealed messages. At the broker: names, tags, sizes and times. "
        "Parties trust each other to follow the protocol.",
    )
    for x, name in ((30, "organisation alice"), (640, "organisation bob")):
        it.box(x, 40, 290, 300, [], "good")
        it.words(x + 145, 68, name, "head")
        it.box(x + 25, 85, 240, 62, ["data in clear", "only here"])
        it.box(x + 25, 160, 240, 62, ["private key", "mode 0600, never leaves"])
        it.box(
            x + 25,
            235,
            240,
            82,
            ["party's process", "shares, results for it;", "policy decides what runs"],
        )
    it.box(
        365,
        390,
        230,
        130,
        ["broker", "sees names, tags,", "sizes, times; no key", "can stop, cannot read"],
        "bad",
    )
    it.arrow("M150 342 V455 H360", both=True)
    it.arrow("M810 342 V455 H600", both=True)
    it.words(255, 445, "TLS, own user")
    it.words(705, 445, "TLS, own user")
    it.arrow("M324 262 H636", "sealed", both=True)
    it.words(480, 228, "sealed from end to end")
    it.words(480, 248, "(Noise KK, AES-256-GCM)")
    it.words(480, 287, "shares of the data, never the data", "quiet")
    it.words(480, 80, "Who trusts whom?", "head")
    it.words(480, 106, "each other: to follow the protocol,")
    it.words(480, 128, "and not to collude where it says so")
    it.words(480, 150, "the broker: with nothing but service", "quiet")
    it.words(
        30,
        545,
        "Green: may see data in clear. Red: must not, and need not be trusted with it.",
        "quiet",
        "start",
    )
    return it


def message() -> Picture:
    """What a message goes through."""
    it = Picture(
        470,
        "What a message goes through",
        "SPU at alice sends a message; redislink cuts, numbers and seals it and pushes it onto a "
        "list of bob's at the broker. Bob's BLPOP takes it; redislink opens it, checks its number, "
        "puts it in order and gives it to SPU. Bob acknowledges; alice keeps it until then.",
    )
    it.words(150, 40, "at alice", "head")
    it.words(480, 40, "at the broker", "head")
    it.words(810, 40, "at bob", "head")
    left = [
        ["SPU sends", "bytes with a tag"], ["cut", "into chunks of 1 MiB"],
        ["number, and keep", "until acknowledged"], ["seal", "AES-256-GCM, for bob only"],
    ]  # fmt: skip
    right = [
        ["SPU receives", "the same bytes"], ["join chunks", "in order per tag"],
        ["check the number", "ask again, or drop a double"], ["open", "else: as if never sent"],
    ]  # fmt: skip
    for number, (sends, takes) in enumerate(zip(left, right, strict=True)):
        y = 60 + number * 80
        it.box(40, y, 220, 58, sends)
        it.box(680, y, 250, 58, takes)
        if number:
            it.arrow(f"M150 {y - 20} V{y - 3}")
            it.arrow(f"M805 {y - 2} V{y - 19}")
    it.box(
        370,
        270,
        220,
        88,
        ["a list of bob's", "session, alice, bob, tag", "sealed; gone when taken"],
        "broker",
    )
    it.arrow("M262 329 H366")
    it.words(314, 316, "RPUSH")
    it.arrow("M592 329 H676")
    it.words(634, 316, "BLPOP")
    it.arrow("M805 362 V415 H150 V362", "quietly")
    it.words(480, 405, "acknowledgement, by the same way back: alice forgets the message", "quiet")
    it.words(
        480,
        448,
        "The broker restarts empty, evicts or loses? Bob notices a gap, and alice sends again.",
    )
    return it


def job() -> Picture:
    """Life of a job."""
    it = Picture(
        470,
        "Life of a job",
        "A driver offers a job. Each agent's policy accepts it, refuses it, or has it wait for a "
        "person. Once all agents have accepted, their processes start, meet, and run. A job ends as "
        "finished, failed, refused, cancelled or expired; one that ends at one agent ends at all.",
    )
    it.box(25, 60, 150, 70, ["offered", "by a driver"])
    it.box(225, 60, 150, 70, ["the policy", "of each agent"])
    it.box(425, 60, 150, 70, ["accepted", "waits for all"], "good")
    it.box(625, 60, 130, 70, ["starting", "all meet"], "good")
    it.box(805, 60, 130, 70, ["running", "a session"], "good")
    it.box(225, 200, 150, 70, ["waiting", "for a person"])
    it.box(805, 200, 130, 70, ["finished", "results go out"], "good")
    it.box(625, 200, 130, 70, ["failed", "with a reason"], "bad")
    it.box(225, 330, 150, 70, ["refused", "one is enough"], "bad")
    it.box(425, 330, 150, 70, ["cancelled", "at any time"], "bad")
    it.box(25, 330, 150, 70, ["expired", "not begun in time"], "bad")
    it.arrow("M177 95 H221")
    it.arrow("M377 95 H421")
    it.words(400, 86, "yes")
    it.arrow("M577 95 H621")
    it.arrow("M757 95 H801")
    it.arrow("M300 132 V196")
    it.words(308, 170, "ask", "", "start")
    it.arrow("M377 235 H500 V134")
    it.words(440, 226, "approve")
    it.arrow("M300 272 V326")
    it.words(308, 306, "no", "", "start")
    it.arrow("M250 132 V160 H200 V365 H221")
    it.words(192, 290, "no", "", "end")
    it.arrow("M870 132 V196")
    it.arrow("M835 132 V165 H690 V196")
    it.arrow("M100 132 V326", "quietly")
    it.arrow("M540 132 V326", "quietly")
    it.words(
        480, 430, "States travel in sealed letters: a driver or an agent may be away meanwhile."
    )
    it.words(
        480,
        453,
        "Each organisation keeps its own audit record of what it decided, ran and let out.",
        "quiet",
    )
    return it


def resume() -> Picture:
    """Resume after a crash."""
    it = Picture(
        470,
        "Resume after a crash",
        "Three parties keep journals. Bob's process is killed in step 4. The others notice, end the "
        "attempt and start again; bob is started again. The program runs from its top; steps 1 to 3 "
        "are answered from the journals, step 4 is computed again.",
    )
    for number, name in enumerate(("alice", "bob", "carol")):
        y = 80 + number * 80
        it.words(30, y + 34, name, "head", "start")
        for step in range(1, 4):
            it.box(110 + (step - 1) * 92, y, 82, 52, [f"step {step}"], "good")
        it.box(386, y, 82, 52, ["killed"] if name == "bob" else ["step 4"], "bad")
        it.box(570, y, 130, 52, ["steps 1–3", "from the journal"], "good")
        it.box(712, y, 100, 52, ["step 4", "again"])
        it.box(824, y, 100, 52, ["step 5 …"])
        it.arrow(f"M472 {y + 26} H566", "quietly")
    it.words(290, 50, "first attempt", "head")
    it.words(745, 50, "next attempt: the same command", "head")
    it.wall("M519 62 V310")
    it.words(519, 335, "all start again")
    it.box(110, 350, 266, 62, ["journals", "one per party, sealed with its key"])
    it.arrow("M240 310 V346", "quietly")
    it.arrow("M378 381 H635 V316", "quietly")
    it.words(
        480,
        446,
        "Only the step under way is lost. The parties agree on the last step that all of them have.",
    )
    return it


PICTURES: Final[Mapping[str, Picture]] = MappingProxyType(
    {"dials": dials(), "trust": trust(), "message": message(), "job": job(), "resume": resume()}
)


if __name__ == "__main__":
    for name, picture in PICTURES.items():
        (DIRECTORY / f"{name}.svg").write_text(picture.svg(), encoding="utf-8")
