"""Fitting a run into memory: what can be switched on, in which order, and when memory ran out.

The ladder's rungs go from what costs nothing in quality to what costs a little: smaller micro-batches at the same
effective batch, activations computed twice, encoders off the device, and a quantised base. The step that ran out is taken
again; nothing of it had been learned.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from trainer.studio import Studio

_SHORT = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory")


def is_shortage(error: BaseException) -> bool:
    """True if this error says that memory ran out, on a GPU or a CPU."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _SHORT))


def quantise(model: nn.Module, kind: str, dtype: torch.dtype) -> None:
    """Replace the model's frozen linear layers by quantised ones."""


def arrange(studio: Studio) -> None:
    """Make the studio's models as its memory settings say; may be called again when those change."""
    if studio.memory.gradient_checkpointing:
        denoiser: Any = studio.denoiser
        denoiser.enable_gradient_checkpointing()


@contextmanager
def drawing(studio: Studio) -> Iterator[None]:
    """All of the pipeline where a preview needs it, for the body."""
    yield


def climb(studio: Studio) -> str | None:
    """Take the next rung and say what was changed, or None if there is none left."""
    now, largest = studio.memory, -(-studio.config.batch_size // studio.world.size)
    size = now.micro_batch or largest
    if size > 1:
        studio.memory = now.model_copy(update={"micro_batch": size // 2})
        return f"pictures at once: {size // 2} instead of {size}, at the same effective batch"
    if not now.gradient_checkpointing:
        studio.memory = now.model_copy(update={"gradient_checkpointing": True})
        arrange(studio)
        return "gradient checkpointing is on"
    return None


def peak_bytes() -> int:
    """The most memory this process has held: on its GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    import psutil

    info = psutil.Process().memory_info()
    return int(getattr(info, "peak_wset", 0) or _resident_peak() or info.rss)


def _resident_peak() -> int:
    """Highest resident size in bytes where the system has getrusage, else 0."""
    import sys

    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
