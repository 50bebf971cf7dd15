"""Which of a GPU's attention kernels a run uses: each is tried, in another process, at the run's own shapes.

PyTorch picks a kernel by rules, and some picks die: on torch 2.11 and an H100, cuDNN's backward over FLUX.1's 4,608
tokens ends in an illegal memory access, which no process survives. So the kernels are tried by a child
(`attention_trial`); one that faults, or gives numbers that are none, is never used in the run and is named in its log.
The others are used in the order of the time they took. One for which memory was too short is no fault: it comes last,
and is tried again the next time. What was found of a kernel and a shape is kept in the user's data folder, by GPU and
versions, so that runs share it and start alike; a resumed run computes with the kernels that its checkpoint names.

xformers and Flash Attention 3 are tried where they are installed and the model asks diffusers for its attention by
name.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.models.attention import AttentionModuleMixin
from filelock import FileLock
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from trainer import error_output, files, model_registry
from trainer.memory import attention_trial
from trainer.memory.attention_trial import DIFFUSERS, FUSED, TORCH, Shape

_NEEDS = {"xformers": "xformers", "flash3": "flash_attn_interface"}  # packages
_VERSIONS = ("diffusers", "xformers", "flash-attn-3")  # of what computes attention beside torch
# This file alone, not the command: it starts in a second.
_CHILD = [sys.executable, "-c", f"import runpy; runpy.run_path({attention_trial.__file__!r}, run_name='__main__')"]
_CHILD_S = 300
_CLEARLY_SLOWER = 1.1  # times the fastest; below it, the order is PyTorch's own, as times of one shape vary so much


@dataclass(frozen=True)
class Verdict:
    """The kernels to use, fastest first, and a sentence for each that must not be."""

    kernels: tuple[str, ...]
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Trial:
    """What is known of a kernel at a shape."""

    seconds: float | None = None  # None where the kernel does not compute it
    fault: str = ""  # a sentence
    is_short: bool = False  # nothing: memory did not suffice


_Pair = tuple[str, Shape]  # a kernel, and what it is to compute


class _Recorder(TorchFunctionMode):
    """Within it attention is computed by nobody: its shapes are written down and zeros given."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: dict[Shape, None] = {}

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is not FUSED:
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


def known_file() -> Path:
    """Where what was found on this machine is kept."""
    return model_registry.home() / "attention.json"


def machine(device: str) -> list[str]:
    """What decides which kernels are good and fast: the GPU, and the versions of all that computes attention."""
    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    cudnn = str(torch.backends.cudnn.version())
    return [gpu, torch.__version__, str(torch.version.cuda), cudnn, *map(_version, _VERSIONS)]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def verdict(shapes: list[Shape], candidates: list[str], known: Path, device: str) -> Verdict:
    """What `known` says of these shapes here, and what trying the others says, which is then written there."""
    here = machine(device)
    keys = {(kernel, shape): json.dumps([here, kernel, asdict(shape)]) for kernel in candidates for shape in shapes}
    with _alone(known):
        kept = _read(known)
        results = {pair: kept[key] for pair, key in keys.items() if key in kept}
        # Of a kernel that must not be used the rest need not be known.
        bad = {kernel for (kernel, _), trial in results.items() if trial.fault}
        fresh = _tried([pair for pair in keys if pair not in results and pair[0] not in bad], device)
        lasting = {keys[pair]: trial for pair, trial in fresh.items() if not trial.is_short}
        if lasting:
            _keep(known, kept | lasting)
    return _judged(results | fresh, candidates, shapes)


def _judged(results: dict[_Pair, _Trial], candidates: list[str], shapes: list[Shape]) -> Verdict:
    """The kernels without a fault: those that were measured, fastest first, then PyTorch's own that could not be."""
    nothing = _Trial(is_short=True)  # of what was not tried, since its kernel was left out before
    by_kernel = {kernel: [results.get((kernel, shape), nothing) for shape in shapes] for kernel in candidates}
    faults = {kernel: trial.fault for kernel, trials in by_kernel.items() for trial in trials[::-1] if trial.fault}
    good = {kernel: trials for kernel, trials in by_kernel.items() if kernel not in faults}
    times = {kernel: [trial.seconds for trial in trials] for kernel, trials in good.items()}
    times = {kernel: row for kernel, row in times.items() if any(time_s is not None for time_s in row)}
    untested = [
        kernel
        for kernel, trials in good.items()
        if kernel in TORCH and kernel not in times and any(trial.is_short for trial in trials)
    ]

    # By how much slower each is than the fastest at each shape, on average over those that it computes.
    columns = zip(*times.values(), strict=True)
    fastest = [min((time_s for time_s in column if time_s is not None), default=1.0) for column in columns]
    slower = {
        name: statistics.mean(time_s / best for time_s, best in zip(row, fastest, strict=True) if time_s is not None)
        for name, row in times.items()
    }
    least = min(slower.values(), default=1.0)

    # One of diffusers' that can't compute every shape comes last: it is not passed over as PyTorch's own are.
    def place(name: str) -> tuple[bool, float]:
        is_partial = None in times[name] and name in DIFFUSERS
        return is_partial, slower[name] if slower[name] > _CLEARLY_SLOWER * least else 0.0

    return Verdict((*sorted(times, key=place), *untested), tuple(faults.values()))


# What is known.


@contextmanager
def _alone(known: Path) -> Iterator[None]:
    """One process at a time, where the folder allows it: what kernels take decides which of them a run uses."""
    with ExitStack() as stack:
        with suppress(OSError):
            known.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(f"{known}.lock"))
        yield


def _read(file: Path) -> dict[str, _Trial]:
    """What the file says; nothing where there is no file, or a damaged file."""
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
        return {
            key: _Trial(None if row["seconds"] is None else float(row["seconds"]), str(row["fault"]))
            for key, row in table.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _keep(file: Path, trials: dict[str, _Trial]) -> None:
    table = {key: {"seconds": trial.seconds, "fault": trial.fault} for key, trial in trials.items()}
    with suppress(OSError):  # they are then tried again next time
        files.write(file, json.dumps(table).encode())


# Trying.


def _tried(pairs: list[_Pair], device: str) -> dict[_Pair, _Trial]:
    """Each in a child, the next in the same child; where it dies, that kernel is left out and a new child goes on."""
    results: dict[_Pair, _Trial] = {}
    while pairs:
        trials, died_of = _asked(pairs, device)
        results |= dict(zip(pairs, trials, strict=False))
        pairs = pairs[len(trials) :]
        if pairs:
            kernel, shape = pairs[0]
            results[pairs[0]] = _dead(kernel, shape, died_of)
            pairs = [pair for pair in pairs if pair[0] != kernel]
    return results


def _asked(pairs: list[_Pair], device: str) -> tuple[list[_Trial], str]:
    """What a child found, which are all if it lived, and what it died of."""
    request = json.dumps({"trials": [(kernel, asdict(shape)) for kernel, shape in pairs], "device": device})
    try:
        done = subprocess.run(_CHILD, input=request.encode(), capture_output=True, timeout=_CHILD_S)
        output, died_of = done.stdout, error_output.cause(done.stderr.decode(errors="replace"))
        if not done.stderr.strip():
            died_of = f"status {done.returncode}"
    except subprocess.TimeoutExpired as expired:
        output, died_of = expired.stdout or b"", f"not finished in {_CHILD_S} s"
    lines = [json.loads(line) for line in output.decode(errors="replace").splitlines() if line.startswith("{")]
    return [_trial(*pair, line) for pair, line in zip(pairs, lines, strict=False)], died_of


def _trial(kernel: str, shape: Shape, line: dict[str, Any]) -> _Trial:
    wrong = f"attention kernel {kernel} gives wrong numbers on this device ({line['bad']}) and is not used."
    return _Trial(line["seconds"], wrong if line["bad"] else "", line["is_short"])


def _dead(kernel: str, shape: Shape, died_of: str) -> _Trial:
    if "out of memory" in died_of:
        return _Trial(is_short=True)
    where = f"{shape.heads} heads of {shape.width}, {shape.tokens} tokens over {shape.keys}, {shape.dtype}"
    return _Trial(fault=f"attention kernel {kernel} faults on this device ({where}: {died_of}) and is not used.")


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


# In a checkpoint.


def state(kernels: tuple[str, ...] | None, device: str) -> dict[str, list[str]] | None:
    """What a checkpoint keeps of a run's kernels, and where they were chosen; None where none were."""
    return None if kernels is None else {"kernels": [*kernels], "machine": machine(device)}


def restored(kept: Any, device: str) -> tuple[str, ...] | None:
    """The kernels that a checkpoint names, if they were chosen on a machine like this."""
    if not isinstance(kept, dict) or kept["machine"] != machine(device):
        return None
    return tuple(kept["kernels"])
