"""Memory as such: what says that it ran out, what gives it back, and how much was held.

What only one system does is in `trainer.system`.
"""

from __future__ import annotations

import gc
import sys
import traceback
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from trainer import system

GIB = 1 << 30
Result = TypeVar("Result")
# Of PyTorch's own allocators (GPU, CPU on Linux, CPU on Windows), of the libraries below it, and of C++.
_SHORT = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "alloc_failed",
    "bad_alloc",
    "could not create a memory",
)
# The whole message; a message on a primitive *descriptor* says that the processor can't.
_ONEDNN_SHORT = "could not create a primitive"


def is_shortage(error: BaseException) -> bool:
    """True if this error says that memory ran out, on a GPU or a CPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and (message == _ONEDNN_SHORT or any(text in message for text in _SHORT))


def let_go() -> None:
    """Free what failed for lack of memory, which the traceback of the error being handled holds.

    A thread in which oneDNN once found no memory for a kernel makes none ever after (oneDNN 3 in PyTorch 2.13, tried):
    PyTorch's own, slower, take over.
    """
    _, error, trace = sys.exc_info()
    if trace:
        traceback.clear_frames(trace)
    if str(error).lower() == _ONEDNN_SHORT:
        torch.backends.mkldnn.set_flags(_enabled=False)
    gc.collect()
    system.give_back_freed()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def forget(weight: Tensor) -> None:
    """Take a weight's pages out of memory now; its numbers are lost, or read anew if they are a file's.

    Weights read from a file are views of one mapping of it, whose pages stay until the last of them is gone.
    """
    if weight.device.type == "cpu":
        system.drop_pages(weight.data_ptr(), weight.nbytes)


def halving(size: int, attempt: Callable[[int], Result]) -> Result:
    """What `attempt(size)` gives, at half the size as often as memory runs out.

    Raises: its error when one alone is too much.
    """
    while True:
        try:
            return attempt(size)
        except (RuntimeError, MemoryError) as error:
            if not is_shortage(error) or size <= 1:
                raise
            let_go()  # within the handler: it clears the frames of the error that is being handled
        size //= 2


def peak_bytes() -> int:
    """The most memory this process has held since the last `reset_peak`: of the GPU if it uses a GPU, else resident."""
    if torch.cuda.is_available() and (reserved := torch.cuda.max_memory_reserved()):
        return int(reserved)
    return system.peak_resident_bytes()


def reset_peak() -> None:
    """Measure the peak from here on, where the system can; elsewhere it stays the highest ever."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    system.reset_peak()
