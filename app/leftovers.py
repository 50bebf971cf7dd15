"""What nobody will ask for again: copies of uploads once they were taken, and what a killed server left half done.

Gradio keeps each upload in its cache for ever, and we make our own copies there for the browser to fetch; all of these
can be made anew.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from app.context import Context

_OURS = ("thumbs", "files")  # in the cache; what else is there is Gradio's
_OLD_S, _OLD_THUMBNAIL_S = 24 * 3600.0, 30 * 24 * 3600.0
_HALF_DONE = (
    "datasets/**/.*.upload", "loras/.*.upload", "loras/.*.tmp", "renders/.*.upload", "renders/.*.tmp",
    "cache/gradio/files/.*.upload", "cache/gradio/files/.*.tmp", "cache/gradio/files/*/.*.tmp",
    "runs/.cache/*/.new-*",
)  # fmt: skip
_HALF_MADE = ("runs/.new-*", "cache/offers/*")  # folders


def taken(context: Context, files: Iterable[Path | str | None]) -> None:
    """Remove the copies of uploads that were read; a file from anywhere but Gradio's own cache stays."""
    # Links are followed first: only what truly lies in Gradio's cache is removed.
    cache = context.cache.resolve()
    for file in files:
        if not file:
            continue
        path = Path(file).resolve()
        if not path.is_relative_to(cache) or path.relative_to(cache).parts[0] in _OURS:
            continue
        with suppress(OSError):
            path.unlink(missing_ok=True)
        if path.parent != cache:
            with suppress(OSError):  # others may lie beside it
                path.parent.rmdir()


def old(context: Context) -> None:
    """Remove uploads nobody took and what was never finished, once older than a day; thumbnails after a month.

    Whoever else may have the workspace open is not disturbed by that.
    """
    before = time.time() - _OLD_S
    unfinished = (path for pattern in _HALF_DONE + _HALF_MADE for path in context.workspace.glob(pattern))
    for path in [*_uploads(context), *unfinished]:
        _remove(path, before)
    for path in (context.cache / "thumbs").glob("*"):
        _remove(path, time.time() - _OLD_THUMBNAIL_S)


def all_copies(context: Context) -> None:
    """Remove every copy of an upload and every file put up for fetching.

    For the start of the only server of a workspace, when nobody has asked for any of them yet.
    """
    for path in [*_uploads(context), *(context.cache / "files").glob("*")]:
        _remove(path, time.time() + 1)


def _uploads(context: Context) -> list[Path]:
    return [path for path in context.cache.glob("*") if path.name not in _OURS]


def _remove(path: Path, before: float) -> None:
    """Remove a file or folder last changed before then; links go, what they lead to stays."""
    with suppress(OSError):
        if path.lstat().st_mtime >= before:
            return
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
