"""A dataset packed into a zip that the browser fetches: as it lies, or in the layout of another trainer."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import gradio as gr

from app import dataset_notes, zips
from app.cancel_line import Waiting
from app.context import Context
from app.notices import tell
from app.render_requests import Rendering, mended_turns
from app.texts import say, say_num
from trainer import unique_names
from trainer.config import DataConfig
from trainer.data import CAPTION_SUFFIXES, IMAGE_SUFFIXES, caption_files, imagefolder, sources
from trainer.data.picture_file import PictureFile
from trainer.data.uploads import safe_stem
from trainer.errors import DataError

_DOWNLOADS = """() => setTimeout(() => {
  const link = document.querySelector('#dataset-zip');
  (link.matches('a, button') ? link : link.querySelector('a, button')).click();
}, 200)"""
_KOHYA = re.compile(r"[0-9]{1,9}_(.+)")


class Exports:
    """The layout, the button, and the hidden button that the browser fetches by."""

    def __init__(self, context: Context) -> None:
        self.context = context
        with gr.Row(elem_classes="tight"):
            self.layout = gr.Dropdown(
                list(LAYOUTS), value=next(iter(LAYOUTS)), label=say("dataset.export_as"), scale=3, min_width=110,
                interactive=True, elem_id="export-layout",
            )  # fmt: skip
            self.export = gr.Button(
                say("dataset.export"), scale=1, min_width=58, size="sm", elem_id="export-dataset", elem_classes="beside"
            )
        self.waiting = Waiting(context, "export-dataset")
        self.download = gr.DownloadButton(say("button.download_zip"), visible="hidden", elem_id="dataset-zip")

    def connect(self, dataset: gr.Dropdown) -> None:
        """Pack the chosen dataset when asked to."""
        private: dict[str, Any] = {"api_visibility": "private"}
        packing = self.export.click(
            self.export_one, [dataset, self.layout], [self.download, *self.waiting.outputs()], show_progress="hidden",
            **private,
        )  # fmt: skip
        packing.success(None, js=_DOWNLOADS, **private)
        self.waiting.connect()

    @mended_turns
    def export_one(self, name: str | None, layout: str, request: gr.Request) -> Iterator[dict[Any, Any]]:
        def pack(rendering: Rendering) -> str:
            with caption_files.writable(say("where.zip")):
                return str(packed(self.context, name, layout, rendering.part_done))

        yield {self.download: None}  # or the last zip would be fetched again if this one is cancelled
        yield from self.waiting.turns(request, say("waiting.packing"), pack, lambda path: {self.download: path})


def packed(context: Context, name: str | None, layout: str = "", part_done: zips.PartDone | None = None) -> Path:
    """A zip of a dataset where the browser can fetch it; as it lies if no other layout is named.

    `part_done` is told after each file how many are done, and of how many. Raises: DataError if there is nothing to
    pack.
    """
    folder = context.dataset(name)
    entries = list(LAYOUTS.get(layout, _as_it_lies)(folder))
    if not entries:
        raise DataError(say("dataset.nothing_in_it"))
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:32]
    target = context.cache / "files" / f"zip-{digest}" / f"{folder.name}.zip"
    return zips.write(target, entries, part_done)


# The layouts: each gives the entries of the zip, by name, with the file or the lines that they hold.

Entries = Iterator[zips.Entry]


def _as_it_lies(folder: Path) -> Entries:
    """Pictures, captions, masks and metadata."""
    endings = (*IMAGE_SUFFIXES, *CAPTION_SUFFIXES, ".json")
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(other for other in folders if not other.startswith("."))
        for path in (Path(place, other) for other in sorted(names) if not other.startswith(".")):
            is_of_set = path.suffix.lower() in endings or path.name in imagefolder.NAMES
            if is_of_set and path.is_file() and not path.is_symlink():
                yield path.relative_to(folder).as_posix(), path


def _kohya(folder: Path) -> Entries:
    """Folders `10_mokka` of pictures, each caption in a .txt beside its picture."""
    taken: set[str] = set()
    for picture in _pictures(folder):
        home = f"{picture.repeats}_{_label(folder, picture)}"
        # Pictures of one name meet here from several folders, and not every disk tells case apart.
        stems = unique_names.numbered(Path(home), picture.path.stem, "")
        stem = next(path.as_posix() for path in stems if path.as_posix().lower() not in taken)
        taken.add(stem.lower())
        yield f"{stem}{picture.path.suffix}", picture.path
        if picture.text:
            yield f"{stem}.txt", iter([f"{picture.text}\n"])


def _label(folder: Path, picture: PictureFile) -> str:
    """What stands behind the number: of the folder that a picture lies in, else the trigger or the set's name."""
    parents = reversed(PurePosixPath(picture.name).parent.parts)
    named = next((match[1] for part in parents if (match := _KOHYA.fullmatch(part))), "")
    return safe_stem(named or dataset_notes.read(folder).trigger or folder.name)


def _imagefolder(folder: Path) -> Entries:
    """The pictures, and all captions in one `metadata.jsonl`, as Hugging Face's `datasets` reads them."""
    pictures = _pictures(folder)
    for picture in pictures:
        yield picture.name, picture.path
    if pictures:
        rows = ({"file_name": picture.name, "text": picture.text} for picture in pictures)
        yield imagefolder.NAMES[0], (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _pictures(folder: Path) -> list[PictureFile]:
    """The set as training reads it; what the layouts of others have no place for is told."""
    pictures = sources.survey(folder, DataConfig(folder=str(folder), mask="file"), say("where.dataset")).pictures
    if num := sum(picture.mask is not None for picture in pictures):
        tell(say_num("dataset.masks_not_packed", num))
    if num := sum(bool(picture.refusal) for picture in pictures):
        tell(say_num("dataset.unread_not_packed", num))
    return [picture for picture in pictures if not picture.path.is_symlink()]


LAYOUTS: dict[str, Callable[[Path], Entries]] = {
    say("dataset.as_it_lies"): _as_it_lies,
    say("dataset.kohya"): _kohya,
    say("dataset.imagefolder"): _imagefolder,
}
