"""`velatura demo`: from sample pictures to two LoRAs to one labelled contact sheet, on any machine.

A style and a character are trained on Imprimatura with the presets that ship, the style is measured on pictures it
never saw, both are stacked. Every run is an ordinary run in `outputs/runs`, to be opened in the app.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from trainer import console, session
from trainer.config import AdapterChoice, StackConfig
from trainer.errors import RunError
from trainer.events import Finished, Validated
from trainer.runs import Run

EXAMPLES = Path(__file__).parents[1] / "app" / "examples"
PROMPTS = (
    "a penguin, outline style",
    "a red apple, outline style",
    "mokka, a smiling cat face",
    "mokka, a cat with sunglasses, outline style",
    "a house, outline style",
)
NEUTRAL = ["a red apple, noto style", "a house, twemoji style"]
_WEIGHTS = (0.0, 0.5, 1.0, 1.5)
_GRID_PROMPT = "mokka, a smiling cat face, outline style"


def run(out: Path) -> str:
    """Train both, stack both, write the sheets below `out`; words that say where they are. Raises: UserError."""
    began = time.monotonic()
    style = _train("imprimatura-style", "outline-style", out, heldout=EXAMPLES / "outline-style" / "heldout")
    character = _train("imprimatura-character", "grey-cat", out, trigger="mokka")
    sheet, grid = _sheets(style, character, out / "renders")
    checked = next(event for event in reversed(style.events()) if isinstance(event, Validated))
    lines = [
        "",
        f"style on pictures it never saw: {console.gain(checked)}",
        f"contact sheet: {sheet.resolve()}",
        f"weight grid:   {grid.resolve()}",
        f"reports:       {style.report_file.resolve()}",
        f"               {character.report_file.resolve()}",
        f"all in {time.monotonic() - began:.0f} s. Open the app with: make app   (or: velatura app)",
    ]
    return "\n".join(lines)


def _train(preset: str, example: str, out: Path, heldout: Path | None = None, trigger: str = "") -> Run:
    folder = EXAMPLES / example / "train"
    overrides = [f'data.trigger="{trigger}"'] if trigger else []
    overrides += [f"validation.neutral_prompts={json.dumps(NEUTRAL)}"] if heldout else []
    config = session.preset_config(preset, str(folder), str(heldout) if heldout else None, overrides)
    made, stream = session.start(config, out / "runs", example, None)
    last = console.show(stream, made.folder)
    if not isinstance(last, Finished):
        raise RunError(f"the demo was stopped in run {made.name}; go on with it by: velatura train --resume --name {made.name}")
    return made


def _sheets(style: Run, character: Run, folder: Path) -> tuple[Path, Path]:
    """The contact sheet (base | style | character | both) and the grid of weights."""
    from trainer.render import grid, image
    from trainer.render.engine import Engine

    engine = Engine("imprimatura")
    drawn, cat = str(style.lora_file), str(character.lora_file)
    both = [(drawn, 1.0), (cat, 1.0)]
    rows = {"base": [], "style 1": both[:1], "style 1.5": [(drawn, 1.5)], "character 1": both[1:], "both 1": both, "both 0.7": [(drawn, 0.7), (cat, 0.7)]}
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [[engine.render(_stack(prompt, adapters)).image for prompt in PROMPTS] for adapters in rows.values()]
    sheet = image.free_name(folder, "demo.png")
    grid.contact_sheet(pictures, list(rows), list(PROMPTS), "Velatura: one base, two LoRAs, one seed").save(sheet)
    weights = image.free_name(folder, "demo-weights.png")
    grid.weight_grid(engine, _stack(_GRID_PROMPT, both), [list(_WEIGHTS), list(_WEIGHTS)]).save(weights)
    return sheet, weights


def _stack(prompt: str, adapters: list[tuple[str, float]]) -> StackConfig:
    return StackConfig(prompt=prompt, seed=4, adapters=tuple(AdapterChoice(file=file, weight=weight) for file, weight in adapters))
