"""`velatura demo`: from sample pictures to three LoRAs to one labelled sheet, on any machine.

A style and two characters are trained on Imprimatura with the presets that ship, the style is measured on pictures it
never saw, all are stacked. Every run is an ordinary run in `outputs/runs`, to be opened in the app.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainer import console, session, system
from trainer.config import AdapterChoice, StackConfig
from trainer.errors import RunError
from trainer.events import Finished, Validated
from trainer.render import contact_sheet, grid, picture_metadata
from trainer.render.engine import Engine
from trainer.runs import Run

if TYPE_CHECKING:
    from PIL.Image import Image

    from trainer.render.engine import Engine

EXAMPLES = Path(__file__).parents[1] / "app" / "examples"
STYLE = ", outline style"
THINGS = ("a red apple", "an owl", "a crab", "a hamburger", "a sunflower")  # none of them is in the style's dataset
_POSES = ("a smiling cat face", "a smiling cat with heart-eyes", "a cat face with sunglasses")
POSES = tuple(f"mokka, {pose}" for pose in (*_POSES, "a crying cat", "a kissing cat"))
FOX = "rusty, a smiling fox face"
TWO = "mokka, rusty, a grinning fox, a grinning cat"
NEUTRAL = ["a red apple, noto style", "a house, twemoji style"]
LEFT, RIGHT = "box 0 0 0.5 1", "box 0.5 0 1 1"
_WEIGHTS = (0.0, 0.5, 1.0)
_GRID_PROMPT = "mokka, a smiling cat with heart-eyes, outline style"


@dataclass(frozen=True)
class Loras:
    """The demo's LoRA files."""

    style: str
    cat: str
    fox: str


def run(out: Path) -> str:
    """Train three LoRAs, stack them, write the sheets below `out`; words that say where they are. Raises: UserError."""
    # Train, each as an ordinary run.
    began = time.monotonic()
    style = _train("imprimatura-style", "outline-style", out, heldout=EXAMPLES / "outline-style" / "heldout")
    cat = _train("imprimatura-character", "grey-cat", out, trigger="mokka", preview=POSES[0])
    fox = _train("imprimatura-character", "red-fox", out, trigger="rusty", preview=FOX)

    # Draw, and say what was measured.
    sheet, grid = draw(Loras(str(style.lora_file), str(cat.lora_file), str(fox.lora_file)), out / "renders")
    checked = next(event for event in reversed(style.events()) if isinstance(event, Validated))
    lines = [
        "",
        f"style on pictures it never saw: {console.gain(checked)}",
        f"contact sheet: {sheet.resolve()}",
        f"weight grid:   {grid.resolve()}",
        f"reports:       {style.report_file.resolve()}",
        *(f"               {run.report_file.resolve()}" for run in (cat, fox)),
        f"all in {time.monotonic() - began:.0f} s. Open the app with: {system.checkout_command('app')}   (or: "
        f"velatura app)",
    ]
    return "\n".join(lines)


def _train(
    preset: str, example: str, out: Path, heldout: Path | None = None, trigger: str = "", preview: str = ""
) -> Run:
    """Train one of the examples with a preset. Raises: RunError if it was stopped."""
    folder = EXAMPLES / example / "train"
    overrides = [f'data.trigger="{trigger}"', f"preview.prompts={json.dumps([preview])}"] if trigger else []
    # Measured before and after only: each measurement takes as long as twenty steps.
    if heldout:
        overrides.append(f"validation.neutral_prompts={json.dumps(NEUTRAL)}")
        overrides += ["validate_every_steps=100", "preview_every_steps=100"]
    config = session.preset_config(preset, str(folder), str(heldout) if heldout else None, overrides)
    run, stream = session.start(config, out / "runs", example, None)
    last = console.show(stream, run.folder)
    if not isinstance(last, Finished):
        raise RunError(
            f"the demo was stopped in run {run.name}; go on with it by: velatura train --resume --name {run.name}"
        )
    return run


def draw(loras: Loras, folder: Path) -> tuple[Path, Path]:
    """The files of the contact sheet and of the grid of weights."""
    engine = Engine("imprimatura")
    sheet = contact_sheet.stacked(_sections(engine, loras), "Velatura: one base, three LoRAs, one seed")
    sheet_file = picture_metadata.save_free_sheet(sheet, folder, "demo")
    both = _stack(_GRID_PROMPT, _choice(loras.style), _choice(loras.cat))
    weights = grid.weight_grid(engine, both, [list(_WEIGHTS), list(_WEIGHTS)])
    return sheet_file, picture_metadata.save_free_sheet(weights, folder, "demo-weights")


def _sections(engine: Engine, loras: Loras) -> list[Image]:
    """A style on things it never saw; a character in poses; two characters."""
    # Each row of a sheet: whether its prompts ask for the style, and its LoRAs.
    style, cat, fox = _choice(loras.style), _choice(loras.cat), _choice(loras.fox)
    things = {"base": (False, ()), "style": (True, (style,)), "style at 1.3": (True, (_at(style, 1.3),))}
    poses = {
        "base": (False, ()),
        "character": (False, (cat,)),
        "both": (True, (style, cat)),
        "both at 0.7": (True, (_at(style, 0.7), _at(cat, 0.7))),
    }
    two = {
        "a fox": _stack(FOX, fox),
        "the fox and the style": _stack(FOX + STYLE, style, fox),
        "cat left, fox right": _stack(TWO, _in(cat, LEFT), _in(fox, RIGHT)),
        "fox left, cat right": _stack(TWO, _in(fox, LEFT), _in(cat, RIGHT)),
        "and the style": _stack(TWO + STYLE, style, _in(fox, LEFT), _in(cat, RIGHT)),
    }

    def rows(stacks: dict[str, tuple[bool, tuple[AdapterChoice, ...]]], prompts: tuple[str, ...], title: str) -> Image:
        # All at once, so that stacks that share enough are drawn as one batch.
        wanted = [
            _stack(prompt + (STYLE if styled else ""), *adapters)
            for styled, adapters in stacks.values()
            for prompt in prompts
        ]
        pictures = [picture.image for picture in engine.render_all(wanted)]
        cells = [pictures[start : start + len(prompts)] for start in range(0, len(pictures), len(prompts))]
        return contact_sheet.contact_sheet(cells, list(stacks), list(prompts), title)

    last = [picture.image for picture in engine.render_all(two.values())]
    return [
        rows(things, THINGS, "A style, on things it was not trained on"),
        rows(poses, POSES, "A character, and the style on it"),
        contact_sheet.contact_sheet(
            [last], ["two characters"], list(two), "Another character, and both in one picture, each in its region"
        ),
    ]


# Stacks of one seed, so that only the LoRAs differ.


def _stack(prompt: str, *adapters: AdapterChoice) -> StackConfig:
    return StackConfig(prompt=prompt, seed=4, adapters=adapters)


def _choice(file: str) -> AdapterChoice:
    return AdapterChoice(file=file)


def _at(adapter: AdapterChoice, weight: float) -> AdapterChoice:
    return adapter.model_copy(update={"weight": weight})


def _in(adapter: AdapterChoice, region: str) -> AdapterChoice:
    return adapter.model_copy(update={"region": region, "weight": 1.2})
