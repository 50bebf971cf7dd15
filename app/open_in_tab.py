"""`Open`: from a thing in one tab to the tab where it is used, with it chosen there.

What happens is what happens when a person chooses it there: the field's own listeners answer, so that a tab does
nothing for it but keep its fields' ids. What is opened is said as (what, key), and each key is looked up among what
this server has.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from app import (
    batch_pictures,
    desk_stacks,
    first_stack,
    kept_fields,
    preset_choices,
    retraining,
    run_steps,
    saved_stacks,
    shared_cards,
    start_choices,
)
from app.context import Context, newest_first
from app.kept_fields import Drawn
from app.library_items import BATCH_PICTURES
from app.lora_weight import own_weight
from app.notices import mended
from app.render_requests import mended_turns
from app.stack_rows import ROWS, lora_choices
from app.texts import say
from trainer.config import StackConfig
from trainer.errors import DataError
from trainer.runs import Run, every


@dataclass(frozen=True)
class Target:
    """Where a kind of thing is opened: a tab, its field, and the field's event that takes it."""

    tab: str
    field: str  # elem_id
    event: str  # "" to set the value alone
    value: Callable[[Context, str], Any]  # the field's value of a key; raises DataError for one that isn't here


def _among(paths: Sequence[Path], key: str) -> Path:
    found = next((path for path in paths if path.name == key), None)
    if found is None:
        raise DataError(say("library.gone"))
    return found


def _dataset(context: Context, key: str) -> str:
    return context.dataset(key).name


def _lora(context: Context, key: str) -> str:
    return context.lora(key).sha256


def _picture(context: Context, key: str) -> str:
    if key.startswith(BATCH_PICTURES):
        path = batch_pictures.path_of(context, key)
        run_steps.adopt(context, path)
        return str(path)
    return str(_among(newest_first(list(context.renders.glob("[!.]*"))), key))


def _stack(context: Context, key: str) -> str:
    return str(saved_stacks.carrier(context, _among(saved_stacks.every(context), key)))


def _config(context: Context, key: str) -> str:
    return str(_among(newest_first(list((context.workspace / "recipes").glob("[!.]*.toml"))), key))


def _preset(context: Context, key: str) -> str:
    return str(shared_cards.of_key(key).paths[0])


def _card_stack(context: Context, key: str) -> str:
    """The stack of a card, as a picture that carries it. Raises: DataError for a card without one."""
    kept = shared_cards.of_key(key)
    if kept.card is None or not isinstance(kept.card.settings, StackConfig):
        raise DataError(say("card.no_stack"))
    return str(saved_stacks.carrying(context, kept.card.settings, f"{kept.card.digest[:12]}.x"))


def _jobs(context: Context, key: str) -> str:
    """The jobs file where the browser may fetch it, as the field shows it."""
    return str(context.published(_among(newest_first(list((context.workspace / "jobs").glob("[!.]*"))), key)))


def _desk(context: Context, key: str) -> str:
    """The key of a stack that came from Stack's desk. Raises: DataError for one that isn't here."""
    if desk_stacks.path_of(context, key) is None:
        raise DataError(say("library.gone"))
    return key


def _run(context: Context, key: str) -> int:
    """The run's job, back on the list if it was taken off it. Raises: DataError for a run that wasn't started here."""
    _among([Run(context.runs / key).folder], key)
    job = next((job for job in context.runner.every() if job.name == key and job.kind == "train"), None)
    if job is None:
        raise DataError(say("item.run_from_elsewhere"))
    context.runner.show_again(job)
    return job.id


def _start(context: Context, key: str) -> str:
    """What a training goes on from: a LoRA, or the newest saved step of a run. Raises: DataError."""
    kind, _, name = key.partition("/")
    if kind == "loras":
        return context.lora(name).sha256
    folder = _among([run.folder for run in every(context.runs)], name)
    saved = start_choices.saved(Run(folder))
    if not saved:
        raise DataError(say("item.run_saved_nothing"))
    return f"{name}/{saved[0].name}"


def _again(context: Context, key: str) -> str:
    """What is trained again, as the Train tab takes it. Raises: UserError for what can't be."""
    return retraining.of(context, key).key


def _base(context: Context, key: str) -> str:
    """A base by its file's name. Raises: ConfigError for one that isn't offered."""
    return context.base(key)


def _trained(context: Context, key: str) -> str:
    """The stack that a training's LoRA is first seen in, as a picture that carries it. Raises: UserError."""
    return str(saved_stacks.carrying(context, first_stack.of_run(context, key), f"{key.partition('/')[0]}.x"))


_ROW = "lora-1"  # the first of the stack's rows; a LoRA goes to the first that is empty
TARGETS = {
    "dataset": Target("dataset", "dataset", "input", _dataset),
    "lora": Target("stack", _ROW, "", _lora),
    "picture": Target("stack", "recipe-png", "upload", _picture),
    "stack": Target("stack", "recipe-png", "upload", _stack),
    "config": Target("train", "recipe-file", "upload", _config),
    "preset": Target("train", "recipe-file", "upload", _preset),
    "card-stack": Target("stack", "recipe-png", "upload", _card_stack),
    "run": Target("train", "job", "input", _run),
    "jobs": Target("batch", "batch-file", "", _jobs),
    "desk": Target("batch", "batch-desk", "input", _desk),
    "trained": Target("stack", "recipe-png", "upload", _trained),
    "start": Target("train", "field-start-source", "input", _start),
    "again": Target("train", "train-again", "input", _again),
    "base": Target("train", "field-base", "input", _base),
}
_DRAWN = ("lora", "trained")  # what is drawn at once where the Stack tab draws live: its own events draw the rest


@dataclass(frozen=True)
class _Answer:
    """What happens when a field is used, as it was connected: `page_values` has some of it read one value for all."""

    handler: Callable[..., Any]
    inputs: Sequence[Any]
    outputs: Sequence[Any]
    reads_dict: bool


class _Opener:
    """What `Open` changes: the tab, the field, and whatever the field's listeners would."""

    def __init__(self, page: gr.Blocks, context: Context, tabs: gr.Tabs) -> None:
        self.context, self.tabs = context, tabs
        # Each kind's field, and what answers when a person uses that.
        self.fields = {what: field for what, target in TARGETS.items() if (field := _named(page, target.field))}
        self.answers = {what: _answers(page, field, TARGETS[what].event) for what, field in self.fields.items()}

        # The stack's rows, its base and its prompt.
        rows = [(_named(page, f"lora-{number}"), _named(page, f"layer-{number}")) for number in range(1, ROWS + 1)]
        self.rows = {row: group for row, group in rows if row is not None}
        weights = [_named(page, f"weight-{number}") for number in range(1, ROWS + 1)]
        self.weights = {row: weight for (row, _), weight in zip(rows, weights, strict=True) if row and weight}
        in_stack = [part for answer in self.answers.get("trained", ()) for part in answer.outputs]
        desk = {part.elem_id: part for part in in_stack if part.elem_id in ("stack-base", "stack-prompt")}
        self.base, self.prompt = desk.get("stack-base"), desk.get("stack-prompt")

        # All that may be read, and all that may change.
        every = [answer for of_field in self.answers.values() for answer in of_field]
        self.inputs = {*self.rows, *desk.values(), *(part for answer in every for part in answer.inputs)}
        groups = [group for group in self.rows.values() if group is not None]
        changed = [part for answer in every for part in answer.outputs]
        # Tells the Stack tab, where there is one, that a row was filled from elsewhere.
        self.asked = [part for part in [_named(page, "stack-asked")] if part is not None]
        self.outputs = list(
            dict.fromkeys(
                [tabs, *self.fields.values(), *self.rows, *groups, *self.weights.values(), *self.asked, *changed]
            )
        )

    def updates(self, held: dict[Any, Any], wanted: str) -> dict[Any, Any]:
        """What the page becomes when `wanted`, a word for what it is and a key, is opened. Raises: UserError."""
        what, _, key = wanted.partition(" ")
        if what not in self.fields:
            raise DataError(say("library.nothing_to_open"))
        target, field = TARGETS[what], self.fields[what]
        value = target.value(self.context, key)
        shown = {self.tabs: gr.update(selected=target.tab)}
        if target.field == _ROW:
            return shown | self._in_row(held, value)
        # On the base that is in use the LoRA joins those on the desk; on another base the whole stack is opened.
        if what == "trained" and held.get(self.base) == (stack := first_stack.of_run(self.context, key)).base:
            return shown | self._beside(held, stack, first_stack.trigger_of(self.context, key))

        # What the field's own listeners answer, each as if the value had been chosen there.
        updates: dict[Any, Any] = {}
        for answer in self.answers[what]:
            given = held | {field: value}
            updates |= kept_fields.run(answer.handler, answer.inputs, answer.outputs, given, answer.reads_dict)
        if not (isinstance(field, gr.File) and target.event):  # a dropped file is gone once it was taken
            updates[field] = _as_update(updates.get(field)) | gr.update(value=value)
        # Choices that are older than what is opened.
        if what == "start":
            updates[field] |= gr.update(choices=start_choices.offered(self.context, value))
        if what == "base":
            updates[field] |= gr.update(choices=preset_choices.base_choices(self.context))
        if what == "dataset":  # it may be newer than what the field offers
            updates[field] |= gr.update(choices=self.context.dataset_choices())
        return updates | shown

    def _beside(self, held: dict[Any, Any], stack: StackConfig, trigger: str) -> dict[Any, Any]:
        """A training's LoRA among those that are on the desk, and its trigger in the prompt there."""
        prompt = str(held.get(self.prompt) or "")
        with_it = first_stack.with_trigger(prompt, trigger) if prompt.strip() else stack.prompt
        return {**self._in_row(held, stack.adapters[0].sha256 or ""), self.prompt: with_it}

    @mended
    def told(self, held: dict[Any, Any], event: gr.EventData) -> dict[Any, Any]:
        """The same of what an event says."""
        return self.updates(held, str(getattr(event, "opens", ""))[:2000])

    def _in_row(self, held: dict[Any, Any], sha256: str) -> dict[Any, Any]:
        """The LoRA in the row that has it, else at its own weight in the first empty one, else in the last."""
        rows = list(self.rows)
        has_it = next((row for row in rows if held.get(row) == sha256), None)
        row = has_it or next((row for row in rows if not held.get(row)), rows[-1])
        updates: dict[Any, Any] = {row: gr.update(value=sha256, choices=lora_choices(self.context))}
        updates |= dict.fromkeys(self.asked, time.monotonic_ns())
        if (group := self.rows[row]) is not None:
            updates[group] = gr.update(visible=True)
        if has_it is None and row in self.weights:
            updates[self.weights[row]] = own_weight(self.context, sha256)
        return updates


def connect(page: gr.Blocks, context: Context, tabs: gr.Tabs, drawn: Sequence[Drawn]) -> None:
    """Let every tab's `opens` buttons lead on; call once when all is drawn."""
    opener = _Opener(page, context, tabs)
    drawing = _drawing(page, next(iter(opener.rows), None))
    for drawn_tab in drawn:
        for button, wanted in drawn_tab.refresh.opens if drawn_tab.refresh else ():
            handler = mended(partial(_open, opener, wanted))
            opened = button.click(handler, {wanted, *opener.inputs}, opener.outputs, **kept_fields.STILL)
            if drawing is not None:
                _draw_after(opened, drawing, wanted)
        for source in drawn_tab.refresh.tells if drawn_tab.refresh else ():
            source.open(opener.told, opener.inputs, opener.outputs, **kept_fields.STILL)


def _drawing(page: gr.Blocks, row: Any) -> Any:
    """The event that draws live when a row of the stack is changed; None without a Stack tab."""
    events = [fn for fn in page.fns.values() if row is not None and (row._id, "input") in fn.targets]
    return next((fn for fn in events if fn.fn and inspect.isgeneratorfunction(inspect.unwrap(fn.fn))), None)


def _draw_after(opened: Any, drawing: Any, wanted: Component) -> None:
    """Have the stack drawn as if its row had been changed by hand, once a LoRA was opened in it."""
    handler, inputs = drawing.fn, list(drawing.inputs)  # as connected: `page_values` has it read one value for all

    @mended_turns
    def draw(held: dict[Any, Any], request: gr.Request) -> Iterator[Any]:
        if str(held[wanted] or "").partition(" ")[0] in _DRAWN:
            yield from handler({part: held[part] for part in inputs}, request)

    opened.success(draw, {wanted, *inputs}, drawing.outputs, **kept_fields.STILL)


def _open(opener: _Opener, wanted: Component, held: dict[Any, Any]) -> dict[Any, Any]:
    return opener.updates(held, held[wanted] or "")


def _as_update(update: Any) -> dict[str, Any]:
    is_one = isinstance(update, dict) and update.get("__type__") == "update"
    return dict(update) if is_one else {}


def _named(page: gr.Blocks, elem_id: str) -> Any:
    """The field or group of that id, None if no tab has one."""
    return next((block for block in page.blocks.values() if block.elem_id == elem_id), None)


def _answers(page: gr.Blocks, field: Any, event: str) -> list[_Answer]:
    """What answers at once when a person uses the field; what draws pictures meanwhile is none of it."""
    listeners = [fn for fn in page.fns.values() if event and (field._id, event) in fn.targets]
    return [
        _Answer(fn.fn, fn.inputs, fn.outputs, fn.inputs_as_dict)
        for fn in listeners
        if fn.fn is not None and not inspect.isgeneratorfunction(inspect.unwrap(fn.fn))
    ]
