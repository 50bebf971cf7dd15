"""Toasts: what a user can mend becomes one with its message; everything else keeps its traceback."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import PurePath
from typing import Any, ParamSpec, TypeVar, cast

import gradio as gr

from app.texts import say
from trainer.errors import ConfigError, UserError, is_of_a_file
from trainer.printing import escape, whole

# Gradio 6.31 heads each toast with its kind, whatever title it was given; a script puts in what is meant.
_TITLES = {"Error": say("notice.failed"), "Warning": say("notice.look"), "Info": say("notice.done")}
SCRIPT = """() => {
  if (window.__titled) return;
  window.__titled = true;
  const titles = TITLES;
  const title = () => document.querySelectorAll('.toast-title').forEach(head => {
    const text = [...head.childNodes].find(node => node.nodeType === 3 && node.data.trim() in titles);
    if (text) text.data = titles[text.data.trim()] + ' ';
  });
  new MutationObserver(title).observe(document.querySelector('.toast-wrap') ?? document.body,
    {childList: true, subtree: true});
}""".replace("TITLES", json.dumps(_TITLES))

_P = ParamSpec("_P")
_R = TypeVar("_R")
_DURATION_S = 12
LONGEST_TEXT = 200_000  # characters of a box without a limit of its own
_LONGEST_TOAST = 8000


def mended(handler: Callable[_P, _R]) -> Callable[_P, _R]:
    """The same event handler, safe to put between a browser and the server.

    Texts longer than their box takes are refused unread, a UserError or a file that can't be read or written becomes an
    error toast, and what is sent back can be sent.
    """

    return _guarded(handler, _toast, gr.skip())


def mended_unasked(handler: Callable[_P, _R]) -> Callable[_P, _R]:
    """`mended` for what looks at the form by itself: a text that no box takes, which nobody can type, is not looked at.

    Nobody pressed anything, so that there is nothing to be told; whoever then presses is told.
    """
    guarded = mended(handler)

    @functools.wraps(handler)
    def looked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            _refuse_long(args)
        except ConfigError:
            return cast(_R, gr.skip())
        return guarded(*args, **kwargs)

    return looked


def mended_for_programs(handler: Callable[_P, _R]) -> Callable[_P, _R]:
    """The same for what programs ask: an error is its plain words."""
    return _guarded(handler, whole)


def mended_answer(handler: Callable[_P, dict[str, Any]]) -> Callable[_P, dict[str, Any]]:
    """The same for what a script of ours asks: an error is its words, under `problem`."""

    @functools.wraps(handler)
    def guarded(*args: _P.args, **kwargs: _P.kwargs) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = _sendable(handler(*args, **kwargs))
            return answer
        except (UserError, OSError) as error:
            return {"problem": whole(_words(error))}

    return guarded


def _guarded(handler: Callable[_P, _R], shown: Callable[[str], str], unchanged: Any = None) -> Callable[_P, _R]:
    """`unchanged` stands for updates of nothing, which Gradio 6.31 takes for an answer that lacks all but one."""

    @functools.wraps(handler)
    def guarded(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            _refuse_long(args)
            sent: Any = _sendable(handler(*args, **kwargs))
            answer: _R = unchanged if unchanged and isinstance(sent, dict) and not sent else sent
            return answer
        except (UserError, OSError) as error:
            # Gradio shows what is raised. The terminal is told only of files, whose trouble may be a fault of ours.
            is_of_file = isinstance(error, OSError)
            raise gr.Error(
                shown(_words(error)), duration=_DURATION_S, title=say("notice.failed"), print_exception=is_of_file
            ) from (error if is_of_file else None)

    return guarded


def _words(error: UserError | OSError) -> str:
    """What is told of an error; the path of a file stays here. Raises: OSError that is about no file, as it came."""
    if isinstance(error, UserError):
        return str(error)
    if not is_of_a_file(error):
        raise error
    what = PurePath(str(error.filename)).name if error.filename else say("word.disk")
    return say("problems.disk", what=what, reason=error.strerror or error)


def _refuse_long(args: tuple[Any, ...]) -> None:
    """Raises: ConfigError for a text that is longer than its box takes.

    A browser keeps to that limit; another program need not.
    """
    for argument in args:
        for box, value in argument.items() if isinstance(argument, dict) else [(None, argument)]:
            most = getattr(box, "max_length", None) or LONGEST_TEXT
            if isinstance(value, str) and len(value) > most:
                what = getattr(box, "label", None) or say("notice.a_text")
                raise ConfigError(say("problems.too_long", what=what, num=len(value), most=most))


def _sendable(value: Any) -> Any:
    """The same with no half of a character in its texts, which no browser can be sent; states stay as they are."""
    if isinstance(value, str):
        return whole(value)
    if isinstance(value, dict):
        return {key: inner if isinstance(key, gr.State) else _sendable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_sendable, value))
    return value


def warn(message: str) -> None:
    """A warning toast; the message may hold anything."""
    gr.Warning(_toast(message), duration=_DURATION_S, title=say("notice.look"))


def tell(message: str) -> None:
    """A short note that something was done."""
    gr.Info(_toast(message), duration=4, title=say("notice.done"))


def as_sentence(message: str) -> str:
    """A message that begins a text of its own."""
    return message[:1].upper() + message[1:]


def _toast(message: str) -> str:
    """Toasts are HTML: hostile names are escaped, lines kept, and at most a screenful shown."""
    lines = message[:_LONGEST_TOAST].splitlines()  # cut before anything is done with it, as it may be huge
    shown = lines[:12] + ([say("notice.more", num=len(lines) - 12)] if len(lines) > 12 else [])
    return "<br>".join(escape(line) for line in shown)
