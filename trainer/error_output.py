"""What a child process died of, in one line, from what it wrote to its error output."""

from __future__ import annotations

import re

_ERROR = re.compile(r"([\w.]*(Error|Exception)|error):")
_LONGEST = 400  # of an error in a row
# What torch adds to every error of a GPU, for whoever debugs kernels.
_ADVICE = (
    "CUDA kernel errors might be",
    "For debugging consider",
    "Compile with `TORCH_USE_CUDA_DSA`",
    "Device-side assertion",
    "Search for `cudaError",
)


def cause(output: str) -> str:
    """What an error's output names last, with what stands below it, on one line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(_ADVICE)]
    start = max((number for number, line in enumerate(lines) if _ERROR.match(line)), default=-1)
    return " ".join(lines[start:])[:_LONGEST] if lines else "ended without a word"
