"""Dataset: pictures in, captions beside them, saved as they are typed, every edit undoable."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from app import dataset_checks, dataset_edits, dataset_gallery, leftovers
from app.context import Context, Refresh
from app.dataset_edits import OPERATIONS
from app.dataset_gallery import Scene, picture
from app.dataset_measures import Looks
from app.dataset_parts import NOTHING_OPENED, Parts, edits_html, said
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
_SELECTS = "(...all) => { all[all.length - 1] = window.velaturaDataset.targets(); return all; }"


class _Tab(Parts):
    """The tab's components and what happens when they are used."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.looks, self._counter = Looks(context), itertools.count(1)
        self._connect_sets()
        self._connect_captions()

    def _connect_sets(self) -> None:
        private: dict[str, Any] = {"api_visibility": "private"}
        still: dict[str, Any] = private | {"show_progress": "hidden"}
        opened = [self.dataset, *self.view, *self.editor]
        created = [self.new_name, *opened]
        self.dataset.input(
            self.choose, [*self.scene, *self.typing],
            [*self.view, *self.editor, self.report, self.cards, self.buckets, self.captions.progress],
            **still,
        )  # fmt: skip
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
            [self.dataset, self.files, self.report, *self.view], show_progress_on=self.files, **private,
        )  # fmt: skip
        self.exports.connect(self.dataset)
        found = [self.cards, self.buckets]
        self.check.click(self.check_one, [*self.scene, *self.typing], [*found, *self.view], **private)
        gr.on([self.trigger.blur, self.resolution.blur], self.look_on, self.scene, self.view, **still)
        self.looking.tick(self.look_on, self.scene, self.view, concurrency_limit=1, **still)

    def _connect_captions(self) -> None:
        # One after the other, in the order they were asked for, and none is lost while another is on its way.
        still: dict[str, Any] = {
            "api_visibility": "private", "show_progress": "hidden", "concurrency_id": "dataset-edits",
            "concurrency_limit": 1, "trigger_mode": "multiple",
        }  # fmt: skip
        shown, both = [*self.scene, *self.typing], [*self.view, *self.editor]
        self.gallery.pick(self.pick, self.typing, self.editor, **still)
        self.gallery.typed(self.keep_typed, self.scene, [self.said], **still)
        self.gallery.left(self.leave, self.scene, [*self.view, self.said], **still)
        self.gallery.look(self.look_again, shown, both, **still)
        self.gallery.act(self.act, shown, both, **(still | {"show_progress": "minimal"}))
        self.history.take(self.take_back, shown, both, **still)
        self.save.click(self.save_one, shown, both, **still)
        self.undo.click(self.undo_one, shown, both, **still)
        self.delete.click(self.delete_one, shown, both, **still)
        boxes = [self.operation, self.first, self.second]
        self.operation.change(self.describe, self.operation, [self.first, self.second], **still)
        self.apply.click(
            self.edit_many, [*shown, *boxes, self.targets], both, js=_SELECTS,
            **(still | {"show_progress": "minimal"}),
        )  # fmt: skip

    # Updates.

    def _shown(self, name: str | None, resolution_px: float | None, trigger: str, budget_s: float = 0.4) -> Any:
        """A dataset as it is now."""
        return self._shown_of(self._read(name, budget_s), name, resolution_px, trigger)

    def _read(self, name: str | None, budget_s: float = 0.4) -> Scene | None:
        return dataset_gallery.read(self.context, self.looks, name, budget_s) if name else None

    def _shown_of(
        self, scene: Scene | None, name: str | None, resolution_px: float | None, trigger: str
    ) -> dict[Any, Any]:
        if scene is None or not name:
            return {
                self.gallery: dataset_gallery.empty(), self.summary: say("dataset.make_one"),
                self.history: edits_html([]), self.looking: gr.update(active=False),
            }  # fmt: skip
        trigger = (trigger or "").strip()
        data = dataset_gallery.data(self.context, self.looks, name, scene, int(resolution_px or 0), trigger)
        return {
            self.gallery: data,
            self.summary: dataset_gallery.headline(scene),
            self.history: edits_html(dataset_gallery.history(scene)),
            self.looking: gr.update(active=data["pending"] > 0),
        }

    def _nothing_opened(self) -> dict[Any, Any]:
        return {
            self.opened: NOTHING_OPENED,
            self.caption: gr.update(value="", interactive=False, label=say("word.caption")),
            self.large: gr.update(value=None, visible=False),
            self.said: said(""),
        }

    def _opened(self, scene: Scene, name: str, chosen: str) -> dict[Any, Any]:
        """A picture, large, and its caption to edit; no picture where it is gone."""
        path = scene.pictures.get(chosen)
        if path is None:
            return self._nothing_opened()
        text, caption = self._text(scene, chosen), say("edits.caption_of", name=plain(path.name, 120))
        try:
            mask = scene.masks.get(chosen)
            large = self.context.masked_thumbnail(path, mask) if mask else dataset_gallery.preview(self.context, path)
            label = say("dataset.picture_masked") if mask else say("word.picture")
            shown = gr.update(value=str(large), visible=True, label=label)
        except DataError as error:
            shown = gr.update(value=None, visible=True, label=plain(say("dataset.picture_problem", problem=error), 120))
        return {
            self.opened: {"dataset": name, "name": chosen, "shown": text, "seen": _seen(scene, chosen)},
            self.caption: gr.update(value=text, interactive=True, label=caption),
            self.large: shown,
            self.said: said("", next(self._counter)),
        }

    @staticmethod
    def _text(scene: Scene, chosen: str) -> str:
        return dataset_edits.repaired(scene, chosen) if chosen in scene.refusals else scene.captions[chosen]

    def _again(self, scene: Scene | None, name: str | None, opened: Any, text: str) -> dict[Any, Any]:
        """The picture and its caption as the files now are, if they are others."""
        chosen = opened.get("name", "") if isinstance(opened, dict) else ""
        if not chosen or scene is None or opened.get("dataset") != name:
            return {}
        same = chosen in scene.pictures and self._text(scene, chosen) == (text or "").strip()
        if same and opened.get("seen") == _seen(scene, chosen):
            return {}
        return self._opened(scene, str(name), chosen)

    def _created(self, name: str, resolution_px: float | None, trigger: str) -> dict[Any, Any]:
        """A new dataset, chosen."""
        return {
            self.dataset: gr.update(choices=self.context.dataset_choices(), value=name),
            **self._shown(name, resolution_px, trigger),
            **self._nothing_opened(),
        }

    # Datasets.

    @mended
    def open_tab(
        self, name: str | None, resolution_px: float | None, trigger: str, opened: Any, text: str, *told: Any
    ) -> Any:
        names = self.context.dataset_names()
        if name not in names:
            name = next((other for other in names if not other.endswith("-heldout")), None)
        dataset_edits.keep(self.context, opened, text or "")
        scene = self._read(name)
        return {
            self.dataset: gr.update(choices=self.context.dataset_choices(), value=name),
            **self._shown_of(scene, name, resolution_px, trigger),
            **self._again(scene, name, opened, text),
            **self.captions.opened(name, *told),
        }

    @mended
    def choose(self, name: str | None, resolution_px: float | None, trigger: str, opened: Any, text: str) -> Any:
        dataset_edits.keep(self.context, opened, text or "")
        hidden = gr.update(visible=False)
        return (
            self._shown(name, resolution_px, trigger)
            | self._nothing_opened()
            | {self.report: hidden, self.cards: hidden, self.buckets: hidden}
            | {self.captions.progress: self.captions.progress_of(name)}
        )

    @mended
    def create_one(
        self, new: str, name: str | None, resolution_px: float | None, trigger: str, opened: Any, text: str
    ) -> dict[Any, Any]:
        dataset_edits.keep(self.context, opened, text or "")
        with caption_files.writable(say("where.dataset")):
            return {self.new_name: "", **self._created(make(self.context, new), resolution_px, trigger)}

    @mended
    def copy_one(
        self, sample: str, name: str | None, resolution_px: float | None, trigger: str, opened: Any, text: str
    ) -> dict[Any, Any]:
        dataset_edits.keep(self.context, opened, text or "")
        with caption_files.writable(say("where.copy")):
            copied = copy_sample(self.context, sample)
        tell(say("dataset.copied", name=copied))
        return self._created(copied, resolution_px, trigger)

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
        chosen = {} if into == name else {self.dataset: gr.update(choices=self.context.dataset_choices(), value=into)}
        happened = gr.update(value=report.message, visible=True)
        return {**chosen, self.files: None, self.report: happened, **self._shown(into, resolution_px, trigger)}

    @mended
    def check_one(self, name: str | None, resolution_px: float | None, trigger: str, opened: Any, text: str) -> Any:
        dataset_edits.keep(self.context, opened, text or "")
        size = int(resolution_px) if resolution_px is not None else None
        found = dataset_checks.check(self.context, name, size, trigger or "")
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
        """The chosen picture opened, and what was typed for the one before saved."""
        name, chosen = _said(event, "dataset"), _said(event, "name")
        dataset_edits.keep(self.context, opened, text or "")
        picture(self.context, name, chosen)
        return self._opened(dataset_gallery.read(self.context, self.looks, name, 0), name, chosen)

    @mended
    def keep_typed(self, name: str | None, resolution_px: float | None, trigger: str, event: gr.EventData) -> Any:
        """What is being typed, saved."""
        self._keep_event(event)
        return self._saved()

    @mended
    def leave(self, name: str | None, resolution_px: float | None, trigger: str, event: gr.EventData) -> Any:
        """What was typed, saved, and shown everywhere."""
        self._keep_event(event)
        return self._shown(name, resolution_px, trigger, 0) | self._saved()

    def _saved(self) -> dict[Any, Any]:
        return {self.said: said(say("dataset.saved"), next(self._counter))}

    def _keep_event(self, event: gr.EventData) -> None:
        parts = {key: _said(event, key) for key in ("dataset", "name")}
        dataset_edits.keep(self.context, parts | {"shown": ""}, _said(event, "text"), _said(event, "visit"), typed=True)

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


def _seen(scene: Scene, chosen: str) -> str:
    """By which a picture or mask is known to be another."""
    files = [path for path in (scene.pictures[chosen], scene.masks.get(chosen)) if path and path.is_file()]
    return " ".join(f"{path.name}-{path.stat().st_mtime_ns}" for path in files)


def _names(value: object) -> list[str]:
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def build(context: Context) -> Refresh:
    """Draw the tab."""
    tab = _Tab(context)
    look = tab.captions.connect(partial(tab.after, ""), tab.scene, tab.typing, [*tab.view, *tab.editor])
    shown = [tab.dataset, *tab.view, *tab.editor, *tab.captions.opening]
    return Refresh(tab.open_tab, [*tab.scene, *tab.typing, *tab.captions.told], shown, look=look)
