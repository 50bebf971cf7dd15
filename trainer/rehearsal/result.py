"""What a rehearsal measured, and its way through JSON: the process that measures is not the process that reads."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from trainer.predicted_cost import Prediction


@dataclass(frozen=True)
class Shape:
    """What one bucket takes."""

    width_px: int
    height_px: int
    num_pictures: int
    num_batches: int  # an epoch
    batch_s: float  # forward and backward of its fullest batch


@dataclass(frozen=True)
class Try:
    """One rehearsal, with memory settings beyond those of the run; `peak_bytes` is 0 where it could not be measured."""

    settings: list[str]
    peak_bytes: int
    message: str


@dataclass(frozen=True)
class Rehearsal:
    """What was measured, and what follows for the whole run; seconds are as the run logs them."""

    device: str
    dtype: str
    max_steps: int
    shapes: list[Shape]
    step_s: float  # mean over an epoch, accumulation and update included
    start_s: float  # base, adapter, first measurements and compiling
    caching_s: float  # what it took here; the run finds it done
    num_cached: int  # latents and captions that were new
    preview_s: float
    num_previews: int
    validation_s: float
    num_validations: int
    checkpoint_s: float
    num_checkpoints: int
    export_s: float
    num_folds: int
    eta_s: float
    peak_bytes: int
    peaks: dict[str, int]  # by phase: loading, training, watching, saving
    free_bytes: int  # memory that was free at the start
    checkpoint_bytes: int
    disk_bytes: int  # of the run folder at its fullest
    cache_bytes: int  # of the cache that runs beside each other share
    free_disk_bytes: int
    memory: dict[str, str | int | float | bool]  # the options in use
    warnings: list[str] = field(default_factory=list)
    compile_s: float = 0.0  # part of start_s
    budget_bytes: int = 0  # 0: none
    fits: bool = True
    settings: list[str] = field(default_factory=list)  # `--set` arguments that were chosen to fit
    tried: list[Try] = field(default_factory=list)

    @property
    def prediction(self) -> Prediction:
        """What it says of the run, to be compared with that."""
        return Prediction("rehearsal", self.step_s, self.eta_s, self.peak_bytes)


def to_json(rehearsal: Rehearsal) -> str:
    """The rehearsal as one line of JSON."""
    return json.dumps(asdict(rehearsal))


def from_json(text: str) -> Rehearsal:
    """The rehearsal that `to_json` wrote. Raises: ValueError, KeyError or TypeError for anything else."""
    values = json.loads(text)
    values["shapes"] = [Shape(**shape) for shape in values["shapes"]]
    values["tried"] = [Try(**attempt) for attempt in values["tried"]]
    return Rehearsal(**values)
