"""Pictures of a dataset cropped, masked and flipped on the page: one overlay (`dataset_pictures.js`), and what it asks.

What the browser names is looked up here; numbers and the painted mask are taken as hostile. Each call is one edit of
the set, that its undo takes back.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from app import dataset_gallery, masks, scripts
from app.context import Context
from app.notices import mended_answer
from app.texts import say
from trainer.data import caption_files, opening
from trainer.errors import ConfigError, DataError

if TYPE_CHECKING:
    from PIL import Image

    from trainer.data.picture_edits import Opened

_SCRIPT = scripts.read("overlay.js", "paint.js", "dataset_crop.js", "dataset_pictures.js")
_TEMPLATE = f"""<div class="act-openers picture-acts" role="group" aria-label="{say("picture.edit")}">
<button type="button" class="begin" data-tool="crop" id="crop-picture" disabled>{say("picture.crop")}</button>
<button type="button" class="begin" data-tool="mask" id="mask-picture" disabled>{say("picture.paint_mask")}</button>
<button type="button" class="mirror" id="flip-picture" disabled>{say("picture.flip")}</button></div>
<dialog class="act act-large" aria-labelledby="picture-title"><div class="act-head"><h2 id="picture-title"></h2>
<button type="button" class="act-close" aria-label="{say("button.close")}">✕</button></div>
<p class="act-said" role="status"></p><div class="act-body"></div>
<div class="act-foot"><span class="act-hint"></span>
<button type="button" class="act-cancel">{say("button.cancel")}</button>
<button type="button" class="act-use"></button></div></dialog>"""
_SHOWN_PX = 1536  # the longer side of a picture in the overlay
_PAINTED_PX = 2048  # of its mask
_MOST_BYTES = 8_000_000  # of a painted mask
_MOST_AT_ONCE = 16  # pictures that one call flips
_SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)


class PictureEditor:
    """The overlay and the three buttons that open it or flip the open picture."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def draw(self) -> None:
        """Draw the buttons here, and the overlay, closed."""
        functions = [mended_answer(self.look), mended_answer(self.crop), mended_answer(self.paint)]
        gr.HTML(
            "", html_template=_TEMPLATE, js_on_load=_SCRIPT, server_functions=functions, elem_id="dataset-picture-acts",
            padding=False,
        )  # fmt: skip

    # What the browser asks for.

    def look(self, asked: object) -> dict[str, Any]:
        """The picture to edit: its address, its size in pixels, its mask (white: counts less). Raises: DataError."""
        folder, picture = self._picture(asked)
        opened = self._opened(folder, picture)
        mask = opening.open_mask(opened.masks[0]) if opened.masks else None
        share = min(1.0, _PAINTED_PX / max(opened.size))
        width_px, height_px = (max(opening.MIN_SIDE_PX, round(side * share)) for side in opened.size)
        return {
            "version": opened.version,
            "url": dataset_gallery.address(str(dataset_gallery.preview(self.context, picture, _SHOWN_PX))),
            "size": opened.size,
            "painted": [width_px, height_px],
            "mask": masks.url_of(_inverted(mask.resize((width_px, height_px)))) if mask else "",
        }

    def crop(self, asked: object) -> dict[str, Any]:
        """Cut a picture to a box of its pixels. Raises: DataError, ConfigError."""
        from trainer.data import picture_edits  # loads much that the page itself does not need

        folder, opened = self._same(asked)
        box = _part(asked, "box")
        if not isinstance(box, list) or len(box) != 4 or not all(type(edge) is int for edge in box):
            raise ConfigError(say("picture.no_edges"))
        left, top, right, bottom = box
        picture_edits.crop(folder, opened, (left, top, right, bottom))
        return {}

    def paint(self, asked: object) -> dict[str, Any]:
        """Make what was painted (white: counts less) a picture's mask. Raises: DataError."""
        from trainer.data import picture_edits  # loads much that the page itself does not need

        folder, opened = self._same(asked)
        try:
            painted = opening.open_mask(io.BytesIO(masks.bytes_of(_part(asked, "url"), _MOST_BYTES)))
        except DataError as error:
            raise DataError(say("picture.bad_mask", problem=error)) from None
        picture_edits.paint(folder, opened, _inverted(painted))
        return {}

    def flip(self, asked: object) -> dict[str, Any]:
        """Flip some pictures, as part of the edit that `visit` names; how many were, which not and why, and which of
        their captions speak of left or right. Raises: DataError, ConfigError.
        """
        from trainer.data import picture_edits  # loads much that the page itself does not need

        folder, known = self._set(asked)
        names, visit = (_part(asked, key) for key in ("names", "visit"))
        if not isinstance(names, list) or not isinstance(visit, str) or len(names) > _MOST_AT_ONCE:
            raise ConfigError(say("picture.flip_unnamed"))
        paths = {name: known[name] for name in names if isinstance(name, str) and name in known}
        visit = f"flip {visit[:64]}" if visit else ""
        done, problems = list(paths), []
        try:
            if paths:
                picture_edits.flip(folder, list(paths.values()), visit)
        except DataError:
            # Singly, so that a picture that can't be flipped holds no other back.
            done = []
            for name, path in paths.items():
                try:
                    picture_edits.flip(folder, [path], visit)
                    done.append(name)
                except DataError as error:
                    problems.append(str(error))
        sided = [name for name in done if _SIDES.search(_caption(known[name]))]
        return {"done": len(done), "problems": problems, "sided": sided}

    # What is meant.

    def _set(self, asked: object) -> tuple[Path, dict[str, Path]]:
        """The dataset that is meant, and its pictures by name."""
        name = _part(asked, "dataset")
        folder = self.context.dataset(name if isinstance(name, str) else "")
        return folder, {path.relative_to(folder).as_posix(): path for path in self.context.pictures(folder)}

    def _picture(self, asked: object) -> tuple[Path, Path]:
        folder, known = self._set(asked)
        name = _part(asked, "name")
        if not isinstance(name, str) or name not in known:
            raise DataError(say("problems.picture_gone"))
        return folder, known[name]

    @staticmethod
    def _opened(folder: Path, picture: Path) -> Opened:
        from trainer.data import picture_edits  # loads much that the page itself does not need

        try:
            return picture_edits.look(folder, picture)
        except DataError as error:
            raise DataError(f"{picture.name} {error}") from None

    def _same(self, asked: object) -> tuple[Path, Opened]:
        """The picture that is meant, as it was when it was opened."""
        folder, picture = self._picture(asked)
        opened = self._opened(folder, picture)
        if _part(asked, "version") != opened.version:
            raise DataError(say("picture.changed_meanwhile", name=opened.picture.name))
        return folder, opened


def _part(asked: object, key: str) -> object:
    return asked.get(key) if isinstance(asked, Mapping) else None


def _inverted(mask: Image.Image) -> Image.Image:
    # A mask file is white where the picture counts; what is painted on the page is what counts less.
    return mask.convert("L").point(lambda level: 255 - level)


def _caption(picture: Path) -> str:
    try:
        return caption_files.read_caption(picture)
    except DataError:
        return ""
