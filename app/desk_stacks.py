"""Stacks that were taken from Stack's desk to Batch, under no name: `desks/<digest>.toml` in the workspace.

A file is called by what it says, so a page holds the very stack that it took along: a reload or another server finds it
again, and what a second page takes along never stands in its place.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from app import saved_stacks
from app.context import Context, newest_first
from app.texts import say
from trainer import files
from trainer.config import StackConfig
from trainer.data import open_image
from trainer.errors import ConfigError

PREFIX = "desk:"  # what a key begins with; the file's name follows
_MOST = 200  # that are kept, the newest


def folder(context: Context) -> Path:
    return context.workspace / "desks"


def keep(context: Context, stack: StackConfig, picture: Path | None = None) -> str:
    """The key of a stack that is kept from now on; `picture` becomes a small one beside it.

    Raises: DataError for a picture that doesn't open, ConfigError where nothing can be written.
    """
    content = saved_stacks.text_of(stack).encode()
    path = folder(context) / f"{hashlib.sha256(content).hexdigest()[:24]}.toml"
    image = open_image(picture) if picture else None
    try:
        files.write(path, content)  # anew also where it is here, so that it counts as the newest
        if image is not None:
            saved_stacks.put_picture(image, path)
        for old in newest_first(list(folder(context).glob("[!.]*.toml")))[_MOST:]:
            old.unlink(missing_ok=True)
            old.with_suffix(saved_stacks.PICTURE).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(say("stack.unwritable", reason=error.strerror or error)) from None
    return f"{PREFIX}{path.name}"


def path_of(context: Context, key: str | None) -> Path | None:
    """The file of that key, None if there is none."""
    return next((path for path in folder(context).glob("[!.]*.toml") if f"{PREFIX}{path.name}" == key), None)
