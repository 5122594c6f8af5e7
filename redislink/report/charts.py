"""Strips of bars on a time axis, as static SVG.

Rules: a chart holds times and this module's own words, and no text of anybody else; it holds no
script, style or link. Its colours are those of the page (``.color-0`` and so on). Each chart is
drawn twice, for wide and for narrow screens, because text in a scaled picture cannot be read.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, Final

from redislink.errors import ConfigError

try:
    import pygal
except ImportError:
    raise ConfigError(
        "a report needs the packages Jinja2 and pygal: pip install 'redislink[report]'"
    ) from None

WIDE: Final = 760
NARROW: Final = 340
"""Pixels."""
_BAR: Final = 26
_AXIS: Final = 14
_BELOW: Final = 6
_TICKS: Final = {WIDE: 8, NARROW: 4}
_EDGE: Final = 24
"""Pixels left free at the right, for half of the last label."""
_LONG: Final = 5
"""Pixels."""
_STEPS: Final = (1.0, 2.0, 5.0, 10.0)
_MINUTE: Final = 60.0
_UNITS: Final = ((86400.0, "d"), (3600.0, "h"), (_MINUTE, "min"), (1.0, "s"), (0.001, "ms"))

Bars = Sequence[tuple[float, float]]
"""When each bar begins and ends, in seconds from the start of the axis."""


def strip(series: Sequence[Bars], end: float, width: int, label: str, *, has_axis: bool) -> str:
    """One row of bars.

    Args:
        series: the bars of each series; at most three are told apart.
        end: where the axis ends, in seconds; it starts at 0.
        width: `WIDE` or `NARROW`.
        label: what it shows, for those who do not see it; ours, not somebody else's.
        has_axis: whether times stand below it.
    """
    ticks = ticks_of(end, _TICKS[width])
    chart = pygal.Histogram(
        width=width,
        height=_BAR + (_AXIS + _BELOW if has_axis else 0),
        margin=0,
        margin_bottom=_BELOW if has_axis else 0,
        margin_right=_EDGE,
        spacing=4,
        range=(0, 1),
        xrange=(0, end),
        show_legend=False,
        show_y_labels=False,
        show_y_guides=False,
        show_x_guides=True,
        show_x_labels=has_axis,
        x_labels=ticks,
        x_value_formatter=functools.partial(_tick_text, unit=_unit_of(end)),
        truncate_label=-1,
        js=[],
        css=[],
    )
    for bars in series:
        chart.add("", [(1, *bar) for bar in joined(bars, end / width)])
    chart.add("", [(0, 0, end)])  # so that all axes are alike, whatever is on them
    chart.add_xml_filter(functools.partial(_only_the_picture, label=label))
    text = chart.render(is_unicode=True, disable_xml_declaration=True)
    return str(text)


def joined(bars: Bars, least: float) -> list[tuple[float, float]]:
    """Bars that can be seen apart: short ones that touch become one, long ones get a gap.

    Args:
        bars: in any order.
        least: the width of a pixel, in seconds.
    """
    found: list[tuple[float, float]] = []
    for began, ended in sorted(bars):
        if not found or began - found[-1][1] >= least:
            found.append((began, max(ended, began + least)))
            continue
        before = found[-1]
        if before[1] - before[0] >= _LONG * least and ended - began >= _LONG * least > 0:
            found[-1] = before[0], min(before[1], began) - least
            found.append((began, ended))
        else:
            found[-1] = before[0], max(before[1], ended)
    return found


def ticks_of(end: float, most: int) -> list[float]:
    """Round times from 0 to ``end``, at most ``most`` of them after 0."""
    unit = _unit_of(end)[0]
    count = end / unit
    power = 10.0 ** math.floor(math.log10(count / most)) if count > 0 else 1.0
    step = next((s for s in _STEPS if count / (s * power) <= most), 10.0) * power * unit
    return [number * step for number in range(math.floor(end / step * (1 + 1e-9)) + 1)]


def _unit_of(end: float) -> tuple[float, str]:
    return next((unit for unit in _UNITS if end >= 2 * unit[0]), _UNITS[-1])


def _tick_text(value: float, unit: tuple[float, str]) -> str:
    return f"{value / unit[0]:.6g} {unit[1]}"


_NOT_PICTURE: Final = {"defs", "desc", "title"}
_OVERLAYS: Final = {"overlay", "text-overlay", "tooltip-overlay", "titles"}


def _only_the_picture(root: Any, label: str) -> Any:
    """Without pygal's styles, script and texts for tooltips."""
    root.attrib.pop("id", None)
    root.set("role", "img")
    root.set("aria-label", label)
    pending = [root]
    while pending:
        node = pending.pop()
        for child in list(node):
            classes = set(child.get("class", "").split()) if isinstance(child.tag, str) else set()
            if (
                not isinstance(child.tag, str)  # a comment
                or child.tag.rpartition("}")[2] in _NOT_PICTURE
                or classes & _OVERLAYS
            ):
                node.remove(child)
            else:
                pending.append(child)
    return root
