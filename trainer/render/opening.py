"""A picture of ours or of another tool as a stack: which of its texts is read, and by whom."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer import bases as bases_
from trainer.config import StackConfig
from trainer.errors import DataError
from trainer.lora_file import LoraInfo
from trainer.render import (
    a1111_text,
    applying_recipe,
    comfy_graph,
    comfy_reading,
    lora_lookup,
    other_tools_pictures,
    picture_metadata,
)
from trainer.render.parsed_settings import Infotext

_MAX_TEXT_CHARS = 4 << 20
_TOOLS = "A1111, Forge, ComfyUI, InvokeAI, Fooocus or SwarmUI"


def stack_of(
    picture: Path, stack: StackConfig, library: dict[str, LoraInfo], bases: Mapping[str, str] = {}
) -> tuple[StackConfig, list[str]]:
    """The stack a picture was made from, and a sentence for everything of it that could not be used.

    Ours is exactly what it was. Another tool's is put into `stack`, whose base stays unless one of `bases` (by their
    names) has the name that the picture gives; LoRAs are found in `library` by hash, or by name where there is none.
    Nothing that the picture names is opened.
    Raises: DataError for a file that is no picture or says nothing, AdapterError for a LoRA of our own recipe that
    isn't here.
    """
    # Our own recipe.
    carried = picture_metadata.read(picture)
    if carried.recipe is not None:
        return picture_metadata.read_stack(picture, library), []

    # Another tool's text.
    text = text_of_another_tool(carried)
    if text is None or text == Infotext(notes=text.notes):
        why = f" ({text.notes[0]})" if text and text.notes else ""
        raise DataError(
            f"the picture carries no Velatura recipe, and no text of {_TOOLS} that can be read{why}; it had none, or "
            f"was re-encoded on its way."
        )

    return _opened(stack, text, library, bases)


def stack_of_text(
    text: str, stack: StackConfig, library: dict[str, LoraInfo], bases: Mapping[str, str] = {}
) -> tuple[StackConfig, list[str]]:
    """The same of a picture's text without the picture, as people copy it: A1111's words, another tool's JSON or a
    ComfyUI graph.

    Raises: DataError for a text without settings, or too long to be one.
    """
    read = _graph_of(text) or a1111_text.parse_infotext(text)
    if not (read.pairs or read.seed is not None or read.steps is not None):
        if _forms_of(text) is not None:
            raise DataError("this ComfyUI graph has no seed, steps or model that can be read; use one that draws.")
        raise DataError(
            "the text has no settings of a picture; allowed: text with a last line such as 'Steps: 20, Sampler: Euler, "
            "Seed: 1', as A1111 writes it and Civitai gives it, or a ComfyUI graph that draws."
        )
    return _opened(stack, read, library, bases)


def _graph_of(text: str) -> Infotext | None:
    """What a ComfyUI graph says: the API form, the page's, or a table of both; None for any other text."""
    forms = _forms_of(text)
    return None if forms is None else comfy_reading.graph(*forms)


def _forms_of(text: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The two forms of a ComfyUI graph, as far as a text has them; None for what has no nodes."""
    values = other_tools_pictures.parsed(text)
    if values is None:
        return None
    named = [values.get(key) for key in ("prompt", "workflow")]
    inner = [value if isinstance(value, dict) else {} for value in named]
    for prompt, workflow in ((values, values), (inner[0], inner[1])):
        if comfy_graph.from_prompt(prompt) or comfy_graph.from_workflow(workflow):
            return prompt, workflow
    return None


def looks_like_infotext(text: str) -> bool:
    """Whether a text is A1111's about a picture: a line of it begins with the steps and names more settings."""
    if len(text) > a1111_text.MAX_CHARS or not any(line.startswith("Steps: ") for line in text.splitlines()):
        return False
    read = a1111_text.parse_infotext(text)
    return read.steps is not None and len(read.pairs) >= 3


def _opened(
    stack: StackConfig, text: Infotext, library: dict[str, LoraInfo], bases: Mapping[str, str]
) -> tuple[StackConfig, list[str]]:
    """The stack with what a text says in its place, and a sentence for everything that could not be used."""
    # Its base, if a base of that name is here; then all else.
    by_name = {lora_lookup.base_name(name): base for name, base in bases.items()}
    if text.model and (base := by_name.get(lora_lookup.base_name(text.model))):
        stack = stack.model_copy(update={"base": base, "family": bases_.family_of(base)})
    opened, notes = applying_recipe.apply_infotext(stack, text, library)
    return opened, notes + applying_recipe.left_out(opened, text)


def text_of_another_tool(carried: picture_metadata.Carried) -> Infotext | None:
    """What a picture of another tool says; None if nothing that can be read.

    A text without settings is no tool's: cameras and people write such.
    """
    # InvokeAI's and A1111's texts say what they mean; JSON of other tools stands in A1111's place.
    texts = {key: text for key, text in carried.texts.items() if len(text) <= _MAX_TEXT_CHARS}
    if (values := other_tools_pictures.parsed(texts.get("invokeai_metadata", ""))) is not None:
        return other_tools_pictures.invokeai(values)
    text = carried.infotext if len(carried.infotext) <= a1111_text.MAX_CHARS else ""
    plain = a1111_text.parse_infotext(text) if text.strip() else None
    if plain and (plain.pairs or plain.seed is not None or plain.steps is not None):
        return plain
    # ComfyUI comes last: its graph may stand beside an A1111 text, which says plainly what the graph leaves to guess.
    graph = comfy_reading.graph(
        other_tools_pictures.parsed(texts.get("prompt", "")), other_tools_pictures.parsed(texts.get("workflow", ""))
    )
    return graph or (plain if plain and plain.notes else None)
