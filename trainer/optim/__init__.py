"""The optimizer of a run: what it trains at which rate, its steps, and what is looked at in place of what is trained.

Which class it is stands in `optimizers`, its rate over the steps in `schedules`, its saved state in `saving`, the
running mean in `mean`. All is reached from here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainer import layer_patterns, printing
from trainer.config import OptimizerConfig, TrainConfig, starting
from trainer.errors import ConfigError
from trainer.optim.ema import Mean
from trainer.optim.optimizers import Choice, choose, quietly, try_out
from trainer.optim.saving import load_state, state
from trainer.optim.schedules import factor, is_schedule_free, of_extended

__all__ = [
    "Group", "Mean", "advice", "build", "check", "evaluation", "factor", "groups", "limit_norms", "load_state",
    "of_extended", "set_rate", "state",
]  # fmt: skip

_LORA_LIKE = ((4, 6), (6, 4), (4, 6), (6, 4))  # down and up of two layers
_DEFAULTS = OptimizerConfig()


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate."""

    parameters: list[nn.Parameter]
    rate: float  # factor on the learning rate
    name: str
    decays: bool = True  # whether weight decay applies


# What is trained at which rate.


def groups(parameters: dict[str, nn.Parameter], config: TrainConfig) -> list[Group]:
    """Parameters by rate, in the order of the first of each; those with a block rate of 0 no longer require gradients.

    LoRA+ multiplies the rate of `lora_B` (arXiv 2402.12354); the first line of block_rates that fits a name
    multiplies that one's. Embeddings have the rate set for them and no weight decay: it would pull a word towards no
    meaning at all.
    Raises: ConfigError if a line can't be read, or no parameter is left for it, or all are frozen.
    """
    lines, used = _block_rates(config.optimizer), set()
    by_rate: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        # The rate, as a factor on the learning rate.
        embedding = name.startswith("embedding.")
        if embedding:
            rate = config.inversion.learning_rate / config.learning_rate
        else:
            rate = config.optimizer.loraplus_ratio if "lora_B" in name else 1.0
            number = next((number for number, (text, _) in enumerate(lines) if layer_patterns.fits(text, name)), None)
            if number is not None:
                used.add(number)
                rate *= lines[number][1]

        # Its group; what has no rate is frozen.
        if rate == 0:
            parameter.requires_grad_(False)
        else:
            by_rate.setdefault((embedding, rate), []).append(parameter)

    # A line that fits nothing is a misspelt path.
    idle = [f"{text!r}" for number, (text, _) in enumerate(lines) if number not in used]
    if idle:
        raise ConfigError(
            f"optimizer.block_rates: nothing trained has {' or '.join(idle)} in its path, or an earlier line has all "
            f"that do. Paths are such as {', '.join(list(parameters)[:3])}."
        )
    if not by_rate:
        raise ConfigError("optimizer.block_rates freezes all there is to train; leave something.")
    return [Group(own, rate, _name(embedding, rate), not embedding) for (embedding, rate), own in by_rate.items()]


def _name(embedding: bool, rate: float) -> str:
    return "embedding" if embedding else "adapter" if rate == 1 else f"adapter x {rate:g}"


def _block_rates(config: OptimizerConfig) -> list[tuple[str, float]]:
    """Text and factor of each line. Raises: ConfigError naming the lines that can't be read."""
    rates, problems = [], []
    for line in config.block_rates:
        text, _, number = line.rpartition("=")
        try:
            rate = float(number)
        except ValueError:
            rate = math.nan
        if text.strip() and 0 <= rate <= 1000:
            rates.append((text.strip(), rate))
        else:
            problems.append(
                f"optimizer.block_rates has {line!r}; a line is TEXT=FACTOR, the factor 0 to 1000, such as "
                f"up_blocks.1=0.5."
            )
    if problems:
        raise ConfigError(printing.listed(problems))
    return rates


# Before the start.


def check(config: TrainConfig) -> list[str]:
    """What is wrong with the optimizer's settings, a sentence each.

    If need be, the optimizer is tried on small parameters.
    """
    settings = config.optimizer
    problems = _schedule_problems(config)

    # The rates that groups will have: those that a line of its own makes wrong are left out.
    rates = {1.0, settings.loraplus_ratio}
    for line in settings.block_rates:
        try:
            rates |= {rate for _, rate in _block_rates(settings.model_copy(update={"block_rates": (line,)}))}
        except ConfigError as error:
            problems.append(str(error))
    if config.inversion.token:
        rates.add(config.inversion.learning_rate / config.learning_rate)
    rates.discard(0.0)
    if settings.name == "prodigy" and len(rates) > 1:
        problems.append(
            "optimizer.name is 'prodigy', which has one rate for all; set loraplus_ratio to 1, only 0 and 1 in "
            "block_rates, and no inversion.token."
        )
        rates = {1.0}

    # The class, and what it can't be combined with.
    try:
        choice = choose(settings)
    except ConfigError as error:
        return [*problems, *str(error).split("\n")]
    problems += _class_problems(settings, choice)
    return problems + _tried(choice, [Group(_like(_LORA_LIKE), rate, str(rate)) for rate in sorted(rates)], config)


def _schedule_problems(config: TrainConfig) -> list[str]:
    settings, problems = config.optimizer, []
    steps = config.max_steps - settings.warmup_steps
    if settings.schedule == "restarts" and 2 * settings.cycles > steps:
        problems.append(
            f"optimizer.cycles is {settings.cycles}; allowed: at most {max(1, steps // 2)}, two steps each of the "
            f"{steps} after warm-up."
        )
    if is_schedule_free(settings) and settings.schedule not in ("constant", "cosine"):
        problems.append(
            f"optimizer.schedule is {settings.schedule!r}, but schedule-free averages in place of a falling rate; set "
            "it to constant."
        )
    return problems


def _class_problems(settings: OptimizerConfig, choice: Choice) -> list[str]:
    problems, name = [], choice.cls.__name__
    if not choice.takes_weight_decay and settings.weight_decay != _DEFAULTS.weight_decay:
        problems.append(
            f"optimizer.weight_decay is {settings.weight_decay}, but {name} has none; leave it at "
            f"{_DEFAULTS.weight_decay}."
        )
    if choice.averages and settings.ema_decay:
        problems.append(
            f"optimizer.ema_decay is {settings.ema_decay}, but {name} keeps a mean of its own; set it to 0."
        )
    if choice.averages and settings.max_weight_norm:
        problems.append(
            f"optimizer.max_weight_norm is {settings.max_weight_norm}, but {name} averages weights that are not "
            "limited; set it to 0."
        )
    return problems


def advice(config: TrainConfig) -> list[str]:
    """What is allowed and probably not meant, a sentence each."""
    settings, sentences = config.optimizer, []
    if settings.extended:
        step, steps = starting.lengths(settings.extended)[-1]
        what = of_extended(settings, step, config.max_steps)
        sentences.append(f"the run was extended at step {step} from {steps} to {config.max_steps} steps. {what}")
    try:
        finds_rate = choose(settings).finds_rate
    except ConfigError:  # check() says it
        return []
    if finds_rate and not 0.1 <= config.learning_rate <= 10:
        sentences.append(
            f"learning_rate is {config.learning_rate:g}, and multiplies the rate that "
            f"{settings.other or settings.name} finds by itself; 1 is usual."
        )
    guarded = any(line.startswith("safeguard_warmup") for line in settings.options)
    if settings.name == "prodigy" and settings.warmup_steps and not guarded:
        sentences.append(
            "prodigy takes a warm-up for progress; add safeguard_warmup=true to optimizer.options, or set "
            "optimizer.warmup_steps to 0."
        )
    if is_schedule_free(settings) and settings.schedule == "cosine":
        sentences.append(
            "schedule-free keeps the learning rate constant after warm-up; optimizer.schedule = cosine is not used."
        )
    return sentences


def _tried(choice: Choice, sample: list[Group], config: TrainConfig) -> list[str]:
    """Why this optimizer can't be used on parameters of these ndims.

    Ours are tried in tests, and here if they have options.
    """
    if config.optimizer.name != "other" and not config.optimizer.options:
        return []

    def make(parameters: list[list[nn.Parameter]]) -> torch.optim.Optimizer:
        groups = [Group(own, group.rate, group.name) for own, group in zip(parameters, sample, strict=True)]
        return _construct(choice, groups, config)

    try:
        problem = try_out(make, [[tuple(parameter.shape) for parameter in group.parameters] for group in sample])
    except ConfigError as error:
        problem = str(error)
    if not problem:
        return []
    options = ", ".join(config.optimizer.options)
    name = f"{choice.cls.__name__} with {options}" if options else choice.cls.__name__
    return [
        f"optimizer {name} can't be used: {problem.rstrip('.')}. Choose another, such as AdEMAMix, CAME, SOAP or "
        "StableAdamW."
    ]


def _like(shapes: tuple[tuple[int, ...], ...]) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(shape)) for shape in shapes]


# The optimizer.


def build(groups: list[Group], config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer, in training, a param group each; `rate` and `name` stand in them.

    Raises: ConfigError if it can't be had, an option is wrong, or it can't deal with parameters of these shapes.
    """
    choice = choose(config.optimizer)
    small = [
        Group(_like(tuple({_shrunk(parameter): None for parameter in group.parameters})), group.rate, group.name)
        for group in groups
    ]
    if problems := _tried(choice, small, config):
        raise ConfigError(printing.listed(problems))
    return _construct(choice, groups, config)


def _shrunk(parameter: nn.Parameter) -> tuple[int, ...]:
    return tuple(min(6, size) for size in parameter.shape)


def _construct(choice: Choice, groups: list[Group], config: TrainConfig) -> torch.optim.Optimizer:
    # What it is built with; torch's fused step is for CPUs and Nvidia's GPUs only.
    arguments = dict(choice.arguments)
    if arguments.get("fused") and groups[0].parameters[0].device.type not in ("cpu", "cuda"):
        del arguments["fused"]

    # A param group each; embeddings are not decayed.
    param_groups: list[dict[str, Any]] = [
        {"params": group.parameters, "lr": config.learning_rate * group.rate, "rate": group.rate, "name": group.name}
        for group in groups
    ]
    if choice.takes_weight_decay:
        arguments["weight_decay"] = config.optimizer.weight_decay
        for param_group, group in zip(param_groups, groups, strict=True):
            if not group.decays:
                param_group["weight_decay"] = 0.0
    cls: Any = choice.cls  # each takes what its own signature says
    optimizer = quietly(lambda: cls(param_groups, lr=config.learning_rate, **arguments))
    for param_group, group in zip(optimizer.param_groups, groups, strict=True):  # some drop keys that they don't know
        param_group["rate"], param_group["name"] = group.rate, group.name
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, config: TrainConfig, step: int) -> float:
    """Give every group its learning rate at `step` (0-based); the rate before the groups' own factors."""
    learning_rate = config.learning_rate * factor(config.optimizer, step, config.max_steps)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["rate"]
    return learning_rate


@contextmanager
def evaluation(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """The parameters are those to be used, for the body: the averages of a schedule-free optimizer.

    Those of others stay as they are. Bitwise as before afterwards, which schedulefree's own train() is not: it computes
    its way back. Checkpoints are taken outside, of the parameters that are trained.
    """
    training = all(group.get("train_mode", True) for group in optimizer.param_groups)  # false within another evaluation
    if not (hasattr(optimizer, "eval") and hasattr(optimizer, "train")) or not training:
        yield
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    kept = [parameter.detach().clone() for parameter in parameters]
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)


# After a step.


@torch.no_grad()
def limit_norms(modules: list[tuple[Tensor, Tensor, float]], limit: float) -> Tensor:
    """Scale back the updates longer than `limit`, both factors alike; how many there were, on their device.

    Each is (down (r, in, ...), up (out, r, ...), scale), its length the Frobenius norm of scale * up @ down, from r x r
    matrices: sum((up^T up) * (down down^T)). As sd-scripts' `scale_weight_norms`.
    """
    norms = []
    for down, up, scale in modules:
        a, b = down.flatten(1).float(), up.flatten(1).float()  # (r, in), (out, r)
        norms.append(scale * ((b.T @ b) * (a @ a.T)).sum().clamp(min=0).sqrt())
    if not norms:
        return torch.zeros((), dtype=torch.long)

    # The product shrinks by the ratio when each factor shrinks by its root.
    ratios = limit / torch.stack(norms)
    for (down, up, _), ratio in zip(modules, ratios.clamp(max=1).sqrt(), strict=True):
        down.mul_(ratio)
        up.mul_(ratio)
    return (ratios < 1).sum()
