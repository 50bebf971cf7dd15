"""Going on with a run in the Train tab: more steps of the same run, or a new run from one of its saved steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from app import start_choices
from app.context import Context
from app.job_table import Job
from app.texts import say
from trainer import more_steps, runs
from trainer.config import TrainConfig
from trainer.printing import escape

Part = tuple[Any, Callable[[], dict[Any, Any]]]


class RunOnward:
    """The folded section under a run's buttons, and what its buttons do."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def draw(self) -> None:
        """Draw the section, folded."""
        with gr.Accordion(say("run.go_on"), open=False, elem_id="go-on", visible=False) as self.box:
            self.words = gr.HTML(elem_id="go-on-words", padding=False)
            with gr.Row(elem_classes="go-on-row"):
                self.steps = gr.Number(
                    100, label=say("run.more_steps"), precision=0, minimum=1, maximum=more_steps.MOST_STEPS,
                    min_width=120, elem_id="more-steps", elem_classes="unkept",
                )  # fmt: skip
                self.extend = gr.Button(say("run.extend"), min_width=110, elem_id="extend-run", elem_classes="beside")
            with gr.Row(elem_classes="go-on-row"):
                self.step = gr.Dropdown(
                    [], label=say("run.saved_step"), min_width=120, interactive=True, elem_id="branch-step",
                    elem_classes="unkept",
                )  # fmt: skip
                self.branch = gr.Button(say("run.branch"), min_width=110, elem_id="branch-run", elem_classes="beside")
            self.with_optimizer = gr.Checkbox(
                False, label=say("run.with_optimizer"), elem_id="branch-optimizer", elem_classes="unkept",
                info=say("run.with_optimizer_help"),
            )  # fmt: skip

    def outputs(self) -> list[Any]:
        """Everything that `part` may change."""
        return [self.box, self.words, self.step]

    def part(self, job: Job, config: TrainConfig | None) -> Part:
        """What the section depends on, and its update."""
        steps = start_choices.saved(runs.Run(self.context.runs / job.name))
        can_go_on = bool(steps) and config is not None

        def updates() -> dict[Any, Any]:
            keys = [f"{job.name}/{folder.name}" for folder in steps]
            choices = [(start_choices.step_label(key), key) for key in keys]
            return {
                self.box: gr.update(visible=can_go_on),
                self.words: _words(config) if config else "",
                self.step: gr.update(choices=choices, value=keys[0] if keys else None),
            }

        return (job.id, [folder.name for folder in steps], config and config.max_steps), updates


def _words(config: TrainConfig) -> str:
    """What more steps do with this run's schedule."""
    schedule = config.optimizer.schedule
    if schedule == "constant" or config.optimizer.name == "schedule-free":
        words = say("run.constant_rate")
    else:
        words = say("run.falling_rate", schedule=schedule)
    return f'<p class="hint">{escape(words)}</p>'
