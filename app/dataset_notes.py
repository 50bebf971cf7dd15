"""What the page remembers of a dataset, in a hidden file inside it, so that it goes where the set goes.

Its trigger, which Train is given where it has none of its own; and whether the set was checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr

from app.context import Context
from app.kept_fields import STILL, Kept
from app.late_answers import LateAnswer
from app.notices import mended
from trainer import files
from trainer.errors import DataError
from trainer.printing import whole

# One after the other, in the order they were asked for, and none is lost while another is on its way.
IN_TURN: dict[str, Any] = {"concurrency_id": "dataset-edits", "concurrency_limit": 1, "trigger_mode": "multiple"}
_FILE, _MOST_BYTES, _TRIGGER_CHARS = ".page.json", 1 << 14, 80


@dataclass(frozen=True)
class Notes:
    """What is remembered of one set."""

    trigger: str = ""
    is_checked: bool = False


def read(folder: Path) -> Notes:
    """The notes of a dataset's folder; a file that can't be read holds none."""
    try:
        with (folder / _FILE).open("rb") as file:
            held = json.loads(file.read(_MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return Notes()
    held = held if isinstance(held, dict) else {}
    trigger = held.get("trigger")
    trigger = whole(trigger)[:_TRIGGER_CHARS].strip() if isinstance(trigger, str) else ""
    return Notes(trigger, held.get("is_checked") is True)


def _keep(folder: Path, notes: Notes) -> None:
    """What can't be kept is no reason to answer the person with an error."""
    if notes != read(folder):
        with suppress(OSError):
            files.write(folder / _FILE, json.dumps(asdict(notes)).encode())


def keep_trigger(context: Context, name: str | None, trigger: str) -> None:
    """Remember the trigger of a set, if there is one of that name."""
    if name in context.dataset_names():
        folder = context.datasets / str(name)
        _keep(folder, replace(read(folder), trigger=trigger.strip()[:_TRIGGER_CHARS]))


def keep_checked(context: Context, name: str | None) -> None:
    """Remember that a set was checked. Raises: DataError if it is not here."""
    folder = context.dataset(name)
    _keep(folder, replace(read(folder), is_checked=True))


def trigger_of(context: Context, name: str | None) -> str:
    """The trigger of a set; "" for none."""
    try:
        return read(context.dataset(name)).trigger
    except DataError:
        return ""


def for_train(context: Context, name: str | None, present: str) -> str:
    """The trigger that Train has for this set: what is there, unless that is nothing or came from another set."""
    # A trigger that another set brought gives way to this set's; a trigger that was typed stays.
    others = {trigger_of(context, other) for other in context.dataset_names() if other != name}
    present = present.strip()
    return (trigger_of(context, name) or present) if not present or present in others else present


def carry_triggers(context: Context, kept: Mapping[str, Kept]) -> None:
    """Give Train the trigger of its set when it is opened and when another set is chosen; call once."""
    if "train" not in kept or "dataset" not in kept:
        return
    train = kept["train"]
    dataset, trigger = train.field("train-dataset"), train.field("trigger")
    if dataset is None or trigger is None or train.drawn.tab is None:
        return

    @mended
    def carry(name: str | None, present: str) -> Any:
        carried = for_train(context, name, present or "")
        return gr.skip() if carried == (present or "").strip() else answer.update(present, carried)

    listeners: list[Any] = [train.drawn.tab.select, dataset.change]
    answer = LateAnswer(trigger)
    # In turn with the Dataset tab's own, so that a trigger typed just before is known.
    gr.on(listeners, carry, [dataset, trigger], answer.holder, **STILL, **IN_TURN)
    answer.connect()
