"""A value that a setting may have and the code has no branch for is refused by name, never read as the last of the others."""

from typing import Any

import pytest
import torch

from trainer import loss, memory, objective
from trainer.config import ObjectiveConfig, OptimizerConfig
from trainer.errors import ConfigError
from trainer.objective import Schedule
from trainer.optim import optimizers, schedules

EPSILON = Schedule("epsilon", torch.linspace(0.99, 0.01, 1000))
RNG = torch.Generator()
PAIR = torch.zeros(1, 4, 2, 2)


def objective_with(**values: Any) -> ObjectiveConfig:
    return ObjectiveConfig().model_copy(update=values)


def optimizer_with(**values: Any) -> OptimizerConfig:
    return OptimizerConfig().model_copy(update=values)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: loss.weights(objective_with(weighting="p2"), EPSILON, torch.tensor([5])), "objective.weighting is 'p2'.*allowed: none, min-snr"),
        (lambda: loss.elements(objective_with(loss="l1"), PAIR, PAIR), "objective.loss is 'l1'.*allowed: l2, huber, smooth_l1"),
        (lambda: loss.draw_timesteps(objective_with(timesteps="beta"), EPSILON, 1, RNG, 4), "objective.timesteps is 'beta'.*allowed: uniform, logit-normal"),
        (lambda: loss.draw_timesteps(objective_with(shift="flux"), EPSILON, 1, RNG, 4), "objective.shift is 'flux'.*allowed: none, fixed, resolution"),
        (lambda: schedules.factor(optimizer_with(schedule="step"), 50, 100), "optimizer.schedule is 'step'.*allowed: constant, linear, cosine"),
        (lambda: optimizers._find(optimizer_with(name="sgd")), "optimizer.name is 'sgd'.*allowed: adamw, adamw8bit"),
        (lambda: memory.quantise(torch.nn.Linear(2, 2), "int4"), "memory.quantise is 'int4'.*allowed: none, int8, nf4, fp8"),
        (lambda: objective.target(Schedule("x0", EPSILON.alphas_cumprod), PAIR, PAIR, torch.tensor([5])), "predicts 'x0'; allowed: epsilon, v, flow"),
    ],
)  # fmt: skip
def test_an_unknown_choice_is_refused_by_name(call: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        call()


@pytest.mark.parametrize("weighting", ["none", "min-snr", "debiased", "snr"])
def test_every_known_weighting_still_weighs(weighting: str) -> None:
    """Against the formulas: SNR = a / (1 - a), gamma 5."""
    config = objective_with(weighting=weighting)
    alpha = float(EPSILON.alphas_cumprod[100])
    snr = alpha / (1 - alpha)
    wanted = {"none": 1.0, "min-snr": min(snr, config.min_snr_gamma) / snr, "debiased": snr**-0.5, "snr": snr}[weighting]
    assert float(loss.weights(config, EPSILON, torch.tensor([100]))) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "restarts", "rex"])
def test_every_known_schedule_still_begins_whole_and_falls(name: str) -> None:
    config = optimizer_with(schedule=name, warmup_steps=0)
    factors = [schedules.factor(config, step, 100) for step in range(100)]
    assert factors[0] == 1 and (name == "constant") == (min(factors) == 1)
