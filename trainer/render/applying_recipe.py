"""What a picture says of itself, put into a stack: LoRAs found here by hash or name, and a sentence for everything that
could not be used.

Names and hashes are compared with what the library offers; nothing that a picture names is opened. The base stays the
stack's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer import families, files
from trainer.config import StackConfig, parse
from trainer.config.stack import USUAL_WEIGHT, WIDEST_WEIGHT
from trainer.errors import ConfigError
from trainer.families.contract import Family
from trainer.lora_file import LoraInfo
from trainer.printing import some
from trainer.render import lora_lookup, prompt_editing
from trainer.render.parsed_settings import MOST_NAMED, Infotext, Mention, shown
from trainer.render.sampler_names import TWINS
from trainer.render.samplers import SAMPLERS, fitting

_MOST_LORAS = 32
# What A1111, Forge and their extensions write that changes a picture and has no counterpart here: the start of the key,
# and why it is not done.
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
# Keys that change no picture, or that are read.
_HARMLESS = {
    "Steps", "Sampler", "Schedule type", "CFG scale", "Distilled CFG Scale", "CFG Rescale", "Seed", "Size",
    "Model", "Model hash", "Lora hashes", "Lora weights", "Version", "User", "Raw prompt",
    "Raw negative prompt", "Velatura mode", "Velatura LoRAs", "RNG", "Created Date", "Performance", "Scheduler",
    "Hashes", "Batch size", "Batch pos", "Wildcard prompt", "Template", "Negative Template", "Module 1",
    "Module 2", "Module 3", "Civitai metadata", "Diffusion in Low Bits",
}  # fmt: skip


def apply_infotext(stack: StackConfig, text: Infotext, library: dict[str, LoraInfo]) -> tuple[StackConfig, list[str]]:
    """The stack with what a picture's text says in its place, and a sentence for each thing that couldn't be used.

    LoRAs are those of `library`; one is found by its name only where the text gives no hash. The base stays: the text
    names one, but not where it is.
    """
    family = families.registry()[stack.family]
    notes = [f"{shown(tag)} is not known here." for tag in text.unknown] + list(text.notes)

    # Settings, each tried for itself, so that a setting that can't be used doesn't cost the others.
    values = stack.model_dump(exclude_unset=True)
    for key, value in _settings(text, family).items():
        if value is None:
            continue
        try:
            parse(StackConfig, {key: value}, "the picture's text")
            values[key] = value
        except ConfigError as error:
            notes.append(f"{shown_error(error)} It stays {getattr(stack, key)}.")
    values |= _sampler(text.sampler, family, notes)

    # A negative prompt that nothing would read is refused when the stack is drawn (`family_checks`).
    takes_no_negative = family.guidance == "distilled" and values.get("true_guidance_scale", 1) <= 1
    if takes_no_negative and values.pop("negative_prompt", ""):
        notes.append(f"the negative prompt is left out: {family.title} reads one only with true guidance above 1.")

    # LoRAs.
    adapters, notes_on_loras = _adapters(text.loras, library)
    values["adapters"] = adapters[:_MOST_LORAS]
    given_weights = (adapter[key] for adapter in adapters for key in ("weight", "text_weight"))
    widest = max((abs(weight or 0) for weight in given_weights), default=0)
    if stack.wide_weights or widest > USUAL_WEIGHT:
        values["wide_weights"] = True
    notes += notes_on_loras
    if len(adapters) > _MOST_LORAS:
        notes.append(f"it names more than {_MOST_LORAS} LoRAs; the first {_MOST_LORAS} are taken.")
    if text.civitai:
        numbers = ", ".join(str(version) for version, _ in text.civitai[:MOST_NAMED])
        notes.append(f"it also names LoRAs by Civitai's numbers only: {numbers}.")
    return parse(StackConfig, values, "the picture's text"), list(dict.fromkeys(notes))


def shown_error(error: ConfigError) -> str:
    """What is wrong with one value, without the line that says where."""
    text = " ".join(str(error).split("\n", 1)[-1].split())
    return text if len(text) <= 300 else text[:297] + "..."


def _settings(text: Infotext, family: Family) -> dict[str, Any]:
    """The text's settings by their keys in a StackConfig; None for what it doesn't say."""
    width, height = text.size or (None, None)
    is_distilled = family.guidance == "distilled" and text.distilled_guidance is not None
    return {
        "prompt": text.prompt,
        "negative_prompt": text.negative_prompt,
        "steps": text.steps,
        "seed": text.seed,
        "width_px": width,
        "height_px": height,
        "guidance_scale": text.distilled_guidance if is_distilled else text.guidance_scale,
        "guidance_rescale": None if "flow" in family.prediction else text.guidance_rescale,
        "true_guidance_scale": text.guidance_scale if is_distilled else None,
    }


def _sampler(name: str, family: Family, notes: list[str]) -> dict[str, str]:
    """The sampler as a setting, if the family has it or its twin; else nothing. What differs is added to `notes`."""
    samplers = fitting(family)
    if name in samplers:
        return {"sampler": name}
    if (twin := TWINS.get(name)) in samplers and twin:
        if not twin.startswith("flow_"):
            notes.append(
                f"the sampler's schedule is for flow, which {family.title} does not predict; it is drawn with {twin}."
            )
        return {"sampler": twin}
    if name in SAMPLERS:  # Sana's own solver for flow has the name of a solver for noise
        notes.append(f"sampler {name!r} can't be chosen for {family.title}; the stack's stays.")
    elif name:
        notes.append(f"sampler {shown(name)!r} is not known here; the stack's stays.")
    return {}


def _adapters(loras: tuple[Mention, ...], library: dict[str, LoraInfo]) -> tuple[list[dict[str, Any]], list[str]]:
    """The LoRAs that are here, as a stack's adapters, and a sentence for each that isn't, or only likely is."""
    adapters, notes = [], []
    for lora in loras:
        name, info = shown(lora.name), _by_hash(lora, library)
        if max(abs(lora.weight), abs(lora.text_weight or 0)) > WIDEST_WEIGHT:
            notes.append(
                f"LoRA {name} has the weight {lora.weight:g}, which is left out with it; allowed: -{WIDEST_WEIGHT:g} "
                f"to {WIDEST_WEIGHT:g}."
            )
            continue
        # Without a hash the name decides, if it can.
        if info is None and not lora.sha256:
            candidates = lora_lookup.matches(lora.name, library.values())
            info = candidates[0] if len(candidates) == 1 else None
            if info:
                notes.append(f"LoRA {name} was found by its name alone.")
            elif candidates:
                names = ", ".join(shown(candidate.path.name) for candidate in candidates[:5])
                notes.append(f"LoRA {name} (no hash) could be {names}; it is left out, choose one.")
                continue
        if info is None:
            notes.append(f"LoRA {name} ({f'hash {lora.sha256[:12]}' if lora.sha256 else 'no hash'}) is not here.")
            continue
        adapters.append(
            {
                "file": str(info.path),
                "name": lora_lookup.bare(lora.name),
                "sha256": info.sha256,
                "weight": lora.weight,
                "text_weight": lora.text_weight,
            }
        )
    return adapters, notes


def _by_hash(lora: Mention, library: dict[str, LoraInfo]) -> LoraInfo | None:
    """The LoRA of that hash: of its tensors, as A1111 counts it, or of the whole file, as Fooocus does.

    Whole files take long to read, so that only those of the same name are.
    """
    if not lora.sha256:
        return None
    matches = [info for digest, info in library.items() if digest.startswith(lora.sha256)]
    matches = matches or [
        info
        for info in lora_lookup.matches(lora.name, library.values())[:4]
        if _of_file(info.path).startswith(lora.sha256)
    ]
    return matches[-1] if matches else None


def _of_file(path: Path) -> str:
    """sha256 of a whole file of the library; nothing if it is gone."""
    try:
        return files.sha256(path)
    except OSError:
        return ""


def left_out(stack: StackConfig, text: Infotext) -> list[str]:
    """A sentence for what the picture was made with beyond a stack.

    That is another base, further passes, and every other key that is not read.
    """
    notes: list[str] = []

    # The base.
    own = Path(stack.base).name
    if text.model and lora_lookup.base_name(text.model) not in (
        lora_lookup.base_name(own),
        lora_lookup.base_name(stack.base),
    ):
        digest = f" (hash {shown(text.model_hash)})" if text.model_hash else ""
        notes.append(
            f"it was made on the base {shown(text.model)}{digest}, which is not looked for; it is drawn on {own}: "
            f"choose another base if you have it."
        )

    # Other keys, those with one reason in one sentence.
    pairs_by_reason: dict[str, list[str]] = {}
    for key, value in text.pairs.items():
        if key in _HARMLESS or not value or (key == "Clip skip" and value == "1"):
            continue
        reason = next((words for start, words in _NOT_DONE.items() if key.startswith(start)), "not used")
        pairs_by_reason.setdefault(reason, []).append(f"{shown(key)} {shown(value)}")
    notes += [f"{some(pairs, most=MOST_NAMED)}: {reason}." for reason, pairs in pairs_by_reason.items()]
    return notes + [f"the prompt has {problem}" for problem in prompt_editing.problems(stack.prompt)[:5]]
