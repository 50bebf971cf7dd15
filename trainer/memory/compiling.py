"""The denoiser's repeated blocks compiled: each kind once, used for all of its kind.

At batch 1 a GPU waits for Python: on an H100 with torch 2.11 four pictures of SDXL took the time of one, and compiling
its transformer blocks took plain diffusers from 0.56 to 0.34 s a step, after 27 s. Ours is not measured yet (`velatura
bench gpu` does). `auto` compiles only for runs that are long enough; a CPU gains nothing.
Blocks of a few shapes are compiled for each of them, and for shapes as such beyond that; which, is known before
the first step and so the same in a resumed run. `graphs` also records a block's kernels and replays them (CUDA graphs,
through inductor), which spares the launches but keeps every block's memory apart.

A compiled step rounds otherwise than an eager one: the same settings give the same bytes on the same machine and
versions, and a resumed run goes on with what the checkpoint says was chosen; another GPU or version of torch may differ
in the last bits.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from trainer import choices, forwards, system
from trainer.config import MemoryConfig

BACKEND: Any = "inductor"  # what torch compiles with
_WORTH_PASSES = 400  # forward and backward passes; those 27 s are won back after 130
_MOST_VARIANTS = 6  # of widths and shapes compiled apart; torch keeps eight of a function
_RULED_OUT = "memory.compile is {!r}, which doesn't go with {}; allowed with it: auto, off."


def check(settings: MemoryConfig, device: str) -> list[str]:
    """A sentence for what can't be compiled."""
    chosen, problems = settings.compile, []
    if chosen in ("auto", "off"):
        return []
    if settings.offload == "blocks":
        problems.append(_RULED_OUT.format(chosen, "memory.offload=blocks"))
    if settings.attention == "plain":
        problems.append(_RULED_OUT.format(chosen, "memory.attention=plain"))
    if settings.shard:
        problems.append(_RULED_OUT.format(chosen, "memory.shard"))
    if chosen == "graphs" and device != "cuda":
        problems.append(f"memory.compile is 'graphs', but the run is on {device}; allowed there: auto, off, blocks.")
    if chosen == "graphs" and (settings.gradient_checkpointing or settings.offload_activations):
        problems.append(
            "memory.compile is 'graphs', which keeps what it computes where it is; allowed with checkpointing and "
            "offloaded activations: blocks."
        )
    if missing := _missing_compiler(device):
        problems.append(f"memory.compile is {chosen!r}, which needs {missing}; allowed without: auto, off.")
    return problems


def _missing_compiler(device: str) -> str:
    """What torch compiles with and this machine lacks; empty if nothing."""
    if device == "cuda":
        return "" if find_spec("triton") else "triton (pip install triton, or triton-windows)"
    names = system.cpp_compilers()
    return "" if any(map(shutil.which, names)) else f"a C++ compiler ({' or '.join(names)})"


def is_possible(settings: MemoryConfig, device: str) -> bool:
    """True if blocks can be compiled here beside the other settings, and a device like this one may gain by it."""
    return device.startswith("cuda") and not check(settings.model_copy(update={"compile": "blocks"}), "cuda")


def choose(
    denoiser: nn.Module, settings: MemoryConfig, num_passes: int, num_shapes: Callable[[], int], device: str
) -> MemoryConfig:
    """The settings with what was chosen in `auto`'s place; the denoiser's blocks are then compiled, or not.

    `auto` goes by the passes ahead. May be called again: what was compiled before is taken back first.
    """
    choices.check(settings, "memory.")
    chosen = settings.compile
    blocks = repeated(denoiser)
    if chosen == "auto":
        gains = is_possible(settings, device) and num_passes >= _WORTH_PASSES and blocks
        chosen = "blocks" if gains else "off"
    elif check(settings, device.partition(":")[0]):  # the ladder came here
        chosen = "off"

    # For shapes as such only where there are too many of them to compile each.
    dynamic = chosen != "off" and num_shapes() * _num_kinds(blocks) > _MOST_VARIANTS
    mode = "reduce-overhead" if chosen == "graphs" else None
    compiled = partial(torch.compile, dynamic=dynamic, mode=mode, backend=BACKEND)
    for block in blocks:
        forwards.unwrap(block, "compiled")
        if chosen != "off":
            forwards.wrap(block, "compiled", compiled)
    return settings.model_copy(update={"compile": chosen})


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


def begin_pass(settings: MemoryConfig) -> None:
    """To be called before a forward: what the last one's graphs gave may be written over."""
    if settings.compile == "graphs":
        torch.compiler.cudagraph_mark_step_begin()
