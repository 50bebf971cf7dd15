"""What this machine is, what it can do, and what stands in the way, in words: `velatura doctor`.

Precision support is measured, not looked up: a small product in each dtype on each device is compared with the exact
one, because a build of torch that has no kernel, or a slow one, says so only when asked. Nothing heavy is imported
until `diagnose` runs, and a torch that can't be imported is a finding, not a crash.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from packaging.requirements import Requirement

import trainer

if sys.version_info >= (3, 11):
    import tomllib
else:  # the same parser, by its name on 3.10
    import tomli as tomllib

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ROOT = Path(__file__).parents[1]
IMPRIMATURA = Path(__file__).parent / "imprimatura"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Matrix units and bf16 arithmetic of x86, arm64 and their int8 kin: what decides which dtype is fast on a CPU.
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "amx_tile", "amx_bf16", "amx_int8", "amx_fp16", "asimd", "bf16", "i8mm", "sve")
PURPOSES = {
    "bitsandbytes": "bases quantised to 4 and 8 bit, 8-bit optimizers",
    "xformers": "another attention kernel for NVIDIA GPUs; no use without one",
    "playwright": "the tests of the web UI",
}
GIB = 1 << 30
IMPRIMATURA_GIB = 1.5  # measured: training on it at batch 8
DISK_GIB = 5
CPU_SIZE, GPU_SIZE = 512, 2048
# Largest relative error of a right product: rounding of the inputs is not counted, rounding of the result is.
TOLERANCES = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3, "int8": 0.0, "float8_e4m3fn": 1e-2}


@dataclass(frozen=True)
class Problem:
    what: str
    why: str
    do: str


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


@dataclass(frozen=True)
class Device:
    device: str  # as torch spells it: cpu, cuda:0, mps
    name: str
    memory_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class Library:
    name: str
    version: str | None
    wanted: str
    fits: bool


@dataclass(frozen=True)
class Extra:
    """An optional library: what it is for and the command that gets it."""

    name: str
    extra: str
    version: str | None
    purpose: str
    command: str


@dataclass(frozen=True)
class Diagnosis:
    velatura: str
    system: str
    python: str
    cpu: str
    num_cpus: int
    cpu_flags: tuple[str, ...]
    memory_bytes: int
    memory_free_bytes: int
    folder: str
    disk_free_bytes: int
    devices: tuple[Device, ...]
    matmuls: tuple[Matmul, ...]
    libraries: tuple[Library, ...]
    extras: tuple[Extra, ...]
    imprimatura_missing: tuple[str, ...]
    browser: str | None
    problems: tuple[Problem, ...]
    summary: str


def diagnose() -> Diagnosis:
    """Everything `describe` says, as data; takes a few seconds, most of it to import torch."""
    memory_bytes, memory_free_bytes = _memory()
    folder = Path.cwd()
    disk_free_bytes = shutil.disk_usage(folder).free
    libraries, extras = _libraries()
    missing = imprimatura_missing(IMPRIMATURA)
    problems = _library_problems(libraries) + _base_problems(missing) + _room_problems(folder, disk_free_bytes, memory_free_bytes)
    devices: tuple[Device, ...] = ()
    matmuls: tuple[Matmul, ...] = ()
    try:
        import torch
    except (ImportError, OSError, RuntimeError) as error:  # OSError: a shared library that won't load
        problems.append(_torch_problem(error))
    else:
        devices = _devices(torch, memory_bytes, memory_free_bytes)
        matmuls = tuple(_matmul(device.device, dtype) for device in devices for dtype in TOLERANCES)
        problems += _device_problems(torch, devices, matmuls) + _neighbour_problems()
    return Diagnosis(
        velatura=trainer.__version__, system=platform.platform(), python=f"{platform.python_version()} ({sys.executable})", cpu=_cpu_name(),
        num_cpus=_num_cpus(), cpu_flags=_cpu_flags(), memory_bytes=memory_bytes, memory_free_bytes=memory_free_bytes, folder=str(folder),
        disk_free_bytes=disk_free_bytes, devices=devices, matmuls=matmuls, libraries=libraries, extras=extras, imprimatura_missing=missing,
        browser=_browser(), problems=tuple(problems), summary=_summary(devices, matmuls, missing, memory_free_bytes),
    )  # fmt: skip


# The machine.


def _memory() -> tuple[int, int]:
    """`(total, free)` bytes, of the container where one sets a limit: its kernel kills at that, not at the host's."""
    host = psutil.virtual_memory()
    group = Path("/sys/fs/cgroup")
    try:
        total = int((group / "memory.max").read_text())  # "max" where there is no limit
        free = total - int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return host.total, host.available
    return min(total, host.total), max(0, min(free, host.available))


def _num_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpuinfo(*keys: str) -> str:
    """The first of these lines of /proc/cpuinfo, or nothing where there is none (macOS)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((value.strip() for name, _, value in (line.partition(":") for line in lines) if name.strip() in keys), "")


def _cpu_name() -> str:
    return _cpuinfo("model name", "Model") or platform.processor() or platform.machine()


def _cpu_flags() -> tuple[str, ...]:
    found = set(_cpuinfo("flags", "Features").split())
    return tuple(flag for flag in FLAGS if flag in found)


def _browser() -> str | None:
    """The browser that the UI tests would drive."""
    return next((path for path in map(shutil.which, BROWSERS) if path), None)


def _devices(torch: Any, memory_bytes: int, memory_free_bytes: int) -> tuple[Device, ...]:
    found = [Device("cpu", _cpu_name(), memory_bytes, memory_free_bytes)]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            found.append(Device(f"cuda:{index}", torch.cuda.get_device_name(index), total, free))
    if torch.backends.mps.is_available():
        found.append(Device("mps", "Apple GPU", memory_bytes, memory_free_bytes))  # it shares the machine's memory
    return tuple(found)


# Products, measured.


def _matmul(device: str, dtype: str) -> Matmul:
    """The best of three products on this device, against the same product in float64 (int8: int64) on the CPU."""
    import torch

    if not hasattr(torch, dtype):
        return Matmul(device, dtype, 0, None, None, False, "this torch does not know it")
    size = CPU_SIZE if device == "cpu" else GPU_SIZE
    rng = torch.Generator().manual_seed(0)
    if dtype == "int8":
        left, right = (torch.randint(-128, 128, (size, size), generator=rng, dtype=torch.int8) for _ in range(2))
    else:
        left, right = (torch.randn(size, size, generator=rng).to(getattr(torch, dtype)) for _ in range(2))
    truth = left.double() @ right.double()  # exact for int8 too: sums stay far below 2**53
    multiply = _PRODUCTS.get(dtype, torch.matmul)
    try:
        there = left.to(device), right.to(device)
        product = multiply(*there)
        seconds = min(_time(multiply, there, device) for _ in range(3))
    except (RuntimeError, TypeError, AttributeError, ValueError) as error:  # how torch says that there is no such kernel
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        return Matmul(device, dtype, size, None, None, False, reason)
    error = float((product.cpu().double() - truth).norm() / truth.norm())
    return Matmul(device, dtype, size, seconds, error, error <= TOLERANCES[dtype])


def _time(multiply: Callable[..., Tensor], operands: tuple[Tensor, Tensor], device: str) -> float:
    _synchronise(device)
    start = time.perf_counter()
    multiply(*operands)
    _synchronise(device)
    return time.perf_counter() - start


def _synchronise(device: str) -> None:
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device == "mps":
        torch.mps.synchronize()


def _int8(left: Tensor, right: Tensor) -> Tensor:
    import torch

    product: Tensor = torch._int_mm(left, right)
    return product


def _float8(left: Tensor, right: Tensor) -> Tensor:
    import torch

    one = torch.ones((), device=left.device)
    product: Tensor = torch._scaled_mm(left, right.t().contiguous().t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
    return product


_PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"int8": _int8, "float8_e4m3fn": _float8}


# Libraries.


def _requirements() -> list[Requirement]:
    """What the distribution asks for, extras included; from pyproject.toml in a checkout that isn't installed."""
    pyproject = ROOT / "pyproject.toml"
    try:
        return [Requirement(line) for line in importlib.metadata.requires("velatura") or []]
    except importlib.metadata.PackageNotFoundError:
        if not pyproject.is_file():
            return []
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    optional = [f"{line}; extra == '{extra}'" for extra, lines in project["optional-dependencies"].items() for line in lines]
    return [Requirement(line) for line in project["dependencies"] + optional]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _libraries() -> tuple[tuple[Library, ...], tuple[Extra, ...]]:
    """The core libraries with their ranges, and the optional ones with the command that gets each."""
    libraries, extras = [], []
    pins = f" -c '{ROOT / 'constraints.txt'}'" if (ROOT / "constraints.txt").is_file() else ""
    for needed in _requirements():
        version = _version(needed.name)
        extra = re.search(r"extra == [\"'](\w+)", str(needed.marker or ""))
        if extra:
            command = f"'{sys.executable}' -m pip install '{needed.name}{needed.specifier}'{pins}"
            extras.append(Extra(needed.name, extra[1], version, PURPOSES.get(needed.name, f"the {extra[1]} extra"), command))
        elif needed.marker is None or needed.marker.evaluate():
            libraries.append(Library(needed.name, version, str(needed.specifier), version is not None and needed.specifier.contains(version, prereleases=True)))
    return tuple(libraries), tuple(extras)


def imprimatura_missing(folder: Path) -> tuple[str, ...]:
    """What is missing or cut short of the base that ships, such as a Git LFS pointer: names below `folder`."""
    from safetensors import SafetensorError, safe_open

    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ("model_index.json",)
    missing = []
    for part in (name for name, value in index.items() if isinstance(value, list) and value[0]):
        weights = list((folder / part).glob("*.safetensors"))
        if not any((folder / part).glob("*.json")) or not weights and part not in ("scheduler", "tokenizer"):
            missing.append(part)
        for path in weights:
            try:
                with safe_open(path, framework="numpy"):  # compares the file's length with its header
                    pass
            except SafetensorError:
                missing.append(f"{part}/{path.name}")
    return tuple(missing)


# What stands in the way.


def _library_problems(libraries: tuple[Library, ...]) -> list[Problem]:
    if not libraries:
        return [Problem("velatura is not installed, only lying here.", "Versions can't be checked.", "Install it: make setup, or pip install velatura.")]
    wrong = [f"{library.name} {library.version or 'is missing'} (wanted: {library.wanted or 'any'})" for library in libraries if not library.fits]
    what = f"{'This library does' if len(wrong) == 1 else 'These libraries do'} not fit: {', '.join(wrong)}."
    return [Problem(what, "Velatura is tested with those ranges only.", "In a checkout: make setup. Else: pip install --upgrade velatura.")] if wrong else []


def _base_problems(missing: tuple[str, ...]) -> list[Problem]:
    if not missing:
        return []
    what = f"Imprimatura, the base that ships, lacks {', '.join(missing)} in {IMPRIMATURA}."
    return [Problem(what, "`velatura demo` and every preset named imprimatura-* need it.", "Restore the files: git checkout -- trainer/imprimatura, or install again.")]


def _room_problems(folder: Path, disk_free_bytes: int, memory_free_bytes: int) -> list[Problem]:
    problems = []
    if not os.access(folder, os.W_OK):
        problems.append(Problem(f"{folder} can't be written to.", "Runs and renders go to outputs/ in the folder you start in.", "Start in a folder of yours."))
    if disk_free_bytes < DISK_GIB * GIB:
        what = f"{_gib(disk_free_bytes)} of disk is free in {folder}."
        problems.append(Problem(what, f"Checkpoints and pictures of a few runs take more than {DISK_GIB} GiB.", "Free some, or start where there is more."))
    if memory_free_bytes < IMPRIMATURA_GIB * GIB:
        what = f"{_gib(memory_free_bytes)} of memory is free."
        problems.append(Problem(what, f"Training takes {IMPRIMATURA_GIB} GiB at least, and the system kills what takes too much.", "Close other programs."))
    return problems


def _torch_problem(error: BaseException) -> Problem:
    return Problem(f"torch can't be imported: {error}", "Nothing can be trained or rendered.", "In a checkout: make clean setup. Else: pip install --force-reinstall torch.")


def _device_problems(torch: Any, devices: tuple[Device, ...], matmuls: tuple[Matmul, ...]) -> list[Problem]:
    problems = [
        Problem(f"{one.dtype} products on {one.device} are wrong by {one.error:.1e}.", "Training would diverge or learn noise.", "Update the driver and torch; if it stays, suspect the hardware.")
        for one in matmuls
        if one.error is not None and not one.right
    ]  # fmt: skip
    if shutil.which("nvidia-smi") and all(device.device == "cpu" for device in devices) and torch.backends.cuda.is_built():
        problems.append(Problem("nvidia-smi is here, but torch finds no NVIDIA GPU.", "Everything runs on the CPU.", "Update the driver; it may be older than this torch's CUDA " + f"{torch.version.cuda}."))
    elif shutil.which("nvidia-smi") and not torch.backends.cuda.is_built():
        problems.append(Problem(f"nvidia-smi is here, but torch {torch.__version__} is built without CUDA.", "The GPU is not used.", "pip install --force-reinstall torch from the index that https://pytorch.org/get-started names for your driver."))
    return problems


def _neighbour_problems() -> list[Problem]:
    """Libraries we don't need that break those we do, merely by being installed."""
    if (version := _version("torchvision")) is None:
        return []
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError) as error:  # RuntimeError: operator torchvision::nms does not exist
        why = "diffusers can't be imported beside a torchvision that was built for another torch."
        return [Problem(f"torchvision {version} does not fit this torch: {error}", why, f"'{sys.executable}' -m pip uninstall torchvision (Velatura needs none).")]
    return []


# In words.


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f} GiB"


def _summary(devices: tuple[Device, ...], matmuls: tuple[Matmul, ...], missing: tuple[str, ...], memory_free_bytes: int) -> str:
    """One sentence or three: what this machine can do."""
    usable = {one.device for one in matmuls if one.dtype == "float32" and one.right}
    if not usable:
        return "This machine can't train or render yet: torch does not work here."
    speeds = {(one.device, one.dtype): one.seconds for one in matmuls if one.right and one.seconds}
    best = next((device for device in reversed(devices) if device.device in usable), devices[0])
    small = "can't use Imprimatura until its files are back" if missing else "can train and render on Imprimatura in minutes"
    if memory_free_bytes < IMPRIMATURA_GIB * GIB:
        small = "has too little free memory to train on Imprimatura"
    full, half = speeds.get((best.device, "float32")), speeds.get((best.device, "bfloat16"))
    precision = f" bfloat16 products are {full / half:.1f} times as fast as float32 on {best.device}." if full and half else f" {best.device} has no bfloat16 products."
    if best.device == "cpu":
        return f"This machine {small}, without a GPU; a Stable Diffusion 1.5 runs too, at many seconds a step.{precision}"
    return f"This machine {small}, and on larger bases with {_gib(best.memory_bytes)} of {best.name}.{precision}"


def describe(diagnosis: Diagnosis) -> str:
    """The diagnosis as text for a terminal or a bug report, problems last but one, what can be done last."""
    d = diagnosis
    lines = [
        f"Velatura {d.velatura}, Python {d.python}, {d.system}",
        f"CPU      {d.cpu}, {d.num_cpus} in use; {' '.join(d.cpu_flags) or 'no flags known'}",
        f"Memory   {_gib(d.memory_free_bytes)} free of {_gib(d.memory_bytes)}",
        f"Disk     {_gib(d.disk_free_bytes)} free in {d.folder}",
    ]
    for device in d.devices:
        lines.append(f"Device   {device.device}: {device.name}, {_gib(device.free_bytes)} free of {_gib(device.memory_bytes)}")
        lines += [f"           {_describe_matmul(one)}" for one in d.matmuls if one.device == device.device]
    lines += [f"Library  {one.name} {one.version or 'missing'} ({one.wanted or 'any'}){'' if one.fits else '  <- does not fit'}" for one in d.libraries]
    lines += [f"Extra    {one.name}: " + (f"{one.version}, {one.purpose}" if one.version else f"not here; for {one.purpose}. Get it: {one.command}") for one in d.extras]
    lines.append(f"Base     Imprimatura: {'whole' if not d.imprimatura_missing else 'lacks ' + ', '.join(d.imprimatura_missing)}")
    lines.append(f"Browser  {d.browser or 'no chromium; only the tests of the web UI want one, and are skipped'}")
    lines += [f"Problem  {one.what} {one.why} {one.do}" for one in d.problems]
    return "\n".join([*lines, d.summary])


def _describe_matmul(one: Matmul) -> str:
    if one.seconds is None:
        return f"{one.dtype:14} not here: {one.note}"
    teraflops = 2 * one.size**3 / one.seconds / 1e12
    return f"{one.dtype:14} {one.seconds * 1e3:8.2f} ms for {one.size} x {one.size}, {teraflops:7.2f} TFLOP/s, {'right' if one.right else 'WRONG'} to {one.error:.0e}"
