"""A headless Chromium that shows pages of HTML: how they lie, and a picture of them."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

_TIMEOUT = 120.0
_HEIGHT = 2600
"""Pixels; what is further down is laid out, and not in the picture."""
# The pages' own policy forbids scripts, so this one stands around them.
_MEASURE = """
addEventListener('load', () => {
  const frames = [...document.querySelectorAll('iframe')];
  document.getElementById('found').textContent = JSON.stringify(frames.map(frame => {
    const page = frame.contentDocument, window = frame.contentWindow;
    const box = node => { const r = node.getBoundingClientRect();
      return [r.left, r.top, r.right, r.bottom]; };
    const all = [...page.querySelectorAll('body *')].filter(e => e.checkVisibility());
    return {
      scroll: page.documentElement.scrollWidth,
      height: page.documentElement.scrollHeight,
      beyond: all.filter(e => !e.closest('.scroll') && box(e)[2] > window.innerWidth + 0.5)
        .map(e => e.tagName),
      cut: [...page.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1)
        .length,
      sections: Object.fromEntries([...page.querySelectorAll('section')].map(
        e => [e.id, {text: e.innerText, box: box(e)}])),
      bars: [...page.querySelectorAll('svg .histbar rect')].filter(
        e => e.checkVisibility() && box(e)[2] > box(e)[0] && box(e)[3] > box(e)[1]).map(
        e => window.getComputedStyle(e).fill),
      active: page.querySelectorAll('script, iframe, object, img, link, form').length,
      title: page.title,
    };
  }));
});
"""


@dataclass(frozen=True)
class Look:
    """How a page looks at one width, in one colour scheme.

    Attributes:
        found: what was measured, see above.
        picture: what is to be seen.
    """

    width: int
    scheme: str
    found: Mapping[str, Any]
    picture: Image.Image


def look_at(views: Sequence[tuple[str, int, str]], directory: Path) -> list[Look]:
    """Show pages at widths and in colour schemes, all at once.

    Args:
        views: of each the HTML, the width in pixels, and the scheme, ``light`` or ``dark``.
        directory: for files.
    """
    frames = "".join(
        f'<iframe style="width:{width}px;color-scheme:{scheme}" srcdoc="{html.escape(page)}">'
        "</iframe>"
        for page, width, scheme in views
    )
    around = directory / "around.html"
    whole = sum(width for _, width, _ in views)
    around.write_text(
        f"<!DOCTYPE html><style>body,pre{{margin:0;width:{whole}px}}iframe{{border:0;float:left;"
        f"height:{_HEIGHT}px}}</style>{frames}<pre id=found></pre><script>{_MEASURE}</script>"
    )
    picture = directory / "picture.png"
    ran = subprocess.run(
        [
            *(_chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--hide-scrollbars", "--disable-dev-shm-usage", "--disable-extensions"),
            *(f"--user-data-dir={directory / 'profile'}", f"--window-size={whole},{_HEIGHT}"),
            *("--dump-dom", f"--screenshot={picture}", around.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
    )
    told = re.search(r'<pre id="found">(.+?)</pre>', ran.stdout, re.DOTALL)
    assert told, ran.stderr
    image = Image.open(picture).convert("RGB")
    looks, left = [], 0
    for (_, width, scheme), found in zip(views, json.loads(html.unescape(told[1])), strict=True):
        looks.append(Look(width, scheme, found, image.crop((left, 0, left + width, _HEIGHT))))
        left += width
    return looks


def _chromium() -> str:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is not None:
        return found
    missing = "no chromium on this machine: run .ci/install-chromium"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(f"NOT TRIED: the report in a browser: {missing}")
