"""The optimizer, its learning rate as a function of the step alone, and its state as plain tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from trainer.config import OptimizerConfig, TrainConfig


def build(parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101), fused: the fastest of torch's own on CPU and CUDA."""
    return torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.optimizer.weight_decay, fused=parameters[0].device.type in ("cpu", "cuda")
    )


def factor(config: OptimizerConfig, step: int, max_steps: int) -> float:
    """Share (0..1) of the learning rate at `step` (0-based): warm-up from 1/warmup_steps, then the schedule down to 0."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, max_steps - config.warmup_steps)
    return {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}[config.schedule]


def state_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as `{parameter index.name: tensor}`."""
    return {f"{index}.{name}": torch.as_tensor(value) for index, values in optimizer.state_dict()["state"].items() for name, value in values.items()}


def load_state_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `state_tensors` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
