"""Cards and other trainers' recipes that were dropped and wait for a yes: shown first, kept only when somebody says so.

Each lies in the workspace's cache under a name of chance; what nobody answered goes after a day (`leftovers`).
"""

from __future__ import annotations

import re
import shutil
import uuid
from pathlib import Path

from app.context import Context
from app.texts import say
from trainer.errors import DataError

_TOKEN = re.compile(r"[0-9a-f]{32}")
_LONGEST_NAME = 80  # of a file


def put_by(context: Context, path: Path) -> str:
    """A copy of a dropped file until it is answered for; the word that it goes by."""
    token = uuid.uuid4().hex
    folder = _folder(context) / token
    folder.mkdir(parents=True)
    shutil.copyfile(path, folder / f"{path.stem[:_LONGEST_NAME]}{path.suffix[:20]}")
    return token


def of(context: Context, token: str) -> Path:
    """The file of a word. Raises: DataError for one that is not here any more."""
    files = list((_folder(context) / token).glob("*")) if _TOKEN.fullmatch(token) else []
    if not files:
        raise DataError(say("offer.gone"))
    return files[0]


def forget(context: Context, token: str) -> None:
    """Remove the file of a word, if it is here."""
    if _TOKEN.fullmatch(token):
        shutil.rmtree(_folder(context) / token, ignore_errors=True)


def _folder(context: Context) -> Path:
    return context.workspace / "cache" / "offers"
