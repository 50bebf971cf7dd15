"""Dataset: pictures in, captions beside them, saved as they are typed, every edit undoable."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from app import dataset_checks, dataset_edits, dataset_gallery, dataset_notes, leftovers
from app.context import Context, Refresh
from app.dataset_edits import OPERATIONS
from app.dataset_gallery import Scene, picture
from app.dataset_notes import IN_TURN
from app.dataset_parts import Parts, said
from app.dataset_sets import add, copy_sample, make, sample_sets
from app.notices import mended, tell, warn
from app.texts import say
from trainer.data import caption_files
from trainer.errors import ConfigError, DataError
from trainer.printing import plain

__all__ = ["ORDER", "TITLE", "add", "build", "copy_sample", "make", "picture", "sample_sets"]

TITLE = say("page.dataset")
ORDER = 10
_LOOK_S = 1.0  # of looking at pictures, between two updates of the page
_ANSWERED = "() => window.velaturaDataset.answered()"
_SELECTS = "(...all) => { all[all.length - 1] = window.velaturaDataset.targets(); return all; }"


class _Tab(Parts):
    """The tab's components and what happens when they are used."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._connect_sets()
        self._connect_captions()

    def _connect_sets(self) -> None:
        private: dict[str, Any] = {"api_visibility": "private"}
        still: dict[str, Any] = private | {"show_progress": "hidden"}
        in_turn = still | IN_TURN
        own_trigger = self.own_trigger.holder
        opened = [self.dataset, own_trigger, *self.view, *self.editor]
        created = [self.new_name, *opened]
        # Which set, and the trigger that belongs to it.
        self.dataset.input(
            self.choose, [*self.scene, *self.typing],
            [own_trigger, *self.view, *self.editor, self.report, self.cards, self.buckets, self.captions.progress],
            **in_turn,
        )  # fmt: skip
        self.own_trigger.connect()
        typed = [self.trigger.change, self.trigger.blur]
        gr.on(typed, self.keep_trigger, [self.dataset, self.trigger], None, **in_turn)

        # Sets and files that come in.
        new: dict[str, Any] = private | {"show_progress_on": self.new_name}
        gr.on(
            [self.create.click, self.new_name.submit],
            self.create_one,
            [self.new_name, *self.scene, *self.typing],
            created,
            **new,
        )
        self.copy.click(self.copy_one, [self.sample, *self.scene, *self.typing], opened, **private)
        self.files.upload(
            self.add_files, [self.dataset, self.files, self.resolution, self.trigger],
            [self.dataset, own_trigger, self.files, self.report, *self.view], show_progress_on=self.files, **private,
        )  # fmt: skip

        # What leaves, and what is to be known of a set.
        self.exports.connect(self.dataset)
        found = [self.cards, self.buckets]
        self.check.click(self.check_one, [*self.scene, *self.typing], [*found, *self.view], **private)
        gr.on([self.trigger.blur, self.resolution.blur], self.look_on, self.scene, self.view, **still)
        # One at a time: a look takes longer than the timer waits.
        self.looking.tick(self.look_on, self.scene, self.view, concurrency_limit=1, **still)

    def _connect_captions(self) -> None:
        still: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"} | IN_TURN
        shown, both = [*self.scene, *self.typing], [*self.view, *self.editor]
        # The gallery, the open caption, and edits that are taken back.
        picked = self.gallery.pick(self.pick, self.typing, self.editor, **still)
        self.gallery.typed(self.keep_typed, None, [self.said, self.kept], **still)
        self.gallery.left(self.leave, self.scene, [*self.view, self.said, self.kept], **still)
        self.gallery.look(self.look_again, shown, both, **still)
        acted = self.gallery.act(self.act, shown, both, **(still | {"show_progress": "minimal"}))
        self.history.take(self.take_back, shown, both, **still)
        self.save.click(self.save_one, shown, both, **still)
        self.undo.click(self.undo_one, shown, both, **still)
        deleted = self.delete.click(self.delete_one, shown, both, **still)
        for event in (picked, acted, deleted):
            # Gradio 6.31 has `then` follow a success alone.
            event.success(None, js=_ANSWERED, api_visibility="private")
            event.failure(None, js=_ANSWERED, api_visibility="private")

        # One edit of many captions.
        boxes = [self.operation, self.first, self.second]
        self.operation.change(self.describe, self.operation, [self.first, self.second], **still)
        self.apply.click(
            self.edit_many, [*shown, *boxes, self.targets], both, js=_SELECTS,
            **(still | {"show_progress": "minimal"}),
        )  # fmt: skip

    # Datasets.

    @mended
    def open_tab(
        self, name: str | None, resolution_px: float | None, trigger: str, opened: Any, text: str, *told: Any
    ) -> Any:
        names, chosen = self.context.dataset_names(), name
        if name not in names:
            name = next((other for other in names if not other.endswith("-heldout")), None)
        # A trigger that was typed stays while its dataset does; another set brings its own.
        typed, own = trigger, dataset_notes.trigger_of(self.context, name)
        trigger = (trigger or own) if name == chosen else own
        # Kept before the set is read, or the gallery would show the caption of before.
        dataset_edits.keep(self.context, opened, text or "")
        scene = self._read(name)
        return {
            self.dataset: gr.update(choices=self.context.dataset_choices(), value=name),
            **self.own_trigger.update(typed, trigger),
            **self._shown_of(scene, name, resolution_px, trigger),
            **self._again(scene, name, opened, text),
            **self.captions.opened(name, *told),
        }

    @mended
    def choose(self, name: str | None, resolution_px: float | None, trigger: str, opened: Any, text: str) -> Any:
        dataset_edits.keep(self.context, opened, text or "")
        hidden, own = gr.update(visible=False), dataset_notes.trigger_of(self.context, name)
        return (
            self._shown(name, resolution_px, own)
            | self.own_trigger.update(trigger, own)
            | self._nothing_opened()
            | {self.report: hidden, self.cards: hidden, self.buckets: hidden}
            | {self.captions.progress: self.captions.progress_of(name)}
        )

    @mended
    def keep_trigger(self, name: str | None, trigger: str) -> None:
        dataset_notes.keep_trigger(self.context, name, trigger or "")

    @mended
    def create_one(
        self, new: str, name: str | None, resolution_px: float | None, trigger: str, opened: Any, text: str
    ) -> dict[Any, Any]:
        dataset_edits.keep(self.context, opened, text or "")
        with caption_files.writable(say("where.dataset")):
            return {self.new_name: "", **self._created(make(self.context, new), name, resolution_px, trigger)}

    @mended
    def copy_one(
        self, sample: str, name: str | None, resolution_px: float | None, trigger: str, opened: Any, text: str
    ) -> dict[Any, Any]:
        dataset_edits.keep(self.context, opened, text or "")
        with caption_files.writable(say("where.copy")):
            copied = copy_sample(self.context, sample)
        tell(say("dataset.copied", name=copied))
        return self._created(copied, name, resolution_px, trigger)

    @mended
    def add_files(
        self, name: str | None, given: list[str] | None, resolution_px: float | None = None, trigger: str = ""
    ) -> dict[Any, Any]:
        try:
            into, report = add(self.context, name, list(map(Path, given or [])))
        finally:
            leftovers.taken(self.context, given or [])
        if report.left_out:
            warn(report.message)
        chosen = self._chosen(into, name, trigger) if into != name else {}  # the files made a new set
        happened = gr.update(value=report.message, visible=True)
        return {**chosen, self.files: None, self.report: happened, **self._shown(into, resolution_px, trigger)}

    @mended
    def check_one(self, name: str | None, resolution_px: float | None, trigger: str, opened: Any, text: str) -> Any:
        dataset_edits.keep(self.context, opened, text or "")
        size = int(resolution_px) if resolution_px is not None else None
        found = dataset_checks.check(self.context, name, size, trigger or "")
        dataset_notes.keep_checked(self.context, name)
        return {
            self.cards: gr.update(value=dataset_checks.as_html(found), visible=True),
            self.buckets: gr.update(value=plain(found.bucket_table, 20_000), visible=True),
            **self._shown(name, resolution_px, trigger),
        }

    @mended
    def look_on(self, name: str | None, resolution_px: float | None, trigger: str) -> Any:
        """Some more pictures looked at."""
        return self._shown(name, resolution_px, trigger, _LOOK_S)

    # Captions and pictures.

    @mended
    def pick(self, opened: Any, text: str, event: gr.EventData) -> Any:
        """The chosen picture opened, and what was typed for the picture before it saved."""
        name, chosen = _said(event, "dataset"), _said(event, "name")
        dataset_edits.keep(self.context, opened, text or "")
        picture(self.context, name, chosen)
        return self._opened(dataset_gallery.read(self.context, self.looks, name, 0), name, chosen)

    @mended
    def keep_typed(self, event: gr.EventData) -> Any:
        """What is being typed, saved."""
        done, problems = dataset_edits.keep_typed(self.context, getattr(event, "typed", None))
        if problems:
            warn("\n".join(problems))
        return self._saved(say("dataset.not_saved") if problems else say("dataset.saved")) | {
            self.kept: {"numbers": done}
        }

    @mended
    def leave(self, name: str | None, resolution_px: float | None, trigger: str, event: gr.EventData) -> Any:
        """What was typed, saved, and shown everywhere."""
        return self.keep_typed(event) | self._shown(name, resolution_px, trigger, 0)

    def _saved(self, text: str = say("dataset.saved")) -> dict[Any, Any]:
        return {self.said: said(text, next(self._counter))}

    @mended
    def look_again(self, name: str | None, resolution_px: float | None, trigger: str, opened: Any, text: str) -> Any:
        """The set as it now is on the disk."""
        return self.after("", name, resolution_px, trigger, opened, text)

    @mended
    def save_one(self, name: str | None, resolution_px: float | None, trigger: str, opened: Any, text: str) -> Any:
        if not isinstance(opened, dict) or not opened.get("name"):
            raise DataError(say("dataset.none_opened"))
        dataset_edits.keep(self.context, opened, text or "")
        shown = self.after("", name, resolution_px, trigger, opened, text)
        return shown | {self.opened: opened | {"shown": (text or "").strip()}} | self._saved()

    @mended
    def undo_one(self, name: str | None, resolution_px: float | None, trigger: str, opened: Any, text: str) -> Any:
        return self._taken_back(None, name, resolution_px, trigger, opened, text)

    @mended
    def take_back(
        self, name: str | None, resolution_px: float | None, trigger: str, opened: Any, text: str, event: gr.EventData
    ) -> Any:
        number = getattr(event, "number", None)
        if type(number) is not int:
            return gr.skip()
        return self._taken_back(number, name, resolution_px, trigger, opened, text)

    def _taken_back(self, number: int | None, *shown: Any) -> dict[Any, Any]:
        name, _, _, opened, text = shown
        dataset_edits.keep(self.context, opened, text or "")
        chosen = opened.get("name", "") if isinstance(opened, dict) and opened.get("dataset") == name else ""
        return self.after(dataset_edits.undo(self.context, name, chosen, number), *shown)

    @mended
    def delete_one(self, name: str | None, resolution_px: float | None, trigger: str, opened: Any, text: str) -> Any:
        dataset_edits.keep(self.context, opened, text or "")
        scene = self._scene(name)
        names = [opened["name"]] if isinstance(opened, dict) and isinstance(opened.get("name"), str) else []
        # The next picture is opened in its place, the last where none follows.
        order = [other for other in scene.pictures if other not in names]
        after = next((other for other in order if names and other > names[0]), order[-1] if order else "")
        done = dataset_edits.discard(scene, names)
        return self.after(done, name, resolution_px, trigger, opened, text) | self._next(name, after)

    @mended
    def act(
        self, name: str | None, resolution_px: float | None, trigger: str, opened: Any, text: str, event: gr.EventData
    ) -> Any:
        """A button of the gallery, or of a card of the check, on some pictures."""
        names = _names(getattr(event, "names", None))
        dataset_edits.keep(self.context, opened, text or "")
        scene, update = self._scene(name), {}
        match act := _said(event, "act"):
            case "delete":
                done = dataset_edits.discard(scene, names)
                # Which picture follows depends on the filter that is seen, so the browser says it.
                update = self._next(name, _said(event, "next")) if _said(event, "next") else {}
            case "restore":
                done = dataset_edits.restore(scene, names)
            case "trigger":
                done = dataset_edits.with_trigger(scene, names, trigger or "")
            case "utf8":
                done = dataset_edits.repair(scene, names)
            case _:
                raise ConfigError(say("dataset.no_act", act=act[:40]))
        return self.after(done, name, resolution_px, trigger, opened, text) | update

    @mended
    def edit_many(
        self, name: str | None, resolution_px: float | None, trigger: str, opened: Any, text: str, *boxes: Any
    ) -> Any:
        operation, first, second, names = boxes
        dataset_edits.keep(self.context, opened, text or "")
        scene, words = self._scene(name), (first or "", second or "")
        done = dataset_edits.bulk(scene, _names(names), operation or "", words, trigger or "")
        return self.after(done, name, resolution_px, trigger, opened, text)

    @mended
    def describe(self, operation: str) -> Any:
        """The boxes that an edit has."""
        wanted = OPERATIONS.get(operation)
        labels = (wanted.first, wanted.second) if wanted else ("", "")
        return [gr.update(visible=bool(label), label=label or say("edits.words")) for label in labels]

    def _scene(self, name: str | None) -> Scene:
        self.context.dataset(name)
        return dataset_gallery.read(self.context, self.looks, str(name), 0)

    def after(self, done: str, *shown: Any) -> dict[Any, Any]:
        """The set and the caption's box after an edit, which is told of."""
        name, resolution_px, trigger, opened, text = shown
        if done:
            tell(done)
        scene = self._read(name)
        return self._shown_of(scene, name, resolution_px, trigger) | self._again(scene, name, opened, text)

    def _next(self, name: str | None, chosen: str) -> dict[Any, Any]:
        return self._opened(self._scene(name), str(name), chosen)


def _said(event: gr.EventData, key: str) -> str:
    """A text that the browser sent with an event."""
    value = getattr(event, key, "")
    return value if isinstance(value, str) else ""


def _names(value: object) -> list[str]:
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def build(context: Context) -> Refresh:
    """Draw the tab."""
    tab = _Tab(context)
    look = tab.captions.connect(partial(tab.after, ""), tab.scene, tab.typing, [*tab.view, *tab.editor])
    shown = [tab.dataset, tab.own_trigger.holder, *tab.view, *tab.editor, *tab.captions.opening]
    return Refresh(tab.open_tab, [*tab.scene, *tab.typing, *tab.captions.told], shown, look=look)
