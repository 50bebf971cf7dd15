"""Florence-2: it is told one of its tasks, which say how much it says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trainer.captioning.contract import Describe, Kind
from trainer.captioning.opened_model import check_weights, in_words, opened
from trainer.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image

TASKS = ("<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>")
_ADVICE = " For Florence-2 take a folder such as florence-community/Florence-2-base, which transformers reads itself."


def _task(instruction: str) -> str:
    """The task that is meant, however it is written: `detailed caption` too. Raises: ConfigError."""
    wanted = "_".join(instruction.strip("<> ").upper().replace("_", " ").split())
    if f"<{wanted}>" not in TASKS:
        raise ConfigError(f"instruction is {instruction[:80]!r}; allowed for Florence-2: {', '.join(TASKS)}.")
    return f"<{wanted}>"


def _check(folder: Path, instruction: str) -> None:
    _task(instruction)
    check_weights(folder, _ADVICE)


def _open(folder: Path, instruction: str) -> Describe:
    task, model = _task(instruction), opened(folder)

    def describe(picture: Image.Image) -> str:
        inputs = model.processor(images=[picture], text=[task], return_tensors="pt")
        text = model.text(model.generated(inputs)[0], keep_marks=True)
        with in_words(folder.name, "gave an answer that can't be read"):
            answer = model.processor.post_process_generation(text, task=task, image_size=picture.size)
            return str(answer[task])

    return describe


KIND = Kind(
    "Florence-2", frozenset({"florence2"}), dict.fromkeys(("character", "style"), TASKS[2]), _check, _open,
    help=f"One of {', '.join(TASKS)}.",
)  # fmt: skip
