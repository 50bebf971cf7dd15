"""The verdict of a retraining in its run's report: which of the two LoRAs predicts held-out pictures better."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.printing import escape

FILE = "compared.json"  # in the new run's folder
_MOST_BYTES = 1 << 16
_PROBLEM = "problem"


@dataclass(frozen=True)
class Compared:
    """What a retraining found."""

    sentence: str  # which LoRA to take, with the gain and its interval
    old: str  # file names
    new: str
    num_pictures: int
    losses: dict[str, float]
    gains: tuple[float, float, float]  # of the new LoRA, with its 95 % interval
    better: str = ""  # new, old, neither; "" where an older version wrote it
    old_sha256: str = ""  # of the tensors; "" where it isn't known


def read(folder: Path) -> Compared | None:
    """What was found of a run; None for a run that was compared with none, or whose file is damaged."""
    values = _values(folder)
    try:
        losses = {title: float(values[key]) for key, title in _LOSSES.items()}
        gain, low, high = (float(values[key]) for key in ("gain", "gain_low", "gain_high"))
        texts = [str(values[key])[:1000] for key in ("sentence", "old", "new")]
        more = [str(values.get(key, ""))[:100] for key in ("better", "old_sha256")]
        num_pictures = int(values["num_pictures"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return None
    found = Compared(texts[0], texts[1], texts[2], num_pictures, losses, (gain, low, high), more[0], more[1])
    return found if all(map(math.isfinite, [*losses.values(), gain, low, high])) else None


def problem(folder: Path) -> str:
    """Why a run could not be compared; "" for any other run."""
    return str(_values(folder).get(_PROBLEM, ""))[:1000]


def unable(reason: str) -> bytes:
    """What the file holds of a run that could not be compared."""
    return json.dumps({_PROBLEM: reason}).encode()


def _values(folder: Path) -> dict[str, Any]:
    try:
        # A file that anybody may have edited: so much of it is read, and no more.
        with (folder / FILE).open("rb") as file:
            values = json.loads(file.read(_MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def html(folder: Path) -> str:
    """The verdict and what was measured; nothing for a run without a verdict."""
    found = read(folder)
    if found is None:
        reason = problem(folder)
        return f"<p>It could not be compared: {escape(reason, 400)}</p>" if reason else ""
    rows = "".join(f"<tr><td>{title}<td>{loss:.4g}" for title, loss in found.losses.items())
    gain, low, high = (f"{100 * value:+.1f} %" for value in found.gains)
    return (
        f"<p>{escape(found.sentence, 400)}</p><p>New: {escape(found.new, 200)}; old: {escape(found.old, 200)}.</p>"
        f'<div class="wide"><table><tr><th>On {found.num_pictures} held-out pictures<th>loss{rows}'
        f"<tr><td>Gain of the new one (95 %)<td>{gain} ({low} to {high})</table></div>"
    )


_LOSSES = {"base_loss": "The base alone", "old_loss": "With the old one", "new_loss": "With the new one"}
