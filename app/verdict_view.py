"""Old or new: what a retraining found, with its interval drawn, and the button that takes the better one to Stack."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from app import retraining
from app.context import Context
from app.job_table import Job
from app.texts import say, say_num
from app.views import notice_html
from trainer import runs
from trainer.printing import escape, plain
from trainer.report import compared
from trainer.report.compared import Compared

Part = tuple[Any, Callable[[], dict[Any, Any]]]
_WIDTH, _HEIGHT, _ROOM = 340, 46, 46  # of the drawing; the room at each side is for what the ends are called


class VerdictView:
    """The box in a training's view, and its button."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def draw(self) -> None:
        """Draw both, unseen."""
        self.box = gr.HTML(visible=False, elem_id="verdict")
        self.button = gr.Button(
            say("verdict.use_better"), variant="primary", visible=False, min_width=110, elem_id="use-better"
        )
        # What the button opens, as `open_in_tab` takes it.
        self.wanted = gr.Textbox(visible=False, elem_classes="unkept")

    def outputs(self) -> list[Any]:
        """Everything that `part` may change."""
        return [self.box, self.button, self.wanted]

    def part(self, job: Job) -> Part:
        """What the box of a training depends on, and its update."""
        run = runs.Run(self.context.runs / job.name)
        found, problem = compared.read(run.folder), compared.problem(run.folder)
        awaited = "" if found or problem else retraining.awaited(self.context, job.config, run)

        def updates() -> dict[Any, Any]:
            shown = html(found) if found else waiting_html(problem, awaited)
            opens = better(self.context, run.folder)
            return {
                self.box: gr.update(value=shown, visible=bool(shown)),
                self.button: gr.update(visible=bool(opens), value=button_label(found)),
                self.wanted: opens,
            }

        return (job.id, found and [found.sentence, found.old, found.new], problem, awaited), updates

    def none(self) -> dict[Any, Any]:
        """Nothing of it."""
        return {self.box: gr.update(value="", visible=False), self.button: gr.update(visible=False)}


def better(context: Context, folder: Path) -> str:
    """What opens the better one of a run's old and new LoRA; "" where neither is, or it isn't here."""
    found = compared.read(folder)
    if found is None:
        return ""
    if found.better == "new" and (folder / f"{folder.name}.safetensors").is_file():
        return f"trained {folder.name}/{folder.name}.safetensors"
    old = context.find_loras().get(found.old_sha256) if found.better == "old" else None
    if old is None:
        return ""
    # A run's is opened as that run drew it.
    of_run = old.path.parent.parent == context.runs
    return f"trained {old.path.parent.name}/{old.path.name}" if of_run else f"lora {old.sha256}"


def button_label(found: Compared | None) -> str:
    """What the button says: which of the two it is."""
    which = found.better if found else ""
    return {"new": say("verdict.use_new"), "old": say("verdict.use_old")}.get(which, say("verdict.use_better"))


def html(found: Compared) -> str:
    """The verdict in a sentence, the gain with its interval as a drawing, and the losses."""
    style = "good" if found.better == "new" else "plain"
    names = say("item.new_and_old", new=plain(found.new, 120), old=plain(found.old, 120))
    box = notice_html(style, say("item.old_or_new"), [f"{plain(found.sentence, 900)} {names}"])
    losses = "".join(
        f"<span>{escape(title)} <b>{loss:.4g}</b></span>"
        for title, loss in zip(_titles(), found.losses.values(), strict=True)
    )
    figures = f'<p class="losses">{say_num("verdict.losses", found.num_pictures)} {losses}</p>'
    return f'{box}<div class="verdict">{_interval(found.gains)}{figures}</div>'


def waiting_html(problem: str, awaited: str) -> str:
    """Why there is no verdict, or what will be compared; "" for neither."""
    if problem:
        return notice_html("plain", say("item.old_or_new"), [say("verdict.problem", reason=plain(problem, 600))])
    return f'<p class="quietly">{escape(say("verdict.awaited", old=awaited), 300)}</p>' if awaited else ""


def _titles() -> tuple[str, str, str]:
    return say("verdict.base"), say("verdict.old"), say("verdict.new")


def _interval(gains: tuple[float, float, float]) -> str:
    """The gain as a dot on its interval, beside the line at which neither is better."""
    gain, low, high = gains
    far = max(abs(low), abs(high), abs(gain), 1e-6) * 1.1
    middle = _WIDTH / 2

    def at(value: float) -> float:
        return middle + value / far * (middle - _ROOM)

    style = "new" if low > 0 else "old" if high < 0 else "neither"
    said = say("verdict.interval", gain=gain, low=low, high=high)
    ends = (
        f'<text x="0" y="14">{say("verdict.old_better")}</text>'
        f'<text x="{_WIDTH}" y="14" text-anchor="end">{say("verdict.new_better")}</text>'
    )
    figures = "".join(
        f'<text x="{at(value):.1f}" y="{_HEIGHT - 2}" text-anchor="{anchor}">{100 * value:+.1f} %</text>'
        for value, anchor in ((low, "end"), (high, "start"))
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(said)}" class="interval {style}">'
        f'{ends}<path class="zero" d="M{middle:.1f},4V{_HEIGHT - 14}"/>'
        f'<path class="span" d="M{at(low):.1f},24H{at(high):.1f}"/>'
        f'<circle cx="{at(gain):.1f}" cy="24" r="4.5"/>{figures}</svg>'
    )
