"""Going on with a run in the Train tab: more steps of the same run, or a new run from one of its saved steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr
import tomli_w

from app import start_choices
from app.context import Context
from app.job_table import Job
from app.jobs import LIVE, WAITING
from app.notices import tell
from trainer import extending, runs
from trainer.config import TrainConfig
from trainer.errors import ConfigError
from trainer.printing import escape

Part = tuple[Any, Callable[[], dict[Any, Any]]]


class RunOnward:
    """The folded section under a run's buttons, and what its buttons do."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def draw(self) -> None:
        """Draw the section, folded."""
        with gr.Accordion("Go on from this run", open=False, elem_id="go-on", visible=False) as self.box:
            self.words = gr.HTML(elem_id="go-on-words", padding=False)
            with gr.Row(elem_classes="go-on-row"):
                self.steps = gr.Number(
                    100, label="More steps", precision=0, minimum=1, maximum=extending.MOST_STEPS, min_width=120,
                    elem_id="more-steps", elem_classes="unkept",
                )  # fmt: skip
                self.extend = gr.Button("Extend", min_width=110, elem_id="extend-run", elem_classes="beside")
            with gr.Row(elem_classes="go-on-row"):
                self.step = gr.Dropdown(
                    [], label="Saved step", min_width=120, interactive=True, elem_id="branch-step",
                    elem_classes="unkept",
                )  # fmt: skip
                self.branch = gr.Button("Branch off", min_width=110, elem_id="branch-run", elem_classes="beside")
            self.with_optimizer = gr.Checkbox(
                False, label="With its optimizer", elem_id="branch-optimizer", elem_classes="unkept",
                info="Goes on at that step; with nothing changed, the run's own next steps.",
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
            choices = [(start_choices.label(key).rpartition(", ")[2], key) for key in keys]
            return {
                self.box: gr.update(visible=can_go_on),
                self.words: _words(config) if config else "",
                self.step: gr.update(choices=choices, value=keys[0] if keys else None),
            }

        return (job.id, [folder.name for folder in steps], config and config.max_steps), updates

    def extended(self, job: Job, steps: Any) -> None:
        """Let the job go on for that many steps more. Raises: UserError if it can't."""
        if job.state in (*LIVE, *WAITING):
            raise ConfigError(f"{job.name} is still at work or waits; let it end or stop it, then extend it.")
        if isinstance(steps, bool) or not isinstance(steps, int | float) or steps != int(steps):
            raise ConfigError(f"more steps are {str(steps)[:40]!r}; allowed: a whole number from 1.")
        config = extending.extended(runs.Run(self.context.runs / job.name), int(steps))
        self.context.runner.resume(job.id, tomli_w.dumps(config.model_dump(mode="json")))
        tell(f"{job.name} goes on to {config.max_steps:,} steps.")


def _words(config: TrainConfig) -> str:
    """What more steps do with this run's schedule."""
    schedule = config.optimizer.schedule
    if schedule == "constant" or config.optimizer.name == "schedule-free":
        words = "Its learning rate is constant: extended, it is what a longer run gives."
    else:
        words = (
            f"Its {schedule} schedule depends on the number of steps: extended, the learning rate rises again "
            f"and falls to 0 over the new steps, so that it is not what a longer run gives."
        )
    return f'<p class="hint">{escape(words)}</p>'
