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
from trainer.bench import served, serving_load
from trainer.bench.scale import Costs, Load
from trainer.bench.served import Served
from trainer.bench.serving_load import Asked
from trainer.config import AdapterChoice, StackConfig
from trainer.errors import ConfigError
from trainer.render import picture_metadata
from trainer.render.engine import Engine
from trainer.serving import keys

_FEW, _MANY, _CHECKED = 4, 16, 8  # pictures of a batch
_LORAS, _MOST_LORAS = 24, 3  # of all stacks, and of a stack
_FOLDED = 5  # stacks
_ANSWERED = 16  # pictures that a server is asked for
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
    with tempfile.TemporaryDirectory(prefix="velatura-bench-") as folder:
        scratch = Path(folder)
        key = keys.add(scratch / "keys.toml", keys.Key(name="measuring", requests_per_minute=100_000))
        with served.server(scratch) as server:
            return _measured(Measuring(Engine(), scratch / "loras", server, key), rounds, note)


def _measured(measuring: Measuring, rounds: int, note: Callable[[str], None]) -> Measured:
    for number in range(rounds + 1):
        measuring.round()
        note(f"round {number} of {rounds}")
    return measuring.measured()


class Measuring:
    """Measures in rounds, between which a load may be drawn, so that both see the same machine."""

    def __init__(self, engine: Engine, folder: Path, server: Served, key: str) -> None:
        """`folder` is made, for LoRAs of its own; the server is asked with the key."""
        self.engine, self.server, self.key = engine, server, key
        folder.mkdir()
        self.files = [serving_load.random_lora(engine, folder / f"{n}.safetensors", n) for n in range(_LORAS)]
        self._batches: dict[tuple[Kind, int], list[Times]] = {}
        # Each by its rounds, all that a round measures of it in one.
        self._folds: dict[int, list[Times]] = {1: [], _MOST_LORAS: []}  # by LoRAs of the stack
        self._encodes: list[Times] = []
        self._loads: list[Times] = []
        self._answers: list[Times] = []
        self._num_rounds = 0

    def round(self) -> None:
        """Measure everything once. The first round isn't counted, since memory is taken in it."""
        for kind in _KINDS:
            for place, steps in enumerate(_STEPS):
                # Other LoRAs each time: those of the last batch needn't be laid beside the base again.
                stacks = _stacks(kind, steps, self.files, len(_STEPS) * self._num_rounds + place)
                drawing = partial(_draw, self.engine, stacks)
                self._batches.setdefault((kind, steps), []).append(_timed(drawing))
        for size, times in self._folds.items():
            times.append(_fold(self.engine, self.files, size))
        self._encodes.append(_encode(self.engine))
        self._loads += [_timed(partial(_read, self.engine, file)) for file in self.files[:3]]
        self._answers.append(self._answer())
        self._num_rounds += 1

    def measured(self) -> Measured:
        """The costs by the median of all rounds but the first."""
        both = []
        for part in (0, 1):
            batches = {key: _median(times[1:], part) for key, times in self._batches.items()}
            folds = {size: _median(times[1:], part) for size, times in self._folds.items()}
            load_s, encode_s, answer_s = (
                _median(times, part) for times in (self._loads[1:], self._encodes[1:], self._answers[1:])
            )
            both.append(_costs(batches, folds, load_s, encode_s, max(0.0, answer_s - encode_s)))
            if part == 0:
                off = _off(both[0], batches)
        return Measured(both[0], both[1], off)

    def _answer(self) -> Times:
        """What a picture that is alone takes of a server beside its drawing: asked for one after the other."""
        asked = [Asked(0, number, "a fox", number, ()) for number in range(_ANSWERED)]
        before = self.server.cpu_s()
        load = serving_load.run(self.server.port, [self.key], [asked], 1, with_loras=False)
        of_server = load.seconds, self.server.cpu_s() - before
        drawing = partial(_draw, self.engine, [StackConfig(prompt="a fox", steps=1)])
        of_drawing = [_timed(drawing) for _ in range(_ANSWERED)]
        clock_s, processor_s = (
            (of_server[part] - sum(each[part] for each in of_drawing)) / _ANSWERED for part in (0, 1)
        )
        return clock_s - Load().window_s, processor_s


def _costs(
    batches: Mapping[tuple[Kind, int], float], folds: Mapping[int, float], load_s: float, encode_s: float,
    answer_s: float,
) -> Costs:  # fmt: skip
    """The line through batches of a few and of many steps and pictures, and through stacks of few and of many LoRAs."""
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
    # To fold.
    fold_s = max(0.0, (folds[_MOST_LORAS] - folds[1]) / (_MOST_LORAS - 1))
    fold_stack_s = max(0.0, folds[1] - fold_s)
    return Costs(
        max(0.0, once[one] - picture_s), picture_s, max(0.0, step_s), step_picture_s, live_batch_s, live_s, live_own_s,
        fold_stack_s, fold_s, load_s, encode_s, answer_s,
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


def _fold(engine: Engine, files: list[Path], size: int) -> Times:
    """To fold a stack of so many LoRAs in the place of another of as many; the median of a few."""
    stacks = [
        engine.resolve(StackConfig(adapters=tuple(AdapterChoice(file=str(file), weight=0.7) for file in chosen)))
        for chosen in (files[place * size : (place + 1) * size] for place in range(_FOLDED + 1))
    ]
    times = [_timed(partial(engine.fold, stack)) for stack in stacks][1:]
    engine.restore()
    return _median(times, 0), _median(times, 1)


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
