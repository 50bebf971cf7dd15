"""The denoiser's repeated blocks compiled: each kind once, used for all of its kind.

At batch 1 a GPU waits for Python: on an H100 with torch 2.11 four pictures of SDXL took the time of one, and compiling
its transformer blocks took plain diffusers from 0.56 to 0.34 s a step, after 27 s. Ours is not measured yet (`velatura
bench gpu` does). `auto` weighs what compiling took on this machine against what it spares the steps ahead
(`compile_times`), and where nothing was measured goes by the run's length; a CPU gains nothing.
Blocks of a few shapes are compiled for each of them, and for shapes as such beyond that; which, is known before
the first step and so the same in a resumed run. `graphs` also records whole passes and replays them (`graphing`).

A compiled step rounds otherwise than an eager one: the same settings give the same bytes on the same machine and
versions, and a resumed run goes on with what the checkpoint says was chosen; another GPU or version of torch may differ
in the last bits.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
import traceback
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from trainer import choices, forwards, system
from trainer.config import MemoryConfig, TrainConfig
from trainer.memory.compile_times import Times

BACKEND: Any = "inductor"  # what torch compiles with
_WORTH_PASSES = 400  # forward and backward passes; those 27 s are won back after 130
_MOST_VARIANTS = 6  # of widths and shapes compiled apart; torch keeps eight of a function
_OLDEST = (7, 0)  # the capability of GPUs from which on Triton compiles for them
_SLOWER = ("graphs", "blocks", "off")  # each in the place of the way before it, where that can't be
_LONGEST = 200  # of a cause in a sentence
_RULED_OUT = "memory.compile is {!r}, which doesn't go with {}; allowed with it: auto, off."


class Passes(NamedTuple):
    """Forward and backward passes of a run."""

    steps: int
    a_step: int

    @property
    def number(self) -> int:
        return self.steps * self.a_step


class Choice(NamedTuple):
    """Settings, and a sentence on what `auto` went by where it had a choice."""

    settings: MemoryConfig
    reason: str = ""


def check(settings: MemoryConfig, device: str) -> list[str]:
    """A sentence for each setting that can't go with the way of compiling, or is missing for it."""
    chosen, problems = settings.compile, []
    if chosen in ("auto", "off"):
        return []
    if settings.offload == "blocks":
        problems.append(_RULED_OUT.format(chosen, "memory.offload=blocks"))
    if settings.attention == "plain":
        problems.append(_RULED_OUT.format(chosen, "memory.attention=plain"))
    if settings.shard:
        problems.append(_RULED_OUT.format(chosen, "memory.shard"))
    if chosen == "graphs":
        problems += _against_graphs(settings, device)
    if missing := _missing_compiler(device):
        problems.append(f"memory.compile is {chosen!r}, which needs {missing}; allowed without: auto, off.")
    return problems


def _against_graphs(settings: MemoryConfig, device: str) -> list[str]:
    problems = []
    if device != "cuda":
        problems.append(f"memory.compile is 'graphs', but the run is on {device}; allowed there: auto, off, blocks.")
    if settings.gradient_checkpointing or settings.offload_activations:
        problems.append(
            "memory.compile is 'graphs', which keeps what it computes where it is; allowed with checkpointing and "
            "offloaded activations: blocks."
        )
    return problems


def against_recording(config: TrainConfig) -> list[str]:
    """A sentence if a pass of such a run draws numbers, or reads captions, which a recording would repeat."""
    reasons = {
        "adapter.dropout": getattr(config.adapter, "dropout", 0.0),
        "adapter.text_encoder": getattr(config.adapter, "text_encoder", False),
        "inversion.token": config.inversion.token,
        "objective.preservation_weight": config.objective.preservation_weight,
    }
    names = [name for name, value in reasons.items() if value]
    if config.memory.compile != "graphs" or not names:
        return []
    return [
        f"memory.compile is 'graphs', which doesn't go with {', '.join(names)}; allowed with it: auto, off, blocks."
    ]


def possible(settings: MemoryConfig, device: str) -> MemoryConfig:
    """The settings, with a slower way of compiling where theirs doesn't go with the rest of them."""
    ways = _SLOWER[_SLOWER.index(settings.compile) :] if settings.compile in _SLOWER else ()
    tried = (settings.model_copy(update={"compile": way}) for way in ways)
    return next((way for way in tried if not check(way, device)), settings)


def _missing_compiler(device: str) -> str:
    """What torch compiles with and this machine lacks; empty if nothing."""
    if device != "cuda":
        names = system.cpp_compilers()
        return "" if any(map(shutil.which, names)) else f"a C++ compiler ({' or '.join(names)})"
    if not find_spec("triton"):
        return "triton (pip install triton, or triton-windows)"
    if torch.cuda.is_available() and torch.cuda.get_device_capability(device) < _OLDEST:
        return "a GPU of 2017 (Volta) or later"
    # What starts Triton's kernels is a C program, compiled here.
    names = system.c_compilers()
    if names and not os.environ.get("CC") and not any(map(shutil.which, names)):
        return f"a C compiler ({' or '.join(names)})"
    if names and not Path(sysconfig.get_path("include", "posix_prefix"), "Python.h").is_file():
        return "Python's header files (the package python3-dev)"
    return ""


def failure(error: BaseException) -> str:
    """What compiling, or what was compiled, failed of, in a line; empty if the error is about something else."""
    # By the modules: to import torch.compile's own errors would load all of it.
    raised = [kind.__module__ for kind in type(error).__mro__]
    passed = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    compiled = any(module.startswith(("torch._inductor", "triton")) for module in [*raised, *passed])
    if not compiled and not any(module.startswith("torch._dynamo") for module in raised):
        return ""
    inner = getattr(error, "inner_exception", error)  # torch's own words around it tell how to debug
    return (str(inner).strip().split("\n")[0] or type(inner).__name__)[:_LONGEST]


def is_possible(settings: MemoryConfig, device: str) -> bool:
    """True if blocks can be compiled here beside the other settings, and such a device may gain by it."""
    return device.startswith("cuda") and not check(settings.model_copy(update={"compile": "blocks"}), "cuda")


def choose(
    denoiser: nn.Module,
    settings: MemoryConfig,
    passes: Passes,
    num_shapes: Callable[[], int],
    device: str,
    times: Callable[[], Times] = Times,
) -> Choice:
    """The settings with what was chosen in `auto`'s place; the denoiser's blocks are then compiled, or not.

    `auto` goes by the passes ahead and by what was measured of such before, which is `times()`. May be called again:
    what was compiled before is taken back first.
    """
    choices.check(settings, "memory.")
    blocks, reason = repeated(denoiser), ""
    if settings.compile == "auto":
        chosen = "off"
        if is_possible(settings, device) and blocks:
            chosen, reason = weighed(times(), passes)
    else:  # settings of another machine, or another number of processes
        chosen = possible(settings, device.partition(":")[0]).compile

    # For shapes as such only where there are too many of them to compile each.
    dynamic = chosen != "off" and num_shapes() * _num_kinds(blocks) > _MOST_VARIANTS
    compiled = partial(torch.compile, dynamic=dynamic, backend=BACKEND)
    for block in blocks:
        forwards.unwrap(block, "compiled")
        if chosen != "off":
            forwards.wrap(block, "compiled", compiled)
    return Choice(settings.model_copy(update={"compile": chosen}), reason)


def weighed(times: Times, passes: Passes) -> tuple[str, str]:
    """Whether `auto` compiles blocks for so many passes, by what was measured or else by a rule, and a sentence."""
    saved_s = times.saved_s(passes.number)
    if saved_s is None:
        chosen = "blocks" if passes.number >= _WORTH_PASSES else "off"
        return chosen, (
            f"memory.compile=auto takes {chosen!r} by a rule ({_WORTH_PASSES} passes or more are compiled, this run "
            f"has {passes.number}): how long compiling this model takes here has not been measured; --rehearse does."
        )
    chosen = "blocks" if saved_s > 0 else "off"
    return chosen, (
        f"memory.compile=auto takes {chosen!r}, {abs(saved_s):.0f} s faster for {passes.number} passes: compiled "
        f"blocks take {times.described()}, as measured on this machine."
    )


def repeated(denoiser: nn.Module) -> list[nn.Module]:
    """The blocks that are compiled: what the innermost lists of blocks with attention hold.

    In a transformer these are its layers, in a UNet the transformers of each level.
    """
    lists = [part for part in denoiser.modules() if isinstance(part, nn.ModuleList) and any(map(_attends, part))]
    return [
        block
        for part in lists
        if not any(inner in lists for block in part for inner in block.modules())
        for block in part
        if _attends(block)
    ]


def _attends(block: nn.Module) -> bool:
    """True if this block has attention in it, and is none itself."""
    return not hasattr(block, "set_processor") and any(hasattr(part, "set_processor") for part in block.modules())


def _num_kinds(blocks: list[nn.Module]) -> int:
    """The most kinds of block of one class, by their weights' shapes."""
    kinds: dict[type, set[tuple[torch.Size, ...]]] = {}
    for block in blocks:
        kinds.setdefault(type(block), set()).add(tuple(parameter.shape for parameter in block.parameters()))
    return max(map(len, kinds.values()), default=0)
