"""A value that a setting may have and the code has no branch for is refused by name, never read as the last of the
others.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_origin

import pytest
import torch

from trainer import loss, methods, objective, session
from trainer.config import MemoryConfig, ObjectiveConfig, OptimizerConfig, StackConfig, TrainConfig, parse
from trainer.config.data import CaptionsConfig
from trainer.data import buckets, scanning
from trainer.errors import ConfigError
from trainer.memory import attention, compiling, quantising
from trainer.objective import Schedule
from trainer.optim import optimizers, schedules
from trainer.render.engine import Engine
from trainer.schema import Settings
from trainer.training_model import TrainingModel

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
        (
            lambda: loss.weights(objective_with(weighting="p2"), EPSILON, torch.tensor([5])),
            ("objective.weighting is 'p2'.*allowed: none, min-snr"),
        ),
        (
            lambda: loss.elements(objective_with(loss="l1"), PAIR, PAIR),
            ("objective.loss is 'l1'.*allowed: l2, huber, smooth_l1"),
        ),
        (
            lambda: loss.draw_timesteps(objective_with(timesteps="beta"), EPSILON, 1, RNG, 4),
            ("objective.timesteps is 'beta'.*allowed: uniform, logit-normal"),
        ),
        (
            lambda: loss.draw_timesteps(objective_with(shift="flux"), EPSILON, 1, RNG, 4),
            ("objective.shift is 'flux'.*allowed: none, fixed, resolution"),
        ),
        (
            lambda: schedules.factor(optimizer_with(schedule="step"), 50, 100),
            ("optimizer.schedule is 'step'.*allowed: constant, linear, cosine"),
        ),
        (lambda: optimizers._find(optimizer_with(name="sgd")), "optimizer.name is 'sgd'.*allowed: adamw, adamw8bit"),
        (
            lambda: quantising.quantise(torch.nn.Linear(2, 2), "int4"),
            ("memory.quantise is 'int4'.*allowed: none, int8, nf4, fp8"),
        ),
        (
            lambda: objective.target(Schedule("x0", EPSILON.alphas_cumprod), PAIR, PAIR, torch.tensor([5])),
            "predicts 'x0'; allowed: epsilon, v, flow",
        ),
    ],
)
def test_an_unknown_choice_is_refused_by_name(call: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        call()


@pytest.mark.parametrize("weighting", ["none", "min-snr", "debiased", "snr"])
def test_every_known_weighting_still_weighs(weighting: str) -> None:
    """Against the formulas: SNR = a / (1 - a), gamma 5."""
    config = objective_with(weighting=weighting)
    alpha = float(EPSILON.alphas_cumprod[100])
    snr = alpha / (1 - alpha)
    wanted = {"none": 1.0, "min-snr": min(snr, config.min_snr_gamma) / snr, "debiased": snr**-0.5, "snr": snr}[
        weighting
    ]
    assert float(loss.weights(config, EPSILON, torch.tensor([100]))) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "restarts", "rex"])
def test_every_known_schedule_still_begins_whole_and_falls(name: str) -> None:
    config = optimizer_with(schedule=name, warmup_steps=0)
    factors = [schedules.factor(config, step, 100) for step in range(100)]
    assert factors[0] == 1 and (name == "constant") == (min(factors) == 1)


# Every setting of a few words, through the doors of a training.


def words(model: type[Settings], section: str = "") -> Iterator[tuple[str, str]]:
    """The section and key of every setting that is one of a few words."""
    for key, field in model.model_fields.items():
        if get_origin(field.annotation) is Literal:
            yield section, key
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            yield from words(field.annotation, f"{section}{key}.")


def changed(config: TrainConfig, section: str, key: str) -> TrainConfig:
    """The same with a word that no code knows, as a version to come may have one."""
    group = section.removesuffix(".")
    return config.model_copy(
        update={key: "woven"} if not group else {group: getattr(config, group).model_copy(update={key: "woven"})}
    )


SETTINGS = sorted(
    {
        *words(TrainConfig),
        *(("adapter.", key) for module in methods.registry().values() for _, key in words(module.Config)),
    }
)


@pytest.mark.parametrize("section, key", SETTINGS)
def test_no_training_starts_and_no_base_is_opened_with_an_unknown_choice(
    section: str, key: str, tmp_path: Path
) -> None:
    method = next(
        name
        for name, module in methods.registry().items()
        if section != "adapter." or key in module.Config.model_fields
    )
    config = parse(
        TrainConfig,
        {"family": "sd", "base": "imprimatura", "adapter": {"method": method}, "data": {"folder": str(tmp_path)}},
        "x",
    )
    odd = changed(config, section, key)
    for door in (lambda: session.start(odd, tmp_path / "runs", "x", None), lambda: TrainingModel.open(odd)):
        with pytest.raises(
            ConfigError, match=re.escape(f"{section}{key} is 'woven', which nothing here computes; allowed: ")
        ):
            door()
    assert not (tmp_path / "runs").exists()


def test_the_words_are_found_in_every_section() -> None:
    assert {"", "adapter.", "captions.", "data.", "memory.", "objective.", "optimizer."} <= {
        section for section, _ in SETTINGS
    }
    wanted = {
        ("memory.", "attention"),
        ("memory.", "compile"),
        ("memory.", "offload"),
        ("data.", "crop"),
        ("data.", "mask"),
        ("captions.", "lines"),
    }
    assert wanted | {("captions.", "long"), ("", "device"), ("adapter.", "targets"), ("adapter.", "init")} <= set(
        SETTINGS
    )


def test_a_stack_of_another_version_is_not_drawn_as_one_of_this() -> None:
    with pytest.raises(ConfigError, match="version is 'woven'.*allowed: 1"):
        Engine("imprimatura", device="cpu").render(StackConfig(steps=1).model_copy(update={"version": "woven"}))


def test_a_reader_refuses_a_word_that_it_has_no_branch_for() -> None:
    odd: Any = "woven"
    layer = torch.nn.Linear(2, 2)
    for call in (
        lambda: buckets.cuts(odd),
        lambda: scanning._is_own_mask(odd),
        lambda: scanning._captions("a", "", CaptionsConfig().model_copy(update={"lines": odd})),
        lambda: compiling.choose(layer, MemoryConfig().model_copy(update={"compile": odd}), 1, lambda: 1, "cpu"),
        lambda: attention.choose(layer, odd, "cpu", torch.float32),
    ):
        with pytest.raises(ConfigError, match="'woven'.*nothing here computes"):
            call()
