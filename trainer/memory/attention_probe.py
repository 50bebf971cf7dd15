"""Which of a GPU's attention kernels a run uses: each is tried, in a process of its own, at the run's own shapes.

PyTorch picks a kernel by rules, and some picks die: on torch 2.11 and an H100, cuDNN's backward over FLUX.1's 4,608
tokens ends in an illegal memory access, which no process survives. So each kernel is tried by a child; one that faults,
or gives numbers that are none, is never used in the run and is named in its log. The others are used in the order of
the time they took. What was found is kept beside the cache, by GPU, versions and shapes, so that a second run, and a
resumed one, computes with the same kernels.

xformers and Flash Attention 3 are tried where they are installed and the model asks diffusers for its attention by
name.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import attention_backend, dispatch_attention_fn
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from trainer import files

_FUSED = torch.nn.functional.scaled_dot_product_attention
# By torch.nn.attention.SDPBackend's names.
TORCH = {"flash": "FLASH_ATTENTION", "efficient": "EFFICIENT_ATTENTION", "cudnn": "CUDNN_ATTENTION"}
DIFFUSERS = {"xformers": "xformers", "flash3": "_flash_3"}  # by diffusers' names of attention backends
_NEEDS = {"xformers": "xformers", "flash3": "flash_attn_interface"}  # packages
# This file alone, not the command: it starts in a second.
_CHILD = [sys.executable, "-c", f"import runpy; runpy.run_path({str(Path(__file__))!r}, run_name='__main__')"]
_CHILD_S = 300
_TIMES = 5


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


@dataclass(frozen=True)
class Verdict:
    """The kernels to use, fastest first, and a sentence for each that must not be."""

    kernels: tuple[str, ...]
    faults: tuple[str, ...] = ()


class _Recorder(TorchFunctionMode):
    """Within it attention is computed by nobody: its shapes are written down and zeros given."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: dict[Shape, None] = {}

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is not _FUSED:
            return function(*args, **kwargs)
        named = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | kwargs
        query, value = named["query"], named["value"]
        batch, heads, tokens, width = query.shape
        num_keys, masked = named["key"].shape[-2], named.get("attn_mask") is not None
        shape = Shape(batch, heads, tokens, num_keys, width, masked, str(query.dtype).removeprefix("torch."))
        self.shapes[shape] = None  # a dict keeps their order
        return query.new_zeros(*query.shape[:-1], value.shape[-1])


def recorded(forward: Any) -> list[Shape]:
    """The shapes of attention that `forward()` asks for, without computing any."""
    with torch.no_grad(), _Recorder() as recorder:
        forward()
    return list(recorder.shapes)


def verdict(shapes: list[Shape], candidates: list[str], known: Path, device: str) -> Verdict:
    """What `known` says of these shapes here, or what trying them says, which is then written there."""
    key = json.dumps([_machine(device), candidates, [asdict(shape) for shape in shapes]])
    try:
        kept = json.loads(known.read_text(encoding="utf-8"))
        result = Verdict(tuple(kept[key]["kernels"]), tuple(kept[key]["faults"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        result = _tried(shapes, candidates, device)
        _keep(known, key, result)
    return result


def _machine(device: str) -> list[str]:
    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    return [gpu, torch.__version__, str(torch.version.cuda), str(torch.backends.cudnn.version())]


def _keep(file: Path, key: str, result: Verdict) -> None:
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        results = {}
    try:
        files.write(file, json.dumps({**(results if isinstance(results, dict) else {}), key: asdict(result)}).encode())
    except OSError:
        return  # it is then tried again next time


def _tried(shapes: list[Shape], candidates: list[str], device: str) -> Verdict:
    times: dict[str, list[float | None]] = {}
    faults = []
    for kernel in candidates:
        seconds, fault = _alone(kernel, shapes, device)
        if fault:
            faults.append(fault)
        elif any(time_s is not None for time_s in seconds):
            times[kernel] = seconds

    # By how much slower each is than the fastest at each shape, on average over those that it computes.
    columns = zip(*times.values(), strict=True)
    fastest = [min((time_s for time_s in column if time_s is not None), default=1.0) for column in columns]
    slower = {
        name: statistics.mean(time_s / best for time_s, best in zip(row, fastest, strict=True) if time_s is not None)
        for name, row in times.items()
    }

    # One of diffusers' that can't compute every shape comes last: it is not passed over as PyTorch's own are.
    order = sorted(times, key=lambda name: (None in times[name] and name in DIFFUSERS, slower[name]))
    return Verdict(tuple(order), tuple(faults))


def _alone(kernel: str, shapes: list[Shape], device: str) -> tuple[list[float | None], str]:
    """Seconds of each shape, None where the kernel does not compute it; or what went wrong."""
    request = json.dumps({"kernel": kernel, "device": device, "shapes": [asdict(shape) for shape in shapes]})
    try:
        done = subprocess.run(_CHILD, input=request, capture_output=True, text=True, timeout=_CHILD_S)
    except subprocess.TimeoutExpired:
        return [], f"attention kernel {kernel} did not finish in {_CHILD_S} s and is not used."
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if len(lines) < len(shapes):
        shape = shapes[len(lines)]
        message = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1][:200]
        where = f"{shape.heads} heads of {shape.width}, {shape.tokens} tokens over {shape.keys}, {shape.dtype}"
        return [], f"attention kernel {kernel} faults on this device ({where}: {message}) and is not used."
    if wrong_numbers := [line["bad"] for line in lines if line["bad"]]:
        return [], f"attention kernel {kernel} gives wrong numbers on this device ({wrong_numbers[0]}) and is not used."
    return [line["seconds"] for line in lines], ""


# In the run.


def candidates(denoiser: nn.Module) -> list[str]:
    """The kernels that could serve this model here."""
    by_name = any(isinstance(module, AttentionModuleMixin) for module in denoiser.modules())
    return [*TORCH, *(name for name in DIFFUSERS if by_name and find_spec(_NEEDS[name]))]


def using(denoiser: nn.Module, kernels: tuple[str, ...]) -> AbstractContextManager[Any]:
    """Attention by these kernels, the first that can compute a shape, and plainly where none can; for the body."""
    named = next((kernel for kernel in kernels[:1] if kernel in DIFFUSERS), None)
    if isinstance(denoiser, ModelMixin):
        denoiser.set_attention_backend(DIFFUSERS[named] if named else "native")
    order = [getattr(SDPBackend, TORCH[kernel]) for kernel in kernels if kernel in TORCH]
    manager: AbstractContextManager[Any] = sdpa_kernel([*order, SDPBackend.MATH], set_priority=True)
    return manager


# In the child.


def _measure(kernel: str, shapes: list[Shape], device: str) -> Iterator[dict[str, Any]]:
    """For each shape the seconds of forward and backward, and what is wrong with the numbers.

    The seconds are None where the kernel does not compute the shape.
    """
    for shape in shapes:
        query, key, value, mask = _inputs(shape, device)
        # Its numbers beside those of the plain way.
        try:
            expected = _attended("math", query, key, value, mask)
            results = _attended(kernel, query, key, value, mask)
        except RuntimeError as error:
            if not any(text in str(error) for text in ("No available kernel", "No viable backend")):
                raise
            yield {"seconds": None, "bad": ""}
            continue
        pairs = zip(results, expected, strict=True)
        apart = [float((ours - theirs).norm() / theirs.norm().clamp_min(1e-9)) for ours, theirs in pairs]
        bad = "" if max(apart) < 0.05 else f"{max(apart):.3f} apart from the plain way"
        bad = "NaN" if any(math.isnan(distance) for distance in apart) else bad

        # Its time.
        began = time.perf_counter()
        for _ in range(_TIMES):
            _attended(kernel, query, key, value, mask)
        yield {"seconds": (time.perf_counter() - began) / _TIMES, "bad": bad}


def _inputs(shape: Shape, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    rng, dtype = torch.Generator(device).manual_seed(0), getattr(torch, shape.dtype)
    sizes = [(shape.batch, shape.heads, count, shape.width) for count in (shape.tokens, shape.keys, shape.keys)]
    query, key, value = (torch.randn(size, generator=rng, device=device).to(dtype).requires_grad_() for size in sizes)
    mask = torch.zeros(shape.batch, 1, 1, shape.keys, device=device, dtype=dtype) if shape.masked else None
    return query, key, value, mask


def _attended(kernel: str, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> list[Tensor]:
    """The output and the three gradients, float32."""
    for tensor in (query, key, value):
        tensor.grad = None
    if kernel in DIFFUSERS:
        with attention_backend(DIFFUSERS[kernel]):
            turned = [tensor.transpose(1, 2) for tensor in (query, key, value)]  # (batch, tokens, heads, width)
            output = dispatch_attention_fn(*turned, attn_mask=mask).transpose(1, 2)
    else:
        with sdpa_kernel(SDPBackend.MATH if kernel == "math" else getattr(SDPBackend, TORCH[kernel])):
            output = _FUSED(query, key, value, attn_mask=mask)
    output.float().square().sum().backward()
    results: list[Tensor] = [output, *(tensor.grad for tensor in (query, key, value) if tensor.grad is not None)]
    if query.device.type == "cuda":
        torch.cuda.synchronize()
    return [tensor.detach().float() for tensor in results]


if __name__ == "__main__":
    wanted = json.loads(sys.stdin.read())
    for line in _measure(wanted["kernel"], [Shape(**shape) for shape in wanted["shapes"]], wanted["device"]):
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
