"""Loss scaling of a float16 base: torch's scaler, in runs that are cut off and taken up again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tests import plain
from trainer import loop, presets, session
from trainer.config import TrainConfig
from trainer.encoded_data import Part
from trainer.events import Adjusted, Finished, Step
from trainer.optim import scaling
from trainer.runs import Run
from trainer.training_model import TrainingModel


def with_gradient(value: float) -> tuple[nn.Parameter, torch.optim.Optimizer]:
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = torch.full((3,), value)
    return parameter, torch.optim.SGD([parameter], lr=1.0)


def settings_of(folder: Path, tiny: Path, draw_dots: Callable[..., Path]) -> TrainConfig:
    values = {
        "base": str(tiny), "resolution_px": 32, "max_steps": 6, "batch_size": 2, "checkpoint_every_steps": 2,
        "preview_every_steps": 0, "dtype": "float16",
        "learning_rate": 1e-2, "data.folder": str(draw_dots(folder / "pictures", "a {colour} dot")),
        "preview.prompts": [], "keep_checkpoints": 9,
    }  # fmt: skip
    return presets.load(plain.CHARACTER, values)


def scale_at(run: Run, step: int) -> dict[str, float]:
    return json.loads((run.checkpoints / f"step-{step:06d}" / "state.json").read_text(encoding="utf-8"))["loss_scale"]


def test_the_scale_grows_back_and_a_resumed_run_grows_where_an_unbroken_one_does(
    tmp_path: Path, tiny: Path, draw_dots: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "GROWS_AFTER_STEPS", 3)
    settings = settings_of(tmp_path, tiny, draw_dots)
    whole, stream = session.start(settings, tmp_path, "whole", None)
    events = list(stream)
    assert isinstance(events[-1], Finished) and [event.step for event in events if isinstance(event, Step)] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]
    saved = [scale_at(whole, step) for step in (2, 4, 6)]
    assert [(scaler["scale"] / scaling.INITIAL, scaler["_growth_tracker"]) for scaler in saved] == [
        (1, 2),
        (2, 1),
        (4, 0),
    ]
    run, stream = session.start(settings, tmp_path, "broken", None)
    for event in stream:
        if isinstance(event, Step) and event.step == 5:
            break
    stream.close()
    list(session.start(settings, tmp_path, "broken", run)[1])
    assert run.lora_file.read_bytes() == whole.lora_file.read_bytes()
    assert scale_at(run, 6) == saved[-1]


def test_memory_that_runs_out_between_dividing_and_stepping_leaves_the_scaler_fit_for_the_next_try(
    tmp_path: Path, tiny: Path, draw_dots: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = loop.prepare, []

    def prepare(model: TrainingModel, step: int) -> list[Part]:
        calls.append(step)
        if len(calls) == 3:  # the third step's pictures, while the second is computed
            raise MemoryError
        return real(model, step)

    monkeypatch.setattr(loop, "prepare", prepare)
    run, stream = session.start(settings_of(tmp_path, tiny, draw_dots), tmp_path, "short", None)
    events = list(stream)
    assert (
        isinstance(events[-1], Finished) and any(isinstance(event, Adjusted) for event in events) and calls.count(2) > 1
    )
    assert scale_at(run, 6)["_growth_tracker"] == 6


def test_a_checkpoint_from_before_the_scale_grew_is_taken_up_at_its_scale() -> None:
    scaler = scaling.scaler("cpu", True, 1024.0)
    assert scaler.get_scale() == 1024.0 and scaler.state_dict()["_growth_tracker"] == 0
    assert scaling.scaler("cpu", False, 1.0).state_dict() == {}


def test_a_gradient_that_overflows_halves_the_scale_until_there_is_none_to_halve() -> None:
    scaler = scaling.scaler("cpu", True, 4.0)
    parameter, optimizer = with_gradient(float("inf"))
    for left in (2.0, 1.0):
        scaler.unscale_(optimizer)
        assert scaling.backed_off(scaler) and scaler.get_scale() == left
    scaler.unscale_(optimizer)
    assert not scaling.backed_off(scaler), "the gradient itself is broken"


def test_a_norm_that_overflows_by_itself_is_not_tried_again() -> None:
    scaler = scaling.scaler("cpu", True)
    parameter, optimizer = with_gradient(3e38)
    scaler.unscale_(optimizer)
    assert not scaling.backed_off(scaler)


def test_without_scaling_nothing_is_changed() -> None:
    scaler = scaling.scaler("cpu", False)
    parameter, optimizer = with_gradient(float("nan"))
    loss = torch.ones(())
    assert scaler.scale(loss) is loss and not scaling.backed_off(scaler) and scaler.get_scale() == 1
    scaler.unscale_(optimizer)
    scaler.update()
    assert parameter.grad.isnan().all()


def test_a_process_without_rows_divides_what_others_summed() -> None:
    scaler = scaling.scaler("cpu", True)
    parameter, optimizer = with_gradient(scaling.INITIAL)
    scaler.unscale_(optimizer)
    assert torch.equal(parameter.grad, torch.ones(3))
