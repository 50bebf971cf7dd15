"""Dataset: pictures in, captions beside them, every edit undoable."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import gradio as gr

from app import leftovers
from app.context import EXAMPLES, Context, Refresh
from app.notices import mended, tell, warn
from trainer import families, presets, unique_names
from trainer.config import CaptionsConfig, DataConfig
from trainer.data import CAPTION_SUFFIXES, IMAGE_SUFFIXES, captions, uploads
from trainer.errors import ConfigError, DataError
from trainer.printing import plain
from trainer.runs import slug

TITLE = "Dataset"
ORDER = 10
PAGE = 200
_CAPTION_CHARS = 60
_FIRST_SAMPLE = "outline-style"  # it has a held-out part


def sample_sets() -> list[str]:
    """Names of the sample sets that ship."""
    return sorted(path.parent.name for path in EXAMPLES.glob("*/train"))


def make(context: Context, name: str) -> str:
    """A new empty dataset's name. Raises: DataError if it is taken, RunError for a name without letters."""
    wanted = slug(name or "")
    try:
        (context.datasets / wanted).mkdir(parents=True)
    except FileExistsError:
        raise DataError(f"dataset {wanted!r} exists already; choose another name.") from None
    return wanted


def copy_sample(context: Context, sample: str) -> str:
    """Copy a sample set, and its held-out part as `<name>-heldout`; its name, `-2` if it is there already."""
    if sample not in sample_sets():
        raise DataError(f"sample set {sample!r} is unknown; allowed: {', '.join(sample_sets())}.")
    context.datasets.mkdir(parents=True, exist_ok=True)
    for path in unique_names.numbered(context.datasets, sample, ""):
        twin = path.with_name(f"{path.name}-heldout")
        if twin.exists():
            continue
        try:
            path.mkdir()  # whoever makes it has the name
        except FileExistsError:
            continue
        break
    for part, target in (("heldout", twin), ("train", path)):
        if (EXAMPLES / sample / part).is_dir():
            shutil.copytree(EXAMPLES / sample / part, target, dirs_exist_ok=target == path)
    return path.name


def add(context: Context, name: str | None, files: list[str]) -> uploads.Report:
    """Add uploaded pictures, captions and zips to a dataset."""
    folder = context.dataset(name)
    paths = [Path(file) for file in files]
    report = uploads.add_pictures(folder, [path for path in paths if path.suffix.lower() != ".zip"])
    for path in paths:
        if path.suffix.lower() == ".zip":
            found = uploads.add_zip(folder, path)
            report.added += found.added
            report.left_out += found.left_out
    return report


def overview(context: Context, name: str | None, page: int) -> tuple[list[tuple[str, str]], list[str], str]:
    """Thumbnails with short captions of one page, the pictures' names, and a line on the whole set."""
    if not name:
        return [], [], "Make a dataset, or copy a sample set to try things out."
    folder = context.dataset(name)
    pictures = context.pictures(folder)
    shown, names, problems = [], [], []
    without = masked = 0
    for number, path in enumerate(pictures):
        masked += context.mask(path) is not None
        try:
            caption = captions.read_caption(path)
        except DataError as error:
            caption = ""
            problems.append(plain(f"{path.name} {error}"))
        without += not caption
        if not page * PAGE <= number < (page + 1) * PAGE:
            continue
        try:
            thumbnail = context.thumbnail(path)
        except DataError as error:
            problems.append(plain(f"{path.name} {error}"))
            continue
        shown.append((str(thumbnail), _short(caption)))
        names.append(path.relative_to(folder).as_posix())
    line = f"{len(pictures)} picture{'' if len(pictures) == 1 else 's'}" + (
        f", {without} without caption" if without else ", all with captions" if pictures else ": drop some above"
    )
    line += f", {masked} with {'a mask' if masked == 1 else 'masks'}" if masked else ""
    return shown, names, "\n".join([line, *problems[:20]])


def check(context: Context, name: str | None, resolution_px: int | None, trigger: str) -> str:
    """What is wrong with a dataset, in words. Raises: DataError, ConfigError."""
    from trainer.data import dataset_check

    folder = context.dataset(name)
    family = families.registry()[presets.load(presets.names()[0], {}).family]
    multiple = family.multiple_px
    if resolution_px is None or not 2 * multiple <= resolution_px <= 4096 or resolution_px % multiple:
        raise ConfigError(f"resolution is {resolution_px}; allowed: a multiple of {multiple} from {2 * multiple} to 4096.")
    settings = DataConfig(folder=str(folder), trigger=trigger.strip())
    found = dataset_check.check(folder, settings, CaptionsConfig(), int(resolution_px), multiple)
    return plain(dataset_check.describe(dataclasses.replace(found, folder=str(name))), 100_000)


def _short(caption: str) -> str:
    text = plain(" ".join(caption.split()), 1000) or "no caption yet"
    return text if len(text) <= _CAPTION_CHARS else text[: _CAPTION_CHARS - 1] + "…"


def picture(context: Context, name: str | None, chosen: str) -> Path:
    """The chosen picture of a dataset. Raises: DataError if it is not there."""
    folder = context.dataset(name)
    for path in context.pictures(folder):
        if path.relative_to(folder).as_posix() == chosen:
            return path
    raise DataError("that picture is not here any more; reload the page.")


class _Tab:
    """The tab's components and what happens when they are used."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.names, self.chosen, self.page = gr.State([]), gr.State(""), gr.State(0)
        with gr.Row(equal_height=False, elem_classes="halves"):
            with gr.Column(scale=2, min_width=300):
                self._draw_sources()
            with gr.Column(scale=5, min_width=320):
                self._draw_pictures()
        self.view = [self.gallery, self.names, self.summary, self.page, self.pager, self.place]
        self.editor = [self.chosen, self.caption, self.large]
        self._connect()

    def _draw_sources(self) -> None:
        accepted = [*IMAGE_SUFFIXES, *CAPTION_SUFFIXES, ".zip"]
        there = self.context.dataset_choices()
        self.dataset = gr.Dropdown(there, label="Dataset", info="What the other tabs train on.", interactive=True, elem_id="dataset")
        self.files = gr.File(file_count="multiple", file_types=accepted, label="Drop pictures, captions or a zip", height=150, elem_id="dataset-files")
        self.report = gr.Textbox(label="What happened", lines=2, max_lines=10, interactive=False, visible=False, elem_id="dataset-report")
        with gr.Row():
            self.new_name = gr.Textbox(label="New dataset", placeholder="name, such as my-cat", max_length=80, scale=3, min_width=150, elem_id="new-dataset")
            self.create = gr.Button("Create", scale=1, min_width=90, elem_id="create-dataset", elem_classes="beside")
        with gr.Row():
            samples = sample_sets()
            self.sample = gr.Dropdown(
                samples,
                value=_FIRST_SAMPLE if _FIRST_SAMPLE in samples else None,
                label="Sample set",
                scale=3,
                min_width=150,
                interactive=True,
                elem_id="sample-set",
            )
            self.copy = gr.Button("Copy", scale=1, min_width=90, elem_id="copy-sample", elem_classes="beside")

    def _draw_pictures(self) -> None:
        self.summary = gr.Textbox(show_label=False, container=False, lines=1, max_lines=8, interactive=False, elem_id="dataset-summary", elem_classes="quiet")
        self.gallery = gr.Gallery(
            label="Pictures",
            columns=6,
            height=430,
            object_fit="contain",
            allow_preview=False,
            interactive=False,
            buttons=[],
            fit_columns=False,
            elem_id="dataset-gallery",
        )
        with gr.Row(visible=False) as self.pager:
            self.back = gr.Button("Back", min_width=80)
            self.place = gr.Textbox(show_label=False, container=False, interactive=False)
            self.forward = gr.Button("Next", min_width=80)
        with gr.Row(equal_height=False):
            self.large = gr.Image(
                label="Picture", height=190, interactive=False, visible=False, type="filepath", format="webp", min_width=160, scale=1, buttons=[]
            )
            with gr.Column(scale=3, min_width=240):
                hint = "Click a picture above to write its caption."
                self.caption = gr.Textbox(label="Caption", info=hint, lines=3, max_lines=8, interactive=False, elem_id="caption")
                with gr.Row():
                    self.save = gr.Button("Save", variant="primary", elem_id="save-caption", min_width=90)
                    self.undo = gr.Button("Undo last edit", elem_id="undo-caption", min_width=90)

        with gr.Accordion("Check before training", open=False, elem_id="check"):
            with gr.Row():
                start = presets.load(presets.names()[0], {})
                self.resolution = gr.Number(start.resolution_px, label="Resolution", precision=0, step=8, min_width=110, elem_id="check-resolution")
                self.trigger = gr.Textbox(label="Trigger", placeholder="none", max_length=80, min_width=110, elem_id="check-trigger")
                self.check = gr.Button("Check", min_width=90, elem_id="check-dataset", elem_classes="beside")
            self.findings = gr.Textbox(show_label=False, lines=8, max_lines=24, interactive=False, visible=False, elem_id="findings", elem_classes="mono")

    def _connect(self) -> None:
        private: dict[str, Any] = {"api_visibility": "private"}
        still: dict[str, Any] = private | {"show_progress": "hidden"}
        made = [self.dataset, self.new_name, *self.view, *self.editor]
        self.dataset.input(self.choose, self.dataset, [*self.view, *self.editor, self.report], **still)
        self.create.click(self.create_one, self.new_name, made, **private)
        self.new_name.submit(self.create_one, self.new_name, made, **private)
        self.copy.click(self.copy_one, self.sample, [self.dataset, *self.view, *self.editor], **private)
        self.files.upload(self.add_files, [self.dataset, self.files], [self.files, self.report, *self.view], **private)
        self.gallery.select(self.pick, [self.dataset, self.names], self.editor, **still)
        self.save.click(self.save_one, [self.dataset, self.chosen, self.caption, self.page], self.view, **still)
        self.caption.submit(self.save_one, [self.dataset, self.chosen, self.caption, self.page], self.view, **still)
        self.check.click(self.check_one, [self.dataset, self.resolution, self.trigger], self.findings, **private)
        self.undo.click(self.undo_one, [self.dataset, self.chosen, self.page], [*self.view, self.caption], **still)
        self.back.click(self.turn_back, [self.dataset, self.page], [*self.view, *self.editor], **private)
        self.forward.click(self.turn_on, [self.dataset, self.page], [*self.view, *self.editor], **private)

    def _shown(self, name: str | None, page: int) -> dict[Any, Any]:
        thumbnails, found, line = overview(self.context, name, page)
        num_pages = self._num_pages(name)
        return {
            self.gallery: gr.update(value=thumbnails, selected_index=None), self.names: found, self.summary: line, self.page: page,
            self.pager: gr.update(visible=num_pages > 1), self.place: f"page {page + 1} of {num_pages}",
        }  # fmt: skip

    def _num_pages(self, name: str | None) -> int:
        return max(1, -(-len(self.context.pictures(self.context.dataset(name))) // PAGE)) if name else 1

    def _nothing_chosen(self) -> dict[Any, Any]:
        return {self.chosen: "", self.caption: gr.update(value="", interactive=False, label="Caption"), self.large: gr.update(value=None, visible=False)}

    def _opened(self, name: str) -> dict[Any, Any]:
        return {self.dataset: gr.update(choices=self.context.dataset_choices(), value=name), **self._shown(name, 0), **self._nothing_chosen()}

    @mended
    def open_tab(self, name: str | None, page: int) -> dict[Any, Any]:
        there = self.context.dataset_names()
        if name not in there:
            name, page = next((one for one in there if not one.endswith("-heldout")), None), 0
        return {self.dataset: gr.update(choices=self.context.dataset_choices(), value=name), **self._shown(name, min(page, self._num_pages(name) - 1))}

    @mended
    def choose(self, name: str | None) -> dict[Any, Any]:
        return self._shown(name, 0) | self._nothing_chosen() | {self.report: gr.update(visible=False)}

    @mended
    def create_one(self, name: str) -> dict[Any, Any]:
        with captions.writable("the dataset"):
            return {self.new_name: "", **self._opened(make(self.context, name))}

    @mended
    def copy_one(self, sample: str) -> dict[Any, Any]:
        with captions.writable("the copy"):
            made = copy_sample(self.context, sample)
        tell(f"Copied as {made}.")
        return self._opened(made)

    @mended
    def add_files(self, name: str | None, given: list[str] | None) -> dict[Any, Any]:
        try:
            found = add(self.context, name, given or [])
        finally:
            leftovers.taken(self.context, given or [])
        if found.left_out:
            warn(found.message)
        return {self.files: None, self.report: gr.update(value=found.message, visible=True), **self._shown(name, 0)}

    @mended
    def pick(self, name: str | None, found: list[str], event: gr.SelectData) -> Any:
        index = event.index if isinstance(event.index, int) else -1
        if not 0 <= index < len(found):
            return gr.skip()
        path = picture(self.context, name, found[index])
        caption = gr.update(value=captions.read_caption(path), interactive=True, label=f"Caption of {plain(path.name, 120)}")
        mask = self.context.mask(path)
        thumbnail = self.context.masked_thumbnail(path, mask) if mask else self.context.thumbnail(path)
        large = gr.update(value=str(thumbnail), visible=True, label="Picture; the tinted part counts less" if mask else "Picture")
        return {self.chosen: found[index], self.caption: caption, self.large: large}

    @mended
    def check_one(self, name: str | None, resolution_px: int | None, trigger: str) -> dict[Any, Any]:
        return {self.findings: gr.update(value=check(self.context, name, resolution_px, trigger or ""), visible=True)}

    @mended
    def save_one(self, name: str | None, which: str, text: str, page: int) -> dict[Any, Any]:
        if not which:
            raise DataError("no picture is chosen; click one first.")
        captions.write_caption(picture(self.context, name, which), text)
        tell("Caption saved.")
        return self._shown(name, page)

    @mended
    def undo_one(self, name: str | None, which: str, page: int) -> dict[Any, Any]:
        folder = picture(self.context, name, which).parent if which else self.context.dataset(name)
        done = captions.undo(folder)
        if done is None:
            raise DataError("there is no edit left to undo in this dataset.")
        tell(f"The caption of {done.picture} is as it was before.")
        update = self._shown(name, page)
        if which and Path(which).name == done.picture:
            update[self.caption] = gr.update(value=done.restored or "")
        return update

    @mended
    def turn_back(self, name: str | None, page: int) -> dict[Any, Any]:
        return self._shown(name, max(page - 1, 0)) | self._nothing_chosen()

    @mended
    def turn_on(self, name: str | None, page: int) -> dict[Any, Any]:
        return self._shown(name, min(page + 1, self._num_pages(name) - 1)) | self._nothing_chosen()


def build(context: Context) -> Refresh:
    """Draw the tab."""
    tab = _Tab(context)
    return Refresh(tab.open_tab, [tab.dataset, tab.page], [tab.dataset, *tab.view])
