"""Attention kernels tried in this process, which may die of one: `attention_probe` runs this file as a child.

It needs torch alone, and diffusers only for the kernels that diffusers calls, so that it starts in a second or two.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainer.lazy import diffusers

FUSED = torch.nn.functional.scaled_dot_product_attention
# By torch.nn.attention.SDPBackend's names.
TORCH = {"flash": "FLASH_ATTENTION", "efficient": "EFFICIENT_ATTENTION", "cudnn": "CUDNN_ATTENTION"}
DIFFUSERS = {"xformers": "xformers", "flash3": "_flash_3"}  # by diffusers' names of attention backends
_NOT_FOR_THIS_SHAPE = ("No available kernel", "No viable backend")
_TIMES = 5
_FAR = 0.05  # from the plain way's numbers, as a share of them


@dataclass(frozen=True)
class Shape:
    """One attention of a run: query (batch, heads, tokens, width) over so many keys."""

    batch: int
    heads: int
    tokens: int
    keys: int
    width: int
    masked: bool
    dtype: str


def tried(trials: Iterable[tuple[str, Shape]], device: str) -> Iterator[dict[str, Any]]:
    """For each kernel and shape the seconds of forward and backward, what is wrong with the numbers, if anything, and
    whether memory was too short to know.

    The seconds are None where the kernel does not compute the shape.
    """
    for kernel, shape in trials:
        try:
            yield {"seconds": None, "bad": "", "is_short": False} | _measured(kernel, shape, device)
        except RuntimeError as error:
            is_short = isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)
            if not is_short and not any(text in str(error) for text in _NOT_FOR_THIS_SHAPE):
                raise
            yield {"seconds": None, "bad": "", "is_short": is_short}
        if device.startswith("cuda"):
            torch.cuda.empty_cache()  # the run itself holds the rest of the card


def _measured(kernel: str, shape: Shape, device: str) -> dict[str, Any]:
    query, key, value, mask = _inputs(shape, device)

    # Its numbers beside those of the plain way, of one head alone: all scores of all heads might not fit in memory.
    head_query, head_key, head_value = (tensor[-1:, -1:].detach().requires_grad_() for tensor in (query, key, value))
    expected = _attended("math", head_query, head_key, head_value, None if mask is None else mask[-1:])
    results = _attended(kernel, query, key, value, mask)
    apart = max(
        float((ours[-1:, -1:].float() - theirs.float()).norm() / theirs.float().norm().clamp_min(1e-9))
        for ours, theirs in zip(results, expected, strict=True)
    )
    if not all(bool(result.isfinite().all()) for result in results):
        return {"bad": "NaN"}
    if not apart < _FAR:
        return {"bad": f"{apart:.3f} apart from the plain way"}
    del results, expected

    # Its time: the shortest, as whatever else the machine does only adds to it.
    seconds = []
    for _ in range(_TIMES):
        began = time.perf_counter()
        _attended(kernel, query, key, value, mask)
        seconds.append(time.perf_counter() - began)
    return {"seconds": min(seconds)}


def _inputs(shape: Shape, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    rng, dtype = torch.Generator(device).manual_seed(0), getattr(torch, shape.dtype)
    sizes = [(shape.batch, shape.heads, count, shape.width) for count in (shape.tokens, shape.keys, shape.keys)]
    query, key, value = (torch.randn(size, generator=rng, device=device).to(dtype).requires_grad_() for size in sizes)
    mask = torch.zeros(shape.batch, 1, 1, shape.keys, device=device, dtype=dtype) if shape.masked else None
    return query, key, value, mask


def _attended(kernel: str, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> list[Tensor]:
    """The output and the three gradients."""
    for tensor in (query, key, value):
        tensor.grad = None
    if kernel in DIFFUSERS:
        dispatch = diffusers.models.attention_dispatch
        with dispatch.attention_backend(DIFFUSERS[kernel]):
            # diffusers' order of axes is another than torch's.
            turned = [tensor.transpose(1, 2) for tensor in (query, key, value)]  # (batch, tokens, heads, width)
            output = dispatch.dispatch_attention_fn(*turned, attn_mask=mask).transpose(1, 2)
    else:
        with sdpa_kernel(SDPBackend.MATH if kernel == "math" else getattr(SDPBackend, TORCH[kernel])):
            output = FUSED(query, key, value, attn_mask=mask)
    # Any loss would do; this loss's gradient differs at every place, so that a mixed-up gradient shows.
    output.float().square().sum().backward()
    results = [output, *(tensor.grad for tensor in (query, key, value) if tensor.grad is not None)]
    if query.device.type == "cuda":
        torch.cuda.synchronize()
    return [tensor.detach() for tensor in results]


if __name__ == "__main__":
    wanted = json.loads(sys.stdin.read())
    for line in tried([(kernel, Shape(**shape)) for kernel, shape in wanted["trials"]], wanted["device"]):
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
