"""The verdict of a retraining in its run's report: which of the two LoRAs predicts held-out pictures better."""

from __future__ import annotations

import json
import math
from pathlib import Path

from trainer.printing import escape

FILE = "compared.json"  # in the new run's folder, which `velatura retrain` writes
_MOST_BYTES = 1 << 16


def html(folder: Path) -> str:
    """The verdict and what was measured; nothing for a run that was compared with none, or whose file is damaged."""
    try:
        with (folder / FILE).open("rb") as file:
            values = json.loads(file.read(_MOST_BYTES))
        losses = {title: float(values[key]) for key, title in _LOSSES.items()}
        gains = [float(values[key]) for key in ("gain", "gain_low", "gain_high")]
        sentence, pictures = str(values["sentence"]), int(values["num_pictures"])
        names = str(values["old"]), str(values["new"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return ""
    if not all(map(math.isfinite, [*losses.values(), *gains])):
        return ""
    rows = "".join(f"<tr><td>{title}<td>{loss:.4g}" for title, loss in losses.items())
    gain, low, high = (f"{100 * value:+.1f} %" for value in gains)
    return (
        f"<p>{escape(sentence, 400)}</p><p>New: {escape(names[1], 200)}; old: {escape(names[0], 200)}.</p>"
        f'<div class="wide"><table><tr><th>On {pictures} held-out pictures<th>loss{rows}'
        f"<tr><td>Gain of the new one (95 %)<td>{gain} ({low} to {high})</table></div>"
    )


_LOSSES = {"base_loss": "The base alone", "old_loss": "With the old one", "new_loss": "With the new one"}
