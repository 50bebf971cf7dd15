"""A1111's text about a picture, both ways: prompt with `<lora:...>`, negative prompt, one line of `key: value` pairs.

Written as A1111 (modules/infotext_utils.py), Forge, ComfyUI and Civitai read it. What none of them can say stands under keys that start
with `Velatura` for people to read; our recipe beside the text is what restores it. Read from any tool's pictures: text from outside,
so it is bounded, nothing in it is trusted, and what can't be used is named and left out.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from trainer import __version__, families
from trainer.config import AdapterChoice, StackConfig
from trainer.errors import DataError
from trainer.render import foreign, naming, picture_recipe, prompting
from trainer.render.applying_recipe import laid_on as laid_on
from trainer.render.picture_recipe import Infotext as Infotext
from trainer.render.picture_recipe import Mention as Mention
from trainer.render.sampler_names import A1111 as A1111
from trainer.render.sampler_names import from_a1111
from trainer.render.samplers import SAMPLERS

MAX_CHARS = 1 << 17
MAX_SIDECAR_BYTES = 4 << 20
_PAIR = re.compile(r'(\w[\w \-/]{1,63}):\s{0,8}("(?:\\.|[^\\"])+"(?=\s{0,8}(?:,|$))|[^,]*)')


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
    rescale = {} if "flow" in family.prediction or not family.rescales else {"CFG Rescale": f"{stack.guidance_rescale or 0:g}"}
    return {"CFG scale": f"{stack.guidance_scale:g}"} | rescale


def beyond(adapter: AdapterChoice) -> str:
    """What of an adapter neither A1111 nor a ComfyUI graph can say, in words; empty if there is nothing."""
    region = "mask" if adapter.region.strip().startswith("mask") else adapter.region
    settings = {"blocks": " ".join(adapter.blocks), "schedule": adapter.schedule, "region": region}
    words = ", ".join(f"{key} {value}" for key, value in settings.items() if value)
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
    """What the text says, by A1111's own rules, or those of the tool whose JSON it is. Raises: DataError if it is too long to be one."""
    if len(text) > MAX_CHARS:
        raise DataError(f"the picture's text has {len(text)} characters; allowed: up to {MAX_CHARS}.")
    if (found := foreign.from_json_text(text)) is not None:
        return found
    lines = text.strip().split("\n")
    start = max((number for number, line in enumerate(lines) if line.startswith("Steps: ")), default=len(lines) - 1)
    last, civitai = _without_civitai(" ".join(lines[start:]))
    pairs = _PAIR.findall(last)
    if len(pairs) < 3:
        start, pairs = len(lines), []
    prompts: dict[bool, list[str]] = {False: [], True: []}
    is_negative = False
    for line in map(str.strip, lines[:start]):
        if line.startswith("Negative prompt:"):
            is_negative, line = True, line[16:].strip()
        prompts[is_negative].append(line)
    return _read("\n".join(prompts[False]), "\n".join(prompts[True]), {key.strip(): _unquoted(value.strip()) for key, value in pairs}, civitai)


def _read(prompt: str, negative_prompt: str, pairs: dict[str, str], civitai: str) -> Infotext:
    if "Raw prompt" in pairs:  # Fooocus: what stands above is written out in its styles
        prompt, negative_prompt = pairs["Raw prompt"], pairs.get("Raw negative prompt", "")
    tagged, negative = prompting.take_tags(prompt), prompting.take_tags(negative_prompt)
    hashes = _hashes(pairs.get("Lora hashes", ""))
    loras = [Mention(one.name, one.weight, one.text_weight, (hashes.get(one.name.replace(",", "")) or [""]).pop(0)) for one in tagged.loras]
    loras += _weighed(pairs.get("Lora weights", ""), hashes)
    steps, seed, size = picture_recipe.whole(pairs.get("Steps")), picture_recipe.whole(pairs.get("Seed")), _size(pairs.get("Size", ""))
    scale, distilled, rescale = (picture_recipe.decimal(pairs.get(key)) for key in ("CFG scale", "Distilled CFG Scale", "CFG Rescale"))
    read = {"Steps": steps, "Seed": seed, "Size": size, "CFG scale": scale, "Distilled CFG Scale": distilled, "CFG Rescale": rescale}
    notes = picture_recipe.unread(pairs, read)
    if negative.loras or negative.unknown:
        tags = [picture_recipe.shown(one) for one in (*map(prompting.tag, negative.loras), *negative.unknown)]
        notes.append(f"{', '.join(tags[:5])} in the negative prompt {'are' if len(tags) > 1 else 'is'} left out; LoRAs are named in the prompt.")
    return Infotext(
        prompt=tagged.prompt,
        negative_prompt=negative.prompt,
        loras=tuple(loras),
        steps=steps,
        sampler=from_a1111(pairs.get("Sampler", ""), pairs.get("Schedule type", "")),
        guidance_scale=scale,
        distilled_guidance=distilled,
        guidance_rescale=rescale,
        seed=seed,
        size=size,
        model=pairs.get("Model", ""),
        model_hash=pairs.get("Model hash", ""),
        civitai=_civitai(civitai),
        pairs=pairs,
        unknown=tagged.unknown,
        notes=tuple(notes),
    )


def _weighed(text: str, hashes: dict[str, list[str]]) -> list[Mention]:
    """Fooocus' `name: 0.5, other: 1`, whose prompts have no tags."""
    parts = [part.rpartition(":") for part in text.split(",")[:64]]
    found = [(name.strip(), picture_recipe.decimal(weight)) for name, _, weight in parts if name.strip()]
    return [Mention(name, weight, None, (hashes.get(name) or [""]).pop(0)) for name, weight in found if weight is not None]


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
        if digest := picture_recipe.digest(digest):
            found.setdefault(name, []).append(digest)
    return found


def _size(text: str) -> tuple[int, int] | None:
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    return (int(match[1]), int(match[2])) if match else None


def _civitai(text: str) -> tuple[tuple[int, float], ...]:
    try:
        found = json.loads(text or "[]")
        loras = [one for one in found if isinstance(one, dict) and "lora" in str(one.get("type", "")).lower()]
    except (ValueError, TypeError, RecursionError):
        return ()
    pairs = [(one.get("modelVersionId"), one.get("weight", 1.0)) for one in loras]
    return tuple((version, float(weight)) for version, weight in pairs if type(version) is int and 0 < version < 1 << 53 and type(weight) in (int, float))[:64]
