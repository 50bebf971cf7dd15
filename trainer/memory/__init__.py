"""Fitting a run into memory: what can be switched on, in which order, and when memory ran out.

The ladder's rungs go from what changes nothing but the time to what costs a little quality: smaller micro-batches at the
same effective batch, activations computed twice, encoders off the GPU, the denoiser's blocks fetched layer by layer, and a
quantised base. The step that ran out is taken again; nothing of it had been learned. What the ladder changed is saved with
the next checkpoint, and each of its forms can be made from the base on disk alone, so that a resumed run goes on alike.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import sys
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from trainer import bases
from trainer.config import MemoryConfig, TrainConfig
from trainer.memory import compiling
from trainer.memory.arranging import GIB, arrange, drawing, eagerly, fetch_encoders, kept_away, limit, num_passes, training
from trainer.memory.originals import Files
from trainer.memory.quantising import has_nf4, quantise

if TYPE_CHECKING:
    from trainer.studio import Studio

__all__ = [
    "GIB", "arrange", "check", "climb", "drawing", "eagerly", "exhausted", "fetch_encoders", "forget", "give_back", "halving", "is_shortage",
    "keep_freed", "kept_away", "let_go", "limit", "loading_rung", "next_rung", "num_passes", "over_budget", "peak_bytes", "quantise",
    "reset_peak", "training",
]  # fmt: skip
Result = TypeVar("Result")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
# Of PyTorch's own allocators (GPU, CPU on Linux, CPU on Windows), of the libraries below it, and of C++.
_SHORT = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "alloc_failed", "bad_alloc", "could not create a memory")
_ONEDNN_SHORT = "could not create a primitive"  # the whole message; one on a primitive *descriptor* says that the processor can't


def is_shortage(error: BaseException) -> bool:
    """True if this error says that memory ran out, on a GPU or a CPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and (said == _ONEDNN_SHORT or any(text in said for text in _SHORT))


def check(config: TrainConfig) -> list[str]:
    """A sentence for each memory setting that this machine, or the method, can't use."""
    settings, device, problems = config.memory, bases.hardware(config.device, "float32")[0], []
    if settings.micro_batch > config.batch_size:
        problems.append(f"memory.micro_batch is {settings.micro_batch}; allowed: at most batch_size ({config.batch_size}), or 0 for the whole batch.")
    if settings.offload != "none" and not can_offload(device):
        problems.append(f"memory.offload is {settings.offload!r}, but the run is on {device}, where there is nothing to move off; allowed there: none.")
    if settings.offload_activations and not can_offload(device):
        problems.append(f"memory.offload_activations is on, but the run is on {device}, where there is nothing to move off; leave it off.")
    problems += compiling.check(settings, device)
    if settings.offload == "blocks" and (reasons := _against_fetching(config, settings.quantise)):
        problems.append(f"memory.offload is 'blocks', which doesn't go with {', '.join(reasons)}; allowed with it: none, encoders.")
    if settings.quantise != "none" and not _can_quantise(config):
        started = f", started by {start}" if (start := getattr(config.adapter, "init", "default")) != "default" else ""
        problems.append(
            f"memory.quantise is {settings.quantise!r}, but adapter.method {config.adapter.method}{started} works on the base's own weights; "
            f"allowed with it: none. On a quantised base: lora, started by default, gaussian or eva."
        )
    if settings.quantise == "nf4" and not has_nf4():
        problems.append("memory.quantise is 'nf4', which needs bitsandbytes; install it with: pip install 'velatura[gpu]'.")
    if settings.quantise in ("nf4", "fp8") and device == "mps":
        problems.append(f"memory.quantise is {settings.quantise!r}, which Apple's GPUs don't compute; allowed there: none, int8.")
    return problems


def can_offload(device: str) -> bool:
    """True on a kind of device that has memory of its own beside the CPU's."""
    return device == "cuda"


def _can_quantise(config: TrainConfig) -> bool:
    return config.adapter.method == "lora" and getattr(config.adapter, "init", "default") in ("default", "gaussian", "eva")


def _against_fetching(config: TrainConfig, kind: str) -> list[str]:
    """The settings that need the base's weights, or a text encoder that learns, to stay on the GPU."""
    start = getattr(config.adapter, "init", "default")
    reasons = {
        "adapter.method = dora": config.adapter.method == "dora",
        f"adapter.init = {start}": start not in ("default", "gaussian"),
        "adapter.text_encoder": getattr(config.adapter, "text_encoder", False),
        "inversion.token": bool(config.inversion.token),
        "memory.quantise = nf4": kind == "nf4",  # whose scales stay where they are
    }
    return [name for name, holds in reasons.items() if holds]


# The ladder.


def next_rung(now: MemoryConfig, config: TrainConfig, num_rows: int, device: str) -> tuple[MemoryConfig, str] | None:
    """The settings one rung up and what they change in words, or None at the top. `num_rows` is the most pictures one process has at once."""
    size = now.micro_batch or num_rows
    kinds = ["none", "int8", *(["nf4"] if has_nf4() and not config.against.adapters else [])]
    on_gpu, can_narrow = device.startswith("cuda"), _can_quantise(config) and now.offload != "blocks" and now.quantise in kinds[:-1]
    if size > 1:
        change: dict[str, Any] = {"micro_batch": size // 2}
        said = f"pictures at once: {size // 2} instead of {size}, at the same effective batch"
    elif not now.gradient_checkpointing:
        change, said = {"gradient_checkpointing": True}, "gradient checkpointing is on"
    elif on_gpu and now.offload == "none":
        change, said = {"offload": "encoders"}, "text encoder and autoencoder wait on the CPU"
    elif on_gpu and now.offload == "encoders" and not _against_fetching(config, now.quantise):
        change, said = {"offload": "blocks"}, "the denoiser's blocks wait on the CPU and are fetched ahead of their use"
    elif on_gpu and not now.offload_activations:
        change, said = {"offload_activations": True}, "what is kept for backward waits on the CPU"
    elif can_narrow:
        kind = kinds[kinds.index(now.quantise) + 1]
        change, said = {"quantise": kind}, f"the base's linear layers are kept in {8 if kind == 'int8' else 4} bits ({kind})"
    else:
        return None
    return now.model_copy(update=change), said


def loading_rung(now: MemoryConfig, config: TrainConfig, device: str) -> tuple[MemoryConfig, str] | None:
    """The settings under which a base that ran out of memory while it was loaded needs less, and what they change in words; None where there are none."""
    if not can_offload(device) or now.offload == "blocks" or _against_fetching(config, now.quantise):
        return None
    return now.model_copy(update={"offload": "blocks"}), "the base waits on the CPU, and its blocks are fetched ahead of their use"


def climb(studio: Studio) -> str | None:
    """Take the next rung and say what was changed, or None if there is none left. Called while the error is handled, it lets go of what that holds."""
    let_go()
    found = next_rung(studio.memory, studio.config, -(-studio.config.batch_size // studio.world.size), studio.device)
    if found is None:
        return None
    before, (studio.memory, said) = studio.memory, found
    studio.ahead = {}
    if studio.memory.quantise != before.quantise:
        files = Files(studio.folder / studio.component)
        quantise(studio.denoiser, studio.memory.quantise, lambda path: files.weight(path).to(studio.dtype))
    arrange(studio)
    give_back()
    return said


def exhausted(when: str, error: BaseException) -> str:
    """What to say where memory ran out and there is no setting left to change."""
    first = str(error).strip().split("\n")[0] or type(error).__name__
    return (
        f"memory ran out {when}, and no memory setting is left that would help: {first} Close other programs, lower resolution_px or adapter.rank, "
        "or take a smaller base. What was saved before stays."
    )


def let_go() -> None:
    """Free what failed for lack of memory, which the traceback of the error being handled holds.

    A thread in which oneDNN once found no memory for a kernel makes none ever after (oneDNN 3 in PyTorch 2.13, tried): PyTorch's own, slower, take over.
    """
    _, error, trace = sys.exc_info()
    if trace:
        traceback.clear_frames(trace)
    if str(error).lower() == _ONEDNN_SHORT:
        torch.backends.mkldnn.set_flags(_enabled=False)
    gc.collect()
    give_back()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def keep_freed() -> None:
    """Have glibc keep freed memory for the next step instead of mapping every activation anew, a fifth of a large base's step; others do so anyway.

    A choice of the whole process, so `session.start` makes it, where the process is there for the run. `give_back` still gives pages back,
    but not addresses: where those are limited, nothing is kept, or a step too large once would leave no room for a smaller one.
    """
    if sys.platform.startswith("linux") and hasattr(libc := ctypes.CDLL(None), "mallopt") and not _addresses_are_limited():
        if not libc.mallopt(_MMAP_THRESHOLD, 1 << 30):
            libc.mallopt(_MMAP_THRESHOLD, 32 << 20)  # the most before glibc 2.35
        libc.mallopt(_TRIM_THRESHOLD, -1)


def _addresses_are_limited() -> bool:
    """True under `ulimit -v`, and where Linux promises no more memory than it has (vm.overcommit_memory 2)."""
    import resource

    promised = Path("/proc/sys/vm/overcommit_memory")
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY or (promised.exists() and promised.read_text().strip() == "2")


def forget(weight: Tensor) -> None:
    """Take a weight's pages out of memory now; its numbers are lost, or read anew if they are a file's.

    Weights read from a file are views of one mapping of it, whose pages stay until the last of them is gone.
    """
    if sys.platform.startswith("linux") and weight.device.type == "cpu":
        start = -(-weight.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        size = (weight.data_ptr() + weight.nbytes - start) // mmap.PAGESIZE * mmap.PAGESIZE
        if size > 0:
            ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_DONTNEED)


def give_back() -> None:
    """Hand freed memory back to the system, which glibc keeps for itself: a quarter of a GiB after quantising 222 million parameters."""
    if sys.platform.startswith("linux") and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def over_budget(studio: Studio) -> str | None:
    """A sentence if this process has held more than the budget. A GPU is held to it by its allocator; elsewhere only the rehearsal can choose.

    Changing settings by what was measured in mid-run would make the adapter depend on the machine's mood.
    """
    budget = studio.memory.budget_gib
    if not budget or studio.device.startswith("cuda") or (held := peak_bytes()) <= budget * GIB:
        return None
    return f"{held / GIB:.2f} GiB were held, more than memory.budget_gib ({budget:g}); --rehearse finds settings that fit."


def halving(size: int, attempt: Callable[[int], Result]) -> Result:
    """What `attempt(size)` gives, at half the size as often as memory runs out. Raises: its error when one alone is too much."""
    while True:
        try:
            return attempt(size)
        except (RuntimeError, MemoryError) as error:
            if not is_shortage(error) or size <= 1:
                raise
            let_go()
        size //= 2


# Measuring.


def peak_bytes() -> int:
    """The most memory this process has held since the last `reset_peak`: of the GPU if it uses one, else resident."""
    if torch.cuda.is_available() and (reserved := torch.cuda.max_memory_reserved()):
        return int(reserved)
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts what the parent held before this program was started
        return int(status.read_text().partition("VmHWM:")[2].split(None, 1)[0]) * 1024
    import psutil

    info = psutil.Process().memory_info()
    return int(getattr(info, "peak_wset", 0) or _resident_peak() or info.rss)


def _resident_peak() -> int:
    """Highest resident size in bytes where the system has getrusage, else 0."""
    if find_spec("resource") is None:
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def reset_peak() -> None:
    """Measure the peak from here on, where the system can; elsewhere it stays the highest ever."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with ExitStack() as stack:
        try:
            stack.enter_context(Path("/proc/self/clear_refs").open("w")).write("5")
        except OSError:
            return
