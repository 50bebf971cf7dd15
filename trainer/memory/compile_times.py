"""What compiling a model's blocks takes on this machine and what it brings, kept so that the next run can weigh it.

Rehearsals measure both ways, runs their own: a run that compiles knows what its first steps took beyond the later ones,
one that doesn't knows what an eager pass takes. All of it is of one GPU, these versions, this base with this adapter,
these shapes and the settings that change a pass; what is known of others says nothing here. It lies in the user's data
folder, so that runs share it.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Hashable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock
from torch import nn

from trainer import files, model_registry
from trainer.config import MemoryConfig

_MOST_KEPT = 200  # the newest
_WRITTEN_AT = (16, 64, 256)  # later steps of a run: few enough for a short run, again when more is known
_DECIDING = ("quantise", "gradient_checkpointing", "offload", "offload_activations", "attention", "micro_batch")


@dataclass(frozen=True)
class Times:
    """Seconds of one forward and backward pass with its share of the update, and of compiling all shapes.

    None where it was never measured.
    """

    eager_s: float | None = None
    compiled_s: float | None = None
    compile_s: float | None = None

    def saved_s(self, passes: int) -> float | None:
        """What so many passes take less when compiled, compiling counted; None where not all of it is known."""
        if self.eager_s is None or self.compiled_s is None or self.compile_s is None:
            return None
        return passes * (self.eager_s - self.compiled_s) - self.compile_s

    def described(self) -> str:
        """What was measured, where all of it is known."""
        assert self.compiled_s is not None and self.eager_s is not None and self.compile_s is not None
        return (
            f"{self.compiled_s:.3f} s a pass instead of {self.eager_s:.3f} s, after {self.compile_s:.0f} s of compiling"
        )

    def with_newer(self, other: Times) -> Times:
        """These, with what the others know in place of what these do."""
        return Times(**(asdict(self) | {name: value for name, value in asdict(other).items() if value is not None}))


def key(machine: list[str], denoiser: nn.Module, settings: MemoryConfig, about: Iterable[Hashable]) -> str:
    """What the times of a model's passes go by; `about` are the shapes, and what else is computed in a pass."""
    layers = "\n".join(
        f"{name} {tuple(weight.shape)} {weight.dtype} {weight.requires_grad}"
        for name, weight in denoiser.named_parameters()
    )
    model = [type(denoiser).__name__, hashlib.sha256(layers.encode()).hexdigest()[:16]]
    return json.dumps([machine, model, [getattr(settings, name) for name in _DECIDING], sorted(map(str, about))])


def known_file() -> Path:
    """Where what was measured on this machine is kept."""
    return model_registry.home() / "compiling.json"


def known(key: str) -> Times:
    """What was measured before; nothing where there is no file, or a damaged file."""
    return _read(known_file()).get(key, Times())


def keep(key: str, measured: Times) -> None:
    """Write down what was measured, over what was known of it; a folder that can't be written keeps nothing."""
    file = known_file()
    with ExitStack() as stack, suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        stack.enter_context(FileLock(f"{file}.lock"))
        table = _read(file)
        table[key] = table.pop(key, Times()).with_newer(measured)  # the newest last
        newest = dict([*table.items()][-_MOST_KEPT:])
        files.write(file, json.dumps({name: asdict(times) for name, times in newest.items()}).encode())


def _read(file: Path) -> dict[str, Times]:
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
        return {name: _times(row) for name, row in table.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _times(row: dict[str, float | None]) -> Times:
    seconds = [row[name] for name in ("eager_s", "compiled_s", "compile_s")]
    return Times(*(None if value is None else float(value) for value in seconds))


class Watch:
    """The seconds of a run's steps, kept once there are enough: those in which a shape comes first, and the others."""

    def __init__(self, key: str, compiled: bool, passes_a_step: int) -> None:
        self.key, self.compiled, self.passes_a_step = key, compiled, passes_a_step
        self._seen: set[Hashable] = set()
        self._step: set[Hashable] = set()  # the shapes of the step under way
        self._first_s: list[float] = []
        self._later_s: list[float] = []

    def saw(self, shape: Hashable) -> None:
        """A pass of the step under way has this shape."""
        self._step.add(shape)

    def add(self, seconds: float) -> None:
        """The step is done."""
        (self._later_s if self._step <= self._seen else self._first_s).append(seconds)
        self._seen |= self._step
        self._step = set()
        if len(self._later_s) not in _WRITTEN_AT:
            return
        later_s = statistics.median(self._later_s)
        pass_s, first_s = later_s / self.passes_a_step, sum(max(0.0, seconds - later_s) for seconds in self._first_s)
        keep(self.key, Times(compiled_s=pass_s, compile_s=first_s) if self.compiled else Times(eager_s=pass_s))
