"""What a batch costs on this machine, for the simulation: small batches drawn for real, and the line through them.

Stacks are those of the load test: each picture has one to three LoRAs of its own. One batch more than the line needs is
measured too, and says how far off the line is there. Each is measured in seconds of the clock and of the processors:
the former are what the machine gives now, with whatever else it does, the latter are nearly the same on a busy one.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from trainer import lora_file
from trainer.bench import serving_load
from trainer.bench.scale import Costs
from trainer.config import AdapterChoice, StackConfig
from trainer.errors import ConfigError
from trainer.render import picture_metadata
from trainer.render.engine import Engine

_FEW, _MANY, _CHECKED = 4, 16, 8  # pictures of a batch
_LORAS = 24
_STEPS = (2, 12)  # the first step of a batch takes longer, as memory is taken in it
_KINDS = ((1, False), (_MANY, False), (_FEW, True), (_CHECKED, True), (_MANY, True))  # pictures, and whether with LoRAs
Kind = tuple[int, bool]
Times = tuple[float, float]  # of the clock and of the processors


@dataclass(frozen=True)
class Measured:
    """Costs, and how far off they are for a batch that they weren't made from."""

    costs: Costs  # in seconds of the clock
    processor: Costs  # in seconds of the processors
    off: float  # share of what it really took, positive where the line says more


def measure(rounds: int, note: Callable[[str], None] = lambda text: None) -> Measured:
    """The costs of Imprimatura here; the median of so many rounds, in each of which everything is measured."""
    with tempfile.TemporaryDirectory(prefix="velatura-bench-") as scratch:
        measuring = Measuring(Engine(), Path(scratch) / "loras")
        for number in range(rounds + 1):
            measuring.round()
            note(f"round {number} of {rounds}")
        return measuring.measured()


class Measuring:
    """Measures in rounds, between which a load may be drawn, so that both see the same machine."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        """`folder` is made, for LoRAs of its own."""
        self.engine = engine
        folder.mkdir()
        self.files = [serving_load.random_lora(engine, folder / f"{n}.safetensors", n) for n in range(_LORAS)]
        self._batches: dict[tuple[Kind, int], list[Times]] = {}
        self._folds: list[Times] = []
        self._encodes: list[Times] = []
        self._loads: list[Times] = []
        self._num_rounds = 0

    def round(self) -> None:
        """Measure everything once. The first round isn't counted, since memory is taken in it."""
        for kind in _KINDS:
            for place, steps in enumerate(_STEPS):
                # Other LoRAs each time: those of the last batch needn't be laid beside the base again.
                stacks = _stacks(kind, steps, self.files, len(_STEPS) * self._num_rounds + place)
                drawing = partial(_draw, self.engine, stacks)
                self._batches.setdefault((kind, steps), []).append(_timed(drawing))
        self._folds += _folds(self.engine, self.files)
        self._encodes.append(_encode(self.engine))
        self._loads += [_timed(partial(_read, self.engine, file)) for file in self.files[:3]]
        self._num_rounds += 1

    def measured(self) -> Measured:
        """The costs by the median of all rounds but the first."""
        both = []
        for part in (0, 1):
            batches = {key: _median(times[1:], part) for key, times in self._batches.items()}
            fold_s, load_s, encode_s = (_median(times, part) for times in (self._folds[2:], self._loads, self._encodes))
            both.append(_costs(batches, fold_s, load_s, encode_s))
            if part == 0:
                off = _off(both[0], batches)
        return Measured(both[0], both[1], off)


def _costs(batches: Mapping[tuple[Kind, int], float], fold_s: float, load_s: float, encode_s: float) -> Costs:
    """The line through batches of a few and of many steps and pictures."""
    step = {kind: _step_s(batches, kind) for kind in _KINDS}
    once = {kind: batches[kind, _STEPS[0]] - _STEPS[0] * step[kind] for kind in _KINDS}
    one, many = (1, False), (_MANY, False)
    step_picture_s = (step[many] - step[one]) / (_MANY - 1)
    step_s = step[one] - step_picture_s
    picture_s = max(0.0, (once[many] - once[one]) / (_MANY - 1))
    # What LoRAs add.
    added = {pictures: step[pictures, True] - step_s - pictures * step_picture_s for pictures in (_FEW, _MANY)}
    few, most = sum(_sizes(_FEW)), sum(_sizes(_MANY))
    live_own_s = max(0.0, (added[_MANY] - added[_FEW]) / (most - few))
    live_s = max(0.0, added[_MANY] - most * live_own_s)
    live_batch_s = max(0.0, (once[_MANY, True] - once[many]) / min(most, _LORAS))
    return Costs(
        max(0.0, once[one] - picture_s), picture_s, max(0.0, step_s), step_picture_s, live_batch_s, live_s, live_own_s,
        fold_s, load_s, encode_s,
    )  # fmt: skip


def _step_s(batches: Mapping[tuple[Kind, int], float], kind: Kind) -> float:
    few, many = _STEPS
    return (batches[kind, many] - batches[kind, few]) / (many - few)


def _off(costs: Costs, batches: Mapping[tuple[Kind, int], float]) -> float:
    """How far off the line is for a step of the batch that it wasn't made from."""
    sizes = _sizes(_CHECKED)
    wanted = costs.batch(sizes, sum(sizes), 1) - costs.batch(sizes, sum(sizes), 0)
    return wanted / _step_s(batches, (_CHECKED, True)) - 1


def _sizes(pictures: int) -> list[int]:
    """How many LoRAs the stacks of a batch have."""
    return [1 + number % 3 for number in range(pictures)]


def _stacks(kind: Kind, steps: int, files: list[Path], turn: int) -> list[StackConfig]:
    """Stacks of a batch; each turn's have other LoRAs, as each batch of a server has."""
    pictures, with_loras = kind
    own, stacks = turn * 7, []
    for number, size in enumerate(_sizes(pictures)):
        adapters = [
            AdapterChoice(file=str(files[(own + place) % len(files)]), weight=0.2 + (number + place) / 30)
            for place in range(size if with_loras else 0)
        ]
        own += size
        stacks.append(StackConfig(prompt="a fox", seed=number, steps=steps, adapters=tuple(adapters)))
    return stacks


def _draw(engine: Engine, stacks: list[StackConfig]) -> None:
    engine.draw([engine.resolved(stack) for stack in stacks])


def _read(engine: Engine, file: Path) -> None:
    lora_file.read(file, engine.file_keys, engine.shapes)


def _timed(work: Callable[[], object]) -> Times:
    began, before = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - before


def _median(times: list[Times], part: int) -> float:
    return statistics.median(both[part] for both in times)


def _folds(engine: Engine, files: list[Path]) -> list[Times]:
    """To fold a LoRA in the place of another."""
    stacks = [engine.resolve(StackConfig(adapters=(AdapterChoice(file=str(file), weight=0.7),))) for file in files[:3]]
    times = [_timed(partial(engine.fold, stack)) for stack in stacks]
    engine.restore()
    return times[1:]


def _encode(engine: Engine) -> Times:
    """To write a picture with its recipe."""
    picture = engine.render(StackConfig(prompt="a fox", steps=1))
    return _timed(partial(picture_metadata.png, picture))


def write(measured: Measured) -> str:
    """The costs as JSON, which `read` takes."""
    return json.dumps(asdict(measured), indent=2)


def parsed(values: Any) -> Measured:
    """Costs of JSON. Raises: ValueError, TypeError, KeyError, AttributeError for what are none."""
    clock, processor = (
        Costs(**{name: float(value) for name, value in values[kind].items()}) for kind in ("costs", "processor")
    )
    return Measured(clock, processor, float(values["off"]))


def read(path: Path) -> Measured:
    """Costs that were measured before. Raises: ConfigError."""
    try:
        return parsed(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"--costs is {str(path)[:300]!r}, which can't be used ({error}); it must be what --measure printed."
        ) from None
