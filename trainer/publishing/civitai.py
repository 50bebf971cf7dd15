"""What Civitai's form asks of a LoRA, filled in from a run, as a text to copy from.

Fields and the names of bases are those of the site's own schema (civitai/civitai: model.schema.ts and
model-version.schema.ts of commit 00b3101e, base-model.constants.ts of commit 02282ba4). Nothing is sent there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from trainer.publishing.facts import Facts

# What a base is called there: by its name first, then by the family.
_BY_NAME = (
    (r"pony.?v7", "Pony V7"), (r"pony", "Pony"), (r"noob", "NoobAI"), (r"illustrious|\bil\b", "Illustrious"),
    (r"stable-diffusion-v?1[-.]?4", "SD 1.4"), (r"stable-diffusion-2[-.]?1|v2-1", "SD 2.1"),
    (r"stable-diffusion-2", "SD 2.0"), (r"3\.5-large-turbo", "SD 3.5 Large Turbo"), (r"3\.5-large", "SD 3.5 Large"),
    (r"3\.5-medium", "SD 3.5 Medium"), (r"flux\.?1-schnell", "Flux.1 S"), (r"flux\.?1-krea", "Flux.1 Krea"),
    (r"flux\.?1-kontext", "Flux.1 Kontext"), (r"klein-base-9b", "Flux.2 Klein 9B-base"),
    (r"klein-base-4b", "Flux.2 Klein 4B-base"), (r"klein-9b", "Flux.2 Klein 9B"), (r"klein-4b", "Flux.2 Klein 4B"),
    (r"z-image-turbo", "ZImageTurbo"),
)  # fmt: skip
_BY_FAMILY = {
    "sdxl": "SDXL 1.0", "sd3": "SD 3", "flux": "Flux.1 D", "flux2": "Flux.2 Klein 4B-base", "flux2dev": "Flux.2 D",
    "qwen": "Qwen", "zimage": "ZImageBase", "chroma": "Chroma", "lumina2": "Lumina", "pixart": "PixArt E",
    "auraflow": "AuraFlow", "hidream": "HiDream",
}  # fmt: skip
_TYPES = {"lora": "LORA", "dora": "DoRA"}  # all others are LoCon there, shown as LyCORIS


def base_model(facts: Facts) -> str:
    """What the base is called there; "Other" where it has no name."""
    name = facts.base.lower()
    for pattern, title in _BY_NAME:
        if re.search(pattern, name):
            return title
    if facts.config.family == "sd" and facts.base != "imprimatura":
        return "SD 1.5"
    return _BY_FAMILY.get(facts.config.family, "Other")


def text(facts: Facts, images: Sequence[str]) -> str:
    """The form's fields in its order, each with what to enter; what only a person can say is marked so."""
    you = "(yours to say)"
    about = facts.note or f"Trained on {facts.num_pictures} pictures for {facts.step} steps."
    parts = {
        "Model": {
            "Name": facts.title,
            "Type": _TYPES.get(facts.config.adapter.method, "LoCon (LyCORIS)"),
            "Tags": you,
            "Description": about,
            "Shows a real person": you,
            "Is for adults": you,
            "Allowed without credit, sold, changed, under another licence": f"{you}; the base: {facts.licence.id}. "
            f"{facts.licence.why}",
        },
        "Version": {
            "Name": "v1.0",
            "Base model": base_model(facts),
            "Trigger words": ", ".join(filter(None, (word.strip() for word in facts.trigger.split(",")))) or "none",
            "About this version": facts.reason or about,
            "Epochs": str(facts.passes) if facts.passes else "",
            "Steps": str(facts.step),
            "Strength": "1",
        },
        "File": {"File": f"{facts.file_name}.safetensors", "Hash (AutoV3)": facts.lora.sha256[:12]},
    }

    # A part, its fields, an empty line.
    lines = []
    for part, fields in parts.items():
        lines += [part, *(f"  {name}: {' '.join(value.split())}" for name, value in fields.items()), ""]
    lines.append("Images")
    for sample, image in zip(facts.samples, images, strict=True):
        lines.append(f"  {image}: {' '.join(sample.prompt.split())}")
    return "\n".join(lines) + "\n"
