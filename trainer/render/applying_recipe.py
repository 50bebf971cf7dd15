"""What a picture says of itself, laid on a stack: LoRAs found here by hash or name, and a sentence for everything that could not be used.

Names and hashes are compared with what the library offers; nothing that a picture names is opened. The base stays the stack's.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from trainer import families
from trainer.config import StackConfig, parse
from trainer.config.stack import USUAL_WEIGHT, WIDEST_WEIGHT
from trainer.errors import ConfigError
from trainer.families.contract import Family
from trainer.lora_file import LoraInfo
from trainer.render import editing, naming
from trainer.render.picture_recipe import Infotext, Mention, shown
from trainer.render.sampler_names import TWINS
from trainer.render.samplers import SAMPLERS, fitting

_MOST_LORAS = 32
_MOST_NAMED = 12
# What A1111, Forge and their extensions write that changes a picture and has no counterpart here: the start of the key, and in words.
_NOT_DONE = {
    "Hires": "the second pass at a higher resolution (hires fix) is not drawn",
    "First pass size": "the second pass at a higher resolution is not drawn",
    "ControlNet": "ControlNet is not known here",
    "Refiner": "a refiner is not used here",
    "Denoising strength": "there is no picture to start from here",
    "ADetailer": "faces are not drawn a second time (ADetailer)",
    "Clip skip": "layers of the text encoder are not skipped here",
    "TI hashes": "embeddings are looked for only inside LoRA files",
    "Variation seed": "variations of a seed are not drawn",
    "Mask": "inpainting is not done here",
    "Face restoration": "faces are not restored",
    "Tiling": "tiles are not drawn",
    "VAE": "the base's own autoencoder is used",
    "RP ": "regions of Regional Prompter are not read",
    "FreeU": "FreeU is not known here",
    "Styles": "styles of Fooocus are not known here, the prompt is as it was typed",
    "ENSD": "its noise is another one",
    "Dynamic thresholding": "dynamic thresholding is not known here",
    "NGMS": "guidance is not skipped at any step",
    "Eta": "eta is the sampler's own",
    "Skip Early CFG": "guidance is not skipped at any step",
    "Token merging": "tokens are not merged",
    "Sharpness": "Fooocus' sharpness is not known here",
    "ADM Guidance": "Fooocus' guidance by size is not known here",
    "Hypernet": "hypernetworks are not known here",
    "Emphasis": "words are weighed in one way here",
}
_HARMLESS = {
    "Steps",
    "Sampler",
    "Schedule type",
    "CFG scale",
    "Distilled CFG Scale",
    "CFG Rescale",
    "Seed",
    "Size",
    "Model",
    "Model hash",
    "Lora hashes",
    "Lora weights",
    "Version",
    "User",
    "Raw prompt",
    "Raw negative prompt",
    "Velatura mode",
    "Velatura LoRAs",
    "RNG",
    "Created Date",
    "Performance",
    "Scheduler",
    "Hashes",
    "Batch size",
    "Batch pos",
    "Wildcard prompt",
    "Template",
    "Negative Template",
    "Module 1",
    "Module 2",
    "Module 3",
    "Civitai metadata",
    "Diffusion in Low Bits",
}


def laid_on(stack: StackConfig, said: Infotext, library: dict[str, LoraInfo]) -> tuple[StackConfig, list[str]]:
    """The stack with what the text says in its place, LoRAs found in `library`, and a sentence for each thing that couldn't be used.

    A LoRA is found by its name only where the text gives no hash. The base stays: the text names one, but not where it is.
    """
    family = families.registry()[stack.family]
    notes = [f"{shown(tag)} is not known here." for tag in said.unknown] + list(said.notes)
    values = stack.model_dump(exclude_unset=True)
    for key, value in _given(said, family).items():
        if value is None:
            continue
        try:
            parse(StackConfig, {key: value}, "the picture's text")
            values[key] = value
        except ConfigError as error:
            notes.append(f"{shown_error(error)} It stays {getattr(stack, key)}.")
    values |= _sampler(said.sampler, family, notes)
    if family.guidance == "distilled" and values.get("true_guidance_scale", 1) <= 1 and values.pop("negative_prompt", ""):
        notes.append(f"the negative prompt is left out: {family.title} reads one only with true guidance above 1.")
    adapters, lacking = _found(said.loras, library)
    values["adapters"] = adapters[:_MOST_LORAS]
    widest = max((abs(weight or 0) for one in adapters for weight in (one["weight"], one["text_weight"])), default=0)
    if stack.wide_weights or widest > USUAL_WEIGHT:
        values["wide_weights"] = True
    notes += lacking + ([f"it names more than {_MOST_LORAS} LoRAs; the first {_MOST_LORAS} are taken."] if len(adapters) > _MOST_LORAS else [])
    if said.civitai:
        numbers = ", ".join(str(version) for version, _ in said.civitai[:_MOST_NAMED])
        notes.append(f"it also names LoRAs by Civitai's numbers only: {numbers}.")
    return parse(StackConfig, values, "the picture's text"), list(dict.fromkeys(notes))


def shown_error(error: ConfigError) -> str:
    """What is wrong with one value, without the line that says where."""
    text = " ".join(str(error).split("\n", 1)[-1].split())
    return text if len(text) <= 300 else text[:297] + "..."


def _given(said: Infotext, family: Family) -> dict[str, Any]:
    width, height = said.size or (None, None)
    is_distilled = family.guidance == "distilled" and said.distilled_guidance is not None
    return {
        "prompt": said.prompt,
        "negative_prompt": said.negative_prompt,
        "steps": said.steps,
        "seed": said.seed,
        "width_px": width,
        "height_px": height,
        "guidance_scale": said.distilled_guidance if is_distilled else said.guidance_scale,
        "guidance_rescale": None if "flow" in family.prediction else said.guidance_rescale,
        "true_guidance_scale": said.guidance_scale if is_distilled else None,
    }


def _sampler(name: str, family: Family, notes: list[str]) -> dict[str, str]:
    there = fitting(family)
    if name in there:
        return {"sampler": name}
    if (twin := TWINS.get(name)) in there and twin:
        if not twin.startswith("flow_"):
            notes.append(f"the sampler's schedule is for flow, which {family.title} does not predict; it is drawn with {twin}.")
        return {"sampler": twin}
    if name in SAMPLERS:  # Sana's own solver for flow has the name of one that is for noise
        notes.append(f"sampler {name!r} can't be chosen for {family.title}; the stack's stays.")
    elif name:
        notes.append(f"sampler {shown(name)!r} is not known here; the stack's stays.")
    return {}


def _found(loras: tuple[Mention, ...], library: dict[str, LoraInfo]) -> tuple[list[dict[str, Any]], list[str]]:
    adapters, notes = [], []
    for one in loras:
        name, info = shown(one.name), _by_hash(one, library)
        if max(abs(one.weight), abs(one.text_weight or 0)) > WIDEST_WEIGHT:
            notes.append(f"LoRA {name} has the weight {one.weight:g}, which is left out with it; allowed: -{WIDEST_WEIGHT:g} to {WIDEST_WEIGHT:g}.")
            continue
        if info is None and not one.sha256:
            like = naming.matches(one.name, library.values())
            info = like[0] if len(like) == 1 else None
            if info:
                notes.append(f"LoRA {name} was found by its name alone.")
            elif like:
                notes.append(f"LoRA {name} (no hash) could be {', '.join(shown(one.path.name) for one in like[:5])}; it is left out, choose one.")
                continue
        if info is None:
            notes.append(f"LoRA {name} ({f'hash {one.sha256[:12]}' if one.sha256 else 'no hash'}) is not here.")
            continue
        adapters.append({"file": str(info.path), "name": naming.bare(one.name), "sha256": info.sha256, "weight": one.weight, "text_weight": one.text_weight})
    return adapters, notes


def _by_hash(one: Mention, library: dict[str, LoraInfo]) -> LoraInfo | None:
    """The LoRA of that hash: of its tensors, as A1111 counts it, or of the whole file, as Fooocus does, which is asked of those of that name only."""
    if not one.sha256:
        return None
    here = [info for digest, info in library.items() if digest.startswith(one.sha256)]
    here = here or [info for info in naming.matches(one.name, library.values())[:4] if _of_file(info.path).startswith(one.sha256)]
    return here[-1] if here else None


def _of_file(path: Path) -> str:
    """sha256 of a whole file of the library; nothing if it is gone."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else hashlib.sha256(file.read()).hexdigest()
    except OSError:
        return ""


def left_out(stack: StackConfig, said: Infotext) -> list[str]:
    """A sentence for what the picture was made with beyond a stack: another base, further passes, and every other key that is not read."""
    notes: list[str] = []
    own = Path(stack.base).name
    if said.model and naming.base_name(said.model) not in (naming.base_name(own), naming.base_name(stack.base)):
        digest = f" (hash {shown(said.model_hash)})" if said.model_hash else ""
        notes.append(f"it was made on the base {shown(said.model)}{digest}, which is not looked for; it is drawn on {own}: choose another base if you have it.")
    groups: dict[str, list[str]] = {}
    for key, value in said.pairs.items():
        if key in _HARMLESS or not value or (key == "Clip skip" and value == "1"):
            continue
        why = next((words for start, words in _NOT_DONE.items() if key.startswith(start)), "not used")
        groups.setdefault(why, []).append(f"{shown(key)} {shown(value)}")
    for why, keys in groups.items():
        more = f" and {len(keys) - _MOST_NAMED} more" if len(keys) > _MOST_NAMED else ""
        notes.append(f"{', '.join(keys[:_MOST_NAMED])}{more}: {why}.")
    return notes + [f"the prompt has {one}" for one in editing.problems(stack.prompt)[:5]]
