"""README.md of a published run: a model card as the Hugging Face hub reads it, with what was measured in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from huggingface_hub import ModelCardData

from trainer import __version__, console, printing
from trainer.publishing.facts import Facts, family_title

_PIPELINE = "text-to-image"


def text(facts: Facts, images: Sequence[str], repo: str) -> str:
    """The card; `images` are the samples' files beside it, `repo` what the hub calls the folder."""
    parts = [
        f"# {plain(facts.title)}",
        "<Gallery />",
        _about(facts),
        _use(facts, repo),
        _evidence(facts),
        _loads(facts),
        _settings(facts),
        f"## Licence\n\n`{facts.licence.id}`. {facts.licence.why}",
        _made_with(facts),
    ]
    return f"---\n{_head(facts, images)}\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def _head(facts: Facts, images: Sequence[str]) -> str:
    """The YAML that the hub reads."""
    widget = [
        {"text": sample.prompt, "output": {"url": image}} for sample, image in zip(facts.samples, images, strict=True)
    ]
    more: dict[str, Any] = {"instance_prompt": facts.trigger} if facts.trigger else {}
    data = ModelCardData(
        base_model=facts.base if facts.is_on_hub else None,
        library_name="diffusers",
        license=facts.licence.id,
        pipeline_tag=_PIPELINE,
        tags=[_PIPELINE, "lora", "diffusers", "template:sd-lora", facts.config.family],
        widget=widget,
        **more,
    )
    return str(data.to_yaml())


def _made_with(facts: Facts) -> str:
    file = f"{facts.file_name}.safetensors"
    again = f" Its recipe is in the file: `velatura train {file} --data FOLDER` trains as it was trained."
    return f"Made with Velatura {__version__}." + (again if facts.lora.recipe else "")


def _about(facts: Facts) -> str:
    lines = [
        f"A {facts.lora.method} of rank {facts.lora.rank} for {plain(facts.base)} ({family_title(facts)})"
        + (f", by {plain(facts.author)}." if facts.author else ".")
    ]
    lines += [plain(facts.note)] if facts.note else []
    lines += [f"Trigger words: `{_code(facts.trigger)}`" if facts.trigger else "It needs no trigger words."]
    return "\n\n".join(lines)


def _use(facts: Facts, repo: str) -> str:
    """How diffusers loads it, where it does."""
    ours = next((place for place in facts.lora.places if place.tool == "diffusers"), None)
    # Code only for a base that can be fetched and a file that diffusers loads.
    if not facts.is_on_hub or ours is None or ours.verdict != "yes":
        return ""
    # Below, a prompt mustn't end the block of code that it stands in.
    prompt = facts.samples[0].prompt if facts.samples else facts.trigger
    return (
        "## Use\n\n```python\nimport torch\nfrom diffusers import AutoPipelineForText2Image\n\n"
        f"pipe = AutoPipelineForText2Image.from_pretrained({facts.base!r}, torch_dtype=torch.bfloat16)\n"
        f"pipe.load_lora_weights({repo!r}, weight_name={f'{facts.file_name}.safetensors'!r})\n"
        f"image = pipe({prompt.replace('```', '')!r}).images[0]\n```"
    )


def _evidence(facts: Facts) -> str:
    """What was measured."""
    rows = [("pictures", str(facts.num_pictures) if facts.num_pictures else "not known"), ("steps", str(facts.step))]
    rows += [("times each picture was seen", f"about {facts.passes}")] if facts.passes else []
    if facts.measured:
        low, high = 100 * facts.measured.gain_low, 100 * facts.measured.gain_high
        rows.append(
            (
                f"loss on {facts.measured.num_pictures} pictures it never saw",
                f"{printing.beside_base(facts.measured.gain)} (95 % interval of the gain: {low:.1f} to {high:.1f} %)",
            )
        )
    rows += [("why this step", plain(facts.reason))] if facts.reason else []
    rows += [("device", plain(facts.device))] if facts.device else []
    rows += [("seconds a step", f"{facts.seconds_per_step:.2g}")] if facts.seconds_per_step else []
    rows += [("most memory", console.memory(facts.peak_memory_bytes))] if facts.peak_memory_bytes else []
    return "## How it went\n\n| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)


def _loads(facts: Facts) -> str:
    """Which tools load the file, by their own tables."""
    if not facts.lora.places:
        return ""
    rows = [f"| {place.tool} {place.version} | {place.verdict} | {plain(place.why)} |" for place in facts.lora.places]
    return "## Where it loads\n\n| tool | | |\n|---|---|---|\n" + "\n".join(rows)


def _settings(facts: Facts) -> str:
    """The settings that differ from what they are when left out."""
    rows = [f"| {plain(label)} | {plain(value)} |" for label, value in facts.settings]
    return "## Settings\n\n| | |\n|---|---|\n" + "\n".join(rows)


def plain(text: str) -> str:
    """Text that stays text in Markdown and in a cell of its tables."""
    # What HTML or Markdown would read as a mark becomes an entity.
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for sign in "\\`*_[]|#~!":
        escaped = escaped.replace(sign, f"&#{ord(sign)};")
    return " ".join(escaped.split())


def _code(text: str) -> str:
    return " ".join(text.replace("`", "'").split())
