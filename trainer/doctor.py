"""What this machine is, what it can do, and what stands in the way, in words: `velatura doctor`.

Precision support is measured, not looked up: a small product in each dtype on each device is compared with the exact
one, because a build of torch that has no kernel, or a slow one, says so only when asked. Nothing heavy is imported
until `diagnose` runs, and a torch that can't be imported is a finding, not a crash.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement

import trainer
from trainer import foreign_json, system

if sys.version_info >= (3, 11):
    import tomllib
else:  # the same parser, by its name on 3.10
    import tomli as tomllib

if TYPE_CHECKING:
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
    """A library we use; `command` gets it, `extra` is the extra it belongs to, None for those Velatura can't do without."""

    name: str
    version: str | None
    wanted: str
    fits: bool
    extra: str | None
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
    imprimatura_missing: tuple[str, ...]
    browser: str | None
    problems: tuple[Problem, ...]
    summary: str


def diagnose() -> Diagnosis:
    """Everything `describe` says, as data; takes a few seconds, most of it to import torch."""
    memory_bytes, memory_free_bytes = system.memory_bytes()
    cpu = system.cpu_name()
    folder = Path.cwd()
    disk_free_bytes = shutil.disk_usage(folder).free
    libraries = _libraries()
    missing = imprimatura_missing(IMPRIMATURA)
    problems = _library_problems(libraries) + _base_problems(missing) + _room_problems(folder, disk_free_bytes, memory_free_bytes)
    devices: tuple[Device, ...] = ()
    matmuls: tuple[Matmul, ...] = ()
    try:
        import torch
    except (ImportError, OSError, RuntimeError) as error:  # OSError: a shared library that won't load
        do = f"{system.quoted(sys.executable)} -m pip install --force-reinstall torch"
        problems.append(Problem(f"torch can't be imported: {error}", "Nothing can be trained or rendered.", do))
    else:
        devices = _devices(torch, cpu, memory_bytes, memory_free_bytes)
        matmuls = tuple(_matmul(device.device, dtype) for device in devices for dtype in TOLERANCES)
        problems += _device_problems(torch, devices, matmuls) + _neighbour_problems()
    return Diagnosis(
        velatura=trainer.__version__, system=system.name_and_version(), python=f"{sys.version.split()[0]} ({sys.executable})", cpu=cpu,
        num_cpus=system.num_cpus(), cpu_flags=tuple(flag for flag in FLAGS if flag in system.cpu_flags()), memory_bytes=memory_bytes,
        memory_free_bytes=memory_free_bytes, folder=str(folder), disk_free_bytes=disk_free_bytes, devices=devices, matmuls=matmuls, libraries=libraries,
        imprimatura_missing=missing, browser=next(filter(None, map(shutil.which, BROWSERS)), None), problems=tuple(problems),
        summary=_summary(devices, matmuls, missing, memory_free_bytes),
    )  # fmt: skip


# The machine.


def _devices(torch: Any, cpu: str, memory_bytes: int, memory_free_bytes: int) -> tuple[Device, ...]:
    found = [Device("cpu", cpu, memory_bytes, memory_free_bytes)]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            found.append(Device(f"cuda:{index}", torch.cuda.get_device_name(index), total, free))
    if torch.backends.mps.is_available():
        found.append(Device("mps", "Apple GPU", memory_bytes, memory_free_bytes))  # it shares the machine's memory
    return tuple(found)


# Products, measured.


def _matmul(device: str, dtype: str) -> Matmul:
    """The best of twenty products on this device (others may be at work too), against the same product in float64 on the CPU."""
    import torch

    if not hasattr(torch, dtype):
        return Matmul(device, dtype, 0, None, None, False, "this torch does not know it")
    size = 2048 if device != "cpu" else 512 if dtype != "float8_e4m3fn" else 64  # CPUs emulate float8, slowly
    rng = torch.Generator().manual_seed(0)
    drawn = torch.randn(2, size, size, generator=rng)
    left, right = (drawn * 40).round().clamp(-128, 127).to(torch.int8) if dtype == "int8" else drawn.to(getattr(torch, dtype))
    truth = left.double() @ right.double()  # exact for int8: sums stay far below 2**53
    try:
        left, right = left.to(device), right.to(device)
        product = _multiply(left, right).cpu().double()
        seconds = min(_time(left, right) for _ in range(20))
    except (RuntimeError, TypeError, AttributeError, ValueError) as refused:  # how torch says that there is no such kernel
        return Matmul(device, dtype, size, None, None, False, str(refused).partition("\n")[0][:120])
    error = float((product - truth).norm() / truth.norm())
    return Matmul(device, dtype, size, seconds, error, error <= TOLERANCES[dtype])


def _multiply(left: Tensor, right: Tensor) -> Tensor:
    import torch

    if left.dtype == torch.int8:
        return torch._int_mm(left, right)
    if left.element_size() == 1:  # float8; it wants the right one stored by columns
        one = torch.ones((), device=left.device)
        return torch._scaled_mm(left, right.t().contiguous().t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
    return left @ right


def _time(left: Tensor, right: Tensor) -> float:
    """Seconds until the product is there; GPUs are waited for."""
    import torch

    wait = (lambda: None) if left.device.type == "cpu" else torch.accelerator.synchronize
    wait()
    start = time.perf_counter()
    _multiply(left, right)
    wait()
    return time.perf_counter() - start


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


def _libraries() -> tuple[Library, ...]:
    """Every library of the metadata that applies here; in a checkout the commands keep to its pins."""
    pins = f" -c {system.quoted(str(ROOT / 'constraints.txt'))}" if (ROOT / "constraints.txt").is_file() else ""
    found = []
    for needed in _requirements():
        extra = re.search(r"extra == [\"'](\w+)", str(needed.marker or ""))
        if not extra and needed.marker and not needed.marker.evaluate():
            continue  # for another Python or system
        try:
            version = importlib.metadata.version(needed.name)
        except importlib.metadata.PackageNotFoundError:
            version = None
        fits = version is not None and needed.specifier.contains(version, prereleases=True)
        purpose = PURPOSES.get(needed.name, f"the {extra[1]} extra" if extra else "Velatura itself")
        command = f"{system.quoted(sys.executable)} -m pip install {system.quoted(f'{needed.name}{needed.specifier}')}{pins}"
        found.append(Library(needed.name, version, str(needed.specifier), fits, extra[1] if extra else None, purpose, command))
    return tuple(found)


def imprimatura_missing(folder: Path) -> tuple[str, ...]:
    """What is missing or cut short of the base that ships, such as a Git LFS pointer: names below `folder`."""
    from safetensors import SafetensorError, safe_open

    try:
        index = foreign_json.table(folder / "model_index.json")
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
        return [Problem("velatura is not installed, only lying here.", "Versions can't be checked.", f"Install it: {system.checkout_command('setup')}.")]
    return [
        Problem(
            f"{one.name} {one.version or 'is missing'}; wanted: {one.wanted or 'any version'}.",
            "Velatura is tested within that range only." if one.version else "Velatura can't do without it.",
            f"Install one that fits: {one.command}",
        )
        for one in libraries
        if not one.fits and (one.extra is None or one.version)
    ]


def _base_problems(missing: tuple[str, ...]) -> list[Problem]:
    what = f"Imprimatura, the base that ships, lacks {', '.join(missing)} in {IMPRIMATURA}."
    do = "Restore the files: git checkout -- trainer/imprimatura, or install again."
    return [Problem(what, "`velatura demo` and every preset named imprimatura-* need it.", do)] if missing else []


def _room_problems(folder: Path, disk_free_bytes: int, memory_free_bytes: int) -> list[Problem]:
    problems = []
    if not os.access(folder, os.W_OK):
        problems.append(Problem(f"{folder} can't be written to.", "Runs and renders go to outputs/ in the folder you start in.", "Start in a folder of yours."))
    if disk_free_bytes < DISK_GIB * GIB:
        what = f"{_gib(disk_free_bytes)} of disk is free in {folder}."
        problems.append(Problem(what, "Checkpoints and pictures fill it; a full disk ends a run.", f"Free some, {DISK_GIB} GiB or more, or start elsewhere."))
    if memory_free_bytes < IMPRIMATURA_GIB * GIB:
        what = f"{_gib(memory_free_bytes)} of memory is free."
        problems.append(Problem(what, f"Training takes {IMPRIMATURA_GIB} GiB at least; the system ends what takes too much.", "Close other programs."))
    return problems


def _device_problems(torch: Any, devices: tuple[Device, ...], matmuls: tuple[Matmul, ...]) -> list[Problem]:
    why, do = "Training there would learn noise.", "Update the driver and torch; if it stays, suspect the hardware."
    problems = [
        Problem(f"{one.dtype} products on {one.device} are off by {one.error:.0e}; {TOLERANCES[one.dtype]:.0e} is rounding.", why, do)
        for one in matmuls
        if one.error is not None and not one.right
    ]
    if shutil.which("nvidia-smi") and not any(device.device.startswith("cuda") for device in devices):
        if torch.backends.cuda.is_built():
            what, do = f"torch {torch.__version__} finds no NVIDIA GPU, though nvidia-smi is here.", f"Update the driver to one for CUDA {torch.version.cuda}."
        else:
            what, do = f"torch {torch.__version__} has no CUDA, though nvidia-smi is here.", "Install the build that pytorch.org names for your driver."
        problems.append(Problem(what, "Everything runs on the CPU.", do))
    return problems


def _neighbour_problems() -> list[Problem]:
    """Of libraries we don't need that break those we do, merely by being installed."""
    if importlib.util.find_spec("torchvision") is None:
        return []
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError) as error:  # RuntimeError: operator torchvision::nms does not exist
        why, do = "diffusers can't be imported beside it.", f"{system.quoted(sys.executable)} -m pip uninstall torchvision (Velatura needs none)."
        return [Problem(f"torchvision was built for another torch: {error}.", why, do)]
    return []


# In words.


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f} GiB"


def _summary(devices: tuple[Device, ...], matmuls: tuple[Matmul, ...], missing: tuple[str, ...], memory_free_bytes: int) -> str:
    """What this machine can do, on the best device whose float32 is right."""
    seconds = {(one.device, one.dtype): one.seconds for one in matmuls if one.right and one.seconds}
    usable = [device for device in devices if (device.device, "float32") in seconds]
    if not usable:
        return "This machine can't train or render yet: torch does not work here."
    best = next((device for device in usable if device.device != "cpu"), usable[0])
    small = "can train and render on Imprimatura in minutes"
    if missing:
        small = "can't use Imprimatura until its files are back"
    elif memory_free_bytes < IMPRIMATURA_GIB * GIB:
        small = "has too little free memory to train on Imprimatura"
    large = f"larger bases get {_gib(best.memory_bytes)} of {best.name}" if best.device != "cpu" else "there is no GPU, so larger bases take long"
    half = seconds.get((best.device, "bfloat16"))
    ratio = f"{(seconds[best.device, 'float32'] or 0) / half:.1f} times as fast as" if half else "not here, unlike"
    return f"This machine {small}; {large}. On {best.device} bfloat16 is {ratio} float32."


def describe(diagnosis: Diagnosis) -> str:
    """The diagnosis as text for a terminal or a bug report; problems last but one, what can be done last."""
    d = diagnosis
    lines = [
        f"Velatura {d.velatura}, Python {d.python}, {d.system}",
        f"CPU      {d.cpu}, {d.num_cpus} in use; {' '.join(d.cpu_flags) or 'no flags known'}",
        f"Memory   {_gib(d.memory_free_bytes)} free of {_gib(d.memory_bytes)}",
        f"Disk     {_gib(d.disk_free_bytes)} free in {d.folder}",
    ]
    for device in d.devices:
        lines.append(f"Device   {device.device}: {device.name}, {_gib(device.free_bytes)} free of {_gib(device.memory_bytes)}")
        lines += [f"         {_describe_matmul(one)}" for one in d.matmuls if one.device == device.device]
    for one in d.libraries:
        state = one.version or ("missing" if one.extra is None else f"not here; for {one.purpose}. Get it: {one.command}")
        lines.append(f"{'Extra  ' if one.extra else 'Library'}  {one.name} {state}" + (f" (wanted: {one.wanted})" if one.version and not one.fits else ""))
    lines.append(f"Base     Imprimatura: {'whole' if not d.imprimatura_missing else 'lacks ' + ', '.join(d.imprimatura_missing)}")
    lines.append(f"Browser  {d.browser or 'no chromium; only the tests of the web UI want one, and are skipped'}")
    lines += [f"Problem  {one.what} {one.why} {one.do}" for one in d.problems]
    return "\n".join([*lines, d.summary])


def _describe_matmul(one: Matmul) -> str:
    if one.seconds is None:
        return f"{one.dtype:13} not here: {one.note}"
    teraflops = 2 * one.size**3 / one.seconds / 1e12
    verdict = "right" if one.right else "WRONG"
    return f"{one.dtype:13} {one.seconds * 1e3:8.2f} ms for {one.size} x {one.size}, {teraflops:7.3f} TFLOP/s, {verdict} to {one.error:.0e}"
