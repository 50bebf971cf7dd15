"""What is trained at which rate, the schedules, what is looked at in place of what is trained, and the norm limit."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn
from transformers import (
    get_cosine_schedule_with_warmup,
    get_cosine_with_hard_restarts_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from trainer import optim
from trainer.config import OptimizerConfig, TrainConfig
from trainer.errors import ConfigError, RunError


def configured(
    learning_rate: float = 1e-3, max_steps: int = 200, inversion: dict | None = None, **optimizer
) -> TrainConfig:
    values = {
        "family": "sd",
        "base": "x",
        "adapter": {"method": "lora"},
        "learning_rate": learning_rate,
        "max_steps": max_steps,
        "optimizer": optimizer,
    }
    return TrainConfig.model_validate({**values, "inversion": inversion or {}})


def lora(layers: tuple[str, ...] = ("down_blocks.0.to_q", "up_blocks.1.to_q")) -> dict[str, nn.Parameter]:
    torch.manual_seed(0)
    shapes = {"lora_A": (4, 6), "lora_B": (8, 4)}
    return {
        f"unet.{layer}.{factor}.weight": nn.Parameter(torch.randn(shape))
        for layer in layers
        for factor, shape in shapes.items()
    }


def step(optimizer: torch.optim.Optimizer, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.randn(parameter.shape, generator=rng)
    optimizer.step()


# What is trained at which rate.


def test_plain_settings_make_one_group_in_the_parameters_order() -> None:
    parameters = lora()
    (group,) = optim.groups(parameters, configured())
    assert (group.rate, group.name) == (1.0, "adapter") and all(
        parameter is other for parameter, other in zip(group.parameters, parameters.values(), strict=True)
    )


def test_loraplus_gives_up_its_own_rate() -> None:
    down, up = optim.groups(lora(), configured(loraplus_ratio=16))
    assert [parameter.shape[0] for parameter in down.parameters] == [4, 4] and [
        parameter.shape[0] for parameter in up.parameters
    ] == [8, 8]
    assert (down.rate, up.rate) == (1.0, 16.0)


def test_the_first_matching_block_rate_counts_and_zero_freezes() -> None:
    parameters = lora(("down_blocks.0.to_q", "up_blocks.1.to_q", "mid_block.to_q"))
    first, second = optim.groups(parameters, configured(block_rates=("down_blocks.0 = 0.5", "blocks=0")))
    assert (first.rate, second.rate) == (0.5, 1.0)
    assert [name for name, parameter in parameters.items() if not parameter.requires_grad] == [
        name for name in parameters if "up_blocks" in name
    ]
    assert len(first.parameters) == len(second.parameters) == 2


def test_block_rates_and_loraplus_multiply() -> None:
    groups = optim.groups(lora(), configured(block_rates=("up_blocks=0.5",), loraplus_ratio=4))
    assert [group.rate for group in groups] == [1.0, 4.0, 0.5, 2.0]


@pytest.mark.parametrize(
    "line", ["up_blocks", "=1", "up_blocks=x", "up_blocks=-1", "up_blocks=nan", "up_blocks=inf", ""]
)
def test_an_unreadable_block_rate_is_named(line: str) -> None:
    with pytest.raises(ConfigError) as raised:
        optim.groups(lora(), configured(block_rates=("mid=1", line)))
    assert repr(line) in str(raised.value)
    assert any(repr(line) in problem for problem in optim.check(configured(block_rates=("mid=1", line))))


@pytest.mark.parametrize(
    ("lines", "idle"), [(("middle=0.5",), "middle"), (("down=0.5", "down_blocks.0=1"), "down_blocks.0")]
)
def test_a_block_rate_that_nothing_reads_is_refused(lines: tuple[str, ...], idle: str) -> None:
    with pytest.raises(ConfigError, match=f"{idle}.*unet.down_blocks.0.to_q.lora_A.weight"):
        optim.groups(lora(), configured(block_rates=lines))


def test_freezing_everything_is_refused() -> None:
    with pytest.raises(ConfigError, match="freezes all"):
        optim.groups(lora(), configured(block_rates=("unet=0",)))


@pytest.mark.parametrize("name", ["adamw", "schedule-free", "adafactor"])
def test_a_new_word_has_its_own_rate_and_no_weight_decay(name: str) -> None:
    config = configured(
        name=name,
        inversion={"token": "mokka", "learning_rate": 5e-3},
        weight_decay=0.1,
        loraplus_ratio=2,
        warmup_steps=10,
    )
    groups = optim.groups({**lora(), "embedding.mokka": nn.Parameter(torch.randn(2, 32))}, config)
    optimizer = optim.build(groups, config)
    assert optim.set_rate(optimizer, config, 4) == 0.5e-3
    rates = {group["name"]: (round(group["lr"], 9), group["weight_decay"]) for group in optimizer.param_groups}
    assert rates == {"adapter": (0.5e-3, 0.1), "adapter x 2": (1e-3, 0.1), "embedding": (2.5e-3, 0.0)}


# Schedules.


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("linear", get_linear_schedule_with_warmup),
        ("cosine", get_cosine_schedule_with_warmup),
        ("restarts", lambda *args: get_cosine_with_hard_restarts_schedule_with_warmup(*args, num_cycles=3)),
    ],
)
def test_schedules_equal_those_of_transformers(name: str, theirs) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, config = (
        theirs(optimizer, 10, 100),
        OptimizerConfig.model_validate({"schedule": name, "warmup_steps": 10, "cycles": 3}),
    )
    for number in range(100):
        if number >= 10:  # theirs warms up from 0, a step without any learning
            assert math.isclose(scheduler.get_last_lr()[0], optim.factor(config, number, 100), abs_tol=1e-6), number
        optimizer.step()
        scheduler.step()


def test_rex_stays_above_linear_and_ends_with_it() -> None:
    rex, linear = (
        [optim.factor(OptimizerConfig.model_validate({"schedule": name}), number, 100) for number in range(101)]
        for name in ("rex", "linear")
    )
    assert rex[0] == 1 and rex[100] == 0 and rex[50] == pytest.approx(2 / 3)
    assert all(rate > other for rate, other in zip(rex[1:100], linear[1:100], strict=True))


@hypothesis_settings(max_examples=200)
@given(
    st.sampled_from(["constant", "linear", "cosine", "restarts", "rex"]), st.integers(1, 2000), st.integers(0, 1999),
    st.integers(1, 100),
    st.sampled_from(["adamw", "schedule-free"]),
)  # fmt: skip
def test_every_schedule_warms_up_and_never_leaves_0_to_1(
    schedule: str, max_steps: int, warmup: int, cycles: int, name: str
) -> None:
    warmup = min(warmup, max_steps - 1)
    config = OptimizerConfig.model_validate(
        {"schedule": schedule, "warmup_steps": warmup, "cycles": cycles, "name": name}
    )
    factors = [optim.factor(config, number, max_steps) for number in range(max_steps)]
    assert all(0 <= factor <= 1 for factor in factors) and factors[min(warmup, max_steps - 1)] == 1
    assert all(factor < other for factor, other in zip(factors[:warmup], factors[1:warmup], strict=False))
    after, jump = factors[warmup:], math.pi / 2 * (cycles if schedule == "restarts" else 1) / (max_steps - warmup)
    restarts = sum(other > factor for factor, other in zip(after, after[1:], strict=False))
    assert restarts <= (cycles - 1 if schedule == "restarts" and name == "adamw" else 0)
    limit = 2 * jump if schedule == "rex" else jump
    assert all(
        factor - other <= max(limit, 2 / (max_steps - warmup)) + 1e-9
        for factor, other in zip(after, after[1:], strict=False)
    )
    assert 0 <= optim.factor(config, max_steps + 5, max_steps) <= 1


def test_a_schedule_that_schedule_free_would_not_follow_is_refused_unless_it_is_the_default() -> None:
    assert optim.check(configured(name="schedule-free", schedule="rex"))[0].startswith("optimizer.schedule is 'rex'")
    assert optim.check(configured(name="other", other="ScheduleFreeSGD", schedule="linear"))[0].startswith(
        "optimizer.schedule is 'linear'"
    )
    assert (
        not optim.check(configured(name="schedule-free"))
        and "not used" in optim.advice(configured(name="schedule-free"))[0]
    )
    assert not optim.advice(configured(name="schedule-free", schedule="constant"))
    assert [
        optim.factor(OptimizerConfig(name="schedule-free", warmup_steps=4), number, 10) for number in (0, 3, 9)
    ] == [0.25, 1.0, 1.0]


def test_more_restarts_than_steps_are_refused() -> None:
    assert not optim.check(configured(schedule="restarts", cycles=100))
    assert (
        "optimizer.cycles is 100; allowed: at most 95"
        in optim.check(configured(schedule="restarts", cycles=100, warmup_steps=10))[0]
    )


def test_prodigy_is_told_apart_from_other_rates() -> None:
    assert not optim.advice(configured(name="prodigy", learning_rate=1.0)) and not optim.check(
        configured(name="prodigy")
    )
    for values in ({"name": "prodigy"}, {"name": "other", "other": "DAdaptAdam"}):
        assert "1 is usual" in optim.advice(configured(learning_rate=1e-4, **values))[0]
    assert not optim.advice(configured(name="other", other="AdEMAMix"))
    assert "safeguard_warmup" in optim.advice(configured(name="prodigy", learning_rate=1.0, warmup_steps=5))[0]
    for values in ({"loraplus_ratio": 4}, {"block_rates": ("up=0.5",)}):
        assert "one rate for all" in optim.check(configured(name="prodigy", **values))[0]
    assert "one rate for all" in optim.check(configured(name="prodigy", inversion={"token": "mokka"}))[0]
    assert not optim.check(configured(name="prodigy", block_rates=("up=0",)))


# What is looked at in place of what is trained.


def test_adamw_steps_bitwise_as_torch_alone() -> None:
    config, parameters = configured(weight_decay=0.02), lora()
    theirs = copy.deepcopy(list(parameters.values()))
    ours, plain = (
        optim.build(optim.groups(parameters, config), config),
        torch.optim.AdamW(theirs, lr=1e-3, weight_decay=0.02, fused=True),
    )
    for number in range(5):
        rate = optim.set_rate(ours, config, number)
        plain.param_groups[0]["lr"] = rate
        step(ours, number)
        step(plain, number)
    assert all(torch.equal(parameter, other) for parameter, other in zip(parameters.values(), theirs, strict=True))


@pytest.mark.parametrize(
    "chosen",
    [{"name": "schedule-free"}, {"name": "other", "other": "ScheduleFreeAdamW"}, {"name": "other", "other": "SPlus"}],
    ids=str,
)
def test_evaluation_shows_the_average_and_changes_nothing(chosen: dict) -> None:
    config = configured(learning_rate=0.1, **chosen)
    runs = []
    for look in (False, True):
        parameters = lora()
        optimizer = optim.build(optim.groups(parameters, config), config)
        for number in range(6):
            step(optimizer, number)
            if look:
                before = [parameter.detach().clone() for parameter in parameters.values()]
                with optim.evaluation(optimizer):
                    assert (
                        not all(
                            torch.equal(tensor, other)
                            for tensor, other in zip(before, parameters.values(), strict=True)
                        )
                        or number == 0
                    )
                    with optim.evaluation(optimizer):  # harmless
                        pass
                    assert not optimizer.param_groups[0].get("train_mode", False)
                assert all(
                    torch.equal(tensor, other) for tensor, other in zip(before, parameters.values(), strict=True)
                )
        runs.append(parameters)
    assert all(torch.equal(tensor, runs[1][name]) for name, tensor in runs[0].items())


def test_schedule_free_shows_the_mean_of_its_iterates() -> None:
    config = configured(learning_rate=0.1, name="schedule-free", weight_decay=0, schedule="constant")
    parameters = lora()
    optimizer = optim.build(optim.groups(parameters, config), config)
    iterates = []
    for number in range(7):
        step(optimizer, number)
        iterates.append([optimizer.state[tensor]["z"].clone() for tensor in parameters.values()])
    with optim.evaluation(optimizer):  # equal rates, so arXiv 2405.15682, eq. 5: c = 1 / t
        for number, parameter in enumerate(parameters.values()):
            torch.testing.assert_close(
                parameter.detach(), torch.stack([iterate[number] for iterate in iterates]).mean(0), rtol=1e-4, atol=1e-5
            )


def test_evaluation_is_over_when_the_body_fails() -> None:
    config = configured(name="schedule-free")
    optimizer = optim.build(optim.groups(lora(), config), config)
    step(optimizer, 0)
    with pytest.raises(RuntimeError, match="preview"), optim.evaluation(optimizer):
        raise RuntimeError("preview")
    step(optimizer, 1)


def test_mean_weighs_each_state_by_the_formula_and_the_first_by_nothing() -> None:
    parameters = lora()
    mean, wanted = optim.Mean(parameters, 0.6), {}
    for number in range(20):
        with torch.no_grad():
            for parameter in parameters.values():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
        mean.update()
        decay = min(0.6, (1 + number) / (10 + number)) if number else 0.0
        wanted = {
            name: decay * wanted.get(name, 0.0) + (1 - decay) * tensor.detach().double()
            for name, tensor in parameters.items()
        }
    means = mean.tensors()
    for name, parameter in wanted.items():
        torch.testing.assert_close(means[name], parameter.float())


def test_mean_is_swapped_in_and_out_bitwise_even_when_the_body_fails() -> None:
    parameters = {name: nn.Parameter(parameter.detach().bfloat16()) for name, parameter in lora().items()}
    mean = optim.Mean(parameters, 0.9)
    mean.load(
        {name: torch.full_like(tensor, 0.5) if tensor.ndim else tensor for name, tensor in mean.tensors().items()}
    )
    assert all(tensor.dtype == torch.float32 for tensor in mean.tensors().values() if tensor.ndim)
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    with pytest.raises(RuntimeError), mean.swapped():
        assert all(bool((parameter == 0.5).all()) for parameter in parameters.values())
        raise RuntimeError
    assert all(
        torch.equal(parameter, before[name]) and parameter.dtype == torch.bfloat16
        for name, parameter in parameters.items()
    )


def test_a_resumed_mean_goes_on_as_if_never_stopped() -> None:
    whole, parameters = None, lora()
    for stop in (None, 4):
        parameters = lora()
        mean = optim.Mean(parameters, 0.99)
        for number in range(9):
            if number == stop:
                saved = {name: tensor.clone() for name, tensor in mean.tensors().items()}
                mean = optim.Mean(parameters, 0.99)
                mean.load(saved)
            with torch.no_grad():
                for parameter in parameters.values():
                    parameter.mul_(1.1)
            mean.update()
        whole = whole or mean.tensors()
    assert all(torch.equal(tensor, mean.tensors()[name]) for name, tensor in whole.items())
    with pytest.raises(RunError, match="running mean"):
        optim.Mean(lora(("other",)), 0.9).load(whole)


# The norm limit.


@pytest.mark.parametrize("shapes", [((4, 20), (12, 4)), ((4, 3, 3, 3), (12, 4, 1, 1))], ids=["linear", "conv"])
def test_norms_above_the_limit_are_scaled_to_it_and_no_others(shapes: tuple) -> None:
    torch.manual_seed(0)
    factors = [
        (nn.Parameter(torch.randn(shapes[0]) * size), nn.Parameter(torch.randn(shapes[1]) * size), 0.5)
        for size in (0.01, 1.0, 3.0, 0.0)
    ]
    before = [(down.detach().clone(), up.detach().clone()) for down, up, _ in factors]
    assert optim.limit_norms(factors, 1.0) == 2
    for number, (down, up, scale) in enumerate(factors):
        norm = float((scale * up.flatten(1) @ down.flatten(1)).detach().norm())
        if number in (1, 2):
            assert norm == pytest.approx(1.0, rel=1e-5)
            ratio = (up.detach() / before[number][1]).flatten()[0]
            torch.testing.assert_close(down.detach(), before[number][0] * ratio)
        else:
            assert torch.equal(down, before[number][0]) and torch.equal(up, before[number][1])


def test_limiting_nothing_is_nothing() -> None:
    assert optim.limit_norms([], 1.0) == 0
