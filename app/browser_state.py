"""What each browser left in the page: one small JSON file per browser, by a random id that its cookie carries.

So the active tab, a half-filled form, the chosen dataset and job outlive a reload, a lost connection and the server.
A change names only the fields that were changed: two tabs of one browser never take back each other's.
"""

from __future__ import annotations

import json
import math
import re
import secrets
import threading
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any

from trainer import files
from trainer.printing import whole

COOKIE = "velatura_browser"
_LIFE_S = 365 * 24 * 3600
_ID = re.compile(r"[0-9a-f]{32}")
_MOST_BROWSERS = 64
_MOST_BYTES = 512 << 10
_MOST_ITEMS = 200  # of a list
_LONGEST_NAME = 120

_LOCK = threading.Lock()  # several parts of a server keep fields in the same files

Fields = dict[str, Any]
# Whose request for the page is being answered; "" for none. Set by the guard.
ASKING: ContextVar[str] = ContextVar("ASKING", default="")


def id_of(cookies: Mapping[str, str] | None) -> str:
    """The browser's id, "" for none that could be ours."""
    value = str((cookies or {}).get(COOKIE, ""))
    return value if _ID.fullmatch(value) else ""


def id_in(header: str | None) -> str:
    """The same, of a `Cookie` header."""
    try:
        return id_of({name: morsel.value for name, morsel in SimpleCookie(header or "").items()})
    except CookieError:
        return ""


def new_cookie() -> str:
    """A `Set-Cookie` header for a browser that has no id; other sites' pages can't read it or write with it."""
    return f"{COOKIE}={secrets.token_hex(16)}; Path=/; Max-Age={_LIFE_S}; HttpOnly; SameSite=Lax"


def is_plain(value: Any) -> bool:
    """Whether a form's field may have this value: nothing, a truth, a number, a text, a list of those."""
    if isinstance(value, list):
        return len(value) <= _MOST_ITEMS and all(is_plain(inner) and not isinstance(inner, list) for inner in value)
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        return whole(value) == value  # half a surrogate pair would make a page that no browser can be sent
    return value is None or isinstance(value, int)


class BrowserStates:
    """The files of a workspace, each replaced whole, the longest untouched forgotten first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, browser: str, group: str) -> Fields:
        """The fields of a group that were kept for a browser; a file that can't be read holds none."""
        return self._read(browser).get(group, {}) if browser else {}

    def change(self, browser: str, group: str, changes: Fields) -> None:
        """Keep these fields' values; what would make the file too large is left as it was."""
        fitting = {name: value for name, value in changes.items() if len(name) <= _LONGEST_NAME and is_plain(value)}
        if not browser or not fitting:
            return
        with _LOCK:
            # Read again under the lock, so that what two tabs change both stays.
            groups = self._read(browser)
            content = json.dumps(groups | {group: groups.get(group, {}) | fitting}).encode()
            if len(content) > _MOST_BYTES:
                return
            path = self._path(browser)
            # What can't be kept is no reason to answer the person with an error.
            with suppress(OSError):
                is_new = not path.is_file()
                self.folder.mkdir(parents=True, exist_ok=True)
                with files.replacing(path) as unnamed:
                    unnamed.write_bytes(content)
                if is_new:
                    self._forget_old()

    def _path(self, browser: str) -> Path:
        return self.folder / f"{browser}.json"

    def _read(self, browser: str) -> dict[str, Fields]:
        path = self._path(browser)
        try:
            if path.stat().st_size > _MOST_BYTES:
                return {}
            groups = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(groups, dict):
            return {}
        return {
            str(group): {name: value for name, value in fields.items() if is_plain(value)}
            for group, fields in groups.items()
            if isinstance(fields, dict)
        }

    def _forget_old(self) -> None:
        paths = sorted(self.folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for path in paths[_MOST_BROWSERS:]:
            path.unlink(missing_ok=True)
