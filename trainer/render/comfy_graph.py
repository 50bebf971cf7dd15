"""A ComfyUI graph that can be walked: nodes by id with their inputs by name, as the server runs them (the API form).

What the page shows (a workflow) is brought to that form by the order of widgets of ComfyUI's own nodes. A graph is
whatever its author made it: each node is walked once, and numbers and texts are looked for a few links deep.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trainer.render.parsed_settings import text_of

MAX_NODES = 4000
_MAX_LINKS = 24  # that are followed to a number or a text
_MAX_INPUTS = 256  # of one node
_MUTED, _BYPASSED = 2, 4  # a node's mode on the page
# Inputs that hold the words of a conditioning, and those that hold the value of a node that is nothing but a value.
_TEXTS = ("text", "text_g", "t5xxl", "clip_g", "clip_l", "prompt", "positive")
_VALUES = ("value", "seed", "noise_seed", "int", "float", "number", "text", "string", "Number", "Text")
SAMPLERS = {"KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced"}
# Widgets of ComfyUI's own nodes (nodes.py, comfy_extras), in their order; "" is the page's own behind a seed.
WIDGETS: dict[str, tuple[str, ...]] = {
    "CheckpointLoaderSimple": ("ckpt_name",),
    "UNETLoader": ("unet_name", "weight_dtype"),
    "LoraLoader": ("lora_name", "strength_model", "strength_clip"),
    "LoraLoaderModelOnly": ("lora_name", "strength_model"),
    "CLIPTextEncode": ("text",),
    "CLIPTextEncodeFlux": ("clip_l", "t5xxl", "guidance"),
    "CLIPTextEncodeSDXL": ("width", "height", "crop_w", "crop_h", "target_width", "target_height", "text_g", "text_l"),
    "EmptyLatentImage": ("width", "height", "batch_size"),
    "EmptySD3LatentImage": ("width", "height", "batch_size"),
    "KSampler": ("seed", "", "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    "RandomNoise": ("noise_seed", ""),
    "CFGGuider": ("cfg",),
    "KSamplerAdvanced": (
        *("add_noise", "noise_seed", "", "steps", "cfg", "sampler_name", "scheduler"),
        *("start_at_step", "end_at_step", "return_with_leftover_noise"),
    ),
    "SamplerCustom": ("add_noise", "noise_seed", "", "cfg"),
    "KSamplerSelect": ("sampler_name",),
    "BasicScheduler": ("scheduler", "steps", "denoise"),
    "FluxGuidance": ("guidance",),
    "RescaleCFG": ("multiplier",),
    "PrimitiveNode": ("value", ""),
    "PrimitiveInt": ("value", ""),
    "PrimitiveFloat": ("value",),
    "PrimitiveString": ("value",),
    "PrimitiveStringMultiline": ("value",),
    "Note": ("text",),
    "SaveImage": ("filename_prefix",),
}
Node = dict[str, Any]


class Graph:
    """Nodes by id in the API form: a link is `[id, output]`."""

    def __init__(self, nodes: dict[str, Node]) -> None:
        self.nodes = nodes

    def kind(self, node: str) -> str:
        """The class of a node, such as KSampler."""
        return text_of(self.nodes[node].get("class_type"))

    def inputs(self, node: str) -> dict[str, Any]:
        """Values and links by name."""
        inputs = self.nodes[node].get("inputs")
        return inputs if isinstance(inputs, dict) else {}

    def is_sampler(self, node: str) -> bool:
        """Whether a node draws: ComfyUI's own, or one of others that is called and wired like them."""
        kind = self.kind(node)
        return kind in SAMPLERS or ("ksampler" in kind.lower() and {"model", "positive"} <= set(self.inputs(node)))

    def source(self, value: Any) -> str | None:
        """The node that a link comes from; None for what is no link."""
        is_link = (
            isinstance(value, list)
            and len(value) == 2
            and isinstance(value[0], str | int)
            and str(value[0]) in self.nodes
        )
        return str(value[0]) if is_link else None

    def above(self, start: str, seen: set[str] | None = None) -> Iterator[str]:
        """A node and all that it is made from, the nearest first, each once; none that was `seen` before."""
        seen = set() if seen is None else seen
        waiting = [] if start in seen else [start]
        seen.add(start)
        for node in waiting:  # grows while it is walked
            yield node
            for value in self.inputs(node).values():
                source = self.source(value)
                if source is not None and source not in seen:
                    seen.add(source)
                    waiting.append(source)

    def value(self, node: str, key: str) -> Any:
        """An input's own value, or that of the node it is linked to, such as a seed's."""
        value = self.inputs(node).get(key)
        for _ in range(_MAX_LINKS):
            source = self.source(value)
            if source is None:
                return None if isinstance(value, list | dict) else value
            inputs = self.inputs(source)
            # A node without such an input passes on what its first link brings.
            value = next(
                (inputs[name] for name in (key, *_VALUES) if name in inputs),
                next((link for link in inputs.values() if isinstance(link, list)), None),
            )
        return None

    def text(self, value: Any) -> str:
        """The words of a conditioning: those of the nearest node above that has any.

        A node that holds both prompts hands on the prompt that belongs to the link's output.
        """
        waiting, seen = [value], set[str]()
        for link in waiting:  # grows while it is walked
            node = self.source(link)
            if node is None or node in seen or self.kind(node) in SAMPLERS:
                continue
            seen.add(node)
            inputs = self.inputs(node)
            # No words, whatever is above.
            if self.kind(node) == "ConditioningZeroOut":
                return ""
            if isinstance(inputs.get("positive"), list) and isinstance(inputs.get("negative"), list):
                waiting.append(inputs["negative" if link[1] == 1 else "positive"])
                continue
            for key in _TEXTS:
                if key in inputs and (text := text_of(self.value(node, key))).strip():
                    return text
            waiting += [link_above for link_above in inputs.values() if isinstance(link_above, list)]
        return text_of(value)


def from_prompt(prompt: dict[str, Any]) -> dict[str, Node]:
    """The nodes of `prompt`, which has the API form already."""
    return {
        str(number): node
        for number, node in list(prompt.items())[:MAX_NODES]
        if isinstance(node, dict) and "class_type" in node
    }


# The page's form.


def from_workflow(workflow: dict[str, Any]) -> dict[str, Node]:
    """A workflow's nodes by id with their inputs by name.

    What is muted is left out; what is bypassed hands its first input on.
    """
    # What the page lists; anything else may stand there.
    listed = workflow.get("nodes")
    entries = (
        [entry for entry in listed[:MAX_NODES] if isinstance(entry, dict) and isinstance(entry.get("id"), int | str)]
        if isinstance(listed, list)
        else []
    )

    links = _links(workflow.get("links"))
    nodes: dict[str, Node] = {}
    for entry in entries:
        if entry.get("mode") == _MUTED:
            continue
        kind, inputs = text_of(entry.get("type")), _linked_inputs(entry.get("inputs"), links)
        if entry.get("mode") == _BYPASSED:
            kind, inputs = "Reroute", dict(list(inputs.items())[:1])
        else:
            # A widget that was made an input keeps its last value; the link goes before it.
            inputs = _widgets(kind, entry.get("widgets_values")) | inputs
        nodes[str(entry["id"])] = {"class_type": kind, "inputs": inputs}
    return nodes


def _linked_inputs(slots: Any, links: dict[Any, list[Any]]) -> dict[str, Any]:
    """The inputs of a node that are linked, by name."""
    inputs = {}
    for slot in slots[:_MAX_INPUTS] if isinstance(slots, list) else []:
        is_linked = isinstance(slot, dict) and isinstance(slot.get("link"), int | str)
        link = links.get(slot.get("link")) if is_linked else None
        if link and isinstance(slot.get("name"), str):
            inputs[slot["name"]] = link
    return inputs


def _links(listed: Any) -> dict[Any, list[Any]]:
    """The node and output that each link comes from, by the link's id.

    Links are written as lists or, newer, as tables.
    """
    links: dict[Any, list[Any]] = {}
    for entry in listed[: 8 * MAX_NODES] if isinstance(listed, list) else []:
        if isinstance(entry, dict):
            parts = [entry.get(key) for key in ("id", "origin_id", "origin_slot")]
        else:
            parts = entry[:3] if isinstance(entry, list) else []
        if len(parts) == 3 and all(isinstance(part, int | str) for part in parts):
            links[parts[0]] = [str(parts[1]), parts[2]]
    return links


def _widgets(kind: str, values: Any) -> dict[str, Any]:
    """The values of a node's widgets by their names."""
    if isinstance(values, dict):
        return {key: value for key, value in list(values.items())[:_MAX_INPUTS] if isinstance(key, str)}
    if not isinstance(values, list):
        return {}
    # Rows of rgthree's Power Lora Loader, among other values without a name.
    if "power lora" in kind.lower():
        rows = [row for row in values[:_MAX_INPUTS] if isinstance(row, dict) and isinstance(row.get("lora"), str)]
        return {f"lora_{number}": row for number, row in enumerate(rows, 1)}
    return {name: value for name, value in zip(WIDGETS.get(kind, ()), values, strict=False) if name}
