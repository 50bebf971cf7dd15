"""The verdict of a retraining in its run's report: which of the two LoRAs predicts held-out pictures better."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from trainer.printing import escape

FILE = "compared.json"  # in the new run's folder, which `velatura retrain` writes
_MOST_BYTES = 1 << 16


@dataclass(frozen=True)
class Compared:
    """What `velatura retrain` found."""

    sentence: str  # which LoRA to take, with the gain and its interval
    old: str  # file names
    new: str
    num_pictures: int
    losses: dict[str, float]
    gains: tuple[float, float, float]  # of the new LoRA, with its 95 % interval


def read(folder: Path) -> Compared | None:
    """What was found of a run; None for a run that was compared with none, or whose file is damaged."""
    try:
        # A file that anybody may have edited: so much of it is read, and no more.
        with (folder / FILE).open("rb") as file:
            values = json.loads(file.read(_MOST_BYTES))
        losses = {title: float(values[key]) for key, title in _LOSSES.items()}
        gain, low, high = (float(values[key]) for key in ("gain", "gain_low", "gain_high"))
        texts = [str(values[key])[:1000] for key in ("sentence", "old", "new")]
        found = Compared(texts[0], texts[1], texts[2], int(values["num_pictures"]), losses, (gain, low, high))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return None
    return found if all(map(math.isfinite, [*losses.values(), gain, low, high])) else None


def html(folder: Path) -> str:
    """The verdict and what was measured; nothing for a run without a verdict."""
    found = read(folder)
    if found is None:
        return ""
    rows = "".join(f"<tr><td>{title}<td>{loss:.4g}" for title, loss in found.losses.items())
    gain, low, high = (f"{100 * value:+.1f} %" for value in found.gains)
    return (
        f"<p>{escape(found.sentence, 400)}</p><p>New: {escape(found.new, 200)}; old: {escape(found.old, 200)}.</p>"
        f'<div class="wide"><table><tr><th>On {found.num_pictures} held-out pictures<th>loss{rows}'
        f"<tr><td>Gain of the new one (95 %)<td>{gain} ({low} to {high})</table></div>"
    )


_LOSSES = {"base_loss": "The base alone", "old_loss": "With the old one", "new_loss": "With the new one"}
