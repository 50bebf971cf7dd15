"""What is sent back to a page: updates of nothing, texts nobody can have typed, a page that was closed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from app import request_guard
from app.notices import mended, mended_answer, mended_for_programs, mended_unasked
from trainer.errors import ConfigError


def test_an_answer_without_an_update_is_one_that_changes_nothing() -> None:
    assert mended(lambda: {})() == gr.skip()
    assert mended_for_programs(lambda: {})() == {}  # a program is told that there is nothing


def test_what_looks_by_itself_leaves_a_text_alone_that_no_box_takes() -> None:
    box = gr.Textbox(max_length=4)
    looked: list[Any] = []
    handler = mended_unasked(lambda held: looked.append(held) or {"seen": True})
    assert handler({box: "five5"}) == gr.skip() and not looked
    assert handler({box: "four"}) == {"seen": True}

    def refuses(held: object) -> None:
        raise ConfigError("it can't be.")

    with pytest.raises(gr.Error):
        mended_unasked(refuses)({box: "four"})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is always full")
def test_a_file_that_cannot_be_read_or_written_is_told_and_not_where_it_lies(tmp_path: Path) -> None:
    def fill() -> None:
        with open("/dev/full", "w") as full:
            full.write("a caption")

    def miss() -> str:
        return (tmp_path / "fox.txt").read_text()

    def call() -> None:
        raise ConnectionResetError("a fault in the program")

    for handler, told in ((fill, "The disk: No space left on device"), (miss, "fox.txt: No such file or directory")):
        with pytest.raises(gr.Error) as shown:
            mended(handler)()
        assert shown.value.message.startswith(told) and str(tmp_path) not in shown.value.message
        assert mended_answer(handler)()["problem"] == shown.value.message  # type: ignore[arg-type]
    with pytest.raises(ConnectionResetError):
        mended(call)()


@pytest.mark.parametrize(("path", "is_told"), [("/gradio_api/queue/data", False), ("/gradio_api/info", True)])
def test_a_page_that_was_closed_while_it_listened_ends_without_a_word(path: str, is_told: bool) -> None:
    async def gone(scope: object, receive: object, send: object) -> None:
        raise RuntimeError("Caught handled exception, but response already started.")

    async def nothing(*_: object) -> dict[str, str]:
        return {"type": "http.disconnect"}

    guard = request_guard.Guard(gone)
    asked = guard({"type": "http", "method": "GET", "path": path, "headers": []}, nothing, nothing)  # type: ignore[arg-type]
    if is_told:
        with pytest.raises(RuntimeError):
            asyncio.run(asked)
    else:
        asyncio.run(asked)
