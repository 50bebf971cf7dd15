"""Runs that are extended or branched off: settings, trainings, and what is compared of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.small_runs import config
from trainer import runs, session
from trainer.config import StackConfig, TrainConfig, parse
from trainer.events import Finished, Sampled, Step

RICH = {"optimizer.ema_decay": 0.9, "validation.leave_out": 1, "validate_every_steps": 2, "adapter.dropout": 0.1}


def settings_of(tiny: Path, pictures: Path) -> Callable[..., TrainConfig]:
    """`settings_of(tiny, pictures)(max_steps=3)`: settings of small runs that keep all their checkpoints."""

    def made(**changes: object) -> TrainConfig:
        return session.absolute(config(tiny, pictures, **({"keep_checkpoints": 9} | changes)))

    return made


def trained(parent: Path, wanted: TrainConfig, name: str = "x") -> runs.Run:
    run, stream = session.start(wanted, parent, name, session.resumable(parent, name, wanted))
    assert isinstance(list(stream)[-1], Finished)
    return run


def stopped(parent: Path, wanted: TrainConfig, step: int, name: str = "x") -> runs.Run:
    """The run, broken off after a step; its newest checkpoint is the third before."""
    run, stream = session.start(wanted, parent, name, None)
    for event in stream:
        if isinstance(event, Step) and event.step == step:
            break
    stream.close()
    return run


def losses(run: runs.Run) -> list[tuple[int, float, float, float]]:
    steps = [event for event in run.events() if isinstance(event, Step)]
    return [(event.step, event.loss, event.grad_norm, event.learning_rate) for event in steps]


def weights_of(run: runs.Run) -> dict[str, torch.Tensor]:
    return load_file(run.lora_file)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def step_0(run: runs.Run) -> numpy.ndarray:
    """The preview before the first step."""
    file = next(event.file for event in run.events() if isinstance(event, Sampled) and event.step == 0)
    return numpy.asarray(Image.open(run.folder / file).convert("RGB")).astype(int)


def drawn(file: Path, wanted: TrainConfig, weight: float = 1.0) -> numpy.ndarray:
    """What the LoRA draws where a preview of these settings would be drawn."""
    from trainer.render.engine import Engine

    preview = wanted.preview
    values = {
        "base": wanted.base, "family": wanted.family, "prompt": preview.prompts[0], "seed": preview.seed,
        "steps": preview.steps, "guidance_scale": preview.guidance_scale, "width_px": wanted.resolution_px,
        "height_px": wanted.resolution_px, "adapters": [{"file": str(file), "weight": weight}],
    }  # fmt: skip
    picture = Engine(wanted.base, wanted.family).render(parse(StackConfig, values, "the test"))
    return numpy.asarray(picture.image.convert("RGB")).astype(int)
