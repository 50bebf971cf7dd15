"""Curves and bars as SVG for a page that runs no script: thin lines over a quiet grid, for a narrow column.

Colours are classes of the page's style (`held`, `own`, `drift`, `quiet`), so that they follow its light and dark.
Points are finite numbers; `trainer.report.plausible` has seen to that.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trainer.printing import escape

_WIDTH, _HEIGHT = 440, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 12, 12, 30
SIDES = (_LEFT, _WIDTH - _RIGHT)  # where the first and the last step of a chart lie, in the SVG's own units
_MAX_POINTS = 400
_MAX_BANDS = 20
_TICKS = 5

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line: `(x, y)` in order of x; `low` and `high` are an interval at each point, or empty."""

    name: str  # "" for a curve that the legend leaves out
    style: str  # a class of the page's style, or several
    points: Sequence[Point]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    dots: bool = True
    cut: tuple[bool, bool] = (False, False)  # whether its ends are where a longer line was cut, and no points of it


@dataclass(frozen=True)
class _Frame:
    """Where values lie on the page."""

    left: float
    right: float
    bottom: float
    top: float

    def at(self, x: float, y: float) -> str:
        """`x,y` in the SVG's own units, whose y grows downwards."""
        across = (x - self.left) / ((self.right - self.left) or 1)
        up = (y - self.bottom) / ((self.top - self.bottom) or 1)
        x_px = _LEFT + across * (_WIDTH - _LEFT - _RIGHT)
        y_px = _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)
        # A long curve is thousands of these, sent with every look at it.
        return f"{f'{x_px:.1f}'.removesuffix('.0')},{f'{y_px:.1f}'.removesuffix('.0')}"


def ticks(low: float, high: float) -> list[float]:
    """About five round values that span the range, both ends included."""
    # The step is the round number next above a fifth of the range; the small numbers keep equal ends and 0 apart.
    spread = max(high - low, abs(high) * 1e-9, 1e-20) if high > low else abs(high) or 1.0
    raw = max(spread, 1e-20) / _TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def within(line: Series, span: Point) -> Series:
    """The stretch of a line, which has no intervals, from one step to another.

    Where it is cut it ends on the line itself: between two points it is as straight as it was.
    """
    first, last = span
    points = line.points
    start = bisect.bisect_left(points, first, key=lambda point: point[0])
    stop = bisect.bisect_right(points, last, key=lambda point: point[0])
    inside = list(points[start:stop])
    # Between the first point inside, or the one behind it all, and the one before.
    left = 0 < start < len(points) and points[start][0] > first
    right = 0 < stop < len(points) and points[stop - 1][0] < last
    ends = [_between(points[start - 1], points[start], first)] if left else []
    inside = [*ends, *inside, *([_between(points[stop - 1], points[stop], last)] if right else [])]
    return Series(line.name, line.style, inside, dots=line.dots, cut=(left, right))


def _between(before: Point, after: Point, x: float) -> Point:
    share = (x - before[0]) / ((after[0] - before[0]) or 1)
    return x, before[1] + share * (after[1] - before[1])


def lines(
    series: Sequence[Series], label: str, y_text: Callable[[float], str], base: float | None = None,
    span: Point | None = None,
) -> str:  # fmt: skip
    """A chart over steps; `base` is a level to compare with, drawn dashed. Nothing without two points in a series.

    Without a `span` of steps it is as wide as the lines are.
    """
    series = [_thinned(within(line, span) if span else line) for line in series if line.points]
    series = [line for line in series if line.points]
    if not any(len(line.points) > 1 for line in series):
        return ""

    # The range is that of all lines and their intervals.
    xs = span or [x for line in series for x, _ in line.points]
    ys = [y for line in series for y in (*(y for _, y in line.points), *line.low, *line.high)]
    ys += [base] if base is not None else []
    levels = ticks(min(ys), max(ys))
    frame = _Frame(min(xs), max(xs), levels[0], levels[-1])

    # The grid, the level to compare with, the lines above what says their values, and what they are called.
    parts = [_grid(frame, levels, y_text), _bands(frame, series, y_text)]
    if base is not None:
        parts.append(f'<path class="base" d="M{frame.at(frame.left, base)}L{frame.at(frame.right, base)}"/>')
    parts += [_line(frame, line, y_text) for line in series]
    named = [line for line in series if line.name]
    legend = "".join(f'<span><i class="{line.style}"></i>{escape(line.name)}</span>' for line in named)
    steps = f'data-from="{frame.left:.0f}" data-to="{frame.right:.0f}"'
    return f'<figure class="chart" {steps}><figcaption>{legend}</figcaption>{_svg(label, "".join(parts))}</figure>'


def _thinned(line: Series) -> Series:
    """The same line in at most some hundred points, the first and the last kept; thinned lines have no intervals."""
    count = len(line.points)
    if count <= _MAX_POINTS:
        return line
    kept = sorted({round(number * (count - 1) / (_MAX_POINTS - 1)) for number in range(_MAX_POINTS)})
    return Series(line.name, line.style, [line.points[index] for index in kept], dots=False, cut=line.cut)


def _measured(line: Series) -> Sequence[Point]:
    """The points of a line without the ends at which it was cut."""
    left, right = line.cut
    return line.points[left : len(line.points) - right]


def _svg(label: str, inside: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">{inside}</svg>'


def _grid(frame: _Frame, levels: list[float], y_text: Callable[[float], str]) -> str:
    """Horizontal lines with their values, and the first and last step below."""
    parts = []
    for level in levels:
        parts.append(_level(frame, level, y_text(level)))
    below = _HEIGHT - 10
    middle = (frame.left + frame.right) / 2
    for step, anchor in ((frame.left, "start"), (middle, "middle"), (frame.right, "end")):
        text = f"{'step ' if step == frame.left else ''}{step:.0f}"
        parts.append(
            f'<text x="{frame.at(step, frame.bottom).split(",")[0]}" y="{below}" text-anchor="{anchor}">{text}</text>'
        )
    return "".join(parts)


def _level(frame: _Frame, level: float, text: str) -> str:
    """A horizontal line with its value beside it."""
    y = float(frame.at(frame.left, level).split(",")[1])
    return (
        f'<path class="grid" d="M{_LEFT},{y}H{_WIDTH - _RIGHT}"/><text x="{_LEFT - 6}" y="{y + 4:.1f}" '
        f'text-anchor="end">{escape(text)}</text>'
    )


def _line(frame: _Frame, line: Series, y_text: Callable[[float], str]) -> str:
    places = [frame.at(x, y) for x, y in line.points]
    parts = [f'<polyline class="{line.style}" points="{" ".join(places)}"/>']
    for (x, _), low, high in zip(line.points, line.low, line.high, strict=False):
        parts.append(f'<path class="{line.style} interval" d="M{frame.at(x, low)}L{frame.at(x, high)}"/>')
    # More dots than these would touch.
    if line.dots and len(places) <= 60:
        for x, y in _measured(line):
            across, down = frame.at(x, y).split(",")
            parts.append(
                f'<circle class="{line.style}" cx="{across}" cy="{down}" r="2.6"><title>step {x:.0f}: '
                f"{y_text(y)}</title></circle>"
            )
    return "".join(parts)


def _bands(frame: _Frame, series: Sequence[Series], y_text: Callable[[float], str]) -> str:
    """Unseen bands from top to bottom that say, where the pointer rests, the values of all lines at their step."""
    every = [(line.name, _measured(line)) for line in series]
    steps = sorted({x for _, points in every for x, _ in points})
    if not steps:
        return ""
    if len(steps) > _MAX_BANDS:
        steps = [steps[round(number * (len(steps) - 1) / (_MAX_BANDS - 1))] for number in range(_MAX_BANDS)]
    edges = [steps[0], *((before + after) / 2 for before, after in itertools.pairwise(steps)), steps[-1]]
    parts = []
    for step, (left, right) in zip(steps, itertools.pairwise(edges), strict=True):
        said = [f"step {step:.0f}"]
        for name, points in every:
            # Of a line's points within the band the first; a line that has none there is not named.
            index = bisect.bisect_left(points, left, key=lambda point: point[0])
            if index < len(points) and points[index][0] <= right:
                value = y_text(points[index][1])
                said.append(f"{name}: {value}" if name else value)
        start, end = (float(frame.at(edge, frame.bottom).split(",")[0]) for edge in (left, right))
        outline = f"M{start:.0f},{_TOP}H{max(end, start + 1):.0f}V{_HEIGHT - _BOTTOM}H{start:.0f}z"
        parts.append(f'<path d="{outline}"><title>{escape(chr(10).join(said))}</title></path>')
    return f'<g class="bands">{"".join(parts)}</g>'


def bars(before: Sequence[float], after: Sequence[float], label: str) -> str:
    """Two bars for each tenth of the schedule, the base's and now's, with the change in percent above."""
    count = min(len(before), len(after))
    top = max([*before[:count], *after[:count], 0.0])
    if not count or top <= 0:
        return ""

    # The grid.
    levels = [level for level in ticks(0.0, top) if level >= 0]
    frame = _Frame(0, count, 0.0, levels[-1])
    parts = []
    for level in levels:
        parts.append(_level(frame, level, f"{level:.3g}"))

    # Two bars a tenth, and the change above the higher bar.
    width = (_WIDTH - _LEFT - _RIGHT) / count
    for number in range(count):
        for value, style, shift in ((before[number], "quiet", 0.12), (after[number], "held", 0.5)):
            y = float(frame.at(0, max(value, 0.0)).split(",")[1])
            x = _LEFT + (number + shift) * width
            parts.append(
                f'<rect class="{style}" x="{x:.1f}" y="{y:.1f}" width="{width * 0.36:.1f}" '
                f'height="{max(_HEIGHT - _BOTTOM - y, 0):.1f}" rx="1"/>'
            )
        change = f"{(after[number] / before[number] - 1) * 100:+.0f}" if before[number] > 0 else ""
        highest = float(frame.at(0, max(before[number], after[number], 0.0)).split(",")[1])
        parts.append(
            f'<text class="small" x="{_LEFT + (number + 0.5) * width:.1f}" y="{highest - 3:.1f}" '
            f'text-anchor="middle">{change}</text>'
        )

    # What the axis means.
    parts.append(
        f'<text x="{_LEFT}" y="{_HEIGHT - 10}">little noise</text><text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 10}" '
        f'text-anchor="end">pure noise</text>'
    )
    legend = (
        '<span><i class="quiet"></i>base</span><span><i class="held"></i>with the LoRA</span><span>change in %</span>'
    )
    return f'<figure class="chart"><figcaption>{legend}</figcaption>{_svg(label, "".join(parts))}</figure>'
