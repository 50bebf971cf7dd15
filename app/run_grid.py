"""A finished training's grid as a batch: its saved steps at several weights, for its preview prompts."""

from __future__ import annotations

from pathlib import Path

import tomli_w

from app.batches import KINDS
from app.job_table import Job
from app.texts import say
from trainer.config import BatchConfig, TrainConfig, parse
from trainer.printing import plain
from trainer.runs import Run

WEIGHTS = (0.5, 0.75, 1.0)
_MOST_PROMPTS = 4


def batch_of(runs_folder: Path, job: Job) -> tuple[str, str, str]:
    """Name, jobs file and kind of the batch that draws a run's grid. Raises: UserError, OSError."""
    run = Run(runs_folder / job.name)
    config = run.config()
    # Drawn as the run's own previews are.
    values = {
        "prompts": config.preview.prompts[:_MOST_PROMPTS] or (_prompt(config),),
        "steps_of": str(run.folder),
        "weights": WEIGHTS,
        "seeds": (config.preview.seed,),
        "base": config.base,
        "family": config.family,
        "width_px": config.resolution_px,
        "height_px": config.resolution_px,
        "steps": config.preview.steps,
        "guidance_scale": config.preview.guidance_scale,
        "guidance_rescale": config.preview.guidance_rescale,
    }
    batch = parse(BatchConfig, values, say("where.grid_of", job=plain(job.name, 80)))
    text = tomli_w.dumps(batch.model_dump(mode="json", exclude_none=True, exclude_defaults=True))
    return f"{job.name}-grid", text, KINDS[".toml"]


def _prompt(config: TrainConfig) -> str:
    """What to draw where no prompts are set: the trigger, or the class."""
    return config.data.trigger or config.data.class_caption or "a picture"
