"""Loss scaling of a float16 base: torch's scaler, in runs that are cut off and taken up again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.test_complaints import config, train
from trainer import checkpoint, session
from trainer.events import Finished, Step
from trainer.optim import scaling


def with_gradient(value: float) -> tuple[nn.Parameter, torch.optim.Optimizer]:
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = torch.full((3,), value)
    return parameter, torch.optim.SGD([parameter], lr=1.0)


def test_the_scale_grows_back_and_a_resumed_run_grows_where_an_unbroken_one_does(
    tmp_path: Path, tiny: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "GROWS_AFTER_STEPS", 3)
    settings = config(tiny, pictures, dtype="float16", keep_checkpoints=9)
    whole, said = train(tmp_path, settings, "whole")
    assert isinstance(said[-1], Finished) and [event.step for event in said if isinstance(event, Step)] == [1, 2, 3, 4, 5, 6]
    saved = [checkpoint.load(whole.checkpoints / f"step-00000{step}").state["loss_scale"] for step in (2, 4, 6)]
    assert [(one["scale"] / scaling.INITIAL, one["_growth_tracker"]) for one in saved] == [(1, 2), (2, 1), (4, 0)]
    run, stream = session.start(settings, tmp_path, "broken", None)
    for event in stream:
        if isinstance(event, Step) and event.step == 5:
            break
    stream.close()
    list(session.start(settings, tmp_path, "broken", run)[1])
    assert run.lora_file.read_bytes() == whole.lora_file.read_bytes()
    assert checkpoint.load_latest(run.checkpoints)[0].state["loss_scale"] == saved[-1]


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
