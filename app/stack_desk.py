"""What a browser's desk had before it, kept beside its fields: the picture or sheet that was shown, and the pinned one.

They are kept by their place below the workspace, and looked up among the pictures that are here when they come back.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import gradio as gr
from PIL.PngImagePlugin import PngInfo

from app import batch_pictures, browser_state, saved_stacks
from app.browser_state import BrowserStates
from app.context import Context
from app.library_items import BATCH_PICTURES
from app.render_requests import Desk
from app.stack_live import drawn_from
from trainer import files
from trainer.config import StackConfig
from trainer.data import open_image
from trainer.errors import DataError

_GROUP = "desk"
_DROPPED = "dropped"  # the folder of copies
_TEXTS = ("parameters", "prompt", "workflow")


def of(context: Context, request: gr.Request) -> Desk:
    """The desk of the page that asks."""
    desk = context.desks.of(request.session_hash)
    desk.browser = browser_state.id_in(request.headers.get("cookie"))
    return desk


def keep(context: Context, desk: Desk) -> None:
    """Keep what is shown and pinned for the browser's next page."""
    paths = {"shown": desk.shown, "pinned": desk.pinned, "sheet": desk.sheet}
    _states(context).change(desk.browser, _GROUP, {name: _key(context, path) for name, path in paths.items()})


def bring_back(context: Context, desk: Desk) -> bool:
    """Whether a new desk has something before it, as the browser's last page had."""
    if desk.shown is None and desk.sheet is None and desk.rendering is None:
        kept = _states(context).read(desk.browser, _GROUP)
        desk.shown, desk.pinned, desk.sheet = (_found(context, kept.get(name)) for name in ("shown", "pinned", "sheet"))
        return desk.shown is not None or desk.sheet is not None
    return False


def picture_of_stack(desk: Desk, stack: StackConfig) -> Path | None:
    """The picture that is shown, if it is of this stack: the form may have been changed since."""
    if desk.stack is None or drawn_from(desk.stack) != drawn_from(stack):
        return None
    return desk.shown if desk.shown is not None and desk.shown.is_file() else None


def picture_of(context: Context, file: Path) -> Path | None:
    """The picture that shows the stack which was read from a file: the file itself where it lies here, or a copy.

    None for what only carries a stack, and for any other tool's. Raises: DataError.
    """
    if file.is_relative_to(context.renders) or file.is_relative_to(context.batches):
        return file
    return None if saved_stacks.is_carrier(context, file) else copied(context, file)


def copied(context: Context, picture: Path) -> Path | None:
    """A dropped picture of ours, written anew where it stays and the browser may fetch it; None for any other tool's.

    Raises: DataError for a picture that doesn't open.
    """
    from trainer.render import picture_metadata

    carried = picture_metadata.read(picture)
    if carried.recipe is None:
        return None
    # Encoded anew, as all that the browser may fetch; its texts go along for other tools.
    image, info = open_image(picture), PngInfo()
    for key in _TEXTS:
        if key in carried.texts or key == "parameters":
            info.add_itxt(key, carried.texts.get(key, carried.infotext))
    info.add_text(picture_metadata.RECIPE_KEY, json.dumps(carried.recipe, sort_keys=True))
    digest = hashlib.sha256(picture.read_bytes()).hexdigest()[:16]
    place = _dropped(context) / f"{digest}.png"
    with files.replacing(place) as unnamed:
        image.save(unnamed, "PNG", pnginfo=info)
    return place


def _dropped(context: Context) -> Path:
    return context.cache / "files" / _DROPPED


def _states(context: Context) -> BrowserStates:
    return BrowserStates(context.workspace / "browsers")


def _key(context: Context, path: Path | None) -> str:
    return path.relative_to(context.workspace).as_posix() if path else ""


def _found(context: Context, key: object) -> Path | None:
    """The picture of that key, if it is here."""
    if not isinstance(key, str) or not key:
        return None
    if key.startswith(BATCH_PICTURES):
        try:
            return batch_pictures.path_of(context, key)
        except DataError:
            return None
    here = [
        *context.renders.glob("[!.]*.*"),
        *context.renders.glob("[!.]*/[0-9]*.png"),
        *_dropped(context).glob("*.png"),
    ]
    return next((path for path in here if _key(context, path) == key and path.is_file()), None)
