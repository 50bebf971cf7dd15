"""A chart of losses as it is looked at: a stretch of its steps, more or less smoothing, and exact held-out losses."""

from __future__ import annotations

import re
import time
from types import SimpleNamespace
from typing import Any

import numpy
import pytest

from app import chart_look, loss_charts
from app.chart_look import Look
from trainer.events import Event, Step, Validated
from trainer.report import curves, svg_charts
from trainer.report.svg_charts import Series

SMOOTHINGS = ("raw", "some", "much")


def losses(num: int, every: int = 50) -> list[Event]:
    """A noisy run of so many steps, measured now and then."""
    values = 1 / (1 + numpy.arange(1, num + 1) / 50) + 0.1 * numpy.random.default_rng(0).standard_normal(num)
    log: list[Event] = [Step(step, float(value), 1e-4, 0.1, 0.5) for step, value in enumerate(values, start=1)]
    for step in range(every, num + 1, every):
        log.append(Validated(step, 0.4 + 1 / step, 0.5, 0.2, 0.1, 0.3, 0.9, 40))
    return log


def points(drawn: str, style: str) -> list[tuple[float, float]]:
    """Where a line's points lie, in the drawing's own units."""
    (line,) = re.findall(rf'<polyline class="{style}" points="([^"]*)"', drawn)
    return [tuple(map(float, place.split(","))) for place in line.split()]  # type: ignore[misc]


def dots(drawn: str) -> list[str]:
    return re.findall(r'<circle class="held"[^>]*><title>([^<]*)</title>', drawn)


# A stretch.


def test_a_line_is_cut_where_it_is_straight_and_its_ends_are_no_points() -> None:
    line = Series("held-out", "held", [(0.0, 1.0), (100.0, 0.5), (200.0, 0.7)])
    cut = svg_charts.within(line, (50, 150))
    assert cut.points == [(50, 0.75), (100.0, 0.5), (150, pytest.approx(0.6))] and cut.cut == (True, True)
    drawn = svg_charts.lines([line], "loss", lambda value: f"{value:.3g}", span=(50, 150))
    assert dots(drawn) == ["step 100: 0.5"] and "step 50: 0.75" not in drawn
    assert svg_charts.within(line, (20, 80)).points == [(20, 0.9), (80, 0.6)]
    assert svg_charts.within(line, (-9, 300)) == line
    assert svg_charts.within(line, (201, 300)).points == [] and svg_charts.within(line, (100, 100)).cut == (
        False,
        False,
    )


def test_a_stretch_shows_each_of_its_steps_where_the_whole_run_is_thinned() -> None:
    log = losses(100_000, every=1000)
    whole = loss_charts.html(log)
    part = loss_charts.html(log, Look(stretch="7:50000-50300"), "7")
    assert len(points(whole, "quiet")) == 400 and len(points(part, "quiet")) == 301
    assert "Steps 50,000 to 50,300 of 100,000." in part and "Steps" not in whole
    assert len(part) < 30_000 and len(whole) < 30_000
    assert 'data-from="50000" data-to="50300"' in part and 'data-first="0" data-last="100000"' in part
    assert part.count('data-from="50000"') == 2  # the learning rate beside it is of the same steps


def test_a_long_run_costs_no_more_to_look_into_than_to_look_at() -> None:
    log = losses(100_000, every=1000)

    def seconds(look: Look) -> float:
        times = []
        for _ in range(3):
            start = time.process_time()
            loss_charts.html(log, look, "7")
            times.append(time.process_time() - start)
        return min(times)

    whole = seconds(Look())
    assert seconds(Look("much", "7:50000-50300")) < 1.5 * whole + 0.05 and seconds(Look("raw")) < 1.5 * whole + 0.05


def test_steps_beyond_the_stretch_draw_nothing_anew() -> None:
    look, log = Look(stretch="7:10-20"), losses(100)
    before = loss_charts.signature(log, look, "7")
    assert loss_charts.signature(losses(150), look, "7") == before
    assert loss_charts.signature(losses(150), Look(), "7") != loss_charts.signature(log, Look(), "7")
    assert loss_charts.signature(log, Look("much", "7:10-20"), "7") != before


@pytest.mark.parametrize(
    ("stretch", "shown"),
    [
        ("7:10-20", (10, 20)), ("7:20-10", (10, 20)), ("8:10-20", None), ("", None), ("7:", None), ("7:10", None),
        ("7:0-100", None), ("7:0-9999999999999999", None), ("7:90-500", (90, 100)), ("7:300-500", None),
        ("7:50-50", (49, 51)), ("7:0-0", (0, 2)), ("7:100-100", (98, 100)), ("7:-5-20", None), ("7:a-b", None),
        ("7:1e9-2", None), ("<img>", None), (None, None), (5, None), ("7:²-5", None),
    ],
)  # fmt: skip
def test_a_stretch_that_is_of_another_run_or_no_stretch_shows_all(stretch: Any, shown: Any) -> None:
    assert Look("some", stretch).span("7", (0, 100)) == shown


@pytest.mark.parametrize(
    ("data", "stretch"),
    [
        ({"first": 10, "last": 20.4}, "7:10-20"), ({"first": None, "last": None}, ""), ({}, ""),
        ({"first": "10", "last": 20}, ""), ({"first": -1, "last": 20}, ""), ({"first": float("nan"), "last": 2}, ""),
        ({"first": 1, "last": 1e30}, ""), ({"first": True, "last": 20}, ""), ({"first": [1], "last": {}}, ""),
    ],
)  # fmt: skip
def test_what_a_browser_says_of_a_drag_is_whole_steps_or_nothing(data: dict[str, Any], stretch: str) -> None:
    assert chart_look.asked(SimpleNamespace(**data), "7") == stretch  # type: ignore[arg-type]


def test_a_stretch_without_a_step_in_it_shows_all() -> None:
    log: list[Event] = [Step(step, 0.3, 1e-4, 0.1, 0.5) for step in (1, 2, 3, 90, 91)]
    drawn = loss_charts.html(log, Look(stretch="7:200-300"), "7")
    assert drawn == loss_charts.html(log)
    assert "polyline" in loss_charts.html(log, Look(stretch="7:10-80"), "7")  # straight across the gap
    assert loss_charts.html([], Look(stretch="7:1-2"), "7") == ""


# Smoothing.


def test_the_held_out_loss_is_the_same_however_the_rest_is_smoothed() -> None:
    log = losses(500)
    drawn = {smoothing: loss_charts.html(log, Look(smoothing)) for smoothing in SMOOTHINGS}
    assert dots(drawn["raw"]) == dots(drawn["some"]) == dots(drawn["much"])
    measured = {f"step {event.step}: {event.loss:.3g}" for event in log if isinstance(event, Validated)}
    assert set(dots(drawn["raw"])) == measured | {"step 0: 0.5"}
    assert "the held-out loss is as it was measured" in drawn["much"]


def test_more_smoothing_moves_less_and_raw_is_each_step() -> None:
    log = losses(400)
    rough = {}
    for smoothing in SMOOTHINGS:
        heights = numpy.array(points(loss_charts.html(log, Look(smoothing)), "own"))[:, 1]
        rough[smoothing] = float(numpy.abs(numpy.diff(heights)).mean())
    assert rough["raw"] > 5 * rough["some"] > 5 * 2 * rough["much"]
    assert curves.running_mean(log, 0.0) == [(event.step, event.loss) for event in log if isinstance(event, Step)]
    raw = loss_charts.html(log, Look("raw"))
    assert 'class="quiet"' not in raw and "Each step as it was." in raw
    assert "Mean over about 20 steps" in loss_charts.html(log, Look("some"))
    assert "Mean over about 100 steps" in loss_charts.html(log, Look("much"))
    assert loss_charts.html(log, Look("<img src=x>")) == loss_charts.html(log, Look("some"))


def test_the_mean_is_the_exponential_mean_of_its_decay() -> None:
    values = [3.0, 1.0, 2.0, 5.0]
    log: list[Event] = [Step(step, value, 1e-4, 0.1, 0.5) for step, value in enumerate(values, start=1)]
    for decay in (0.95, 0.99):
        weights = decay ** numpy.arange(len(values) - 1, -1, -1.0)
        expected = float((weights * values).sum() / weights.sum())
        assert curves.running_mean(log, decay)[-1] == (4.0, pytest.approx(expected))
