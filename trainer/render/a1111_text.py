"""A1111's text about a picture, both ways: prompt with `<lora:...>`, negative prompt, one line of `key: value` pairs.

It is written as A1111 (modules/infotext_utils.py), Forge, ComfyUI and Civitai read it. What none of them can say stands
under keys that start with `Velatura`, for people to read; our recipe beside the text is what restores it. It is read
from any tool's pictures. Such text comes from outside: it is bounded, nothing in it is trusted, and what can't be used
is named and left out.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from trainer import __version__, families
from trainer.config import AdapterChoice, StackConfig
from trainer.errors import DataError
from trainer.render import lora_lookup, other_tools_pictures, parsed_settings, prompting
from trainer.render.applying_recipe import apply_infotext as apply_infotext
from trainer.render.parsed_settings import Infotext as Infotext
from trainer.render.parsed_settings import Mention as Mention
from trainer.render.sampler_names import A1111 as A1111
from trainer.render.sampler_names import from_a1111
from trainer.render.samplers import SAMPLERS

MAX_CHARS = 1 << 17  # of a picture's text
MAX_SIDECAR_BYTES = 4 << 20
# As A1111's own pattern, but bounded.
_PAIR = re.compile(r'(\w[\w \-/]{1,63}):\s{0,8}("(?:\\.|[^\\"])+"(?=\s{0,8}(?:,|$))|[^,]*)')


# Writing.


def active(stack: StackConfig) -> list[AdapterChoice]:
    """The adapters that do something: on, with a weight other than 0 somewhere."""
    return [adapter for adapter in stack.adapters if adapter.enabled and (adapter.weight or adapter.text_weight)]


def alias(adapter: AdapterChoice) -> str:
    """The name as it can stand in a tag and in `Lora hashes`."""
    return lora_lookup.alias(adapter.name)


def infotext(stack: StackConfig, base_name: str, base_hash: str, sampler: str) -> str:
    """A1111's `parameters` text of a resolved stack.

    `sampler` is ours or a diffusers scheduler's name without "Scheduler"; the stack's own goes before it.
    """
    # LoRAs: as tags in the prompt, by the hash of their tensors, and by Civitai's number where it is known.
    loras = active(stack)
    tags = "".join(" " + _tag(lora) for lora in loras)
    hashes = ", ".join(f"{alias(lora)}: {lora.sha256[:12]}" for lora in loras)
    versions = [(lora, version) for lora in loras if (version := civitai_version(Path(lora.file), lora.sha256))]
    civitai = [{"type": "lora", "weight": lora.weight, "modelVersionId": version} for lora, version in versions]

    # The last line: pairs without a value are left out.
    name, schedule = A1111.get(stack.sampler or known_sampler(sampler), (sampler, ""))
    pairs = {
        "Steps": stack.steps,
        "Sampler": quoted(name),
        "Schedule type": schedule,
        **_guidance(stack),
        "Seed": stack.seed,
        "Size": f"{stack.width_px}x{stack.height_px}",
        "Model hash": base_hash[:10],
        "Model": quoted(base_name),
        "Lora hashes": hashes and json.dumps(hashes, ensure_ascii=False),
        "Velatura mode": stack.mode if stack.mode != "sum" and len(loras) > 1 else "",
        "Velatura LoRAs": quoted("; ".join(filter(None, map(own_settings, loras)))),
        "Civitai resources": civitai and json.dumps(civitai, separators=(",", ":")),
        "Version": f"velatura {__version__}",
    }
    negative = f"Negative prompt: {stack.negative_prompt}\n" if stack.negative_prompt else ""
    line = ", ".join(f"{key}: {value}" for key, value in pairs.items() if value not in ("", []))
    return f"{stack.prompt}{tags}\n{negative}{line}"


def _tag(lora: AdapterChoice) -> str:
    return prompting.tag(prompting.LoraTag(alias(lora), lora.weight, lora.text_weight))


def _guidance(stack: StackConfig) -> dict[str, str]:
    """Guidance as A1111 says it, and Forge where it is an input of the model."""
    family = families.registry()[stack.family]
    if family.guidance == "distilled":
        return {"CFG scale": f"{stack.true_guidance_scale:g}", "Distilled CFG Scale": f"{stack.guidance_scale:g}"}
    scale = {"CFG scale": f"{stack.guidance_scale:g}"}
    if "flow" in family.prediction or not family.rescales:
        return scale
    return scale | {"CFG Rescale": f"{stack.guidance_rescale or 0:g}"}


def own_settings(adapter: AdapterChoice) -> str:
    """An adapter's settings that neither A1111 nor a ComfyUI graph can say, in words; empty if it has none."""
    region = "mask" if adapter.region.strip().startswith("mask") else adapter.region
    settings = {"blocks": " ".join(adapter.blocks), "schedule": adapter.schedule, "region": region}
    words = ", ".join(f"{key} {value}" for key, value in settings.items() if value)
    return words and f"{alias(adapter)}: " + re.sub(r'["\\\s]+', " ", words)


def quoted(text: str) -> str:
    """A value as A1111 quotes it."""
    return json.dumps(text, ensure_ascii=False) if re.search(r"[,:\n]", text) else text


def known_sampler(kind: str) -> str:
    """Our name of a diffusers scheduler as it is without further settings, or nothing."""
    return next(
        (name for name, (scheduler, changes) in SAMPLERS.items() if scheduler == f"{kind}Scheduler" and not changes), ""
    )


def civitai_version(file: Path, sha256: str) -> int | None:
    """Civitai's number of a LoRA's version, from the file `<name>.civitai.info` beside it; None without such a file.

    That file holds what Civitai's API says of the LoRA, saved by Civitai Helper and others; `id` is the version's
    (developer.civitai.com, model-versions). It is not believed if it lists hashes of tensors (AutoV3) and none is this
    file's. LoRA headers have no documented key for the number. Nothing is looked up anywhere.
    """
    try:
        path = file.with_name(f"{file.stem}.civitai.info")
        if not file.name or path.stat().st_size > MAX_SIDECAR_BYTES:
            return None
        values = json.loads(path.read_bytes())
        hashes = [entry.get("hashes", {}).get("AutoV3") for entry in values.get("files", [])]
        version = values.get("id")
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None
    hashes = [text for text in hashes if isinstance(text, str) and text]
    if hashes and sha256[:12] not in {text.lower()[:12] for text in hashes}:
        return None
    return version if type(version) is int and 0 < version < 1 << 53 else None


# Reading.


def parse_infotext(text: str) -> Infotext:
    """What the text says, by A1111's own rules, or those of the tool whose JSON it is.

    Raises: DataError if it is too long to be one.
    """
    if len(text) > MAX_CHARS:
        raise DataError(f"the picture's text has {len(text)} characters; allowed: up to {MAX_CHARS}.")
    if (from_json := other_tools_pictures.from_json_text(text)) is not None:
        return from_json

    # The last line, which some tools break into several. With less than three pairs it is a part of the prompt.
    lines = text.strip().split("\n")
    start = max((number for number, line in enumerate(lines) if line.startswith("Steps: ")), default=len(lines) - 1)
    settings, civitai = _without_civitai(" ".join(lines[start:]))
    pairs = _PAIR.findall(settings)
    if len(pairs) < 3:
        start, pairs = len(lines), []

    # What stands before it.
    prompts: dict[bool, list[str]] = {False: [], True: []}
    is_negative = False
    for line in map(str.strip, lines[:start]):
        if line.startswith("Negative prompt:"):
            is_negative, line = True, line[16:].strip()
        prompts[is_negative].append(line)
    return _read(
        "\n".join(prompts[False]),
        "\n".join(prompts[True]),
        {key.strip(): _unquoted(value.strip()) for key, value in pairs},
        civitai,
    )


def _read(prompt: str, negative_prompt: str, pairs: dict[str, str], civitai: str) -> Infotext:
    """What these parts of a text say, every value still as it stood there."""
    if "Raw prompt" in pairs:  # Fooocus: what stands above is written out in its styles
        prompt, negative_prompt = pairs["Raw prompt"], pairs.get("Raw negative prompt", "")
    tagged, negative = prompting.take_tags(prompt), prompting.take_tags(negative_prompt)

    # LoRAs: one name may be there several times, and its hashes come in the same order.
    hashes = _hashes(pairs.get("Lora hashes", ""))
    loras = [
        Mention(lora.name, lora.weight, lora.text_weight, _next_hash(hashes, lora.name.replace(",", "")))
        for lora in tagged.loras
    ]
    loras += _fooocus_loras(pairs.get("Lora weights", ""), hashes)

    # Numbers.
    steps, seed = parsed_settings.whole(pairs.get("Steps")), parsed_settings.whole(pairs.get("Seed"))
    size = _size(pairs.get("Size", ""))
    scale, distilled, rescale = (
        parsed_settings.decimal(pairs.get(key)) for key in ("CFG scale", "Distilled CFG Scale", "CFG Rescale")
    )
    numbers = {
        "Steps": steps,
        "Seed": seed,
        "Size": size,
        "CFG scale": scale,
        "Distilled CFG Scale": distilled,
        "CFG Rescale": rescale,
    }

    # What could not be used.
    notes = parsed_settings.unread(pairs, numbers)
    if negative.loras or negative.unknown:
        tags = [parsed_settings.shown(tag) for tag in (*map(prompting.tag, negative.loras), *negative.unknown)]
        notes.append(
            f"{', '.join(tags[:5])} in the negative prompt {'are' if len(tags) > 1 else 'is'} left out; LoRAs are "
            f"named in the prompt."
        )
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


def _fooocus_loras(text: str, hashes: dict[str, list[str]]) -> list[Mention]:
    """LoRAs of Fooocus' `name: 0.5, other: 1`, whose prompts have no tags."""
    parts = [part.rpartition(":") for part in text.split(",")[:64]]
    weights = [(name.strip(), parsed_settings.decimal(weight)) for name, _, weight in parts if name.strip()]
    return [Mention(name, weight, None, _next_hash(hashes, name)) for name, weight in weights if weight is not None]


def _without_civitai(line: str) -> tuple[str, str]:
    """The line without Civitai's list, which is JSON with commas and no quotes around it; and the list."""
    before, _, behind = line.partition("Civitai resources:")
    listed, end, after = behind.partition("]")
    return (before + after, listed + end) if end else (line, "")


def _unquoted(value: str) -> str:
    """A value without A1111's quotes, if it has them."""
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    try:
        text = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return text if isinstance(text, str) else value


def _hashes(text: str) -> dict[str, list[str]]:
    """The hashes of `name: hash, other: hash` by name, in their order."""
    hashes: dict[str, list[str]] = {}
    for part in text.split(","):
        name, _, digest = (piece.strip() for piece in part.rpartition(":"))
        if digest := parsed_settings.digest(digest):
            hashes.setdefault(name, []).append(digest)
    return hashes


def _next_hash(hashes: dict[str, list[str]], name: str) -> str:
    """The first hash of that name, which is taken out; nothing if there is none left."""
    return (hashes.get(name) or [""]).pop(0)


def _size(text: str) -> tuple[int, int] | None:
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    return (int(match[1]), int(match[2])) if match else None


def _civitai(text: str) -> tuple[tuple[int, float], ...]:
    """Version and weight of the LoRAs in Civitai's list, up to 64."""
    try:
        entries = json.loads(text or "[]")
        loras = [entry for entry in entries if isinstance(entry, dict) and "lora" in str(entry.get("type", "")).lower()]
    except (ValueError, TypeError, RecursionError):
        return ()
    pairs = [(lora.get("modelVersionId"), lora.get("weight", 1.0)) for lora in loras]
    return tuple(
        (version, float(weight))
        for version, weight in pairs
        if type(version) is int and 0 < version < 1 << 53 and type(weight) in (int, float)
    )[:64]
