"""A dataset packed into a zip that the browser fetches, and the button for it."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path
from typing import Any

import gradio as gr

from app.context import Context
from app.notices import mended
from app.texts import say
from trainer import files
from trainer.data import CAPTION_SUFFIXES, IMAGE_SUFFIXES, caption_files, imagefolder
from trainer.errors import DataError

_DOWNLOADS = """() => setTimeout(() => {
  const link = document.querySelector('#dataset-zip');
  (link.matches('a, button') ? link : link.querySelector('a, button')).click();
}, 200)"""


class Exports:
    """The button and the hidden one that the browser fetches by."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.export = gr.Button(say("dataset.export"), size="sm", elem_id="export-dataset")
        self.download = gr.DownloadButton(say("button.download_zip"), visible="hidden", elem_id="dataset-zip")

    def connect(self, dataset: gr.Dropdown) -> None:
        """Pack the chosen dataset when asked to."""
        private: dict[str, Any] = {"api_visibility": "private"}
        packed = self.export.click(self.export_one, dataset, self.download, **private)
        packed.success(None, js=_DOWNLOADS, **private)

    @mended
    def export_one(self, name: str | None) -> str:
        with caption_files.writable(say("where.zip")):
            return str(packed(self.context, name))


def packed(context: Context, name: str | None) -> Path:
    """A zip of a dataset's pictures, captions, masks and metadata where the browser can fetch it.

    Raises: DataError if there is nothing to pack.
    """
    folder = context.dataset(name)
    endings = (*IMAGE_SUFFIXES, *CAPTION_SUFFIXES, ".json")
    inside = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(other for other in folders if not other.startswith("."))
        paths = [Path(place, other) for other in sorted(names) if not other.startswith(".")]
        inside += [
            path for path in paths
            if (path.suffix.lower() in endings or path.name in imagefolder.NAMES) and path.is_file()
            and not path.is_symlink()
        ]  # fmt: skip
    if not inside:
        raise DataError(say("dataset.nothing_in_it"))
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:32]
    target = context.cache / "files" / f"zip-{digest}" / f"{folder.name}.zip"
    with files.replacing(target) as unnamed, zipfile.ZipFile(unnamed, "w") as archive:  # pictures don't pack smaller
        for path in inside:
            archive.write(path, path.relative_to(folder).as_posix())
    return target
