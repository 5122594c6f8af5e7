"""Pictures of every page of the site, and what sticks out of it, as a browser shows them.

    make docs && python docs/look_at_site.py [--width N] [PAGE...]

Needs chromium (`.ci/install-chromium`). Writes build/looks/WIDTH/PAGE.png, of the first `HEIGHT`
pixels of each page at each of `WIDTHS`, and prints what is wider than its page. Ends with 1 if
anything is.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Final

from PIL import Image

ROOT: Final = Path(__file__).parent.parent
SITE: Final = ROOT / "build" / "docs"
LOOKS: Final = ROOT / "build" / "looks"
WIDTHS: Final = (1280, 390)
HEIGHT: Final = 2600
MOST_WIDE: Final = 7800
"""Pixels of all pages that are shown at once."""
# Tables and code blocks may be wider than the page: they scroll in a box of their own.
_MEASURE: Final = """
addEventListener('load', () => setTimeout(() => {
  document.getElementById('found').textContent = JSON.stringify(
    [...document.querySelectorAll('iframe')].map(frame => {
      const page = frame.contentDocument, width = frame.contentWindow.innerWidth;
      const scrolls = e => { for (; e && e !== page.body; e = e.parentElement) {
        const how = frame.contentWindow.getComputedStyle(e).overflowX;
        if (how === 'auto' || how === 'scroll' || how === 'hidden') return true; } return false; };
      return {
        width, scroll: page.documentElement.scrollWidth, height: page.documentElement.scrollHeight,
        broken: [...page.images].filter(e => e.complete && !e.naturalWidth).map(e => e.src),
        beyond: [...page.querySelectorAll('article *')].filter(e => e.checkVisibility()
          && e.getBoundingClientRect().right > width + 0.5 && !scrolls(e))
          .map(e => e.tagName + ' ' + e.textContent.trim().slice(0, 60)).slice(0, 3),
      };
    }));
}, 1500));
"""


def look(pages: list[Path], width: int, scheme: str = "light") -> list[dict[str, Any]]:
    """Show some pages beside each other; write a picture of each."""
    frames = "".join(
        f'<iframe style="width:{width}px;color-scheme:{scheme}" src="{page.as_uri()}"></iframe>'
        for page in pages
    )
    whole = width * len(pages)
    with tempfile.TemporaryDirectory() as directory:
        around, picture = Path(directory, "around.html"), Path(directory, "picture.png")
        around.write_text(
            f"<!DOCTYPE html><style>body{{margin:0;width:{whole}px}}iframe{{border:0;float:left;"
            f"height:{HEIGHT}px}}</style>{frames}<pre id=found></pre><script>{_MEASURE}</script>"
        )
        ran = subprocess.run(
            [
                shutil.which("chromium") or "google-chrome", *("--headless=new", "--no-sandbox"),
                *("--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"),
                *("--allow-file-access-from-files", f"--user-data-dir={directory}/profile"),
                *("--virtual-time-budget=20000", f"--window-size={whole},{HEIGHT}"),
                *("--dump-dom", f"--screenshot={picture}", around.as_uri()),
            ],
            capture_output=True, text=True, timeout=900, check=False,
        )  # fmt: skip
        told = re.search(r'<pre id="found">(.+?)</pre>', ran.stdout, re.DOTALL)
        if told is None:
            raise SystemExit(ran.stderr)
        image = Image.open(picture).convert("RGB")
    found = json.loads(html.unescape(told[1]))
    for number, (page, shape) in enumerate(zip(pages, found, strict=True)):
        name = page.relative_to(SITE).with_suffix("").as_posix().replace("/", "_")
        left, height = number * width, min(HEIGHT, shape["height"])
        (LOOKS / str(width)).mkdir(parents=True, exist_ok=True)
        image.crop((left, 0, left + width, height)).save(LOOKS / str(width) / f"{name}.png")
    return found


def main() -> int:
    """Look at all pages, or at those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, action="append", help="otherwise all of WIDTHS")
    parser.add_argument("pages", nargs="*", help="otherwise all, by their paths in build/docs")
    options = parser.parse_args()
    widths = options.width or WIDTHS
    named = [(SITE / name).resolve() for name in options.pages]
    pages = named or [page for page in sorted(SITE.rglob("*.html")) if page.name != "404.html"]
    bad = 0
    for width in widths:
        at_once = max(1, MOST_WIDE // width)
        for first in range(0, len(pages), at_once):
            some = pages[first : first + at_once]
            for page, shape in zip(some, look(some, width), strict=True):
                wrong = shape["broken"] + shape["beyond"]
                if shape["scroll"] > shape["width"]:
                    wrong.append(f"scrolls to {shape['scroll']} px")
                bad += bool(wrong)
                if wrong:
                    print(f"{width} {page.relative_to(SITE)}: {wrong}", flush=True)
    print(f"{len(pages)} pages at {widths}: something sticks out of {bad}")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
