"""A stack as a ComfyUI graph in both forms: `prompt`, which runs, and `workflow`, which the page shows.

ComfyUI's own nodes only: checkpoint -> a LoraLoader per adapter -> RescaleCFG where guidance is rescaled -> two prompts
(FluxGuidance on the first where guidance is an input of the model), empty latents -> KSampler -> VAEDecode ->
SaveImage. Forms: docs.comfy.org/specs/workflow_json_0.4 and .../workflow-api-format. What a graph of these nodes can't
say is in words in its Note. ComfyUI draws other noise from a seed, so the picture is alike and never the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trainer import __version__, families
from trainer.config import StackConfig
from trainer.render.a1111_text import active, alias, own_settings
from trainer.render.sampler_names import COMFYUI as SAMPLERS

# Outputs of each kind of node, in its own order.
_OUTPUTS: dict[str, tuple[str, ...]] = {
    "CheckpointLoaderSimple": ("MODEL", "CLIP", "VAE"),
    "LoraLoader": ("MODEL", "CLIP"),
    "RescaleCFG": ("MODEL",),
    "CLIPTextEncode": ("CONDITIONING",),
    "FluxGuidance": ("CONDITIONING",),
    "EmptyLatentImage": ("LATENT",),
    "EmptySD3LatentImage": ("LATENT",),
    "KSampler": ("LATENT",),
    "VAEDecode": ("IMAGE",),
    "SaveImage": (),
    "Note": (),
}
_WIDTH_PX, _HEIGHT_PX = 320, 260  # of a node's place
Slot = tuple[int, int]  # node, output


@dataclass(frozen=True)
class _Node:
    kind: str
    inputs: dict[str, Slot]
    widgets: dict[str, Any]
    column: int
    row: int


def graphs(stack: StackConfig, base_name: str, sampler: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """`prompt` and `workflow` of a resolved stack; `sampler` is ours, used where the stack names none."""
    nodes = _nodes(stack, base_name, stack.sampler or sampler)
    return _prompt(nodes), _workflow(nodes)


def _nodes(stack: StackConfig, base_name: str, sampler: str) -> list[_Node]:
    """The graph's nodes; a node's id is its place in the list, counted from 1."""
    nodes: list[_Node] = []

    def add(kind: str, inputs: dict[str, Slot], widgets: dict[str, Any], column: int, row: int = 0) -> int:
        nodes.append(_Node(kind, inputs, widgets, column, row))
        return len(nodes)

    # Base and LoRAs, a column each.
    base = add("CheckpointLoaderSimple", {}, {"ckpt_name": f"{base_name}.safetensors"}, 0)
    model, clip, column = (base, 0), (base, 1), 1
    for adapter in active(stack):
        text = adapter.weight if adapter.text_weight is None else adapter.text_weight
        widgets = {
            "lora_name": f"{alias(adapter)}.safetensors",
            "strength_model": adapter.weight,
            "strength_clip": text,
        }
        lora = add("LoraLoader", {"model": model, "clip": clip}, widgets, column)
        model, clip, column = (lora, 0), (lora, 1), column + 1

    # Prompts and guidance.
    positive = add("CLIPTextEncode", {"clip": clip}, {"text": stack.prompt.strip()}, column)
    negative = add("CLIPTextEncode", {"clip": clip}, {"text": stack.negative_prompt.strip()}, column, 1)
    family = families.registry()[stack.family]
    scale = stack.guidance_scale
    if family.guidance == "distilled":
        positive = add("FluxGuidance", {"conditioning": (positive, 0)}, {"guidance": scale}, column, 3)
        scale = stack.true_guidance_scale

    # What the sampler takes, and the picture.
    latents = add(
        "EmptySD3LatentImage" if "flow" in family.prediction else "EmptyLatentImage",
        {},
        {"width": stack.width_px, "height": stack.height_px, "batch_size": 1},
        column,
        2,
    )
    # Where guidance is off there is nothing to rescale.
    if stack.guidance_rescale and stack.guidance_scale > 1 and "flow" not in family.prediction:
        model = (add("RescaleCFG", {"model": model}, {"multiplier": stack.guidance_rescale}, column, 3), 0)
    # A sampler that ComfyUI hasn't is named in the note.
    name, scheduler = SAMPLERS.get(sampler, ("euler", "normal"))
    settings = {
        "seed": stack.seed,
        "steps": stack.steps,
        "cfg": scale,
        "sampler_name": name,
        "scheduler": scheduler,
        "denoise": 1.0,
    }
    inputs = {"model": model, "positive": (positive, 0), "negative": (negative, 0), "latent_image": (latents, 0)}
    sampled = add("KSampler", inputs, settings, column + 1)
    decoded = add("VAEDecode", {"samples": (sampled, 0), "vae": (base, 2)}, {}, column + 2)
    add("SaveImage", {"images": (decoded, 0)}, {"filename_prefix": "velatura"}, column + 3)
    add("Note", {}, {"text": note(stack, sampler)}, 0, 1)
    return nodes


def note(stack: StackConfig, sampler: str) -> str:
    """What the graph can't say, a line each."""
    lines = [
        f"Made with Velatura {__version__}; its own recipe is in the picture too. The noise of a seed is another one "
        f"here, so the picture will differ."
    ]
    if sampler not in SAMPLERS:
        lines.append(f"Sampler {sampler or 'of the base'} has no counterpart here; the graph has euler.")
    if stack.mode != "sum" and len(active(stack)) > 1:
        lines.append(f"The LoRAs went together by mode {stack.mode}; here they add up.")
    settings = [words for adapter in active(stack) if (words := own_settings(adapter))]
    if settings:
        lines += ["Not in this graph:", *settings]
    if "[" in stack.prompt + stack.negative_prompt:
        lines.append("[word] makes a word weaker there; here it is text.")
    return "\n".join(lines)


def _prompt(nodes: list[_Node]) -> dict[str, Any]:
    """The API form: what the server runs. Notes don't run."""
    return {
        str(number): {
            "class_type": node.kind,
            "inputs": {**node.widgets, **{name: [str(source), slot] for name, (source, slot) in node.inputs.items()}},
            "_meta": {"title": node.kind},
        }
        for number, node in enumerate(nodes, 1)
        if node.kind != "Note"
    }


def _workflow(nodes: list[_Node]) -> dict[str, Any]:
    """The form that the page opens, version 0.4: links are [id, from node, its output, to node, its input, type]."""
    # Links are numbered through the graph, and have the type of the output that they come from.
    ends = [  # from node, its output, to node, its input
        (source, slot, number, place)
        for number, node in enumerate(nodes, 1)
        for place, (source, slot) in enumerate(node.inputs.values())
    ]
    links = [[link, *end, _OUTPUTS[nodes[end[0] - 1].kind][end[1]]] for link, end in enumerate(ends, 1)]

    # Nodes, with the links that come in and go out.
    entries = []
    for number, node in enumerate(nodes, 1):
        links_in = {link[4]: link for link in links if link[3] == number}
        values = list(node.widgets.values())
        if node.kind == "KSampler":
            values.insert(1, "fixed")  # the page's own widget behind a seed: control_after_generate
        entries.append(
            {
                "id": number,
                "type": node.kind,
                "pos": [node.column * (_WIDTH_PX + 60), node.row * (_HEIGHT_PX + 40)],
                "size": [_WIDTH_PX, _HEIGHT_PX],
                "flags": {},
                "order": number - 1,
                "mode": 0,
                "inputs": [
                    {"name": name, "type": links_in[place][5], "link": links_in[place][0]}
                    for place, name in enumerate(node.inputs)
                ],
                "outputs": [
                    {
                        "name": kind,
                        "type": kind,
                        "links": [link[0] for link in links if link[1] == number and link[2] == slot],
                        "slot_index": slot,
                    }
                    for slot, kind in enumerate(_OUTPUTS[node.kind])
                ],
                "properties": {} if node.kind == "Note" else {"Node name for S&R": node.kind},
                "widgets_values": values,
            }
        )
    return {
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": entries,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }
