"""What a run was said to take before it began, kept until the run is there and then beside it, to be compared.

A prediction goes by the digest of the settings it was made for, dataset included: the run that is then started with
exactly these takes it along.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer import files, presets
from trainer.config import TrainConfig, digest

FILE = "prediction.json"  # in a run's folder
_MOST_BYTES = 4096


@dataclass(frozen=True)
class Prediction:
    """Seconds and bytes that were predicted; 0 where nothing is known."""

    source: str  # rehearsal or card
    step_s: float
    total_s: float = 0.0
    peak_bytes: int = 0


def remember(config: TrainConfig, settings: list[str], prediction: Prediction, out: Path) -> None:
    """Keep a prediction for the run that will be started in the folder `out` with these `settings` in its config."""
    keep(_waiting(out, presets.changed(config, presets.parse_overrides(settings))), prediction)


def hand_over(config: TrainConfig, out: Path, folder: Path) -> None:
    """Put the prediction that waits for these settings, if there is one, into the folder of their run."""
    prediction = read(_waiting(out, config))
    if prediction is not None:
        keep(folder / FILE, prediction)


def keep(path: Path, prediction: Prediction) -> None:
    """Write a prediction."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, json.dumps(asdict(prediction)).encode())


def read(path: Path) -> Prediction | None:
    """The prediction in a file; None where there is no file, or a damaged file."""
    try:
        values = Prediction(**json.loads(path.read_bytes()[:_MOST_BYTES]))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    numbers = (values.step_s, values.total_s, values.peak_bytes)
    is_sound = all(type(number) in (int, float) and 0 <= number < 1e15 for number in numbers)
    return values if is_sound and isinstance(values.source, str) else None


def _waiting(out: Path, config: TrainConfig) -> Path:
    return out / ".cache" / "predictions" / f"{digest(config)}.json"
