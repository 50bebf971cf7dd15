"""Which of a GPU's attention kernels a run uses: tried forwards and backwards at the run's own shapes, each kernel in a process of its own.

PyTorch picks a kernel by rules, and some picks die: on torch 2.11 and an H100, cuDNN's backward over FLUX.1's 4,608 tokens ends in an
illegal memory access, which no process survives. So each kernel is tried by a child; one that faults, or gives numbers that are none, is
never used in the run and is named in its log. The others are used in the order of the time they took. What was found is kept beside the
cache, by GPU, versions and shapes, so that a second run, and a resumed one, computes with the same kernels.

xformers and Flash Attention 3 are tried where they are installed and the model asks diffusers for its attention by name.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trainer import files

_FUSED = torch.nn.functional.scaled_dot_product_attention
TORCH = {"flash": "FLASH_ATTENTION", "efficient": "EFFICIENT_ATTENTION", "cudnn": "CUDNN_ATTENTION"}  # by torch.nn.attention.SDPBackend's names
DIFFUSERS = {"xformers": "xformers", "flash3": "_flash_3"}  # by diffusers' names of attention backends
_NEEDS = {"xformers": "xformers", "flash3": "flash_attn_interface"}  # packages
_CHILD = [sys.executable, "-c", f"import runpy; runpy.run_path({str(Path(__file__))!r}, run_name='__main__')"]  # this file alone: starts in a second
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

    def __torch_function__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if function is not _FUSED:
            return function(*args, **kwargs)
        named = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | kwargs
        query, value = named["query"], named["value"]
        batch, heads, tokens, width = query.shape
        kind = str(query.dtype).removeprefix("torch.")
        self.shapes[Shape(batch, heads, tokens, named["key"].shape[-2], width, named.get("attn_mask") is not None, kind)] = None
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
        found = Verdict(tuple(kept[key]["kernels"]), tuple(kept[key]["faults"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        found = _tried(shapes, candidates, device)
        _keep(known, key, found)
    return found


def _machine(device: str) -> list[str]:
    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    return [gpu, torch.__version__, str(torch.version.cuda), str(torch.backends.cudnn.version())]


def _keep(known: Path, key: str, found: Verdict) -> None:
    try:
        kept = json.loads(known.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        kept = {}
    try:
        files.write(known, json.dumps({**(kept if isinstance(kept, dict) else {}), key: asdict(found)}).encode())
    except OSError:
        return  # it is then tried again next time


def _tried(shapes: list[Shape], candidates: list[str], device: str) -> Verdict:
    taken: dict[str, list[float | None]] = {}
    faults = []
    for kernel in candidates:
        seconds, fault = _alone(kernel, shapes, device)
        if fault:
            faults.append(fault)
        elif any(one is not None for one in seconds):
            taken[kernel] = seconds
    fastest = [min((one for one in column if one is not None), default=1.0) for column in zip(*taken.values(), strict=True)]
    slower = {name: statistics.mean(one / best for one, best in zip(row, fastest, strict=True) if one is not None) for name, row in taken.items()}
    return Verdict(tuple(sorted(taken, key=lambda name: (None in taken[name] and name in DIFFUSERS, slower[name]))), tuple(faults))


def _alone(kernel: str, shapes: list[Shape], device: str) -> tuple[list[float | None], str]:
    """Seconds of each shape, None where the kernel does not compute it; or what went wrong."""
    asked = json.dumps({"kernel": kernel, "device": device, "shapes": [asdict(shape) for shape in shapes]})
    try:
        done = subprocess.run(_CHILD, input=asked, capture_output=True, text=True, timeout=_CHILD_S)
    except subprocess.TimeoutExpired:
        return [], f"attention kernel {kernel} did not finish in {_CHILD_S} s and is not used."
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if len(lines) < len(shapes):
        shape = shapes[len(lines)]
        said = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1][:200]
        where = f"{shape.heads} heads of {shape.width}, {shape.tokens} tokens over {shape.keys}, {shape.dtype}"
        return [], f"attention kernel {kernel} faults on this device ({where}: {said}) and is not used."
    if bad := [line["bad"] for line in lines if line["bad"]]:
        return [], f"attention kernel {kernel} gives wrong numbers on this device ({bad[0]}) and is not used."
    return [line["seconds"] for line in lines], ""


# In the run.


def candidates(denoiser: nn.Module) -> list[str]:
    """The kernels that could serve this model here."""
    from importlib.util import find_spec

    from diffusers.models.attention import AttentionModuleMixin

    by_name = any(isinstance(module, AttentionModuleMixin) for module in denoiser.modules())
    return [*TORCH, *(name for name in DIFFUSERS if by_name and find_spec(_NEEDS[name]))]


def using(denoiser: nn.Module, kernels: tuple[str, ...]) -> AbstractContextManager[Any]:
    """Attention by these kernels, the first that can compute a shape, and plainly where none can; for the body."""
    from diffusers import ModelMixin
    from torch.nn.attention import SDPBackend, sdpa_kernel

    named = next((kernel for kernel in kernels[:1] if kernel in DIFFUSERS), None)
    if isinstance(denoiser, ModelMixin):
        denoiser.set_attention_backend(DIFFUSERS[named] if named else "native")
    order = [getattr(SDPBackend, TORCH[kernel]) for kernel in kernels if kernel in TORCH]
    manager: AbstractContextManager[Any] = sdpa_kernel([*order, SDPBackend.MATH], set_priority=True)
    return manager


# In the child.


def _measure(kernel: str, shapes: list[Shape], device: str) -> Iterator[dict[str, Any]]:
    """For each shape the seconds that forward and backward take, None where the kernel does not compute it, and what is wrong with its numbers."""
    import time

    for shape in shapes:
        query, key, value, mask = _inputs(shape, device)
        try:
            wanted = _attended("math", query, key, value, mask)
            found = _attended(kernel, query, key, value, mask)
        except RuntimeError as error:
            if not any(said in str(error) for said in ("No available kernel", "No viable backend")):
                raise
            yield {"seconds": None, "bad": ""}
            continue
        apart = [float((one - other).norm() / other.norm().clamp_min(1e-9)) for one, other in zip(found, wanted, strict=True)]
        bad = "" if max(apart) < 0.05 else f"{max(apart):.3f} apart from the plain way"  # NaN is no number below it
        bad = bad if max(apart) == max(apart) and all(one == one for one in apart) else "NaN"
        began = time.perf_counter()
        for _ in range(_TIMES):
            _attended(kernel, query, key, value, mask)
        yield {"seconds": (time.perf_counter() - began) / _TIMES, "bad": bad}


def _inputs(shape: Shape, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    rng, kind = torch.Generator(device).manual_seed(0), getattr(torch, shape.dtype)
    sizes = [(shape.batch, shape.heads, count, shape.width) for count in (shape.tokens, shape.keys, shape.keys)]
    query, key, value = (torch.randn(size, generator=rng, device=device).to(kind).requires_grad_() for size in sizes)
    return query, key, value, torch.zeros(shape.batch, 1, 1, shape.keys, device=device, dtype=kind) if shape.masked else None


def _attended(kernel: str, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> list[Tensor]:
    """The output and the three gradients, float32."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    for tensor in (query, key, value):
        tensor.grad = None
    if kernel in DIFFUSERS:
        from diffusers.models.attention_dispatch import attention_backend, dispatch_attention_fn

        with attention_backend(DIFFUSERS[kernel]):
            turned = [tensor.transpose(1, 2) for tensor in (query, key, value)]
            output = dispatch_attention_fn(*turned, attn_mask=mask).transpose(1, 2)
    else:
        with sdpa_kernel(SDPBackend.MATH if kernel == "math" else getattr(SDPBackend, TORCH[kernel])):
            output = _FUSED(query, key, value, attn_mask=mask)
    output.float().square().sum().backward()
    found: list[Tensor] = [output, *(tensor.grad for tensor in (query, key, value) if tensor.grad is not None)]
    if query.device.type == "cuda":
        torch.cuda.synchronize()
    return [tensor.detach().float() for tensor in found]


if __name__ == "__main__":
    wanted = json.loads(sys.stdin.read())
    for line in _measure(wanted["kernel"], [Shape(**shape) for shape in wanted["shapes"]], wanted["device"]):
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
