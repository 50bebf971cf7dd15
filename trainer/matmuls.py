"""Which dtypes a device multiplies matrices in, rightly and how fast: measured, not looked up.

A build of torch that has no kernel for a dtype, or a slow one, says so only when asked.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

# Largest relative error of a right product: rounding of the inputs is not counted, rounding of the result is.
TOLERANCES = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3, "int8": 0.0, "float8_e4m3fn": 1e-2}
_NO_KERNEL = (RuntimeError, TypeError, AttributeError, ValueError)  # how torch says that there is none


@dataclass(frozen=True)
class Matmul:
    """A measured product of two square matrices; `error` is None where this device has no such product."""

    device: str
    dtype: str
    size: int
    seconds: float | None
    error: float | None  # Frobenius norm, relative to the exact product
    right: bool
    note: str = ""


def measure(device: str, dtype: str) -> Matmul:
    """How fast and how right a product is on this device, held against the same product in float64 on the CPU.

    The time is the best of twenty, since other programs may be at work too.
    """
    if not hasattr(torch, dtype):
        return Matmul(device, dtype, 0, None, None, False, "this torch does not know it")

    # The matrices, and their exact product.
    size = 2048 if device != "cpu" else 512 if dtype != "float8_e4m3fn" else 64  # CPUs emulate float8, slowly
    rng = torch.Generator().manual_seed(0)
    drawn = torch.randn(2, size, size, generator=rng)
    left, right = (
        (drawn * 40).round().clamp(-128, 127).to(torch.int8) if dtype == "int8" else drawn.to(getattr(torch, dtype))
    )
    truth = left.double() @ right.double()  # exact for int8: sums stay far below 2**53

    # The product of this device, if it can compute it.
    try:
        left, right = left.to(device), right.to(device)
        product = _multiply(left, right).cpu().double()
        seconds = min(_time(left, right) for _ in range(20))
    except _NO_KERNEL as refused:
        return Matmul(device, dtype, size, None, None, False, str(refused).partition("\n")[0][:120])
    error = float((product - truth).norm() / truth.norm())
    return Matmul(device, dtype, size, seconds, error, error <= TOLERANCES[dtype])


def _multiply(left: Tensor, right: Tensor) -> Tensor:
    """The product as models compute it in this dtype."""
    if left.dtype == torch.int8:
        return torch._int_mm(left, right)
    if left.element_size() == 1:  # float8, whose kernel wants the right matrix stored by columns
        scale = torch.ones((), device=left.device)
        by_columns = right.t().contiguous().t()
        return torch._scaled_mm(left, by_columns, scale_a=scale, scale_b=scale, out_dtype=torch.bfloat16)
    return left @ right


def _time(left: Tensor, right: Tensor) -> float:
    """Seconds until the product is there; GPUs are waited for."""
    wait = (lambda: None) if left.device.type == "cpu" else torch.accelerator.synchronize
    wait()
    start = time.perf_counter()
    _multiply(left, right)
    wait()
    return time.perf_counter() - start
