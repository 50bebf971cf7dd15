"""A run's saved steps at several weights, as a batch: every step with every weight, prompt and seed, a picture each.

Drawn as the run's own previews are. It is a batch like any other, so it goes on after anything, and its pictures can
be voted on.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from app import batches, voting
from app.batches import Jobs
from app.context import Context
from app.render_requests import Rendering
from app.texts import say
from trainer import file_names, lora_file, runs
from trainer.config import BatchConfig, StackConfig, TrainConfig, parse
from trainer.errors import ConfigError
from trainer.printing import plain, some

_LONGEST = 4000


def run_choices(context: Context) -> list[tuple[str, str]]:
    """The runs that have saved something, the newest first, as (label, name)."""
    return [(plain(run.name, 120), run.name) for run in runs.every(context.runs)]


def run_of(context: Context, name: str | None) -> runs.Run:
    """The run of that name. Raises: ConfigError if it isn't here."""
    every = {run.name: run for run in runs.every(context.runs)}
    if name not in every:
        what = say("problems.is_not_here", name=plain(name, 80)) if name else say("problems.none_chosen")
        raise ConfigError(say("batch.no_run", what=what, allowed=some(list(every)) or say("batch.no_run_yet")))
    return every[name or ""]


def write_files(context: Context, name: str | None, rendering: Rendering) -> None:
    """Have a LoRA file of each step that a run has saved; it takes the run's base, opened.

    Raises: ConfigError for a run that isn't here or has saved nothing, Cancelled.
    """
    from trainer import checkpoint_files

    run = run_of(context, name)
    config = run.config()
    with context.engine(_stack(context, config), rendering) as engine:
        rendering.check()
        checkpoint_files.files(run, engine.family.name, engine.file_keys)


def composed(context: Context, name: str | None, steps: str, prompts: str, weights: str, seeds: str) -> Jobs:
    """The batch of a run's steps whose files are there. Raises: ConfigError naming everything that can't be used."""
    run = run_of(context, name)
    config = run.config()
    chosen = _chosen(files_of(run), steps)
    factors = batches.numbers(weights)
    # More candidates than can be voted on.
    if (num := len(chosen) * len(factors)) > voting.MOST_CANDIDATES:
        raise ConfigError(
            say("batch.too_many_steps", steps=len(chosen), weights=len(factors), num=num, most=voting.MOST_CANDIDATES)
        )
    stack = _stack(context, config)
    lines = batches.lines_of(prompts) or list(config.preview.prompts) or [config.data.trigger]
    values: dict[str, Any] = {
        "prompts": lines,
        "stacks": [
            [{"file": str(path), "name": file_names.lora_name(run.name, step)}] for step, path in chosen.items()
        ],
        "weights": factors,
        "seeds": batches.seeds_of(seeds) or [config.preview.seed],
        "base": stack.base, "family": stack.family, "steps": stack.steps, "width_px": stack.width_px,
        "height_px": stack.height_px, "guidance_scale": stack.guidance_scale,
        "guidance_rescale": stack.guidance_rescale,
    }  # fmt: skip
    return batches.as_toml(parse(BatchConfig, values, say("where.batch")))


def _stack(context: Context, config: TrainConfig) -> StackConfig:
    """How the run's previews are drawn, without a LoRA."""
    side, preview = config.resolution_px, config.preview
    values = {
        "base": context.base(config.base), "family": config.family, "width_px": side, "height_px": side,
        "steps": preview.steps, "guidance_scale": preview.guidance_scale, "guidance_rescale": preview.guidance_rescale,
    }  # fmt: skip
    return parse(StackConfig, values, say("where.previews", base=config.base))


def files_of(run: runs.Run) -> dict[int, Path]:
    """The LoRA files of a run by step: of its saved steps, then its best and last, where they are of another step."""
    # A saved step says its number in its name, the best and the last in their headers.
    found = file_names.loras_by_step(run.folder)
    for path in (run.folder / file_names.BEST, run.lora_file):
        if path.is_file():
            said = lora_file.read_header(path).metadata.get("ss_steps", "")
            found.setdefault(int(said) if said.isdecimal() and len(said) < 10 else 0, path)
    return dict(sorted(found.items()))


def _chosen(files: dict[int, Path], steps: str) -> dict[int, Path]:
    """The files of the steps that are typed, of all where none is. Raises: ConfigError."""
    allowed = some([str(step) for step in files], most=20) or say("batch.nothing_saved")
    if len(steps) > _LONGEST:
        raise ConfigError(say("problems.have_too_many", what=say("batch.the_steps"), num=len(steps), most=_LONGEST))
    parts = [part for part in re.split(r"[,;\s]+", steps) if part]
    unknown = [part for part in parts if not (part.isdecimal() and len(part) < 10 and int(part) in files)]
    if unknown or not files:
        raise ConfigError(say("batch.no_such_steps", steps=some(unknown) or say("word.none"), allowed=allowed))
    wanted = {int(part) for part in parts} or set(files)
    return {step: path for step, path in files.items() if step in wanted}
