"""A1111's text about a picture, both ways: prompt with `<lora:...>`, negative prompt, one line of `key: value` pairs.

Written as A1111 (modules/infotext_utils.py), Forge, ComfyUI and Civitai read it. What none of them can say stands under keys that start
with `Velatura` for people to read; our recipe beside the text is what restores it. Read from any tool's pictures: text from outside,
so it is bounded, nothing in it is trusted, and what can't be used is named and left out.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer import __version__, families
from trainer.config import AdapterChoice, StackConfig, parse
from trainer.config.stack import USUAL_WEIGHT
from trainer.errors import ConfigError, DataError
from trainer.lora_file import LoraInfo
from trainer.render import naming, prompting
from trainer.render.samplers import SAMPLERS, fitting

MAX_CHARS = 1 << 17
MAX_SIDECAR_BYTES = 4 << 20
# Our samplers as A1111 names them: sampler and, where it isn't that sampler's usual one, schedule type.
A1111: dict[str, tuple[str, str]] = {
    "ddim": ("DDIM", ""),
    "ddpm": ("DDPM", ""),
    "euler": ("Euler", ""),
    "euler_a": ("Euler a", ""),
    "heun": ("Heun", ""),
    "lms": ("LMS", ""),
    "dpm++_2m": ("DPM++ 2M", "Uniform"),
    "dpm++_2m_karras": ("DPM++ 2M", "Karras"),
    "dpm++_2m_sde": ("DPM++ 2M SDE", "Uniform"),
    "unipc": ("UniPC", ""),
    "flow_euler": ("Euler", "Simple"),
    "flow_heun": ("Heun", "Simple"),
}
_PAIR = re.compile(r'(\w[\w \-/]{1,63}):\s{0,8}("(?:\\.|[^\\"])+"(?=\s{0,8}(?:,|$))|[^,]*)')
_HASH = re.compile(r"[0-9a-f]{8,64}")
_WHOLE, _DECIMAL = re.compile(r"\d{1,10}"), re.compile(r"\d{1,4}(?:\.\d{1,6})?")


@dataclass(frozen=True)
class Mention:
    """A LoRA that the text names; `sha256` is the start of its hash, or nothing."""

    name: str
    weight: float
    text_weight: float | None = None
    sha256: str = ""


@dataclass(frozen=True)
class Infotext:
    """What a picture's text says; None or empty where it doesn't."""

    prompt: str = ""  # without tags
    negative_prompt: str = ""
    loras: tuple[Mention, ...] = ()
    steps: int | None = None
    sampler: str = ""  # ours, or as it stands there if we have none such
    guidance_scale: float | None = None
    distilled_guidance: float | None = None  # Forge's, of FLUX.1; `guidance_scale` is then the true one
    guidance_rescale: float | None = None
    seed: int | None = None
    size: tuple[int, int] | None = None  # width, height
    model: str = ""
    model_hash: str = ""
    civitai: tuple[tuple[int, float], ...] = ()  # model version and weight of LoRAs named by nothing else
    pairs: dict[str, str] = field(default_factory=dict)  # every key as it stands there
    unknown: tuple[str, ...] = ()  # tags that mean nothing here


# Writing.


def active(stack: StackConfig) -> list[AdapterChoice]:
    """The adapters that do something: on, with a weight other than 0 somewhere."""
    return [adapter for adapter in stack.adapters if adapter.enabled and (adapter.weight or adapter.text_weight)]


def alias(adapter: AdapterChoice) -> str:
    """The name as it can stand in a tag and in `Lora hashes`."""
    return naming.alias(adapter.name)


def infotext(stack: StackConfig, base_name: str, base_hash: str, sampler: str, drawn: str | None = None) -> str:
    """A1111's `parameters` text of a resolved stack.

    `sampler` is ours or a diffusers scheduler's name without "Scheduler"; the stack's own goes before it. `drawn` is the prompt as it was
    drawn, if wildcards or trigger words made it another.
    """
    loras = active(stack)
    tags = "".join(" " + prompting.tag(prompting.LoraTag(alias(one), one.weight, one.text_weight)) for one in loras)
    hashes = ", ".join(f"{alias(one)}: {one.sha256[:12]}" for one in loras)
    versions = [(one, version) for one in loras if (version := civitai_version(Path(one.file), one.sha256))]
    civitai = [{"type": "lora", "weight": one.weight, "modelVersionId": version} for one, version in versions]
    name, schedule = A1111.get(stack.sampler or known_sampler(sampler), (sampler, ""))
    pairs = {
        "Steps": stack.steps, "Sampler": quoted(name), "Schedule type": schedule, **_guidance(stack), "Seed": stack.seed,
        "Size": f"{stack.width_px}x{stack.height_px}", "Model hash": base_hash[:10], "Model": quoted(base_name),
        "Lora hashes": hashes and json.dumps(hashes, ensure_ascii=False),
        "Velatura mode": stack.mode if stack.mode != "sum" and len(loras) > 1 else "", "Velatura LoRAs": quoted("; ".join(filter(None, map(beyond, loras)))),
        "Civitai resources": civitai and json.dumps(civitai, separators=(",", ":")), "Version": f"velatura {__version__}",
    }  # fmt: skip
    negative = f"Negative prompt: {stack.negative_prompt}\n" if stack.negative_prompt else ""
    line = ", ".join(f"{key}: {value}" for key, value in pairs.items() if value not in ("", []))
    return f"{stack.prompt if drawn is None else drawn}{tags}\n{negative}{line}"


def _guidance(stack: StackConfig) -> dict[str, str]:
    """As A1111 says it, and Forge where guidance is an input of the model."""
    family = families.registry()[stack.family]
    if family.guidance == "distilled":
        return {"CFG scale": f"{stack.true_guidance_scale:g}", "Distilled CFG Scale": f"{stack.guidance_scale:g}"}
    rescale = {} if "flow" in family.prediction or not getattr(family, "rescales", True) else {"CFG Rescale": f"{stack.guidance_rescale or 0:g}"}
    return {"CFG scale": f"{stack.guidance_scale:g}"} | rescale


def beyond(adapter: AdapterChoice) -> str:
    """What of an adapter neither A1111 nor a ComfyUI graph can say, in words; empty if there is nothing."""
    region = "mask" if adapter.region.strip().startswith("mask") else adapter.region
    said = {"blocks": " ".join(adapter.blocks), "schedule": adapter.schedule, "region": region}
    words = ", ".join(f"{key} {value}" for key, value in said.items() if value)
    return words and f"{alias(adapter)}: " + re.sub(r'["\\\s]+', " ", words)


def quoted(text: str) -> str:
    """A value as A1111 quotes it."""
    return json.dumps(text, ensure_ascii=False) if re.search(r"[,:\n]", text) else text


def known_sampler(kind: str) -> str:
    """Our name of a diffusers scheduler as it is without further settings, or nothing."""
    return next((name for name, (scheduler, changes) in SAMPLERS.items() if scheduler == f"{kind}Scheduler" and not changes), "")


def civitai_version(file: Path, sha256: str) -> int | None:
    """The model version that the side-car `<name>.civitai.info` of a LoRA gives: what Civitai's API says of it, saved by Civitai Helper and others.

    `id` is the version's (developer.civitai.com, model-versions). Not believed if it lists hashes of tensors (AutoV3) and none is this
    file's. LoRA headers have no documented key for it. Nothing is looked up anywhere.
    """
    try:
        path = file.with_name(f"{file.stem}.civitai.info")
        if not file.name or path.stat().st_size > MAX_SIDECAR_BYTES:
            return None
        found = json.loads(path.read_bytes())
        hashes = [entry.get("hashes", {}).get("AutoV3") for entry in found.get("files", [])]
        version = found.get("id")
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None
    ours = [one for one in hashes if isinstance(one, str) and one]
    if ours and sha256[:12] not in {one.lower()[:12] for one in ours}:
        return None
    return version if type(version) is int and 0 < version < 1 << 53 else None


# Reading.


def parse_infotext(text: str) -> Infotext:
    """What the text says, by A1111's own rules. Raises: DataError if it is too long to be one."""
    if len(text) > MAX_CHARS:
        raise DataError(f"the picture's text has {len(text)} characters; allowed: up to {MAX_CHARS}.")
    lines = text.strip().split("\n")
    start = max((number for number, line in enumerate(lines) if line.startswith("Steps: ")), default=len(lines) - 1)
    last, civitai = _without_civitai(" ".join(lines[start:]))
    found = _PAIR.findall(last)
    if len(found) < 3:
        start, found = len(lines), []
    said: dict[bool, list[str]] = {False: [], True: []}
    is_negative = False
    for line in map(str.strip, lines[:start]):
        if line.startswith("Negative prompt:"):
            is_negative, line = True, line[16:].strip()
        said[is_negative].append(line)
    tagged = prompting.take_tags("\n".join(said[False]))
    pairs = {key.strip(): _unquoted(value.strip()) for key, value in found}
    hashes = _hashes(pairs.get("Lora hashes", ""))
    return Infotext(
        prompt=tagged.prompt,
        negative_prompt="\n".join(said[True]),
        loras=tuple(Mention(one.name, one.weight, one.text_weight, (hashes.get(one.name.replace(",", "")) or [""]).pop(0)) for one in tagged.loras),
        steps=_whole(pairs.get("Steps", "")),
        sampler=_sampler(pairs.get("Sampler", ""), pairs.get("Schedule type", "")),
        guidance_scale=_decimal(pairs.get("CFG scale", "")),
        distilled_guidance=_decimal(pairs.get("Distilled CFG Scale", "")),
        guidance_rescale=_decimal(pairs.get("CFG Rescale", "")),
        seed=_whole(pairs.get("Seed", "")),
        size=_size(pairs.get("Size", "")),
        model=pairs.get("Model", ""),
        model_hash=pairs.get("Model hash", ""),
        civitai=_civitai(civitai),
        pairs=pairs,
        unknown=tagged.unknown,
    )


def _without_civitai(line: str) -> tuple[str, str]:
    """The line without Civitai's list, which is JSON with commas and no quotes around it; and the list."""
    before, key, rest = line.partition("Civitai resources:")
    listed, end, after = rest.partition("]")
    return (before + after, listed + end) if end else (line, "")


def _unquoted(value: str) -> str:
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return found if isinstance(found, str) else value


def _hashes(text: str) -> dict[str, list[str]]:
    """`name: hash, other: hash` -> hashes by name, in their order."""
    found: dict[str, list[str]] = {}
    for part in text.split(","):
        name, _, digest = (piece.strip() for piece in part.rpartition(":"))
        if _HASH.fullmatch(digest.lower()):
            found.setdefault(name, []).append(digest.lower())
    return found


def _whole(text: str) -> int | None:
    return int(text) if _WHOLE.fullmatch(text) else None


def _decimal(text: str) -> float | None:
    return float(text) if _DECIMAL.fullmatch(text) else None


def _size(text: str) -> tuple[int, int] | None:
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    return (int(match[1]), int(match[2])) if match else None


def _sampler(name: str, schedule: str) -> str:
    """Before A1111 1.9 the schedule stood behind the sampler's name, and nothing stood for the plain one."""
    if match := re.fullmatch(r"(.{1,60}) (Karras|Exponential|Polyexponential)", name):
        name, schedule = match[1], match[2]
    plain = ("", "Automatic", "Uniform")
    fitting = [ours for ours, (theirs, kind) in A1111.items() if theirs == name and (kind == schedule or (kind in plain and schedule in plain))]
    return fitting[0] if fitting else name


def _civitai(text: str) -> tuple[tuple[int, float], ...]:
    try:
        found = json.loads(text or "[]")
        loras = [one for one in found if isinstance(one, dict) and "lora" in str(one.get("type", "")).lower()]
    except (ValueError, TypeError, RecursionError):
        return ()
    pairs = [(one.get("modelVersionId"), one.get("weight", 1.0)) for one in loras]
    return tuple((version, float(weight)) for version, weight in pairs if type(version) is int and 0 < version < 1 << 53 and type(weight) in (int, float))[:64]


def laid_on(stack: StackConfig, said: Infotext, library: dict[str, LoraInfo]) -> tuple[StackConfig, list[str]]:
    """The stack with what the text says in its place, LoRAs found in `library` by hash, and a sentence for each thing that couldn't be used.

    A LoRA is found by its name only where the text gives no hash. The base stays: the text names one, but not where it is.
    """
    width, height = said.size or (None, None)
    family = families.registry()[stack.family]
    is_distilled = family.guidance == "distilled" and said.distilled_guidance is not None
    given: dict[str, Any] = {
        "prompt": said.prompt, "negative_prompt": said.negative_prompt, "steps": said.steps, "seed": said.seed, "width_px": width, "height_px": height,
        "guidance_scale": said.distilled_guidance if is_distilled else said.guidance_scale,
        "guidance_rescale": None if "flow" in family.prediction else said.guidance_rescale,
        "true_guidance_scale": said.guidance_scale if is_distilled else None,
    }  # fmt: skip
    notes = [f"{tag[:80]} is not known here." for tag in said.unknown]
    values = stack.model_dump()
    for key, value in given.items():
        if value is None:
            continue
        try:
            parse(StackConfig, {key: value}, "the picture's text")
            values[key] = value
        except ConfigError as error:
            notes.append(str(error).split("\n", 1)[-1].strip())
    if said.sampler in fitting(family):
        values["sampler"] = said.sampler
    elif said.sampler in SAMPLERS:  # Sana's own solver for flow has the name of one that is for noise
        notes.append(f"sampler {said.sampler!r} can't be chosen for {family.title}; the stack's stays.")
    elif said.sampler:
        notes.append(f"sampler {said.sampler[:80]!r} is not known here.")
    adapters, lacking = _found(said.loras, library)
    limit = len(adapters) > 32
    values["adapters"] = adapters[:32]
    values["wide_weights"] = stack.wide_weights or any(abs(weight or 0) > USUAL_WEIGHT for one in adapters for weight in (one["weight"], one["text_weight"]))
    notes += lacking + (["it names more than 32 LoRAs; the first 32 are taken."] if limit else [])
    if said.civitai:
        notes.append(f"it also names LoRAs by Civitai's numbers only: {', '.join(str(version) for version, _ in said.civitai)}.")
    return parse(StackConfig, values, "the picture's text"), notes


def _found(loras: tuple[Mention, ...], library: dict[str, LoraInfo]) -> tuple[list[dict[str, Any]], list[str]]:
    adapters, notes = [], []
    for one in loras:
        if one.sha256:
            here = [info for digest, info in library.items() if digest.startswith(one.sha256)]
        else:
            here = [info for info in library.values() if info.name == one.name]
        if not here:
            notes.append(f"LoRA {one.name[:80]} ({f'hash {one.sha256[:12]}' if one.sha256 else 'no hash'}) is not here.")
            continue
        info = here[-1]
        adapters.append({"file": str(info.path), "name": one.name, "sha256": info.sha256, "weight": one.weight, "text_weight": one.text_weight})
        if not one.sha256:
            notes.append(f"LoRA {one.name[:80]} was found by its name alone.")
    return adapters, notes
