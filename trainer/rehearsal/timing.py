"""How long what runs on a GPU or a CPU takes, and for how long it is worth measuring."""

from __future__ import annotations

import time

import torch

ENOUGH_S = 1.0  # of measuring one thing
MOST_TIMES = 5


def now() -> float:
    """Seconds on a clock, once the GPU has done all that was asked of it: it works behind Python's back."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic()
