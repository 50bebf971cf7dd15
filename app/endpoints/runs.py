"""The job half of the Train tab for programs: what a run showed, and the use of one of its steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from app import checkpoint_grids, preview_strip, run_steps, start_choices, views
from app.context import Context
from app.endpoints.asking import Name, Number
from app.endpoints.rows import fetched_at, lora_row
from app.render_requests import Rendering
from app.texts import say
from trainer import lora_file
from trainer.cards import places
from trainer.config import TrainConfig
from trainer.errors import ConfigError, UserError
from trainer.events import Event, Finished, Overtrained, Recommended, Started, Step, Validated
from trainer.printing import some
from trainer.report import curves
from trainer.report.advising import advice
from trainer.report.plausible import plausible
from trainer.runs import Run
from trainer.runs import every as every_run

_MOST_POINTS = 2000  # of a curve


class RunEndpoints:
    """What can be asked of runs; every public method is an endpoint."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def runs(self) -> list[str]:
        """Names of the runs, the newest first."""
        return [run.name for run in every_run(self.context.runs)]

    def run(self, run: Name) -> dict[str, Any]:
        """What a run showed: steps, the loss as a curve, gains on held-out pictures, the step to use, and advice.

        `loss` is [step, running mean]; `advice` has a sentence and the settings by dotted name that it would change.
        """
        found = checkpoint_grids.run_of(self.context, run)
        # A log may have been edited, so figures that can't be are left out.
        events, config = plausible(self.context.logs.read(found.events_file)), _config(found)
        step, started, done = views.last(events, Step), views.last(events, Started), views.last(events, Finished)
        alarm, rules = views.last(events, Overtrained), advice(events, config) if done else []
        steps = [int(folder.name.removeprefix("step-")) for folder in start_choices.saved(found)]
        return {
            "name": found.name, "step": step.step if step else 0, "max_steps": started.max_steps if started else 0,
            "seconds": done.seconds if done else None, "is_finished": done is not None,
            "trigger": config.data.trigger if config else "", "loss": _loss(events), "heldout": _heldout(events),
            "recommended": _recommended(events), "overtrained": alarm.message if alarm else "",
            "saved_steps": steps[::-1],
            "advice": [{"text": rule.text, "settings": rule.settings} for rule in rules],
        }  # fmt: skip

    def run_samples(self, run: Name) -> list[dict[str, Any]]:
        """The previews of a run by prompt and step: prompt, step, address, and its likeness to a training picture."""
        found = checkpoint_grids.run_of(self.context, run)
        strips = preview_strip.strips(found.folder, self.context.logs.read(found.events_file))
        shown = [(strip.prompt, preview) for strip in strips for preview in strip.previews]
        public = dict(self.context.published_of([preview.path for _, preview in shown]))
        return [
            {"prompt": prompt, "step": preview.event.step, "address": fetched_at(Path(public[preview.path])),
             "likeness": preview.event.nearest}
            for prompt, preview in shown
            if preview.path in public
        ]  # fmt: skip

    def run_settings(self, run: Name) -> dict[str, Any]:
        """The settings of a run, without the places of this machine; sets that it was trained on are not named."""
        found = checkpoint_grids.run_of(self.context, run)
        return places.without(found.config(), with_names=True).model_dump(mode="json")

    def use_step(self, run: Name, step: Number) -> dict[str, Any]:
        """Have a saved step of a run lie in the library as a LoRA; its row, by which it can be stacked."""
        found = checkpoint_grids.run_of(self.context, run)
        # A step that nobody used yet lies there as a checkpoint, without a LoRA file.
        files = checkpoint_grids.files_of(found)
        if step not in files:
            checkpoint_grids.write_files(self.context, run, Rendering())
            files = checkpoint_grids.files_of(found)
        if step not in files:
            allowed = some([str(one) for one in files], most=20) or say("batch.nothing_saved")
            raise ConfigError(say("batch.no_such_steps", steps=step, allowed=allowed))
        sha256 = lora_file.inspect(files[step]).sha256
        run_steps.take(self.context, files[step], sha256)
        return lora_row(self.context.lora(sha256))


def _config(run: Run) -> TrainConfig | None:
    """The run's settings; None if they can't be read."""
    try:
        return run.config()
    except UserError:
        return None


def _loss(events: list[Event]) -> list[list[float]]:
    points = curves.running_mean(events)
    stride = max(1, -(-len(points) // _MOST_POINTS))
    return [list(point) for point in points[::-1][::stride][::-1]]  # the last is always among them


def _heldout(events: list[Event]) -> list[dict[str, Any]]:
    """A row for each step that was measured, as it was measured last."""
    by_step = {event.step: event for event in events if isinstance(event, Validated)}
    return [
        {"step": step, "loss": event.loss, "gain": event.gain, "gain_low": event.gain_low,
         "gain_high": event.gain_high, "share_better": event.share_better, "train_gain": event.train_gain}
        for step, event in sorted(by_step.items())
    ]  # fmt: skip


def _recommended(events: list[Event]) -> dict[str, Any] | None:
    best = views.last(events, Recommended)
    return {"step": best.step, "file": best.file, "reason": best.reason} if best else None
