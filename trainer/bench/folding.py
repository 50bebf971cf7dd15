"""How long our engine takes to fold LoRAs into a base of full size, whole and quantised: ours alone, no step taken.

A quantised layer is summed from its weight in the base's files. A random base has none, so its attention, which is all
that the LoRAs touch, is written to one first.
"""

from __future__ import annotations

import itertools
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from trainer import bases, families
from trainer.bench import full_size, stacking, training
from trainer.bench.stacking import Row
from trainer.config import StackConfig
from trainer.render.engine import Engine

KINDS = ("none", "int8", "fp8", "nf4")  # of a base's linear layers
FIRST_FOLD, CHANGE, SWAP = "first fold of 1 from disk", "change a weight of two", "swap among 8 resident"
_RESIDENT = 8
_TIMES = {"cuda": 9}  # of what is measured; elsewhere fewer
_FEW_TIMES = 2


def what(name: str, kind: str) -> str:
    """The name of a row: what was done, on which kind of base."""
    return name if kind == "none" else f"{name}, {kind} base"


def names(kinds: Sequence[str] = KINDS) -> list[str]:
    """Of all rows of a model, on bases of these kinds."""
    return [what(name, kind) for kind in kinds for name in (FIRST_FOLD, CHANGE, SWAP)]


def times(engine: Engine) -> int:
    """How often a change is measured on the engine's device."""
    return _TIMES.get(engine.pipe.device.type, _FEW_TIMES)


def measure(model: str, depth: int | None, kinds: Sequence[str], gate: Callable[[], None]) -> Iterator[Row]:
    """The rows of a model on each of these kinds of base, in this process, which is there for nothing else: how bases
    are opened is replaced in it. `gate` is called before the device is touched and again before what is measured.
    """
    gate()
    bases.open_pipeline = full_size.open_pipeline
    family = full_size.FAMILIES[model]
    with tempfile.TemporaryDirectory(prefix="velatura-bench-") as scratch:
        folder, files = full_size.write(model, depth, Path(scratch) / "base"), list[Path]()
        engine = Engine(str(folder), family)
        for number in range(_RESIDENT + 1):
            files.append(stacking.random_lora(engine, Path(scratch) / f"lora{number}.safetensors", number))
        _write_attention(engine)
        gate()
        for kind in kinds:
            if kind != "none":
                del engine  # before the next base is made
                engine = Engine(str(folder), family, quantise=kind)
            yield from _rows(model, kind, engine, files)


def _write_attention(engine: Engine) -> None:
    """The weights of the denoiser's attention as a file of the base's."""
    denoiser = getattr(engine.pipe, engine.component)
    pattern = re.compile(families.registry()[engine.family.name].targets["attention"])
    weights = {
        f"{path}.weight": layer.weight.detach().cpu().contiguous()
        for path, layer in denoiser.named_modules()
        if isinstance(layer, torch.nn.Linear) and pattern.fullmatch(path)
    }
    save_file(weights, engine.folder / engine.component / "diffusion_pytorch_model.safetensors")


def _rows(model: str, kind: str, engine: Engine, files: list[Path]) -> Iterator[Row]:
    first, *resident = files
    changing = Changing(engine, resident)
    yield Row(model, what(FIRST_FOLD, kind), seconds(lambda: engine.fold(changing.stack([first]))), None)
    for file in resident:  # read before they are swapped
        engine.fold(changing.stack([file]))
    changing.weigh()
    (changed,) = stacking.in_turn([(stacking.nothing, changing.weigh)], times(engine))
    yield Row(model, what(CHANGE, kind), changed, None)
    (swapped,) = stacking.in_turn([(stacking.nothing, changing.swap)], times(engine))
    yield Row(model, what(SWAP, kind), swapped, None)


class Changing:
    """An engine and LoRAs whose weights are changed and that are swapped, another way each time."""

    def __init__(self, engine: Engine, files: list[Path]) -> None:
        self.engine, self.files, self._turns = engine, files, itertools.count()

    def stack(self, files: list[Path], weights: list[float] | None = None) -> StackConfig:
        """These files on the base, resolved."""
        stack = stacking.stack_of(self.engine.base, files, weights, self.engine.family.name)
        return self.engine.resolve(stack)

    def weight(self) -> float:
        """A weight other than the last weights."""
        return 0.5 + next(self._turns) % 7 / 10

    def weigh(self) -> None:
        """Fold two LoRAs, one of them at another weight than before."""
        self.engine.fold(self.stack(self.files[:2], [self.weight(), 1.0]))

    def swap(self) -> None:
        """Fold one LoRA in place of another that was read before, too."""
        self.engine.fold(self.stack([self.files[next(self._turns) % len(self.files)]]))


def seconds(call: Callable[[], None]) -> float:
    """Seconds of one call, until the device is done."""
    training.synchronize()
    began = time.perf_counter()
    call()
    training.synchronize()
    return time.perf_counter() - began
