"""What a ComfyUI graph says, in our words: the pass that draws, its prompts, its LoRAs, and a sentence for every other
node that changes the picture.

`prompt` (the API form) is read as it stands; `workflow` (what the page shows) is brought to that form first. Graphs
come from outside: their size is bounded, they are walked from the picture backwards, and no value is believed.
"""

from __future__ import annotations

from typing import Any

from trainer.printing import some
from trainer.render import tags
from trainer.render.comfy_graph import SAMPLERS, WIDGETS, Graph, from_prompt, from_workflow
from trainer.render.comfy_loras import model_of
from trainer.render.parsed_settings import MOST_NAMED, Infotext, Mention, decimal, shown, text_of, whole
from trainer.render.sampler_names import from_comfyui

_MAX_ENDS = 16  # pictures of one graph that are looked at
# Kinds of nodes that are read, or that change nothing in a picture.
_READ_OR_HARMLESS = {
    *WIDGETS,
    *SAMPLERS,
    "CLIPLoader",
    "DualCLIPLoader",
    "TripleCLIPLoader",
    "VAELoader",
    "VAEDecode",
    "VAEDecodeTiled",
    "PreviewImage",
    "Reroute",
    "BasicGuider",
    "ConditioningZeroOut",
    "CLIPSetLastLayer",
    "MarkdownNote",
    "ModelSamplingFlux",
    "ModelSamplingSD3",
    "ModelSamplingAuraFlow",
}
# What other kinds do that has no counterpart here, by a part of the kind's name.
_NOT_DONE = {
    "controlnet": "ControlNet is not known here",
    "ipadapter": "IP-Adapter is not known here",
    "upscale": "pictures are not made larger here",
    "loadimage": "there is no picture to start from here",
    "vaeencode": "there is no picture to start from here",
    "facedetailer": "faces are not drawn a second time",
    "conditioningcombine": "of several prompts the first is taken",
    "conditioningconcat": "of several prompts the first is taken",
    "conditioningsetarea": "prompts for parts of the picture are not read",
    "freeu": "FreeU is not known here",
    "stylemodel": "style models are not known here",
}


def graph(prompt: dict[str, Any] | None, workflow: dict[str, Any] | None) -> Infotext | None:
    """What a graph in either form says; None if it holds no node that draws."""
    nodes = Graph(from_prompt(prompt or {}) or from_workflow(workflow or {}))
    first_pass = _first_pass(nodes)
    return None if first_pass is None else _read(nodes, *first_pass)


def _first_pass(graph: Graph) -> tuple[str, int] | None:
    """The pass that the picture begins with, and how many others there are.

    Of several pictures the first in the graph counts.
    """
    # Pictures that are saved or shown; a graph may make several.
    ends = [
        node
        for node in graph.nodes
        if graph.kind(node) in ("SaveImage", "PreviewImage") or graph.kind(node).lower().startswith("saveimage")
    ]
    # The pass farthest from the picture began it.
    seen: set[str] = set()
    for end in ends[:_MAX_ENDS]:
        passes = [node for node in graph.above(end, seen) if graph.is_sampler(node)]
        if passes:
            return passes[-1], len(passes) - 1
    return next(((node, 0) for node in graph.nodes if graph.is_sampler(node)), None)


def _read(graph: Graph, sampler: str, num_others: int) -> Infotext:
    """What the pass of node `sampler` draws; `num_others` passes follow it."""
    notes = _notes_on_passes(num_others)

    # Where things stand: KSampler has all inputs itself, SamplerCustom has a node for each.
    inputs = graph.inputs(sampler)
    guider, noise, sigmas, chosen = (graph.source(inputs.get(key)) for key in ("guider", "noise", "sigmas", "sampler"))
    guided = guider or sampler

    # Prompts.
    positive, negative = (graph.inputs(guided).get(key) for key in ("positive", "negative"))
    positive = positive if positive is not None else graph.inputs(guided).get("conditioning")
    tagged, negative_tagged = tags.take_tags(graph.text(positive)), tags.take_tags(graph.text(negative))
    if negative_tagged.loras or negative_tagged.unknown:
        notes.append("tags in the negative prompt are left out; LoRAs are named in the prompt.")

    # Model and sampler.
    loras, base, rescale = model_of(graph, graph.source(graph.inputs(guided).get("model")), notes)
    seed, steps = (
        _number(graph, (sampler, noise), ("seed", "noise_seed")),
        _number(graph, (sampler, sigmas), ("steps",)),
    )
    sampler_name = _sampler(graph, (sampler, chosen), (sampler, sigmas), notes)
    notes += _notes_on_denoise(graph, sigmas or sampler)
    scale, distilled = decimal(graph.value(guided, "cfg")), _distilled_guidance(graph, positive, sampler)
    notes += [
        f"{key} is {shown(value)!r}, which can't be read as a number; it is left out."
        for key, value, number in (("seed", *seed), ("steps", *steps))
        if value is not None and number is None
    ]
    return Infotext(
        prompt=tagged.prompt,
        negative_prompt=negative_tagged.prompt,
        loras=(*loras, *(Mention(lora.name, lora.weight, lora.text_weight) for lora in tagged.loras)),
        steps=steps[1],
        sampler=sampler_name,
        # BasicGuider has no cfg: with distilled guidance alone there is no other.
        guidance_scale=scale if scale is not None or distilled is None else 1.0,
        distilled_guidance=distilled,
        guidance_rescale=rescale,
        seed=seed[1],
        size=_size(graph, graph.source(inputs.get("latent_image"))),
        model=base,
        unknown=tagged.unknown,
        notes=(*notes, *_notes_on_other_nodes(graph, sampler)),
    )


def _number(graph: Graph, nodes: tuple[str | None, ...], keys: tuple[str, ...]) -> tuple[Any, int | None]:
    """A number as it stands there, and as it is read; from the first of the nodes that has it."""
    for node in nodes:
        for key in keys:
            if node is not None and (value := graph.value(node, key)) is not None:
                return value, whole(value)
    return None, None


def _text(graph: Graph, nodes: tuple[str | None, ...], key: str) -> str:
    """A text from the first of the nodes that has it."""
    return next((text for node in nodes if node is not None and (text := text_of(graph.value(node, key)))), "")


def _sampler(
    graph: Graph, sampler_nodes: tuple[str | None, ...], scheduler_nodes: tuple[str | None, ...], notes: list[str]
) -> str:
    """Our name of the sampler; a schedule that it hasn't here is added to `notes`."""
    sampler, other_schedule = from_comfyui(
        _text(graph, sampler_nodes, "sampler_name"), _text(graph, scheduler_nodes, "scheduler")
    )
    if other_schedule:
        notes.append(
            f"schedule {shown(other_schedule)!r} of sampler {shown(sampler)!r} is not known here; the sampler's own is "
            f"taken."
        )
    return sampler


def _distilled_guidance(graph: Graph, positive: Any, sampler: str) -> float | None:
    """The guidance that is an input of the model: of FluxGuidance or another node above the prompt."""
    nodes = graph.above(graph.source(positive) or sampler)
    values = (decimal(graph.value(node, "guidance")) for node in nodes if "guidance" in graph.inputs(node))
    return next(values, None)


def _size(graph: Graph, start: str | None) -> tuple[int, int] | None:
    """Width and height of the empty latents that a pass begins with."""
    for node in graph.above(start) if start else ():
        width, height = whole(graph.value(node, "width")), whole(graph.value(node, "height"))
        if width and height and "latent" in graph.kind(node).lower():
            return width, height
    return None


# A sentence for what could not be used.


def _notes_on_passes(num_others: int) -> list[str]:
    if not num_others:
        return []
    passes, are = ("passes", "are") if num_others > 1 else ("pass", "is")
    return [f"{num_others} further {passes} over the picture (hires fix) {are} not drawn."]


def _notes_on_denoise(graph: Graph, node: str) -> list[str]:
    denoise = decimal(graph.value(node, "denoise"))
    if denoise is None or denoise >= 1:
        return []
    return [f"denoise {denoise:g}: there is no picture to start from here; the picture is drawn from noise alone."]


def _notes_on_other_nodes(graph: Graph, sampler: str) -> list[str]:
    """A sentence for each kind of node that has a part in the picture and is not read."""
    kinds_by_reason: dict[str, list[str]] = {}
    for node in graph.nodes:
        kind = graph.kind(node)
        if kind in _READ_OR_HARMLESS or node == sampler or "lora" in kind.lower() or graph.is_sampler(node):
            continue
        reason = next((words for part, words in _NOT_DONE.items() if part in kind.lower()), "not read")
        kinds_by_reason.setdefault(reason, []).append(shown(kind))
    return [
        f"node {some(list(dict.fromkeys(kinds)), most=MOST_NAMED)}: {reason}."
        for reason, kinds in kinds_by_reason.items()
    ]
