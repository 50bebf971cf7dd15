"""The shape of the weight that a module's tensors are for, from the shapes of the tensors alone."""

from __future__ import annotations

import math


def shape_of(parts: dict[str, tuple[int, ...]]) -> tuple[int, int] | None:
    """(outputs, inputs with a kernel counted in) of the weight that tensors of these shapes are for, or None.

    The shapes are by suffix, such as `lora_down.weight`.
    """

    def first(*suffixes: str) -> tuple[int, ...] | None:
        return next((parts[suffix] for suffix in suffixes if suffix in parts and len(parts[suffix]) > 1), None)

    # LoRA; with a kernel of its own in the middle as LyCORIS has it for convolutions.
    down = first("lora_down.weight", "lora_A.weight", "lora.down.weight")
    up = first("lora_up.weight", "lora_B.weight", "lora.up.weight")
    if down and up:
        kernel = first("lora_mid.weight") or down
        return up[0], down[1] * math.prod(kernel[2:])
    # LoHa: a (out, rank), b (rank, in); with a Tucker core a is the other way round.
    if (a := first("hada_w1_a")) and (b := first("hada_w1_b")):
        tucker = first("hada_t1")
        return (a[1], b[1] * math.prod(tucker[2:])) if tucker else (a[0], b[1])
    # LoKr: a Kronecker product of two factors.
    left, right = factor_of(parts, "lokr_w1"), factor_of(parts, "lokr_w2")
    if left and right:
        return left[0] * right[0], left[1] * right[1]
    # A full difference, or values that replace the base's.
    whole = parts.get("diff") or parts.get("w_norm") or parts.get("scale")
    return (whole[0], math.prod(whole[1:])) if whole else None


def largest_matrix(parts: dict[str, tuple[int, ...]]) -> int:
    """How many numbers the largest matrix has that is built from tensors of these shapes."""
    matrices = [
        shape_of(parts) if "hada_w1_a" in parts else None,
        factor_of(parts, "lokr_w1"),
        factor_of(parts, "lokr_w2"),
    ]
    return max((math.prod(shape) for shape in matrices if shape), default=0)


def factor_of(parts: dict[str, tuple[int, ...]], name: str) -> tuple[int, int] | None:
    """Outputs and inputs of one factor of a Kronecker product, which may be low-rank itself; None if it isn't there."""
    if len(whole := parts.get(name, ())) > 1:
        return whole[0], math.prod(whole[1:])
    a, b = parts.get(f"{name}_a", ()), parts.get(f"{name}_b", ())
    if len(a) < 2 or len(b) < 2:
        return None
    kernel = parts.get(name.replace("w2", "t2"), ()) if name == "lokr_w2" else ()
    return (a[1], b[1] * math.prod(kernel[2:])) if kernel else (a[0], b[1])
