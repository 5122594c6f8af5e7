"""The page in a browser: nothing is blank, nothing sticks out, wide and narrow, light and dark."""

from __future__ import annotations

import pytest
from PIL import Image

from redislink.report import gather
from redislink.report.writing import render
from tests.report.conftest import Story
from tests.report.test_page import HOSTILE
from tests.support.browser import Look, look_at

pytestmark = pytest.mark.slow
VIEWS = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]
SECTIONS = ["parties", "revealed", "program", "steps", "time", "traffic", "faults", "files"]


@pytest.fixture(scope="module")
def looks(tmp_path_factory: pytest.TempPathFactory) -> list[Look]:
    """Of an ordinary page in all views, and of a hostile one in two."""
    directory, hostile = (tmp_path_factory.mktemp(name) for name in ("looks", "hostile"))
    Story(healed=(1, 4)).write(directory)
    Story(session=HOSTILE, text=HOSTILE).write(hostile, stats=False)
    page, other = (render(gather([place])) for place in (directory, hostile))
    views = [(page, *view) for view in VIEWS] + [(other, *VIEWS[0]), (other, *VIEWS[-1])]
    return look_at(views, directory)


@pytest.fixture(params=range(len(VIEWS)), ids=[f"{width}-{scheme}" for width, scheme in VIEWS])
def look(request: pytest.FixtureRequest, looks: list[Look]) -> Look:
    return looks[request.param]


def test_nothing_sticks_out(look: Look) -> None:
    assert look.found["scroll"] == look.width
    assert look.found["beyond"] == []
    assert look.found["cut"] == 0, "nobody has to scroll a table of three parties sideways"


def test_no_section_is_blank(look: Look) -> None:
    assert list(look.found["sections"]) == SECTIONS
    for name, shown in look.found["sections"].items():
        left, top, right, bottom = shown["box"]
        assert bottom - top > 60, name
        assert len(shown["text"]) > 60, name
        if bottom < look.picture.height:
            section = look.picture.crop((int(left), int(top), int(right), int(bottom)))
            colours = section.resize((200, 100), Image.Resampling.NEAREST).getcolors(1 << 20)
            assert len(colours) > 10, name
            assert max(count for count, _ in colours) < 0.98 * 200 * 100, name


def test_bars_can_be_seen_and_told_apart(look: Look) -> None:
    """Three series at most, none in the colour of the page; of two sizes one is shown."""
    bars = look.found["bars"]
    assert len(set(bars)) == 3
    paper = look.picture.getpixel((1, 1))
    assert f"rgb({', '.join(map(str, paper))})" not in bars
    assert 9 <= len(bars) <= 40


def test_dark_is_dark(look: Look) -> None:
    paper = look.picture.getpixel((1, 1))
    assert (sum(paper) < 150) == (look.scheme == "dark")


def test_hostile_texts_do_nothing(looks: list[Look]) -> None:
    for look in looks[len(VIEWS) :]:
        assert look.found["active"] == 0
        assert look.found["scroll"] == look.width
        assert look.found["beyond"] == []
        assert "alert(1)" in look.found["title"]
