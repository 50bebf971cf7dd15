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
from pathlib import Path

from trainer.bench import serving_load
from trainer.bench.scale import Costs
from trainer.config import AdapterChoice, StackConfig
from trainer.errors import ConfigError
from trainer.render import picture_metadata
from trainer.render.engine import Engine

_FEW, _MANY, _CHECKED = 4, 16, 8  # pictures of a batch
_LORAS = 24
_STEPS = (1, 4)
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
        engine = Engine()
        files = [serving_load.random_lora(engine, Path(scratch) / f"{n}.safetensors", n) for n in range(_LORAS)]
        loads = [_timed(lambda file=file: engine.shelf.get(file)) for file in files]
        note("LoRAs read")
        batches: dict[tuple[Kind, int], list[Times]] = {}
        folds: list[Times] = []
        for number in range(rounds + 1):
            for kind in _KINDS:
                for steps in _STEPS:
                    stacks = _stacks(kind, steps, files, number)
                    batches.setdefault((kind, steps), []).append(_timed(lambda stacks=stacks: _draw(engine, stacks)))
            folds += _folds(engine, files)
            note(f"round {number} of {rounds}")
        encodes = _encodes(engine)
    # The first round isn't counted: memory is taken.
    counted = {key: times[1:] for key, times in batches.items()}
    both = [
        _costs({key: _median(times, part) for key, times in counted.items()},
               *(_median(times, part) for times in (folds[2:], loads, encodes)))
        for part in (0, 1)
    ]  # fmt: skip
    return Measured(both[0], both[1], _off(both[0], {key: _median(times, 0) for key, times in counted.items()}))


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


def _timed(work: Callable[[], object]) -> Times:
    began, before = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - before


def _median(times: list[Times], part: int) -> float:
    return statistics.median(both[part] for both in times)


def _folds(engine: Engine, files: list[Path]) -> list[Times]:
    """To fold a LoRA in the place of another."""
    stacks = [engine.resolve(StackConfig(adapters=(AdapterChoice(file=str(file), weight=0.7),))) for file in files[:3]]
    times = [_timed(lambda stack=stack: engine.fold(stack)) for stack in stacks]
    engine.restore()
    return times[1:]


def _encodes(engine: Engine) -> list[Times]:
    """To write a picture with its recipe."""
    picture = engine.render(StackConfig(prompt="a fox", steps=2))
    return [_timed(lambda: picture_metadata.png(picture)) for _ in range(5)]


def write(measured: Measured) -> str:
    """The costs as JSON, which `read` takes."""
    return json.dumps(asdict(measured), indent=2)


def read(path: Path) -> Measured:
    """Costs that were measured before. Raises: ConfigError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        both = [
            Costs(**{name: float(value) for name, value in values[kind].items()}) for kind in ("costs", "processor")
        ]
        return Measured(both[0], both[1], float(values["off"]))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"--costs is {str(path)[:300]!r}, which can't be used ({error}); it must be what --measure printed."
        ) from None
