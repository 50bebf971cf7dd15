"""What a picture, an A1111 text or a ComfyUI graph was drawn with, as a stack; LoRAs are found by hash or name."""

from __future__ import annotations

import os
from pathlib import Path

from trainer import encodings, lora_file
from trainer.config import StackConfig
from trainer.render import applying_recipe, opening, other_tools_pictures, picture_metadata

_PICTURES = (b"\x89PNG", b"RIFF", b"\xff\xd8\xff")
_MOST_BYTES = 4 << 20  # of a text


def stack_in(file: Path) -> tuple[StackConfig, list[str]] | None:
    """The stack that a file tells, and what of it could not be used; None for a file of another kind.

    Raises: DataError for a picture that says nothing, AdapterError for a LoRA of our own recipe that isn't here.
    """
    if not os.path.isfile(file):
        return None
    library = lora_file.library([Path("outputs")])
    # One byte more than is allowed tells a file that is larger.
    with file.open("rb") as opened:
        raw = opened.read(_MOST_BYTES + 1)
    if raw.startswith(_PICTURES):
        return opening.stack_of(file, StackConfig(), library)
    if len(raw) > _MOST_BYTES:
        return None

    # The same texts as files of their own: a graph is JSON, as ComfyUI saves it in either of its forms.
    try:
        text = encodings.text(raw)
    except ValueError:
        return None
    is_graph = other_tools_pictures.parsed(text) is not None
    texts = {"prompt": text, "workflow": text} if is_graph else {}
    told = opening.text_of_another_tool(picture_metadata.Carried(None, "" if is_graph else text, texts))
    if told is None:
        return None
    stack, notes = applying_recipe.apply_infotext(StackConfig(), told, library)
    return stack, notes + applying_recipe.left_out(stack, told)
