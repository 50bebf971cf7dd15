"""Runs of nine steps on the tiny base: their settings, and a run to its end."""

from pathlib import Path

from tests import plain
from trainer import presets, runs, session
from trainer.events import Finished


def config(tiny: Path, pictures: Path, **settings):
    values = {
        "base": str(tiny), "resolution_px": 32, "max_steps": 9, "batch_size": 2, "checkpoint_every_steps": 3,
        "preview_every_steps": 4, "preview.steps": 2,
        "preview.prompts": ["a dot"], "learning_rate": 1e-2, "data.folder": str(pictures), "data.caption_dropout": 0.3,
        "data.flip": True,
    }  # fmt: skip
    return presets.load(plain.CHARACTER, values | settings)


def run_to_the_end(parent: Path, settings) -> runs.Run:
    run, stream = session.start(settings, parent, "x", runs.find_resumable(parent, "x"))
    assert isinstance(list(stream)[-1], Finished)
    return run
