"""What this machine is, what it can do, and what stands in the way, in words: `velatura doctor`.

Precision support is measured (`matmuls`), versions are compared with the project's own metadata (`requirements`).
Nothing heavy is imported until `diagnose` runs, and a torch that can't be imported is a finding, not a crash.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

import trainer
from trainer import foreign_json, matmuls, requirements, system
from trainer.matmuls import TOLERANCES, Matmul
from trainer.requirements import Library

IMPRIMATURA = Path(__file__).parent / "imprimatura"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Matrix units and bf16 arithmetic of x86, arm64 and their int8 kin: what decides which dtype is fast on a CPU.
FLAGS = (
    *("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni"),
    *("amx_tile", "amx_bf16", "amx_int8", "amx_fp16"),
    *("asimd", "bf16", "i8mm", "sve"),
)
GIB = 1 << 30
IMPRIMATURA_GIB = 1.5  # measured: training on it at batch 8
DISK_GIB = 5


@dataclass(frozen=True)
class Problem:
    """What stands in the way, in three sentences."""

    what: str
    why: str
    do: str


@dataclass(frozen=True)
class Device:
    """One device that torch can compute on."""

    device: str  # as torch spells it: cpu, cuda:0, mps
    name: str
    memory_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class Diagnosis:
    """Everything that is known of this machine."""

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
    # The machine and what is installed, without torch.
    memory_bytes, memory_free_bytes = system.memory_bytes()
    cpu = system.cpu_name()
    folder = Path.cwd()
    disk_free_bytes = shutil.disk_usage(folder).free
    libraries = requirements.libraries()
    missing = imprimatura_missing(IMPRIMATURA)
    problems = (
        _library_problems(libraries)
        + _base_problems(missing)
        + _room_problems(folder, disk_free_bytes, memory_free_bytes)
    )

    # What torch can do, if there is one.
    devices: tuple[Device, ...] = ()
    products: tuple[Matmul, ...] = ()
    try:
        import torch
    except (ImportError, OSError, RuntimeError) as error:  # OSError: a shared library that won't load
        do = f"{system.quoted(sys.executable)} -m pip install --force-reinstall torch"
        problems.append(Problem(f"torch can't be imported: {error}", "Nothing can be trained or rendered.", do))
    else:
        devices = _devices(torch, cpu, memory_bytes, memory_free_bytes)
        products = tuple(matmuls.measure(device.device, dtype) for device in devices for dtype in TOLERANCES)
        problems += _device_problems(torch, devices, products) + _neighbour_problems()

    return Diagnosis(
        velatura=trainer.__version__,
        system=system.name_and_version(),
        python=f"{sys.version.split()[0]} ({sys.executable})",
        cpu=cpu,
        num_cpus=system.num_cpus(),
        cpu_flags=tuple(flag for flag in FLAGS if flag in system.cpu_flags()),
        memory_bytes=memory_bytes,
        memory_free_bytes=memory_free_bytes,
        folder=str(folder),
        disk_free_bytes=disk_free_bytes,
        devices=devices,
        matmuls=products,
        libraries=libraries,
        imprimatura_missing=missing,
        browser=next(filter(None, map(shutil.which, BROWSERS)), None),
        problems=tuple(problems),
        summary=_summary(devices, products, missing, memory_free_bytes),
    )


# The machine.


def _devices(torch: Any, cpu: str, memory_bytes: int, memory_free_bytes: int) -> tuple[Device, ...]:
    devices = [Device("cpu", cpu, memory_bytes, memory_free_bytes)]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            devices.append(Device(f"cuda:{index}", torch.cuda.get_device_name(index), total, free))
    if torch.backends.mps.is_available():
        devices.append(Device("mps", "Apple GPU", memory_bytes, memory_free_bytes))  # it shares the machine's memory
    return tuple(devices)


def imprimatura_missing(folder: Path) -> tuple[str, ...]:
    """What is missing or cut short of the base that ships, such as a Git LFS pointer: names below `folder`."""
    # Which parts there must be.
    try:
        index = foreign_json.table(folder / "model_index.json")
    except (OSError, ValueError):
        return ("model_index.json",)

    # Each with its config, and weights that are as long as their headers say.
    missing = []
    for part in (name for name, value in index.items() if isinstance(value, list) and value[0]):
        weights = list((folder / part).glob("*.safetensors"))
        if not any((folder / part).glob("*.json")) or not weights and part not in ("scheduler", "tokenizer"):
            missing.append(part)
        for path in weights:
            try:
                with safe_open(path, framework="numpy"):  # opening compares the file's length with its header
                    pass
            except SafetensorError:
                missing.append(f"{part}/{path.name}")
    return tuple(missing)


# What stands in the way.


def _library_problems(libraries: tuple[Library, ...]) -> list[Problem]:
    """Versions outside their range, and what is missing; an extra that isn't here is none."""
    if not libraries:
        return [
            Problem(
                "velatura is not installed, only lying here.",
                "Versions can't be checked.",
                f"Install it: {system.checkout_command('setup')}.",
            )
        ]
    return [
        Problem(
            f"{library.name} {library.version or 'is missing'}; wanted: {library.wanted or 'any version'}.",
            "Velatura is tested within that range only." if library.version else "Velatura can't do without it.",
            f"Install one that fits: {library.command}",
        )
        for library in libraries
        if not library.fits and (library.extra is None or library.version)
    ]


def _base_problems(missing: tuple[str, ...]) -> list[Problem]:
    what = f"Imprimatura, the base that ships, lacks {', '.join(missing)} in {IMPRIMATURA}."
    do = "Restore the files: git checkout -- trainer/imprimatura, or install again."
    return [Problem(what, "`velatura demo` and every preset named imprimatura-* need it.", do)] if missing else []


def _room_problems(folder: Path, disk_free_bytes: int, memory_free_bytes: int) -> list[Problem]:
    """A folder that can't be written to, and too little disk or memory."""
    # Where runs and pictures would be written.
    problems = []
    if not os.access(folder, os.W_OK):
        problems.append(
            Problem(
                f"{folder} can't be written to.",
                "Runs and renders go to outputs/ in the folder you start in.",
                "Start in a folder of yours.",
            )
        )
    if disk_free_bytes < DISK_GIB * GIB:
        what = f"{_gib(disk_free_bytes)} of disk is free in {folder}."
        problems.append(
            Problem(
                what,
                "Checkpoints and pictures fill it; a full disk ends a run.",
                f"Free some, {DISK_GIB} GiB or more, or start elsewhere.",
            )
        )
    # Memory for the smallest base there is.
    if memory_free_bytes < IMPRIMATURA_GIB * GIB:
        what = f"{_gib(memory_free_bytes)} of memory is free."
        problems.append(
            Problem(
                what,
                f"Training takes {IMPRIMATURA_GIB} GiB at least; the system ends what takes too much.",
                "Close other programs.",
            )
        )
    return problems


def _device_problems(torch: Any, devices: tuple[Device, ...], products: tuple[Matmul, ...]) -> list[Problem]:
    # Products that are wrong.
    why, do = "Training there would learn noise.", "Update the driver and torch; if it stays, suspect the hardware."
    problems = [
        Problem(
            f"{product.dtype} products on {product.device} are off by {product.error:.0e}; "
            f"{TOLERANCES[product.dtype]:.0e} is rounding.",
            why,
            do,
        )
        for product in products
        if product.error is not None and not product.right
    ]

    # A GPU that torch doesn't see: its driver is too old for this torch, or this torch was built without CUDA.
    if shutil.which("nvidia-smi") and not any(device.device.startswith("cuda") for device in devices):
        if torch.backends.cuda.is_built():
            what, do = (
                f"torch {torch.__version__} finds no NVIDIA GPU, though nvidia-smi is here.",
                f"Update the driver to one for CUDA {torch.version.cuda}.",
            )
        else:
            what, do = (
                f"torch {torch.__version__} has no CUDA, though nvidia-smi is here.",
                "Install the build that pytorch.org names for your driver.",
            )
        problems.append(Problem(what, "Everything runs on the CPU.", do))
    return problems


def _neighbour_problems() -> list[Problem]:
    """Libraries that Velatura doesn't need and that break those it does, merely by being installed."""
    if importlib.util.find_spec("torchvision") is None:
        return []
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError) as error:  # RuntimeError: operator torchvision::nms does not exist
        why, do = (
            "diffusers can't be imported beside it.",
            f"{system.quoted(sys.executable)} -m pip uninstall torchvision (Velatura needs none).",
        )
        return [Problem(f"torchvision was built for another torch: {error}.", why, do)]
    return []


# In words.


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f} GiB"


def _summary(
    devices: tuple[Device, ...], products: tuple[Matmul, ...], missing: tuple[str, ...], memory_free_bytes: int
) -> str:
    """What this machine can do, on the best device whose float32 is right."""
    seconds = {
        (product.device, product.dtype): product.seconds for product in products if product.right and product.seconds
    }
    usable = [device for device in devices if (device.device, "float32") in seconds]
    if not usable:
        return "This machine can't train or render yet: torch does not work here."

    # Small bases run anywhere; for large bases the GPU counts.
    best = next((device for device in usable if device.device != "cpu"), usable[0])
    small = "can train and render on Imprimatura in minutes"
    if missing:
        small = "can't use Imprimatura until its files are back"
    elif memory_free_bytes < IMPRIMATURA_GIB * GIB:
        small = "has too little free memory to train on Imprimatura"
    large = (
        f"larger bases get {_gib(best.memory_bytes)} of {best.name}"
        if best.device != "cpu"
        else "there is no GPU, so larger bases take long"
    )

    # What half the memory costs or gains in time.
    half = seconds.get((best.device, "bfloat16"))
    ratio = f"{(seconds[best.device, 'float32'] or 0) / half:.1f} times as fast as" if half else "not here, unlike"
    return f"This machine {small}; {large}. On {best.device} bfloat16 is {ratio} float32."


def describe(diagnosis: Diagnosis) -> str:
    """The diagnosis as text for a terminal or a bug report; problems last but one, what can be done last."""
    return "\n".join(
        [
            *_machine_lines(diagnosis),
            *(_library_line(library) for library in diagnosis.libraries),
            *_base_lines(diagnosis),
            *(f"Problem  {problem.what} {problem.why} {problem.do}" for problem in diagnosis.problems),
            diagnosis.summary,
        ]
    )


def _machine_lines(diagnosis: Diagnosis) -> list[str]:
    """The system, the processor, memory and disk, and each device with its products."""
    lines = [
        f"Velatura {diagnosis.velatura}, Python {diagnosis.python}, {diagnosis.system}",
        f"CPU      {diagnosis.cpu}, {diagnosis.num_cpus} in use; {' '.join(diagnosis.cpu_flags) or 'no flags known'}",
        f"Memory   {_gib(diagnosis.memory_free_bytes)} free of {_gib(diagnosis.memory_bytes)}",
        f"Disk     {_gib(diagnosis.disk_free_bytes)} free in {diagnosis.folder}",
    ]
    for device in diagnosis.devices:
        memory = f"{_gib(device.free_bytes)} free of {_gib(device.memory_bytes)}"
        lines.append(f"Device   {device.device}: {device.name}, {memory}")
        products = [product for product in diagnosis.matmuls if product.device == device.device]
        lines += [f"         {_describe_matmul(product)}" for product in products]
    return lines


def _library_line(library: Library) -> str:
    missing = "missing" if library.extra is None else f"not here; for {library.purpose}. Get it: {library.command}"
    wanted = f" (wanted: {library.wanted})" if library.version and not library.fits else ""
    return f"{'Extra  ' if library.extra else 'Library'}  {library.name} {library.version or missing}{wanted}"


def _base_lines(diagnosis: Diagnosis) -> list[str]:
    missing = diagnosis.imprimatura_missing
    return [
        f"Base     Imprimatura: {'whole' if not missing else 'lacks ' + ', '.join(missing)}",
        f"Browser  {diagnosis.browser or 'no chromium; only the tests of the web UI want one, and are skipped'}",
    ]


def _describe_matmul(product: Matmul) -> str:
    if product.seconds is None:
        return f"{product.dtype:13} not here: {product.note}"
    teraflops = 2 * product.size**3 / product.seconds / 1e12
    verdict = "right" if product.right else "WRONG"
    return (
        f"{product.dtype:13} {product.seconds * 1e3:8.2f} ms for {product.size} x {product.size}, "
        f"{teraflops:7.3f} TFLOP/s, {verdict} to {product.error:.0e}"
    )
