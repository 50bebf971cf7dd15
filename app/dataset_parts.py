"""The Dataset tab's components and what they show; what happens when they are used is the tab's."""

from __future__ import annotations

import itertools
from typing import Any

import gradio as gr

from app import dataset_checks, dataset_edits, dataset_gallery, dataset_notes, shortcuts
from app.context import Context
from app.dataset_captions import CaptionPanel
from app.dataset_edits import OPERATIONS
from app.dataset_exports import Exports
from app.dataset_gallery import Scene
from app.dataset_measures import Looks
from app.dataset_pictures import PictureEditor
from app.dataset_sets import sample_sets
from app.late_answers import LateAnswer
from app.notices import mended_answer
from app.texts import say
from trainer import presets
from trainer.data import CAPTION_SUFFIXES, IMAGE_SUFFIXES
from trainer.errors import DataError
from trainer.printing import escape, plain

_FIRST_SAMPLE = "outline-style"  # it has a held-out part
# A press on an edit's button takes that edit back.
_TAKE_BACK = """
element.addEventListener('click', event => {
  const pressed = event.target.closest('[data-number]');
  if (pressed) trigger('take', {number: Number(pressed.dataset.number)});
});
"""
# The open caption's tags, which `dataset_caption.js` puts in.
_TAGS = f"""<div class="tag-line" hidden>
<div class="own-tags" role="group" aria-label="{say("dataset.own_tags")}"></div>
<input type="text" list="set-tags" maxlength="200" placeholder="{say("dataset.add_tag")}"
  aria-label="{say("dataset.add_tag")}"><datalist id="set-tags"></datalist></div>"""
NOTHING_OPENED = {"dataset": "", "name": "", "shown": "", "seen": ""}


class Parts:
    """The components, in the order they stand on the page."""

    def __init__(self, context: Context) -> None:
        self.context, self.pictures = context, PictureEditor(context)
        self.looks, self._counter = Looks(context), itertools.count(1)
        with gr.Row(equal_height=False, elem_classes="halves dataset-desk"):
            with gr.Column(scale=3, min_width=200, elem_id="dataset-sources"):
                self._draw_choice()
                with gr.Column(min_width=160, elem_id="dataset-more"):
                    self._draw_sources()
            with gr.Column(scale=9, min_width=380):
                self._draw_pictures()
            with gr.Column(scale=5, min_width=270, elem_id="dataset-editor"):
                self._draw_editor()
        self.captions = CaptionPanel(context)
        self._draw_bulk()
        self._draw_check()
        self._draw_history()
        self.looking = gr.Timer(0.6, active=False)  # while there are pictures that nobody looked at yet
        self.view = [self.gallery, self.summary, self.history, self.looking]
        self.editor = [self.opened, self.caption, self.large, self.said]
        self.scene = [self.dataset, self.resolution, self.trigger]  # what a view is made of
        self.typing = [self.opened, self.caption]  # what a person may have typed

    def _draw_choice(self) -> None:
        self.dataset = gr.Dropdown(
            self.context.dataset_choices(), label=say("word.dataset"), info=say("dataset.dataset_help"),
            interactive=True,
            elem_id="dataset",
        )  # fmt: skip
        self.trigger = gr.Textbox(
            label=say("word.trigger"), info=say("dataset.trigger_help"), placeholder=say("word.none"),
            max_length=80, elem_id="check-trigger",
        )  # fmt: skip
        self.own_trigger = LateAnswer(self.trigger)

    def _draw_sources(self) -> None:
        self.files = gr.File(
            file_count="multiple", file_types=[*IMAGE_SUFFIXES, *CAPTION_SUFFIXES, ".zip"],
            label=say("dataset.drop"), height=150, elem_id="dataset-files",
        )  # fmt: skip
        self.report = gr.Textbox(
            label=say("dataset.what_happened"),
            lines=2,
            max_lines=10,
            interactive=False,
            visible=False,
            elem_id="dataset-report",
        )

        # What leaves, and what is begun anew.
        self.exports = Exports(self.context)
        with gr.Row(elem_classes="tight"):
            self.new_name = gr.Textbox(
                label=say("dataset.new"), placeholder=say("dataset.new_example"), max_length=80, scale=3, min_width=110,
                elem_id="new-dataset",
            )  # fmt: skip
            self.create = gr.Button(
                say("dataset.create"), scale=1, min_width=58, size="sm", elem_id="create-dataset", elem_classes="beside"
            )
        with gr.Row(elem_classes="tight"):
            samples = sample_sets()
            self.sample = gr.Dropdown(
                samples, value=_FIRST_SAMPLE if _FIRST_SAMPLE in samples else None, label=say("dataset.sample"),
                scale=3, min_width=140, interactive=True, elem_id="sample-set",
            )  # fmt: skip
            self.copy = gr.Button(
                say("dataset.copy"), scale=1, min_width=58, size="sm", elem_id="copy-sample", elem_classes="beside"
            )

    def _draw_pictures(self) -> None:
        self.summary = gr.Textbox(
            label=say("dataset.what_will_train"), show_label=False, container=False, lines=1, max_lines=8,
            interactive=False,
            elem_id="dataset-summary", elem_classes="text-line headline",
        )  # fmt: skip
        self.gallery = gr.HTML(
            dataset_gallery.empty(), html_template=dataset_gallery.TEMPLATE, js_on_load=dataset_gallery.SCRIPT,
            server_functions=[mended_answer(self.pictures.flip)], elem_id="dataset-gallery",
        )  # fmt: skip

    def _draw_editor(self) -> None:
        """The chosen picture and its caption."""
        # What the caption's box belongs to goes to the browser and back with it, so that both are always of one moment.
        self.opened = gr.HTML(
            NOTHING_OPENED, html_template="", visible="hidden", elem_id="dataset-opened",
            js_on_load="watch('value', () => { window.velaturaDataset?.opened(props.value); "
            "window.velaturaPicture?.opened(props.value); });",
        )  # fmt: skip
        # The numbers of what was typed and is saved: until then the browser keeps it.
        self.kept = gr.HTML(
            {"numbers": []}, html_template="", visible="hidden", elem_id="dataset-kept",
            js_on_load="watch('value', () => window.velaturaDataset?.saved(props.value?.numbers ?? []));",
        )  # fmt: skip
        self.large = gr.Image(
            label=say("word.picture"), height=300, interactive=False, visible=False, type="filepath", format="webp",
            buttons=[],
            elem_id="dataset-picture",
        )  # fmt: skip
        self.pictures.draw()
        self.caption = gr.Textbox(
            label=say("word.caption"), info=say("dataset.caption_help"), lines=4,
            max_lines=10, interactive=False, elem_id="caption", elem_classes="unkept",
        )  # fmt: skip
        self.said = gr.HTML(said(""), elem_id="caption-state")
        gr.HTML(_TAGS, elem_id="caption-tags", padding=False)
        with gr.Row():
            self.save = gr.Button(say("button.save"), variant="primary", elem_id="save-caption", min_width=70)
            self.undo = gr.Button(say("button.undo"), elem_id="undo-caption", min_width=70)
            self.delete = gr.Button(say("button.delete"), elem_id="delete-picture", min_width=70)
        gr.HTML(
            f'<p class="keys">{shortcuts.line_html(shortcuts.DATASET)}</p>'
            f'<p class="keys">{escape(say("keys.while_writing"))}</p>',
            elem_id="dataset-keys",
        )

    def _draw_bulk(self) -> None:
        with gr.Accordion(say("edits.title"), open=False, elem_id="bulk"):
            gr.HTML(f"<p class='keys'>{say('edits.help')}</p>")
            with gr.Row():
                first = next(iter(OPERATIONS))
                self.operation = gr.Dropdown(
                    list(OPERATIONS), value=first, label=say("edits.edit"), min_width=140, interactive=True,
                    elem_id="bulk-operation", elem_classes="unkept",
                )  # fmt: skip
                self.first = gr.Textbox(
                    label=OPERATIONS[first].first, min_width=140, max_length=2000, elem_id="bulk-first",
                    elem_classes="unkept",
                )  # fmt: skip
                self.second = gr.Textbox(
                    label=OPERATIONS[first].second, min_width=140, max_length=2000, elem_id="bulk-second",
                    elem_classes="unkept",
                )  # fmt: skip
                self.apply = gr.Button(say("edits.apply"), min_width=90, elem_id="bulk-apply", elem_classes="beside")
            self.targets = gr.JSON(visible=False)  # the browser puts in what is marked or shown

    def _draw_check(self) -> None:
        with gr.Accordion(say("check.title"), open=False, elem_id="check"):
            with gr.Row():
                self.resolution = gr.Number(
                    presets.load(presets.names()[0], {}).resolution_px, label=say("check.resolution_label"),
                    precision=0, step=8,
                    min_width=110, elem_id="check-resolution",
                )  # fmt: skip
                self.check = gr.Button(say("check.check"), min_width=90, elem_id="check-dataset", elem_classes="beside")
            self.cards = gr.HTML("", js_on_load=dataset_checks.SCRIPT, visible=False, elem_id="findings")
            self.buckets = gr.Textbox(
                label=say("check.buckets"), lines=3, max_lines=12, interactive=False, visible=False,
                elem_id="check-buckets",
                elem_classes="mono",
            )  # fmt: skip

    def _draw_history(self) -> None:
        with gr.Accordion(say("edits.edits"), open=False, elem_id="dataset-edits"):
            self.history = gr.HTML(edits_html([]), js_on_load=_TAKE_BACK, elem_id="dataset-history")

    # What they show.

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
            # The number makes it new, so that the browser hears of each.
            self.opened: {
                "dataset": name,
                "name": chosen,
                "shown": text,
                "seen": scene.seen(chosen),
                "number": next(self._counter),
            },
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
        # What was typed was kept before the set was read: another text was written by something else.
        same = chosen in scene.pictures and self._text(scene, chosen) == (text or "").strip()
        if same and opened.get("seen") == scene.seen(chosen):
            return {}
        return self._opened(scene, str(name), chosen)

    def _chosen(self, name: str | None, before: str | None, trigger: str) -> dict[Any, Any]:
        """A new dataset in the box; the trigger is its own if there was no set that it was written for."""
        own = "" if before else (trigger or "").strip()
        dataset_notes.keep_trigger(self.context, name, own)
        listed = gr.update(choices=self.context.dataset_choices(), value=name)
        return {self.dataset: listed, **self.own_trigger.update(trigger, own)}

    def _created(self, name: str, before: str | None, resolution_px: float | None, trigger: str) -> dict[Any, Any]:
        """A new dataset, chosen."""
        chosen = self._chosen(name, before, trigger)
        own = dataset_notes.trigger_of(self.context, name)
        return {**chosen, **self._shown(name, resolution_px, own), **self._nothing_opened()}


def said(text: str, number: int = 0) -> str:
    """A line on how the caption's box stands; the number makes it new, as the browser writes there too."""
    return f'<p class="said" role="status" data-number="{number}">{escape(text)}</p>'


def edits_html(edits: list[dict[str, object]]) -> str:
    """The edits of a set, each with a button that takes it back."""
    if not edits:
        return f'<p class="keys">{say("edits.none_yet")}</p>'
    rows = []
    for edit in edits:
        text = escape(edit["text"])
        end = (
            f'<span class="state">{say("edits.undone")}</span>'
            if edit["undone"]
            else f'<button type="button" class="cure" data-number="{edit["number"]}" '
            f'aria-label="{say("edits.undo_this", edit=text)}">{say("button.undo")}</button>'
        )
        rows.append(f"<li><time>{escape(edit['when'])}</time> <span>{text}</span> {end}</li>")
    return f'<ol class="edits">{"".join(rows)}</ol>'
