"""What a batch costs on this machine, for the simulation: small batches drawn for real, and the line through them.

A LoRA that not every picture of a batch has at one weight costs something in each step, for itself and for each
picture. One batch more than the line needs is measured too, and says how far off the line is there.
"""

from __future__ import annotations

import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from trainer import lora_file
from trainer.bench.scale import Costs
from trainer.config import AdapterChoice, StackConfig
from trainer.errors import ConfigError
from trainer.render import picture_metadata
from trainer.render.engine import Engine

_RANK = 16
_LAYOUTS = (r"unet\.", r"unet\.up_blocks\.")  # as of the LoRAs of `bench serve`
_FEW, _MANY = 2, 8  # pictures
_LORAS, _CHECKED = 4, 12  # of a batch
_STEPS = (1, 4)


@dataclass(frozen=True)
class Measured:
    """Costs, and how far off they are for a batch that they weren't made from."""

    costs: Costs
    off: float  # share of what it really took, positive where the line says more


def measure(rounds: int, note: Callable[[str], None] = lambda text: None) -> Measured:
    """The costs of Imprimatura here; the least of so many rounds."""
    with tempfile.TemporaryDirectory(prefix="velatura-bench-") as scratch:
        engine = Engine()
        loras = [_lora(engine, Path(scratch) / f"{number}.safetensors", number) for number in range(_CHECKED)]
        load_s = _load_s(engine, loras)
        note("LoRAs read")
        steps: dict[tuple[int, int], float] = {}
        once: dict[int, float] = {}
        for pictures, count in ((1, 0), (_MANY, 0), (_FEW, _LORAS), (_MANY, _LORAS), (_MANY, _CHECKED)):
            few, many = (_batch_s(engine, pictures, loras[:count], number, rounds) for number in _STEPS)
            steps[pictures, count] = (many - few) / (_STEPS[1] - _STEPS[0])
            if not count:
                once[pictures] = few - _STEPS[0] * steps[pictures, 0]
            note(f"{pictures} pictures, {count} LoRAs: {steps[pictures, count]:.4f} s a step")
        fold_s = _fold_s(engine, loras, rounds)
        encode_s = _encode_s(engine)

    # The lines.
    step_picture_s = (steps[_MANY, 0] - steps[1, 0]) / (_MANY - 1)
    step_s = steps[1, 0] - step_picture_s
    picture_s = max(0.0, (once[_MANY] - once[1]) / (_MANY - 1))
    live = {
        pictures: (steps[pictures, _LORAS] - step_s - pictures * step_picture_s) / _LORAS for pictures in (_FEW, _MANY)
    }
    live_picture_s = max(0.0, (live[_MANY] - live[_FEW]) / (_MANY - _FEW))
    live_s = max(0.0, live[_MANY] - _MANY * live_picture_s)
    costs = Costs(
        max(0.0, once[1] - picture_s), picture_s, max(0.0, step_s), step_picture_s, live_s, live_picture_s,
        fold_s, load_s, encode_s,
    )  # fmt: skip
    wanted = costs.batch(_MANY, _CHECKED, 1) - costs.batch(_MANY, _CHECKED, 0)
    return Measured(costs, wanted / steps[_MANY, _CHECKED] - 1)


def _lora(engine: Engine, path: Path, seed: int) -> Path:
    """A random LoRA of one of the layouts that Imprimatura's presets train."""
    rng, parts = torch.Generator().manual_seed(seed), {}
    layout, target = re.compile(_LAYOUTS[seed % 2]), re.compile(engine.family.targets["all"])
    for name, (out, into, *kernel) in engine.shapes.items():
        if layout.match(name) and target.fullmatch(name.removeprefix(f"{engine.component}.")):
            ones = [1] * len(kernel)
            parts[engine.file_keys[name]] = {
                "lora_down.weight": torch.randn(_RANK, into, *kernel, generator=rng) / into**0.5,
                "lora_up.weight": torch.randn(out, _RANK, *ones, generator=rng) * 0.01,
                "alpha": torch.tensor(float(_RANK)),
            }
    lora_file.save(path, parts, {}, torch.float16)
    return path


def _batch_s(engine: Engine, pictures: int, loras: list[Path], steps: int, rounds: int) -> float:
    """Seconds of a batch in which each picture has all LoRAs at weights of its own: the least of so many rounds.

    What else the machine does only ever adds to it.
    """
    stacks = [
        StackConfig(
            prompt="a fox",
            seed=number,
            steps=steps,
            adapters=tuple(AdapterChoice(file=str(file), weight=0.2 + number / 20) for file in loras),
        )
        for number in range(pictures)
    ]
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        list(engine.render_all(stacks))
        times.append(time.perf_counter() - began)
    return min(times[1:])


def _load_s(engine: Engine, loras: list[Path]) -> float:
    times = []
    for file in loras:
        began = time.perf_counter()
        engine.shelf.get(file)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _fold_s(engine: Engine, loras: list[Path], rounds: int) -> float:
    """Seconds to fold a LoRA in the place of another."""
    stacks = [engine.resolve(StackConfig(adapters=(AdapterChoice(file=str(file), weight=0.7),))) for file in loras[:2]]
    times = []
    for number in range(2 * rounds + 1):
        began = time.perf_counter()
        engine.fold(stacks[number % 2])
        times.append(time.perf_counter() - began)
    engine.restore()
    return statistics.median(times[1:])


def _encode_s(engine: Engine) -> float:
    """Seconds to write a picture with its recipe."""
    picture = engine.render(StackConfig(prompt="a fox", steps=2))
    with tempfile.TemporaryDirectory() as folder:
        times = []
        for number in range(5):
            began = time.perf_counter()
            picture_metadata.save(picture, Path(folder) / f"{number}.png")
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def write(measured: Measured) -> str:
    """The costs as JSON, which `read` takes."""
    return json.dumps(asdict(measured), indent=2)


def read(path: Path) -> Measured:
    """Costs that were measured before. Raises: ConfigError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        costs = Costs(**{name: float(value) for name, value in values["costs"].items()})
        return Measured(costs, float(values["off"]))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"--costs is {str(path)[:300]!r}, which can't be used ({error}); it must be what --measure printed."
        ) from None
