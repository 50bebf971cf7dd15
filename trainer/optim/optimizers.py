"""Which optimizer is meant, with which options, and whether a run can rely on it.

Ours are named one by one; `other` takes any class of pytorch-optimizer. Those are 128, each with needs of its own, so
none is listed here as good or bad: `try_out` takes a few steps with it on small parameters, and refuses what needs a
model or a closure, what ignores the learning rate it is given, and what isn't bitwise the same after its state was
saved and put back.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib
import inspect
import io
import itertools
import json
import random
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trainer import choices, printing
from trainer.config import OptimizerConfig
from trainer.errors import ConfigError, RunError
from trainer.optim.saving import load_state, state

Scalar = bool | int | float | str | None | tuple[bool | int | float | str | None, ...]
Make = Callable[[list[list[nn.Parameter]]], torch.optim.Optimizer]

# Set by settings of their own, or senseless here.
_NOT_OPTIONS = {
    "params": "it is the adapter",
    "lr": "set learning_rate",
    "weight_decay": "set optimizer.weight_decay",
    "warmup_steps": "set optimizer.warmup_steps",
    "maximize": "it would unlearn",
    "differentiable": "nothing differentiates a step",
    "capturable": "steps are not captured",
}
_STEPS, _STOP = 24, 13  # SOAP and others refresh a matrix every ten steps


@dataclass(frozen=True)
class Choice:
    """A class, and what it is built with beside parameters, learning rate and weight decay."""

    cls: type[torch.optim.Optimizer]
    arguments: dict[str, Scalar]

    @property
    def takes_weight_decay(self) -> bool:
        return "weight_decay" in inspect.signature(self.cls).parameters

    @property
    def finds_rate(self) -> bool:
        """Whether it finds the learning rate by itself, so that ours is a factor on it."""
        return self.cls.__name__.startswith(("Prodigy", "DAdapt", "AdamG"))

    @property
    def averages(self) -> bool:
        """Whether the weights to use are others than those that are trained."""
        return hasattr(self.cls, "eval") and hasattr(self.cls, "train")


def choose(config: OptimizerConfig) -> Choice:
    """The optimizer these settings name. Raises: ConfigError with all that is wrong about it."""
    cls, fixed = _find(config)
    options, problems = {}, []
    for line in config.options:
        try:
            key, value = _parse(line)
            if key in options:
                raise ConfigError(f"optimizer.options has {key} twice; give it once.")
            _check(key, value, cls)
            options[key] = value
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(printing.listed(problems))
    return Choice(cls, {**fixed, **options})


# The class.


def _find(config: OptimizerConfig) -> tuple[type[torch.optim.Optimizer], dict[str, Scalar]]:
    """A class, and the arguments without which it isn't what we mean by that name."""
    if config.name == "adamw":
        # One kernel for many parameters: an adapter has hundreds of small parameters.
        return torch.optim.AdamW, {"fused": True}
    if config.name == "adamw8bit":
        return _package("bitsandbytes", "gpu").optim.AdamW8bit, {}
    if config.name == "adafactor":
        # transformers', not torch's, which always multiplies the rate by the parameter's own size, and `up` starts
        # at zero, so that with usual rates for LoRA it would hardly move. Here the rate is `learning_rate` itself.
        cls = importlib.import_module("transformers.optimization").Adafactor
        return cls, {"scale_parameter": False, "relative_step": False, "warmup_init": False}
    if config.name == "lion":
        return _package("pytorch_optimizer", "optim").Lion, {}
    if config.name == "prodigy":
        return _package("prodigyopt", "optim").Prodigy, {}
    if config.name == "schedule-free":
        return _package("schedulefree", "optim").AdamWScheduleFree, {}
    if config.name == "other":
        return _other(config.other), {}
    raise choices.unknown(config, "name", "optimizer.")


def _other(name: str) -> type[torch.optim.Optimizer]:
    """The class of pytorch-optimizer with this name."""
    package = _package("pytorch_optimizer", "optim")
    classes: dict[str, type[torch.optim.Optimizer]] = {}
    for key in package.get_supported_optimizers():
        cls = package.load_optimizer(key)
        classes[cls.__name__] = cls
    if name in classes:
        return classes[name]
    if inspect.isclass(getattr(package, name, None)):
        raise ConfigError(
            f"optimizer.other is {name!r}, which is no optimizer by itself: it wraps one, or is something else. Name "
            f"one such as AdEMAMix."
        )
    by_lower = {spelled.lower(): spelled for spelled in classes}
    close = [by_lower[lower] for lower in difflib.get_close_matches(name.lower(), by_lower, n=3)]
    hint = "it must be a class such as AdEMAMix, CAME, Prodigy, SOAP or StableAdamW."
    if close:
        hint = f"did you mean {' or '.join(close)}?"
    raise ConfigError(f"optimizer.other is {name!r}, which pytorch-optimizer doesn't have; {hint}")


def _package(module: str, extra: str) -> Any:
    """The module of an extra. Raises: ConfigError saying how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ConfigError(
            f"the chosen optimizer needs the package {module}, which is not installed; pip install 'velatura[{extra}]'."
        ) from None


# Its options.


def _parse(line: str) -> tuple[str, Scalar]:
    """Key and value of `betas=(0.9, 0.99)`: a number, true, false, none, a quoted text, or a tuple of these.

    Nothing is run: the value is read as a literal.
    """
    key, equals, text = (part.strip() for part in line.partition("="))
    if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
        raise ConfigError(f"optimizer.options has {line!r}; a line is key=value, such as betas=(0.9, 0.99).")
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return key, words[text.lower()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in what is then refused or kept as text
            value = ast.literal_eval(text) if len(text) <= 200 else ...
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = ...

    # What an optimizer can take, and a checkpoint can hold.
    plain = (bool, int, float, str, type(None))
    value = tuple(value) if isinstance(value, list) else value
    if isinstance(value, plain) or isinstance(value, tuple) and all(isinstance(part, plain) for part in value):
        return key, value
    raise ConfigError(
        f"optimizer.options has {line!r}; allowed as a value: a number, true, false, none, 'text', or a tuple such as "
        f"(0.9, 0.99)."
    )


def _check(key: str, value: Scalar, cls: type[torch.optim.Optimizer]) -> None:
    """Raises: ConfigError if the class doesn't take this option, or not such a value, going by its default."""
    # The option.
    named = {
        name: parameter
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    if key not in named:
        close = difflib.get_close_matches(key, named, n=1)
        allowed = ", ".join(name for name in named if name not in _NOT_OPTIONS)
        hint = f"; did you mean {close[0]}?" if close else "."
        raise ConfigError(f"optimizer.options has {key}, which {cls.__name__} doesn't take{hint} Allowed: {allowed}.")
    if key in _NOT_OPTIONS:
        raise ConfigError(f"optimizer.options has {key}, which can't be an option: {_NOT_OPTIONS[key]}.")

    # Its value: of the default's kind, which is all that a signature tells of every class.
    default = named[key].default
    number: tuple[type | tuple[type, ...], str] = ((int, float), "a number")
    kinds = {
        bool: (bool, "true or false"),
        int: number,
        float: number,
        str: (str, "a quoted text"),
        tuple: (tuple, "a tuple"),
    }
    kind, allowed = kinds.get(type(default), (object, ""))
    # A bool is an int to Python, and no number to an optimizer.
    fits = isinstance(value, kind) and not (isinstance(value, bool) and kind == (int, float))
    if isinstance(default, tuple) and isinstance(value, tuple) and len(value) != len(default):
        fits, allowed = False, f"a tuple of {len(default)}"
    if not fits and not (value is None and "None" in str(named[key].annotation)):
        raise ConfigError(
            f"optimizer.options has {key}={value!r}; allowed for {cls.__name__}: {allowed}, such as {default!r}."
        )


# Whether it can be relied on.


def quietly(build: Callable[[], torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """What `build` gives, ready to train. Some print on being built, which would end up between our own lines."""
    with contextlib.redirect_stdout(io.StringIO()):
        optimizer = build()
    if hasattr(optimizer, "train"):
        optimizer.train()
    return optimizer


def try_out(make: Make, shapes: Sequence[Sequence[tuple[int, ...]]]) -> str | None:
    """Why a run can't rely on this optimizer, in words, or None. `shapes`: of the parameters of each group.

    `make` builds it on groups of parameters. Takes some hundredths of a second and leaves random states as they were.
    """
    python = random.getstate()
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _try(make, shapes)
    except RunError as error:
        return str(error)
    except Exception as error:
        raise ConfigError(
            f"it can't be built on, or stepped with, an adapter's parameters alone ({type(error).__name__}: {error})"
        ) from error
    finally:
        random.setstate(python)


def _try(make: Make, shapes: Sequence[Sequence[tuple[int, ...]]]) -> str | None:
    """Why a run can't rely on it: its numbers, a stop in between, or its learning rates."""
    # Without a stop.
    whole = _parameters(shapes)
    _steps(make(whole), whole, range(_STEPS))
    if not all(bool(torch.isfinite(parameter).all()) for group in whole for parameter in group):
        return "it gave weights that are no numbers within a few steps"

    # Stopped, saved, built anew with other random numbers, and put back.
    first = _parameters(shapes)
    optimizer = make(first)
    _steps(optimizer, first, range(_STOP))
    tensors, values = state(optimizer)
    again = [[nn.Parameter(parameter.detach().clone()) for parameter in group] for group in first]
    torch.manual_seed(1)
    random.seed(1)
    optimizer = make(again)
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    load_state(optimizer, copies, json.loads(json.dumps(values, sort_keys=True)))
    _steps(optimizer, again, range(_STOP, _STEPS))
    if not _equal(whole, again):
        return (
            "it isn't the same after its state was saved and put back, or draws random numbers, so that a run "
            "couldn't be resumed"
        )

    # Built as before, but a group at half the rate.
    # A group that ends alike at half the rate has not read it.
    unmoved = []
    for number in range(len(whole)):
        half = _parameters(shapes)
        optimizer = make(half)
        optimizer.param_groups[number]["lr"] /= 2
        _steps(optimizer, half, range(_STEPS))
        if _equal(whole[number : number + 1], half[number : number + 1]):
            unmoved.append(number)
    if len(unmoved) == len(whole):
        return "it moves at a rate of its own: learning_rate, schedule and warm-up would not be read"
    if unmoved:
        return "it has one rate for all; set loraplus_ratio to 1, only 0 and 1 in block_rates, and no inversion.token"
    return None


def _parameters(shapes: Sequence[Sequence[tuple[int, ...]]]) -> list[list[nn.Parameter]]:
    """The same small random parameters each time; every second is zero, as `up` is at the start."""
    torch.manual_seed(0)
    random.seed(0)
    return [
        [nn.Parameter(torch.randn(shape) * (0.1 if number % 2 == 0 else 0.0)) for number, shape in enumerate(group)]
        for group in shapes
    ]


def _steps(optimizer: torch.optim.Optimizer, parameters: list[list[nn.Parameter]], steps: range) -> None:
    """Steps with gradients that depend on the step's number alone."""
    for step in steps:
        rng = torch.Generator().manual_seed(step)
        for parameter in itertools.chain.from_iterable(parameters):
            parameter.grad = torch.randn(parameter.shape, generator=rng)
        optimizer.step()


def _equal(left: list[list[nn.Parameter]], right: list[list[nn.Parameter]]) -> bool:
    pairs = zip(itertools.chain.from_iterable(left), itertools.chain.from_iterable(right), strict=True)
    return all(torch.equal(first, second) for first, second in pairs)
