"""A wish for previews now: an empty file in a run's folder, which the run sees after its step and takes away.

A file, since it is seen alike on every system, whoever trains and whoever asks. Whatever it holds is not read.
"""

from __future__ import annotations

from contextlib import suppress

from trainer.errors import RunError
from trainer.runs import Run

FILE = "preview-now"
NONE_TO_DRAW = (
    "it has no preview prompts, or draws no previews (preview_every_steps is 0); set both before a run begins, as what "
    "draws is let go of otherwise."
)


def ask(run: Run) -> None:
    """Have a run that is at work draw its previews after this step.

    Raises: RunError if it isn't at work, or has none to draw; ConfigError if its settings can't be read.
    """
    config = run.config()
    if not (config.preview.prompts and config.preview_every_steps):
        raise RunError(f"run {run.name} can't draw a preview: {NONE_TO_DRAW}")
    if run.state() != "running":
        raise RunError(f"run {run.name} is not at work, so that nothing draws; go on with it first: {run.again}.")
    (run.folder / FILE).touch()


def take(run: Run) -> bool:
    """Whether previews are wanted now; each wish is seen once, and later where the file can't be taken away yet."""
    path = run.folder / FILE
    if not path.exists():  # the usual case, asked after every step
        return False
    with suppress(OSError):
        path.unlink()
        return True
    return False
