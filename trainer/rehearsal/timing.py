"""How long what runs on a GPU or a CPU takes, and for how long it is worth measuring."""

from __future__ import annotations

import time

import torch

from trainer import loop
from trainer.training_model import TrainingModel

ENOUGH_S = 1.0  # of measuring one thing
MOST_TIMES = 5


def now() -> float:
    """Seconds on a clock, once the GPU has done all that was asked of it: it works behind Python's back."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic()


def step(model: TrainingModel, optimizer: torch.optim.Optimizer, number: int) -> tuple[float, float]:
    """Seconds of forward and backward, and of the update."""
    began = now()
    loop.learn(model, number)
    between = now()
    model.scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters().values(), model.config.optimizer.max_grad_norm)
    optimizer.step()
    model.scaler.update()
    optimizer.zero_grad(set_to_none=True)
    model.limit_norms()
    return between - began, now() - between
