"""The panel that has captions written by a model of the workspace, and what happens when it is used."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr

from app import captioning, views
from app.context import Context, Refresh
from app.job_table import Job
from app.jobs import LIVE, WAITING
from app.notices import mended, tell
from app.texts import say
from trainer.captioning import kinds, rules
from trainer.errors import ConfigError
from trainer.printing import escape, plain

# A press on a button of the progress line.
_SCRIPT = """
element.addEventListener('click', event => {
  const pressed = event.target.closest('[data-act]')?.dataset.act;
  if (pressed === 'halt') trigger('halt');
  if (pressed === 'resume') trigger('resume');
});
"""
_PURPOSES = [(say("captions.character"), "character"), (say("captions.style"), "style")]
_USUAL = {"character": "", "style": ", ".join(rules.STYLE_WORDS)}
_TOLD = {text for kind in kinds.KINDS for text in kind.instructions.values()}
_PICTURES_A_SECOND = 100  # of which all are sent to the browser again


class CaptionPanel:
    """Its components."""

    def __init__(self, context: Context) -> None:
        self.context = context
        with gr.Accordion(say("captions.title"), open=False, elem_id="write-captions"):
            with gr.Row():
                names = list(captioning.models(context))
                self.model = gr.Dropdown(
                    _choices(names), value=names[0] if names else None, label=say("captions.model_label"),
                    min_width=180, interactive=True,
                    info=say("captions.model_help"), elem_id="captioner",
                )  # fmt: skip
                self.purpose = gr.Radio(
                    _PURPOSES, value="character", label=say("captions.teaches"), min_width=180, elem_id="caption-for",
                    info=say("captions.teaches_help"),
                )  # fmt: skip
                self.leave_out = gr.Textbox(
                    label=say("captions.leave_out"), info=say("captions.leave_out_help"),
                    placeholder=say("captions.leave_out_example"),
                    lines=2, max_lines=5, max_length=rules.MAX_LIST_CHARS, min_width=220, scale=2,
                    elem_id="caption-leave-out",
                )  # fmt: skip
            self.instruction = gr.Textbox(
                label=say("captions.instruction"), lines=2, max_lines=6, max_length=captioning.MAX_INSTRUCTION_CHARS,
                elem_id="caption-instruction", **self._instruction(names[0] if names else "", "character", ""),
            )  # fmt: skip
            with gr.Row():
                self.bare = gr.Checkbox(
                    True, label=say("captions.only_bare"), min_width=220, scale=3, elem_id="caption-bare"
                )
                self.begin_button = gr.Button(
                    say("captions.begin"), variant="primary", min_width=140, scale=1, elem_id="begin-captions"
                )
            self.progress = gr.HTML(self._progress(None), js_on_load=_SCRIPT, elem_id="caption-progress", padding=False)
        self.told = [self.model, self.purpose, self.instruction]  # what `opened` goes by
        self.opening = [self.model, self.instruction, self.progress]  # what it changes
        self.seen = gr.State({})

    def connect(
        self, shown: Callable[..., dict[Any, Any]], scene: Sequence[Any], typing: Sequence[Any], outputs: Sequence[Any]
    ) -> Refresh:
        """Listen; what the panel looks at when there are news of jobs.

        `shown` gives the updates of the set on the page: dataset, resolution, trigger, opened, text. `scene` begins
        with the dataset and ends with the trigger.
        """
        self.shown = shown
        still: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        self.dataset, self.trigger = scene[0], scene[-1]
        told = [self.model, self.purpose, self.leave_out, self.instruction]
        gr.on([self.model.input, self.purpose.input], self.suit, told, [self.leave_out, self.instruction], **still)
        asked = {self.dataset, self.trigger, *told, self.bare}
        self.begin_button.click(self.begin, asked, [self.progress], **still)
        self.progress.halt(self.halt, self.dataset, [self.progress], **still)
        self.progress.resume(self.resume, self.dataset, [self.progress], **still)
        return Refresh(self.look, [*scene, *typing, self.seen], [*outputs, self.progress, self.seen])

    def opened(self, name: str | None, model: str | None, purpose: str, instruction: str) -> dict[Any, Any]:
        """What the panel shows when the tab is opened, or the page with what was kept of it."""
        names = list(captioning.models(self.context))
        chosen = model if model in names else names[0] if names else None
        return {
            self.model: gr.update(choices=_choices(names), value=chosen),
            self.instruction: gr.update(**self._instruction(chosen or "", purpose, instruction or "")),
            self.progress: self.progress_of(name),
        }

    def progress_of(self, name: str | None) -> str:
        """The line on the newest job of a set."""
        return self._progress(captioning.newest(self.context, name))

    # What is done.

    @mended
    def suit(self, model: str | None, purpose: str, leave_out: str, instruction: str) -> dict[Any, Any]:
        """What is usual for the model and the purpose, unless a person wrote something else."""
        update: dict[Any, Any] = {}
        if (leave_out or "") in _USUAL.values():
            update[self.leave_out] = _USUAL.get(purpose, "")
        return update | {self.instruction: gr.update(**self._instruction(model or "", purpose, instruction or ""))}

    @mended
    def begin(self, held: Mapping[Any, Any]) -> Any:
        """A job that writes captions."""
        parts = (self.dataset, self.model, self.purpose, self.trigger, self.leave_out, self.instruction)
        dataset, model, purpose, trigger, leave_out, instruction = (str(held[part] or "") for part in parts)
        if (kind := captioning.kind(self.context, model)) and not kind.instructions:
            instruction = ""  # its box is hidden
        order = captioning.Order(dataset, model, purpose, trigger, leave_out, instruction, not held[self.bare])
        job = captioning.begin(self.context, order)
        tell(say("job.on_its_way", name=job.name))
        return self._progress(job)

    @mended
    def halt(self, name: str | None) -> Any:
        return self._progress(self.context.runner.stop(self._job(name).id))

    @mended
    def resume(self, name: str | None) -> Any:
        return self._progress(self.context.runner.resume(self._job(name).id))

    def _job(self, name: str | None) -> Job:
        job = captioning.newest(self.context, name)
        if job is None:
            raise ConfigError(say("captions.no_job"))
        return job

    @mended
    def look(self, *held: Any) -> Any:
        """How far the job is, and its captions as they come; what is being typed stays as it is."""
        name, resolution_px, trigger, opened, text, seen = held
        job, now = captioning.newest(self.context, name), time.monotonic()
        update: dict[Any, Any] = {self.progress: self._progress(job)}
        state = [name, job.id, job.state] if job else [name]
        before, at, pause_s = (seen.get(key) for key in ("state", "at", "pause_s"))
        changed = before is not None and state != before
        if not job or not changed and (job.state not in LIVE or at and now - at < pause_s):
            return update | ({self.seen: seen | {"state": state}} if state != before else {})

        # The set anew; the more pictures, the rarer.
        untouched = isinstance(opened, dict) and (text or "").strip() == str(opened.get("shown", "")).strip()
        update |= self.shown(name, resolution_px, trigger, opened if untouched else None, text)
        num = len(self.context.pictures(self.context.dataset(name)))
        return update | {self.seen: {"state": state, "at": now, "pause_s": num / _PICTURES_A_SECOND}}

    # What is shown.

    def _instruction(self, model: str, purpose: str, text: str) -> dict[str, Any]:
        """The box of the instruction: what the model is usually told, unless there is another text; hidden for a model
        that can't be told anything.
        """
        kind = captioning.kind(self.context, model) if model else None
        usual = next((told for named, told in kind.instructions.items() if named == purpose), "") if kind else ""
        value = usual if not text or text in _TOLD else text
        return {"value": value, "visible": bool(usual), "info": kind.help if kind else ""}

    def _progress(self, job: Job | None) -> str:
        """The line on the newest job of a set, with what can be done about it."""
        if job is None:
            words = say("captions.no_model") if not captioning.models(self.context) else ""
            return f'<p class="keys">{words}</p>' if words else ""
        bar = views.progress_html(job.name, captioning.progress(self.context, job))
        acts = [("halt", say("button.stop"))] if job.state in (*LIVE, *WAITING) else []
        acts += [("resume", say("button.go_on"))] if job.state in ("stopped", "failed") else []
        buttons = [
            f'<button type="button" class="cure" data-act="{act}">{escape(label)}</button>' for act, label in acts
        ]
        return bar + (f'<div class="cures">{"".join(buttons)}</div>' if buttons else "")


def _choices(names: Sequence[str]) -> list[tuple[str, str]]:
    return [(plain(name, 80), name) for name in names]
