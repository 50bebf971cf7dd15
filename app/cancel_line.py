"""A line and a Cancel button for what may take a while: how far it is, and about how long it takes still."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import gradio as gr

from app import progress_lines
from app.context import Context
from app.render_requests import Cancelled, Rendering, Work, mended_turns
from app.texts import say

_UNSEEN_S = 0.6  # what is over by then needs no line
_LOOK_S = 0.05
_T = TypeVar("_T")
Update = dict[Any, Any]


class Waiting:
    """The line and the button, which are seen only while something is being done."""

    def __init__(self, context: Context, elem_id: str) -> None:
        self.context, self.key = context, elem_id
        with gr.Row(elem_classes="waiting"):
            self.line = gr.HTML(visible=False, elem_id=f"{elem_id}-progress")
            self.cancel = gr.Button(
                say("button.cancel"), visible=False, size="sm", min_width=80, scale=0, elem_id=f"{elem_id}-cancel"
            )

    def outputs(self) -> list[Any]:
        """What `turns` answers beside its own."""
        return [self.line, self.cancel]

    def connect(self) -> None:
        """Answer the button."""
        self.cancel.click(self.stop, None, self.outputs(), api_visibility="private", show_progress="hidden")

    def turns(
        self, request: gr.Request, what: str, do: Callable[[Rendering], _T], answer: Callable[[_T], Update]
    ) -> Iterator[Update]:
        """How far it is, in turns, then its answer; what this page had begun here before is not wanted any more.

        Raises: what `do` raised.
        """
        # What this page began here before ends at its next step.
        works, rendering = self.context.desks.of(request.session_hash).works, Rendering()
        if self.key in works:
            works[self.key].cancel()
        works[self.key] = rendering

        # A line as soon as it takes a while, and at each new word.
        work, began, said = Work(rendering, lambda: do(rendering)), time.monotonic(), ""
        try:
            for _ in work.turns():
                words = _words(rendering, what)
                if words != said and time.monotonic() - began > _UNSEEN_S:
                    said = words
                    yield self._shown(progress_lines.line(words, rendering.share), True)
            yield self._shown("", False) | answer(work.result)
        except Cancelled:
            pass  # `stop` says so, or what was begun here instead stands there
        except Exception:
            yield self._shown("", False)
            raise
        finally:
            # Unless the next work stands there already.
            if works.get(self.key) is rendering:
                del works[self.key]

    @mended_turns
    def stop(self, request: gr.Request) -> Iterator[Update]:
        """End what this page has begun here, and say so once it has ended: only then can it be begun anew."""
        works = self.context.desks.of(request.session_hash).works
        rendering = works.get(self.key)
        yield self._shown(progress_lines.line(say("waiting.cancelling")), False)
        if rendering is not None:
            rendering.cancel()
        while rendering is not None and works.get(self.key) is rendering:
            time.sleep(_LOOK_S)
        yield self._shown(progress_lines.line(say("job.cancelled")), False)

    def _shown(self, line: str, is_going: bool) -> Update:
        return {
            self.line: gr.update(value=line, visible=bool(line)),
            # With its label: Gradio 6.31 shows a button without a label after a handler that answers in turns.
            self.cancel: gr.update(value=say("button.cancel"), visible=is_going),
        }


def _words(rendering: Rendering, what: str) -> str:
    """How far it is."""
    if not rendering.num_steps:
        return say("stack.loading", what=what)
    parts = [say("waiting.part", num=rendering.step, all=rendering.num_steps), *progress_lines.time_left(rendering)]
    return say("stack.doing", what=what, parts=", ".join(parts))
