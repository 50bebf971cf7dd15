"""Pictures of other tools: which texts each puts where, and what its JSON says in our words.

A1111 and Forge: `parameters`, read by `infotext`. ComfyUI: `prompt` and `workflow`, read by `comfy_reading`. Here:
Fooocus (modules/meta_parser.py), SwarmUI (src/Text2Image/T2IParamInput.cs), InvokeAI
(invokeai/app/invocations/metadata.py). All of it comes from outside: sizes are bounded, no value is
believed to be of its kind, and what can't be used is said.
"""

from __future__ import annotations

import json
from typing import Any

from trainer.printing import some
from trainer.render import parsed_settings, tags
from trainer.render.parsed_settings import MOST_NAMED, Infotext, Mention, decimal, digest, shown, text_of, whole
from trainer.render.sampler_names import INVOKEAI, from_comfyui

MAX_JSON_CHARS = 4 << 20
MAX_LORAS = 64
Values = dict[str, Any]


def parsed(text: str) -> Values | None:
    """A text as a JSON object; None if it is none, or too long."""
    if len(text) > MAX_JSON_CHARS or text.lstrip()[:1] != "{":
        return None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def from_json_text(text: str) -> Infotext | None:
    """What a text that is a tool's JSON says; None if it is no JSON at all."""
    values = parsed(text)
    if values is None:
        return None
    # By the keys that only one tool writes.
    if isinstance(values.get("sui_image_params"), dict):
        return swarmui(values)
    if "positive_prompt" in values or "app_version" in values:
        return invokeai(values)
    if "prompt" in values and any(
        key in values for key in ("base_model", "metadata_scheme", "performance", "Performance")
    ):
        return fooocus(values)
    keys = list(values)
    # Only those that are named are cleaned: there may be hundreds of thousands.
    keys[:MOST_NAMED] = map(shown, keys[:MOST_NAMED])
    names = some(keys, most=MOST_NAMED) or "nothing in it"
    return Infotext(notes=(f"the picture's text is JSON of a tool that is not known here, with {names}.",))


def _without_tags(prompt: str, negative_prompt: str) -> tuple[tags.Tagged, str, list[str]]:
    """The prompt's tags, the negative prompt without its own, and a sentence on those."""
    tagged, negative = tags.take_tags(prompt), tags.take_tags(negative_prompt)
    lost = [shown(tag) for tag in (*map(tags.tag, negative.loras), *negative.unknown)]
    notes = [f"{', '.join(lost[:5])} in the negative prompt left out; LoRAs are named in the prompt."] if lost else []
    return tagged, negative.prompt, notes


def _unused(values: Values, read: frozenset[str], harmless: frozenset[str]) -> list[str]:
    """A sentence for the keys that say something and are not read."""
    unused = [
        f"{shown(key)} {shown(value)}"
        for key, value in values.items()
        if key not in read | harmless and value not in (None, "", [], {}, False, "None")
    ]
    return [f"{some(unused, most=MOST_NAMED)}: not used."] if unused else []


def _sampler(name: str, scheduler: str) -> tuple[str, list[str]]:
    """Our name of a sampler as ComfyUI names it, and a sentence for a schedule that it hasn't here."""
    sampler, other_schedule = from_comfyui(name, scheduler)
    if not other_schedule:
        return sampler, []
    where = f"schedule {shown(other_schedule)!r} of sampler {shown(name)!r}"
    return sampler, [f"{where} is not known here; the sampler's own is taken."]


def _size(width: int | None, height: int | None) -> tuple[int, int] | None:
    return (width, height) if width is not None and height is not None else None


# SwarmUI.

_SWARM = frozenset({
    "prompt", "negativeprompt", "model", "seed", "steps", "cfgscale", "width", "height", "sampler", "scheduler",
    "loras", "loraweights", "loratencweights", "fluxguidancescale",
})  # fmt: skip
_SWARM_HARMLESS = frozenset({
    "images", "swarm_version", "aspectratio", "automaticvae", "personalnote", "original_prompt",
    "original_negativeprompt", "sidelength",
})  # fmt: skip


def swarmui(values: Values) -> Infotext:
    """`sui_image_params`, with hashes of `sui_models`: of the tensors, as ours."""
    params: Values = values["sui_image_params"]

    # Prompts and LoRAs.
    hashes = _swarm_hashes(values.get("sui_models"))
    tagged, negative_prompt, notes = _without_tags(text_of(params.get("prompt")), text_of(params.get("negativeprompt")))
    loras = _swarm_loras(params, hashes, notes)
    # The page moves tags of the prompt into the list, so that those are there twice.
    listed = {_bare(lora.name) for lora in loras}
    loras += [
        Mention(lora.name, lora.weight, lora.text_weight, hashes.get(_bare(lora.name), ""))
        for lora in tagged.loras
        if _bare(lora.name) not in listed
    ]

    # Sampler and numbers.
    sampler, sampler_notes = _sampler(text_of(params.get("sampler")), text_of(params.get("scheduler")))
    seed, steps, width, height = (whole(params.get(key)) for key in ("seed", "steps", "width", "height"))
    scale = decimal(params.get("cfgscale"))
    numbers = {"seed": seed, "steps": steps, "cfgscale": scale, "width": width, "height": height}
    return Infotext(
        prompt=tagged.prompt.strip(),
        negative_prompt=negative_prompt,
        loras=tuple(loras),
        steps=steps,
        sampler=sampler,
        guidance_scale=scale,
        distilled_guidance=decimal(params.get("fluxguidancescale")),
        seed=seed,
        size=_size(width, height),
        model=text_of(params.get("model")),
        model_hash=hashes.get(_bare(text_of(params.get("model"))), ""),
        unknown=tagged.unknown,
        notes=(
            *notes,
            *sampler_notes,
            *parsed_settings.unread(params, numbers),
            *_unused(params, _SWARM, _SWARM_HARMLESS),
        ),
    )


def _swarm_hashes(models: Any) -> dict[str, str]:
    """The start of each model's hash by its name."""
    hashes: dict[str, str] = {}
    for model in models[:256] if isinstance(models, list) else []:
        if isinstance(model, dict) and isinstance(model.get("name"), str):
            hashes[_bare(model["name"])] = digest(model.get("hash"))
    return hashes


def _swarm_loras(params: Values, hashes: dict[str, str], notes: list[str]) -> list[Mention]:
    """LoRAs of three lists that belong together by their order; what can't be used is added to `notes`."""
    names, weights, text_weights = (_items(params.get(key)) for key in ("loras", "loraweights", "loratencweights"))
    loras = []
    for number, name in enumerate(names[:MAX_LORAS]):
        weight = decimal(weights[number]) if number < len(weights) else 1.0
        text_weight = decimal(text_weights[number]) if number < len(text_weights) else None
        if weight is None:
            notes.append(
                f"LoRA {shown(name)} has the weight {shown(weights[number])!r}, which is no number; it is left out."
            )
        else:
            own_text_weight = None if text_weight == weight else text_weight
            loras.append(Mention(name, weight, own_text_weight, hashes.get(_bare(name), "")))
    return loras


def _bare(name: str) -> str:
    """A model's name with its folders as SwarmUI writes them, without an ending."""
    return name.replace("\\", "/").removesuffix(".safetensors").strip("/")


def _items(value: Any) -> list[str]:
    """A list's items as text, or those of what was a list before it was joined with commas."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    items = value if isinstance(value, list) else []
    return [item if isinstance(item, str) else str(item) for item in items if isinstance(item, str | int | float)]


# InvokeAI.

_INVOKE = frozenset({
    "positive_prompt", "negative_prompt", "width", "height", "seed", "cfg_scale", "cfg_rescale_multiplier", "steps",
    "scheduler", "model", "loras", "guidance",
})  # fmt: skip
_INVOKE_HARMLESS = frozenset({
    "app_version", "generation_mode", "rand_device", "ref_images", "canvas_v2_metadata", "type", "id", "vae",
})  # fmt: skip
_INVOKE_NOT_DONE = {
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
    tagged, negative_prompt, notes = _without_tags(
        text_of(values.get("positive_prompt")), text_of(values.get("negative_prompt"))
    )

    # LoRAs of the list, then of tags in the prompt.
    loras = _invoke_loras(values.get("loras"), notes)
    loras += [Mention(lora.name, lora.weight, lora.text_weight) for lora in tagged.loras]

    # Numbers, the base, and what has no counterpart here.
    seed, steps, width, height = (whole(values.get(key)) for key in ("seed", "steps", "width", "height"))
    scale = decimal(values.get("cfg_scale"))
    numbers = {"seed": seed, "steps": steps, "cfg_scale": scale, "width": width, "height": height}
    base, scheduler = values.get("model"), text_of(values.get("scheduler"))
    notes += [
        f"{shown(key)} {shown(values[key])}: {words}."
        for key, words in _INVOKE_NOT_DONE.items()
        if values.get(key) not in (None, "", [], {}, False, 0)
    ]
    return Infotext(
        prompt=tagged.prompt.strip(),
        negative_prompt=negative_prompt,
        loras=tuple(loras),
        steps=steps,
        sampler=INVOKEAI.get(scheduler, scheduler),
        guidance_scale=scale,
        distilled_guidance=decimal(values.get("guidance")),
        guidance_rescale=decimal(values.get("cfg_rescale_multiplier")),
        seed=seed,
        size=_size(width, height),
        model=_invoke_name(base) if isinstance(base, dict) else text_of(base),
        unknown=tagged.unknown,
        notes=(
            *notes,
            *parsed_settings.unread(values, numbers),
            *_unused(values, _INVOKE, _INVOKE_HARMLESS | frozenset(_INVOKE_NOT_DONE)),
        ),
    )


def _invoke_name(model: Values) -> str:
    """A model's name; before InvokeAI 4 the key was `model_name`."""
    return text_of(model.get("name") or model.get("model_name"))


def _invoke_loras(listed: Any, notes: list[str]) -> list[Mention]:
    """The LoRAs of a list of tables; what can't be used is added to `notes`."""
    loras = []
    for entry in listed[:MAX_LORAS] if isinstance(listed, list) else []:
        model = (entry.get("model") or entry.get("lora")) if isinstance(entry, dict) else None
        name = _invoke_name(model) if isinstance(model, dict) else ""
        weight = decimal(entry.get("weight", 1.0)) if isinstance(entry, dict) else None
        if name and weight is not None:
            loras.append(Mention(name, weight))
        else:
            notes.append(f"a LoRA is named as {shown(entry)}, which can't be read; it is left out.")
    return loras


# Fooocus.

_FOOOCUS = frozenset({
    "prompt", "negative_prompt", "steps", "resolution", "guidance_scale", "sampler", "scheduler", "seed",
    "base_model", "base_model_hash", "loras", "full_prompt", "full_negative_prompt",
})  # fmt: skip
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
    """Its JSON scheme, also with the labels that older schemes have for keys.

    Styles are not ours: the prompt is as it was typed.
    """
    # Prompts and styles.
    values = {_FOOOCUS_LABELS.get(key, key): value for key, value in values.items()}
    tagged, negative_prompt, notes = _without_tags(
        text_of(values.get("prompt")), text_of(values.get("negative_prompt"))
    )
    if (styles := values.pop("styles", "")) not in ("", "[]", []):
        notes.append(f"styles {shown(styles)} are not known here; the prompt is as it was typed.")

    # Sampler and numbers.
    sampler, sampler_notes = _sampler(text_of(values.get("sampler")), text_of(values.get("scheduler")))
    seed, steps, scale = whole(values.get("seed")), whole(values.get("steps")), decimal(values.get("guidance_scale"))
    size = _resolution(values.get("resolution"))
    numbers = {"seed": seed, "steps": steps, "guidance_scale": scale, "resolution": size}

    # LoRAs, then those of tags in the prompt.
    lora_keys = frozenset(key for key in values if key.startswith(("lora_combined_", "LoRA ")))
    loras = _fooocus_loras(values, lora_keys, notes)
    loras += [Mention(lora.name, lora.weight, lora.text_weight) for lora in tagged.loras]
    return Infotext(
        prompt=tagged.prompt.strip(),
        negative_prompt=negative_prompt,
        loras=tuple(loras),
        steps=steps,
        sampler=sampler,
        guidance_scale=scale,
        seed=seed,
        size=size,
        model=text_of(values.get("base_model")),
        model_hash=text_of(values.get("base_model_hash")),
        unknown=tagged.unknown,
        notes=(
            *notes,
            *sampler_notes,
            *parsed_settings.unread(values, numbers),
            *_unused(values, _FOOOCUS | lora_keys, _FOOOCUS_HARMLESS),
        ),
    )


def _fooocus_loras(values: Values, lora_keys: frozenset[str], notes: list[str]) -> list[Mention]:
    """The LoRAs of a picture; what can't be used is added to `notes`.

    `loras` is a list of name, weight and the start of the whole file's hash; `lora_combined_N` says name and weight.
    """
    listed, loras = values.get("loras"), []
    if isinstance(listed, list):
        for entry in listed[:MAX_LORAS]:
            weight = decimal(entry[1]) if isinstance(entry, list) and len(entry) > 1 else None
            if weight is None or not text_of(entry[0]):
                notes.append(f"a LoRA is named as {shown(entry)}, which can't be read; it is left out.")
            else:
                loras.append(Mention(entry[0], weight, None, digest(entry[2]) if len(entry) > 2 else ""))
        return loras

    for key in sorted(lora_keys)[:MAX_LORAS]:
        # `True : name : 0.5`, or without the switch in older versions.
        *switch, name, number = (part.strip() for part in ("", *text_of(values[key]).rsplit(" : ", 2)))
        weight = decimal(number)
        if switch[-1:] == ["False"] or name in ("", "None"):
            continue
        if weight is None:
            notes.append(f"{shown(key)} is {shown(values[key])}, which can't be read; it is left out.")
        else:
            loras.append(Mention(name, weight))
    return loras


def _resolution(value: Any) -> tuple[int, int] | None:
    """Width and height of `(896, 1152)`, a list or `896x1152`."""
    if isinstance(value, list):
        sides = value
    else:
        sides = str(value)[:40].strip("()[] ").replace("x", ",").replace("×", ",").split(",")
    numbers = [whole(side) for side in sides[:3]]
    return _size(numbers[0], numbers[1]) if len(numbers) == 2 else None
