"""The LoRAs and the base that a ComfyUI graph draws with: ComfyUI's own loaders, and the stackers of others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from trainer.render.comfy_graph import Graph
from trainer.render.parsed_settings import Mention, decimal, shown, text_of

MAX_LORAS = 64
_BASE_INPUTS = ("ckpt_name", "unet_name", "model_name", "gguf_name")
_LORA_INPUT = re.compile(r"lora(?:_name)?(?:_?(\d{1,3}))?", re.IGNORECASE)


def model_of(graph: Graph, start: str | None, notes: list[str]) -> tuple[list[Mention], str, float | None]:
    """LoRAs between the base and a pass, the base's first; the base's name; how far guidance is rescaled.

    `start` is the node that a pass takes its model from. What can't be used is added to `notes`.
    """
    loras: list[Mention] = []
    base, rescale = "", None
    # The walk goes from the pass to the base, so the LoRAs come in reverse.
    for node in graph.above(start) if start else ():
        kind, inputs = graph.kind(node), graph.inputs(node)
        if kind == "RescaleCFG":
            rescale = decimal(graph.value(node, "multiplier"))
        elif "lora" in kind.lower():
            loras += list(_loras(graph, node, notes))[::-1]
        base = base or next((text_of(graph.value(node, key)) for key in _BASE_INPUTS if key in inputs), "")
    return loras[::-1][:MAX_LORAS], base, rescale


def _loras(graph: Graph, node: str, notes: list[str]) -> Iterator[Mention]:
    """LoRAs of one node: stackers number their inputs or hold a small table for each LoRA."""
    inputs = graph.inputs(node)
    for key, value in list(inputs.items())[:256]:
        match = _LORA_INPUT.fullmatch(key)
        if not match:
            continue
        number = match[1] or ""
        table = value if isinstance(value, dict) else {}
        name = text_of(table.get("lora")) if table else text_of(graph.value(node, key))

        # None is a stacker's empty row; others have a switch.
        switch = inputs.get(f"switch_{number}", inputs.get(f"enabled_{number}"))
        if name in ("", "None") or table.get("on") is False or switch in ("Off", False):
            continue

        weights, text_weight = _weights(graph, node, number, table)
        weight = decimal(weights[0]) if weights else 1.0
        if weight is None:
            notes.append(
                f"LoRA {shown(name)} has the weight {shown(weights[0])!r}, which is no number; it is left out."
            )
        else:
            yield Mention(name, weight, None if text_weight == weight else text_weight)


def _weights(graph: Graph, node: str, number: str, table: dict[str, Any]) -> tuple[list[Any], float | None]:
    """The values that stand there for a LoRA's weight, and its weight in the text encoders, if that is there."""
    if table:
        return [table.get("strength")], decimal(table.get("strengthTwo"))
    inputs = graph.inputs(node)
    weights = [graph.value(node, name) for name in _weight_inputs(number) if name in inputs]
    text_weights = (decimal(graph.value(node, name)) for name in _text_weight_inputs(number) if name in inputs)
    return weights, next(text_weights, None)


def _weight_inputs(number: str) -> tuple[str, ...]:
    """Names of the input for a LoRA's weight; a stacker's end with the LoRA's number."""
    if not number:
        return ("strength_model", "strength", "lora_strength")
    names = ("strength_model", "model_weight", "model_str", "strength", "lora_wt")
    return tuple(f"{name}_{number}" for name in names)


def _text_weight_inputs(number: str) -> tuple[str, ...]:
    """Names of the input for a LoRA's weight in the text encoders."""
    if not number:
        return ("strength_clip", "lora_strength_clip")
    return tuple(f"{name}_{number}" for name in ("strength_clip", "clip_weight", "clip_str"))
