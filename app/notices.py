"""What a user can mend becomes a toast with its message; everything else keeps its traceback."""

from __future__ import annotations

import functools
from collections.abc import Callable
from html import escape
from typing import ParamSpec, TypeVar

import gradio as gr

from trainer.errors import UserError

_P = ParamSpec("_P")
_R = TypeVar("_R")
_DURATION_S = 12


def mended(handler: Callable[_P, _R]) -> Callable[_P, _R]:
    """The same event handler, with a UserError shown as an error toast."""

    @functools.wraps(handler)
    def guarded(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return handler(*args, **kwargs)
        except UserError as error:
            raise gr.Error(_toast(str(error)), duration=_DURATION_S, title="That did not work", print_exception=False) from None

    return guarded


def warn(message: str) -> None:
    """A warning toast; the message may hold anything."""
    gr.Warning(_toast(message), duration=_DURATION_S, title="Please look")


def tell(message: str) -> None:
    """A short note that something was done."""
    gr.Info(_toast(message), duration=4, title="Done")


def _toast(message: str) -> str:
    """Toasts are HTML: hostile names are escaped, lines kept, and at most a screenful shown."""
    lines = message.splitlines()
    shown = lines[:12] + ([f"... and {len(lines) - 12} lines more."] if len(lines) > 12 else [])
    return "<br>".join(escape(line) for line in shown)
