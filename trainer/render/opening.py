"""A picture of ours or of another tool as a stack: which of its texts is read, and by whom."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from trainer import bases as bases_
from trainer.config import StackConfig
from trainer.errors import DataError
from trainer.lora_file import LoraInfo
from trainer.render import applying_recipe, comfy_reading, foreign, image, infotext, naming
from trainer.render.picture_recipe import Infotext

_MAX_TEXT_CHARS = 4 << 20
_TOOLS = "A1111, Forge, ComfyUI, InvokeAI, Fooocus or SwarmUI"


def stack_of(picture: Path, stack: StackConfig, library: dict[str, LoraInfo], bases: Mapping[str, str] = {}) -> tuple[StackConfig, list[str]]:
    """The stack a picture was made from, and a sentence for everything of it that could not be used.

    Ours is exactly what it was. Another tool's is laid on `stack`, whose base stays unless one of `bases` (by their names) has the name that the
    picture gives; LoRAs are found in `library` by hash, or by name where there is none. Nothing that the picture names is opened.
    Raises: DataError for a file that is no picture or says nothing, AdapterError for a LoRA of our own recipe that isn't here.
    """
    carried = image.read(picture)
    if carried.recipe is not None:
        return image.read_stack(picture, library), []
    said = said_by(carried)
    if said is None or said == Infotext(notes=said.notes):
        why = f" ({said.notes[0]})" if said and said.notes else ""
        raise DataError(f"the picture carries no Velatura recipe, and no text of {_TOOLS} that can be read{why}; it had none, or was re-encoded on its way.")
    named = {naming.base_name(name): base for name, base in bases.items()}
    if said.model and (base := named.get(naming.base_name(said.model))):
        stack = stack.model_copy(update={"base": base, "family": bases_.family_of(base)})
    found, notes = applying_recipe.laid_on(stack, said, library)
    return found, notes + applying_recipe.left_out(found, said)


def said_by(carried: image.Carried) -> Infotext | None:
    """What a picture of another tool says; None if nothing that can be read. A text without settings is no tool's: cameras and people write such."""
    texts = {key: text for key, text in carried.texts.items() if len(text) <= _MAX_TEXT_CHARS}
    if (values := foreign.parsed(texts.get("invokeai_metadata", ""))) is not None:
        return foreign.invokeai(values)
    text = carried.infotext if len(carried.infotext) <= infotext.MAX_CHARS else ""
    plain = infotext.parse_infotext(text) if text.strip() else None
    if plain and (plain.pairs or plain.seed is not None or plain.steps is not None):
        return plain
    graph = comfy_reading.graph(foreign.parsed(texts.get("prompt", "")), foreign.parsed(texts.get("workflow", "")))
    return graph or (plain if plain and plain.notes else None)
