"""What a ComfyUI graph says, in our words: the pass that draws, its prompts, its LoRAs, and a sentence for every other node that changes the picture.

`prompt` (the API form: nodes by id, inputs by name, a link is `[id, output]`) is read as it stands; `workflow` (what the page shows) is brought to that form
first, by the order of widgets of ComfyUI's own nodes. A graph is whatever its author made it: it is walked from the picture backwards, each node
once, and numbers and texts are looked for a few links deep. Graphs come from outside: their size is bounded and no value is believed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from trainer.render import tags
from trainer.render.picture_recipe import Infotext, Mention, decimal, shown, text_of, whole
from trainer.render.sampler_names import from_comfyui

MAX_NODES = 4000
MAX_LORAS = 64
_DEEP = 24  # links to a number or a text
_MOST_NAMED = 12
_MOST_ENDS = 16  # pictures of one graph that are looked at
_TEXTS = ("text", "text_g", "t5xxl", "clip_g", "clip_l", "prompt", "positive")
_SAMPLERS = {"KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced"}
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
        "add_noise",
        "noise_seed",
        "",
        "steps",
        "cfg",
        "sampler_name",
        "scheduler",
        "start_at_step",
        "end_at_step",
        "return_with_leftover_noise",
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
_QUIET = {
    *WIDGETS,
    *_SAMPLERS,
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
_WORDS = {
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
Node = dict[str, Any]


class _Graph:
    """Nodes by id in the API form."""

    def __init__(self, nodes: dict[str, Node]) -> None:
        self.nodes = nodes

    def kind(self, number: str) -> str:
        return text_of(self.nodes[number].get("class_type"))

    def inputs(self, number: str) -> dict[str, Any]:
        found = self.nodes[number].get("inputs")
        return found if isinstance(found, dict) else {}

    def source(self, value: Any) -> str | None:
        """The node that a link comes from."""
        is_link = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int) and str(value[0]) in self.nodes
        return str(value[0]) if is_link else None

    def above(self, start: str, seen: set[str] | None = None) -> Iterator[str]:
        """A node and all that it is made from, the nearest first, each once; none that was `seen` before."""
        seen = set() if seen is None else seen
        waiting = [] if start in seen else [start]
        seen.add(start)
        for number in waiting:
            yield number
            for value in self.inputs(number).values():
                source = self.source(value)
                if source is not None and source not in seen:
                    seen.add(source)
                    waiting.append(source)

    def value(self, number: str, key: str) -> Any:
        """An input's own value, or that of the node it is linked to, such as a seed's."""
        value = self.inputs(number).get(key)
        for _ in range(_DEEP):
            source = self.source(value)
            if source is None:
                return None if isinstance(value, list | dict) else value
            there = self.inputs(source)
            names = (key, "value", "seed", "noise_seed", "int", "float", "number", "text", "string", "Number", "Text")
            value = next((there[name] for name in names if name in there), next((one for one in there.values() if isinstance(one, list)), None))
        return None

    def text(self, value: Any) -> str:
        """The words of a conditioning: of the nearest node above that has any. What holds both prompts hands on the one of the link's output."""
        waiting, seen = [value], set[str]()
        for link in waiting:
            number = self.source(link)
            if number is None or number in seen or self.kind(number) in _SAMPLERS:
                continue
            seen.add(number)
            inputs = self.inputs(number)
            if self.kind(number) == "ConditioningZeroOut":
                return ""
            if isinstance(inputs.get("positive"), list) and isinstance(inputs.get("negative"), list):
                waiting.append(inputs["negative" if link[1] == 1 else "positive"])
                continue
            for key in _TEXTS:
                if key in inputs and (found := text_of(self.value(number, key))).strip():
                    return found
            waiting += [one for one in inputs.values() if isinstance(one, list)]
        return text_of(value)


def graph(prompt: dict[str, Any] | None, workflow: dict[str, Any] | None) -> Infotext | None:
    """What a graph in either form says; None if it holds no node that draws."""
    nodes = {str(number): node for number, node in list((prompt or {}).items())[:MAX_NODES] if isinstance(node, dict) and "class_type" in node}
    found = _Graph(nodes or _api_form(workflow or {}))
    sampler = _first_pass(found)
    return None if sampler is None else _read(found, *sampler)


def _is_sampler(graph: _Graph, number: str) -> bool:
    kind = graph.kind(number)
    return kind in _SAMPLERS or ("ksampler" in kind.lower() and {"model", "positive"} <= set(graph.inputs(number)))


def _first_pass(graph: _Graph) -> tuple[str, int] | None:
    """The pass that the picture begins with, and how many others there are; of several pictures the first in the graph."""
    ends = [number for number in graph.nodes if graph.kind(number) in ("SaveImage", "PreviewImage") or graph.kind(number).lower().startswith("saveimage")]
    seen: set[str] = set()
    for start in ends[:_MOST_ENDS]:
        passes = [number for number in graph.above(start, seen) if _is_sampler(graph, number)]
        if passes:
            return passes[-1], len(passes) - 1
    return next(((number, 0) for number in graph.nodes if _is_sampler(graph, number)), None)


def _read(graph: _Graph, number: str, others: int) -> Infotext:
    notes = [f"{others} further pass{'es' if others > 1 else ''} over the picture (hires fix) {'are' if others > 1 else 'is'} not drawn."] if others else []
    inputs = graph.inputs(number)
    guider, noise, sigmas, chosen = (graph.source(inputs.get(key)) for key in ("guider", "noise", "sigmas", "sampler"))
    where = guider or number
    positive, negative = (graph.inputs(where).get(key) for key in ("positive", "negative"))
    positive = positive if positive is not None else graph.inputs(where).get("conditioning")
    tagged, other = tags.take_tags(graph.text(positive)), tags.take_tags(graph.text(negative))
    if other.loras or other.unknown:
        notes.append("tags in the negative prompt are left out; LoRAs are named in the prompt.")
    loras, model, rescale = _model(graph, graph.source(graph.inputs(where).get("model")), notes)
    seed, steps = _number(graph, (number, noise), ("seed", "noise_seed")), _number(graph, (number, sigmas), ("steps",))
    ours, schedule = from_comfyui(_named(graph, (number, chosen), "sampler_name"), _named(graph, (number, sigmas), "scheduler"))
    if schedule:
        notes.append(f"schedule {shown(schedule)!r} of sampler {shown(ours)!r} is not known here; the sampler's own is taken.")
    denoise = decimal(graph.value(sigmas or number, "denoise"))
    if denoise is not None and denoise < 1:
        notes.append(f"denoise {denoise:g}: there is no picture to start from here; the picture is drawn from noise alone.")
    guidance = next((decimal(graph.value(one, "guidance")) for one in graph.above(graph.source(positive) or number) if "guidance" in graph.inputs(one)), None)
    scale = decimal(graph.value(where, "cfg"))
    notes += [
        f"{key} is {shown(value)!r}, which can't be read as a number; it is left out."
        for key, value, read in (("seed", *seed), ("steps", *steps))
        if value is not None and read is None
    ]
    return Infotext(
        prompt=tagged.prompt,
        negative_prompt=other.prompt,
        loras=(*loras, *(Mention(one.name, one.weight, one.text_weight) for one in tagged.loras)),
        steps=steps[1],
        sampler=ours,
        guidance_scale=scale if scale is not None or guidance is None else 1.0,
        distilled_guidance=guidance,
        guidance_rescale=rescale,
        seed=seed[1],
        size=_size(graph, graph.source(inputs.get("latent_image"))),
        model=model,
        unknown=tagged.unknown,
        notes=(*notes, *_others(graph, number)),
    )


def _number(graph: _Graph, places: tuple[str | None, ...], keys: tuple[str, ...]) -> tuple[Any, int | None]:
    """A number as it stands there, and as it is read."""
    for place in places:
        for key in keys:
            if place is not None and (value := graph.value(place, key)) is not None:
                return value, whole(value)
    return None, None


def _named(graph: _Graph, places: tuple[str | None, ...], key: str) -> str:
    return next((found for place in places if place is not None and (found := text_of(graph.value(place, key)))), "")


def _size(graph: _Graph, start: str | None) -> tuple[int, int] | None:
    for number in graph.above(start) if start else ():
        width, height = whole(graph.value(number, "width")), whole(graph.value(number, "height"))
        if width and height and "latent" in graph.kind(number).lower():
            return width, height
    return None


def _model(graph: _Graph, start: str | None, notes: list[str]) -> tuple[list[Mention], str, float | None]:
    """LoRAs between the base and a pass, the base's first; the base's name; how far guidance is rescaled."""
    loras: list[Mention] = []
    model, rescale = "", None
    for number in graph.above(start) if start else ():
        kind, inputs = graph.kind(number), graph.inputs(number)
        if kind == "RescaleCFG":
            rescale = decimal(graph.value(number, "multiplier"))
        elif "lora" in kind.lower():
            loras += list(_loras(graph, number, notes))[::-1]
        model = model or next((text_of(graph.value(number, key)) for key in ("ckpt_name", "unet_name", "model_name", "gguf_name") if key in inputs), "")
    return loras[::-1][:MAX_LORAS], model, rescale


def _loras(graph: _Graph, number: str, notes: list[str]) -> Iterator[Mention]:
    """LoRAs of one node: ComfyUI's own two, and stackers, which number their inputs or hold a small table for each."""
    inputs = graph.inputs(number)
    for key, value in list(inputs.items())[:256]:
        match = re.fullmatch(r"lora(?:_name)?(?:_?(\d{1,3}))?", key, re.IGNORECASE)
        if not match:
            continue
        table = value if isinstance(value, dict) else {}
        end = match[1] or ""
        name = text_of(table.get("lora")) if table else text_of(graph.value(number, key))
        switch = inputs.get(f"switch_{end}", inputs.get(f"enabled_{end}"))
        if name in ("", "None") or table.get("on") is False or switch in ("Off", False):
            continue
        factors = [table.get("strength")] if table else [graph.value(number, one) for one in _strengths(end) if one in inputs]
        weight = decimal(factors[0]) if factors else 1.0
        text = decimal(table.get("strengthTwo")) if table else next((decimal(graph.value(number, one)) for one in _text_strengths(end) if one in inputs), None)
        if weight is None:
            notes.append(f"LoRA {shown(name)} has the weight {shown(factors[0])!r}, which is no number; it is left out.")
        else:
            yield Mention(name, weight, None if text == weight else text)


def _strengths(end: str) -> tuple[str, ...]:
    return (
        (f"strength_model_{end}", f"model_weight_{end}", f"model_str_{end}", f"strength_{end}", f"lora_wt_{end}")
        if end
        else ("strength_model", "strength", "lora_strength")
    )


def _text_strengths(end: str) -> tuple[str, ...]:
    return (f"strength_clip_{end}", f"clip_weight_{end}", f"clip_str_{end}") if end else ("strength_clip", "lora_strength_clip")


def _others(graph: _Graph, number: str) -> list[str]:
    """A sentence for each kind of node that has a part in the picture and is not read."""
    groups: dict[str, list[str]] = {}
    for one in graph.nodes:
        kind = graph.kind(one)
        if kind in _QUIET or one == number or "lora" in kind.lower() or _is_sampler(graph, one):
            continue
        why = next((words for start, words in _WORDS.items() if start in kind.lower()), "not read")
        groups.setdefault(why, []).append(shown(kind))
    said = []
    for why, kinds in groups.items():
        known = list(dict.fromkeys(kinds))
        more = f" and {len(known) - _MOST_NAMED} more" if len(known) > _MOST_NAMED else ""
        said.append(f"node {', '.join(known[:_MOST_NAMED])}{more}: {why}.")
    return said


# The page's form.


def _api_form(workflow: dict[str, Any]) -> dict[str, Node]:
    """A workflow's nodes by id with their inputs by name; what is muted is left out, what is bypassed hands its first input on."""
    listed = workflow.get("nodes")
    shown_nodes = [one for one in listed[:MAX_NODES] if isinstance(one, dict) and isinstance(one.get("id"), int | str)] if isinstance(listed, list) else []
    links = _links(workflow.get("links"))
    found: dict[str, Node] = {}
    for one in shown_nodes:
        if one.get("mode") == 2:
            continue
        kind, inputs = text_of(one.get("type")), {}
        for slot in one["inputs"][:256] if isinstance(one.get("inputs"), list) else []:
            link = links.get(slot.get("link")) if isinstance(slot, dict) and isinstance(slot.get("link"), int | str) else None
            if link and isinstance(slot.get("name"), str):
                inputs[slot["name"]] = link
        if one.get("mode") == 4:  # bypassed
            kind, inputs = "Reroute", dict(list(inputs.items())[:1])
        else:
            inputs = _widgets(kind, one.get("widgets_values")) | inputs
        found[str(one["id"])] = {"class_type": kind, "inputs": inputs}
    return found


def _links(listed: Any) -> dict[Any, list[Any]]:
    """By their id: node and output that a link comes from, written as lists or, newer, as tables."""
    found: dict[Any, list[Any]] = {}
    for one in listed[: 8 * MAX_NODES] if isinstance(listed, list) else []:
        parts = [one.get(key) for key in ("id", "origin_id", "origin_slot")] if isinstance(one, dict) else one[:3] if isinstance(one, list) else []
        if len(parts) == 3 and all(isinstance(part, int | str) for part in parts):
            found[parts[0]] = [str(parts[1]), parts[2]]
    return found


def _widgets(kind: str, values: Any) -> dict[str, Any]:
    if isinstance(values, dict):
        return {key: value for key, value in list(values.items())[:256] if isinstance(key, str)}
    if not isinstance(values, list):
        return {}
    if "power lora" in kind.lower():  # rgthree's rows
        rows = [one for one in values[:256] if isinstance(one, dict) and isinstance(one.get("lora"), str)]
        return {f"lora_{number}": one for number, one in enumerate(rows, 1)}
    return {name: value for name, value in zip(WIDGETS.get(kind, ()), values, strict=False) if name}
