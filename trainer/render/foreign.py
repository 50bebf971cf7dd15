"""Pictures of other tools: which texts each puts where, and what its JSON says in our words.

A1111 and Forge: `parameters`, read by `infotext`. ComfyUI: `prompt` and `workflow`, read by `comfy_reading`. Here: Fooocus (modules/meta_parser.py), SwarmUI
(src/Text2Image/T2IParamInput.cs), InvokeAI (invokeai/app/invocations/metadata.py). All of it comes from outside: sizes are bounded, no value is
believed to be of its kind, and what can't be used is said.
"""

from __future__ import annotations

import json
from typing import Any

from trainer.render import picture_recipe, tags
from trainer.render.picture_recipe import Infotext, Mention, decimal, digest, shown, text_of, whole
from trainer.render.sampler_names import INVOKEAI, from_comfyui

MAX_JSON_CHARS = 4 << 20
MAX_LORAS = 64
_MOST_NAMED = 12
Values = dict[str, Any]


def parsed(text: str) -> Values | None:
    """A text as a JSON object; None if it is none, or too long."""
    if len(text) > MAX_JSON_CHARS or text.lstrip()[:1] != "{":
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def from_json_text(text: str) -> Infotext | None:
    """What a text that is a tool's JSON says; None if it is no JSON at all."""
    values = parsed(text)
    if values is None:
        return None
    if isinstance(values.get("sui_image_params"), dict):
        return swarmui(values)
    if "positive_prompt" in values or "app_version" in values:
        return invokeai(values)
    if "prompt" in values and ("base_model" in values or "metadata_scheme" in values or "performance" in values or "Performance" in values):
        return fooocus(values)
    return Infotext(notes=(f"the picture's text is JSON of a tool that is not known here, with {_keys(list(values))}.",))


def _keys(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return (", ".join(map(shown, names[:_MOST_NAMED])) or "nothing in it") + more


def _without_tags(prompt: str, negative: str) -> tuple[tags.Tagged, str, list[str]]:
    """The prompt's tags, the negative prompt without its own, and what is said of those."""
    taken, other = tags.take_tags(prompt), tags.take_tags(negative)
    lost = [shown(one) for one in (*map(tags.tag, other.loras), *other.unknown)]
    return taken, other.prompt, [f"{', '.join(lost[:5])} in the negative prompt left out; LoRAs are named in the prompt."] if lost else []


def _rest(values: Values, read: frozenset[str], harmless: frozenset[str]) -> list[str]:
    """A sentence for the keys that say something and are not read."""
    lost = [f"{shown(key)} {shown(value)}" for key, value in values.items() if key not in read | harmless and value not in (None, "", [], {}, False, "None")]
    more = f" and {len(lost) - _MOST_NAMED} more" if len(lost) > _MOST_NAMED else ""
    return [f"{', '.join(lost[:_MOST_NAMED])}{more}: not used."] if lost else []


def _sampler(name: str, scheduler: str) -> tuple[str, list[str]]:
    ours, other = from_comfyui(name, scheduler)
    return ours, [f"schedule {shown(other)!r} of sampler {shown(name)!r} is not known here; the sampler's own is taken."] if other else []


# SwarmUI.

_SWARM = frozenset(
    {
        "prompt",
        "negativeprompt",
        "model",
        "seed",
        "steps",
        "cfgscale",
        "width",
        "height",
        "sampler",
        "scheduler",
        "loras",
        "loraweights",
        "loratencweights",
        "fluxguidancescale",
    }
)
_SWARM_HARMLESS = frozenset(
    {"images", "swarm_version", "aspectratio", "automaticvae", "personalnote", "original_prompt", "original_negativeprompt", "sidelength"}
)


def swarmui(values: Values) -> Infotext:
    """`sui_image_params`, with hashes of `sui_models`: of the tensors, as ours."""
    params: Values = values["sui_image_params"]
    listed = values.get("sui_models")
    hashes: dict[str, str] = {}
    for one in listed[:256] if isinstance(listed, list) else []:
        if isinstance(one, dict) and isinstance(one.get("name"), str):
            hashes[_bare(one["name"])] = digest(one.get("hash"))
    names, factors, texts = (_listed(params.get(key)) for key in ("loras", "loraweights", "loratencweights"))
    tagged, negative, notes = _without_tags(text_of(params.get("prompt")), text_of(params.get("negativeprompt")))
    loras = []
    for number, name in enumerate(names[:MAX_LORAS]):
        weight = decimal(factors[number]) if number < len(factors) else 1.0
        text = decimal(texts[number]) if number < len(texts) else None
        if weight is None:
            notes.append(f"LoRA {shown(name)} has the weight {shown(factors[number])!r}, which is no number; it is left out.")
        else:
            loras.append(Mention(name, weight, None if text == weight else text, hashes.get(_bare(name), "")))
    named = {_bare(one.name) for one in loras}  # the page moves tags of the prompt into the list
    loras += [Mention(one.name, one.weight, one.text_weight, hashes.get(_bare(one.name), "")) for one in tagged.loras if _bare(one.name) not in named]
    sampler, more = _sampler(text_of(params.get("sampler")), text_of(params.get("scheduler")))
    numbers: dict[str, object] = {
        "seed": whole(params.get("seed")),
        "steps": whole(params.get("steps")),
        "cfgscale": decimal(params.get("cfgscale")),
        "width": whole(params.get("width")),
        "height": whole(params.get("height")),
    }
    width, height = whole(params.get("width")), whole(params.get("height"))
    return Infotext(
        prompt=tagged.prompt.strip(),
        negative_prompt=negative,
        loras=tuple(loras),
        steps=whole(params.get("steps")),
        sampler=sampler,
        guidance_scale=decimal(params.get("cfgscale")),
        distilled_guidance=decimal(params.get("fluxguidancescale")),
        seed=whole(params.get("seed")),
        size=(width, height) if width is not None and height is not None else None,
        model=text_of(params.get("model")),
        model_hash=hashes.get(_bare(text_of(params.get("model"))), ""),
        unknown=tagged.unknown,
        notes=(*notes, *more, *picture_recipe.unread(params, numbers), *_rest(params, _SWARM, _SWARM_HARMLESS)),
    )


def _bare(name: str) -> str:
    return name.replace("\\", "/").removesuffix(".safetensors").strip("/")


def _listed(value: Any) -> list[Any]:
    """A list, or what was one before it was joined with commas."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [one if isinstance(one, str) else str(one) for one in value if isinstance(one, str | int | float)] if isinstance(value, list) else []


# InvokeAI.

_INVOKE = frozenset(
    {
        "positive_prompt",
        "negative_prompt",
        "width",
        "height",
        "seed",
        "cfg_scale",
        "cfg_rescale_multiplier",
        "steps",
        "scheduler",
        "model",
        "loras",
        "guidance",
    }
)
_INVOKE_HARMLESS = frozenset({"app_version", "generation_mode", "rand_device", "ref_images", "canvas_v2_metadata", "type", "id", "vae"})
_INVOKE_WORDS = {
    "controlnets": "ControlNet is not known here",
    "ipAdapters": "IP-Adapter is not known here",
    "t2iAdapters": "T2I-Adapter is not known here",
    "hrf_enabled": "the second pass at a higher resolution (hires fix) is not drawn",
    "init_image": "there is no picture to start from here",
    "refiner_model": "a refiner is not used here",
    "clip_skip": "layers of the text encoder are not skipped here",
    "seamless_x": "tiles are not drawn",
    "seamless_y": "tiles are not drawn",
    "strength": "there is no picture to start from here",
}


def invokeai(values: Values) -> Infotext:
    """`invokeai_metadata`; its hashes are BLAKE3 of whole files, so that LoRAs are found by name."""
    tagged, negative, notes = _without_tags(text_of(values.get("positive_prompt")), text_of(values.get("negative_prompt")))
    loras = []
    listed = values.get("loras")
    for one in listed[:MAX_LORAS] if isinstance(listed, list) else []:
        model = (one.get("model") or one.get("lora")) if isinstance(one, dict) else None
        name = text_of(model.get("name") or model.get("model_name")) if isinstance(model, dict) else ""
        weight = decimal(one.get("weight", 1.0)) if isinstance(one, dict) else None
        if name and weight is not None:
            loras.append(Mention(name, weight))
        else:
            notes.append(f"a LoRA is named as {shown(one)}, which can't be read; it is left out.")
    numbers: dict[str, object] = {"seed": whole(values.get("seed")), "steps": whole(values.get("steps")), "cfg_scale": decimal(values.get("cfg_scale"))}
    numbers |= {"width": whole(values.get("width")), "height": whole(values.get("height"))}
    width, height = whole(values.get("width")), whole(values.get("height"))
    base = values.get("model")
    scheduler = text_of(values.get("scheduler"))
    notes += [f"{shown(key)} {shown(values[key])}: {words}." for key, words in _INVOKE_WORDS.items() if values.get(key) not in (None, "", [], {}, False, 0)]
    return Infotext(
        prompt=tagged.prompt.strip(),
        negative_prompt=negative,
        loras=tuple(loras) + tuple(Mention(one.name, one.weight, one.text_weight) for one in tagged.loras),
        steps=whole(values.get("steps")),
        sampler=INVOKEAI.get(scheduler, scheduler),
        guidance_scale=decimal(values.get("cfg_scale")),
        distilled_guidance=decimal(values.get("guidance")),
        guidance_rescale=decimal(values.get("cfg_rescale_multiplier")),
        seed=whole(values.get("seed")),
        size=(width, height) if width is not None and height is not None else None,
        model=text_of(base.get("name") or base.get("model_name")) if isinstance(base, dict) else text_of(base),
        unknown=tagged.unknown,
        notes=(*notes, *picture_recipe.unread(values, numbers), *_rest(values, _INVOKE, _INVOKE_HARMLESS | frozenset(_INVOKE_WORDS))),
    )


# Fooocus.

_FOOOCUS = frozenset(
    {
        "prompt",
        "negative_prompt",
        "steps",
        "resolution",
        "guidance_scale",
        "sampler",
        "scheduler",
        "seed",
        "base_model",
        "base_model_hash",
        "loras",
        "full_prompt",
        "full_negative_prompt",
    }
)
_FOOOCUS_HARMLESS = frozenset({"version", "metadata_scheme", "created_by", "performance", "adm_guidance", "vae"})
_FOOOCUS_LABELS = {
    "Prompt": "prompt",
    "Negative Prompt": "negative_prompt",
    "Styles": "styles",
    "Steps": "steps",
    "Resolution": "resolution",
    "Seed": "seed",
    "Guidance Scale": "guidance_scale",
    "Base Model": "base_model",
    "Sampler": "sampler",
    "Scheduler": "scheduler",
    "Performance": "performance",
}


def fooocus(values: Values) -> Infotext:
    """Its JSON scheme, also with the labels that older ones have for keys. Styles are not ours: the prompt is as it was typed."""
    values = {_FOOOCUS_LABELS.get(key, key): value for key, value in values.items()}
    tagged, negative, notes = _without_tags(text_of(values.get("prompt")), text_of(values.get("negative_prompt")))
    if (styles := values.pop("styles", "")) not in ("", "[]", []):
        notes.append(f"styles {shown(styles)} are not known here; the prompt is as it was typed.")
    size = _resolution(values.get("resolution"))
    sampler, more = _sampler(text_of(values.get("sampler")), text_of(values.get("scheduler")))
    numbers: dict[str, object] = {
        "seed": whole(values.get("seed")),
        "steps": whole(values.get("steps")),
        "guidance_scale": decimal(values.get("guidance_scale")),
    }
    combined = frozenset(key for key in values if key.startswith(("lora_combined_", "LoRA ")))
    loras = [*_fooocus_loras(values, combined, notes), *(Mention(one.name, one.weight, one.text_weight) for one in tagged.loras)]
    return Infotext(
        prompt=tagged.prompt.strip(),
        negative_prompt=negative,
        loras=tuple(loras),
        steps=whole(values.get("steps")),
        sampler=sampler,
        guidance_scale=decimal(values.get("guidance_scale")),
        seed=whole(values.get("seed")),
        size=size,
        model=text_of(values.get("base_model")),
        model_hash=text_of(values.get("base_model_hash")),
        unknown=tagged.unknown,
        notes=(*notes, *more, *picture_recipe.unread(values, numbers | {"resolution": size}), *_rest(values, _FOOOCUS | combined, _FOOOCUS_HARMLESS)),
    )


def _fooocus_loras(values: Values, combined: frozenset[str], notes: list[str]) -> list[Mention]:
    """`loras` is a list of name, weight and the start of the whole file's hash; `lora_combined_N` says name and weight."""
    listed, found = values.get("loras"), []
    if isinstance(listed, list):
        for one in listed[:MAX_LORAS]:
            weight = decimal(one[1]) if isinstance(one, list) and len(one) > 1 else None
            if weight is None or not text_of(one[0]):
                notes.append(f"a LoRA is named as {shown(one)}, which can't be read; it is left out.")
            else:
                found.append(Mention(one[0], weight, None, digest(one[2]) if len(one) > 2 else ""))
        return found
    for key in sorted(combined)[:MAX_LORAS]:
        *head, name, number = (part.strip() for part in ("", *text_of(values[key]).rsplit(" : ", 2)))
        weight = decimal(number)
        if head[-1:] == ["False"] or name in ("", "None"):
            continue
        if weight is None:
            notes.append(f"{shown(key)} is {shown(values[key])}, which can't be read; it is left out.")
        else:
            found.append(Mention(name, weight))
    return found


def _resolution(value: Any) -> tuple[int, int] | None:
    """`(896, 1152)`, a list or `896x1152`."""
    sides = value if isinstance(value, list) else str(value)[:40].strip("()[] ").replace("x", ",").replace("×", ",").split(",")
    found = [whole(side) for side in sides[:3]]
    return (found[0], found[1]) if len(found) == 2 and found[0] is not None and found[1] is not None else None
