"""What is drawn for a page can be watched and cancelled between steps, and leaves the base as it was."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from app import render_requests
from app.render_requests import Cancelled, Desk, Desks, Rendering, Work
from trainer.config import AdapterChoice, StackConfig
from trainer.errors import ConfigError
from trainer.render import grid
from trainer.render.engine import Engine


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine()


def stack(lora: Path, **changes: object) -> StackConfig:
    """A LoRA that is folded, and live too where a schedule is given."""
    adapter = AdapterChoice(file=str(lora), weight=0.8, schedule=str(changes.pop("schedule", "")))
    return StackConfig(prompt="a fox", steps=4, width_px=64, height_px=64, adapters=(adapter,), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("schedule", ["", "linear 1 0"])
def test_a_cancelled_render_stops_between_steps_and_leaves_the_base_bit_for_bit(
    engine: Engine, trained: Path, schedule: str
) -> None:
    """Of the walk: a render couldn't be cancelled."""
    engine.restore()
    before = {path: weight.clone() for path, weight in engine.weights.items()}
    request = stack(trained, schedule=schedule)
    whole = engine.render(request).image.tobytes()
    rendering, steps = Rendering(), []

    def watch(step: int, num_steps: int, num_together: int) -> None:
        steps.append((step, num_steps, num_together))
        if step == 2:
            rendering.cancel()
        rendering.watch(step, num_steps, num_together)

    with pytest.raises(Cancelled), engine.watched(watch):
        engine.render(request)
    assert steps == [(1, 4, 1), (2, 4, 1)]
    assert engine.render(request).image.tobytes() == whole, "the next picture is what it would have been"
    engine.restore()
    assert all(torch.equal(weight, before[path]) for path, weight in engine.weights.items())


def test_a_cancelled_grid_draws_no_further_picture(engine: Engine, trained: Path) -> None:
    rendering, pictures = Rendering(), []

    def watch(step: int, num_steps: int, num_together: int) -> None:
        pictures.append(num_together)
        rendering.watch(step, num_steps, num_together)
        rendering.cancel()

    with pytest.raises(Cancelled), engine.watched(watch):
        grid.of_modes(engine, stack(trained))
    assert pictures == [1, 1]


def test_progress_counts_pictures_of_all_batches() -> None:
    rendering = Rendering()
    rendering.expect(3)
    shares = []
    for num_together, step in ((2, 1), (2, 2), (1, 1), (1, 2)):
        rendering.watch(step, 2, num_together)
        shares.append(round(rendering.share, 3))
    assert shares == [0.333, 0.667, 0.833, 1.0] and rendering.num_done == 2


def test_the_next_request_of_a_page_ends_the_one_before_and_no_other_pages() -> None:
    desks = Desks()
    one, other = desks.of("a"), desks.of("b")
    first, foreign = one.begin(None), other.begin(None)
    second = one.begin(None)
    assert first.is_cancelled and first.is_superseded and not second.is_cancelled and not foreign.is_cancelled
    assert one.cancel() and second.is_cancelled and not second.is_superseded and not one.cancel()
    assert desks.of("a") is one


def test_desks_of_pages_that_are_gone_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render_requests, "_MOST_DESKS", 2)
    desks = Desks()
    first = desks.of("a")
    desks.of("b"), desks.of("c")
    assert desks.of("a") is not first


def test_who_waits_for_the_engine_leaves_when_it_is_not_wanted() -> None:
    """A request that was cancelled while another page draws is over at once."""
    entered = threading.Event()

    def draw() -> None:
        entered.wait(20)

    desk = Desk()
    rendering = desk.begin(None)
    turns = Work(rendering, draw).turns()
    next(turns)
    desk.cancel()
    with pytest.raises(Cancelled):
        next(turns)
    entered.set()


def test_a_page_that_is_left_stops_what_it_asked_for() -> None:
    entered, rendering = threading.Event(), Rendering()
    turns = Work(rendering, lambda: entered.wait(20)).turns()
    next(turns)
    turns.close()  # type: ignore[attr-defined]
    entered.set()
    assert rendering.is_cancelled


def test_what_drawing_raises_reaches_the_page() -> None:
    def draw() -> None:
        raise ConfigError("no such base.")

    with pytest.raises(ConfigError, match="no such base"):
        list(Work(Rendering(), draw).turns())
