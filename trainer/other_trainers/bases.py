"""Which family and base a foreign recipe trains, by the names its field knows them by.

A hub id stays as it is. A file of the recipe's own machine is not looked for: the family's usual base stands in for it,
and the report says so.
"""

from __future__ import annotations

import re

from trainer.other_trainers.reading import Reading, shown

# What a file, a hub id or a word for an architecture looks like, the first that fits; "" is a base that none here is.
_FAMILIES: tuple[tuple[str, str], ...] = (
    (r"kontext|fill[-_]?dev|inpaint|depth2img|qwen.?image.?edit|layered|omnigen|flux[-_.]?1?[-_.]?(redux|canny)", ""),
    (
        r"wan[-_]?2|hunyuan|ltx|cosmos|krea[-_]?2|anima(?!gine)|ideogram|ernie|kandinsky|cascade|kolors|wuerstchen|flex[-_.]?[12]",
        "",
    ),
    (r"chroma", "chroma"),
    (r"flux[-_. ]?2[-_. ]?dev|flux2dev", "flux2dev"),
    (r"flux[-_. ]?2|klein", "flux2"),
    (r"flux", "flux"),
    (r"qwen", "qwen"),
    (r"z[-_ ]?image", "zimage"),
    (r"lumina|neta", "lumina2"),
    (r"hi[-_]?dream", "hidream"),
    (r"aura[-_ ]?flow|pony[-_ ]?v?7", "auraflow"),
    (r"pixart", "pixart"),
    (r"sana", "sana"),
    (r"sd[-_ ]?3|stable[-_ ]?diffusion[-_ ]?3", "sd3"),
    (r"sd[-_ ]?xl|xl|pony|illustrious|noob|animagine", "sdxl"),
    (r"sd[-_ ]?v?1|sd[-_ ]?v?2|v1[-_]5|v2[-_]1|stable[-_ ]?diffusion|sd15|sd21|dreamshaper|realistic|anything", "sd"),
)
_USUAL = {
    "sd": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "sd3": "stabilityai/stable-diffusion-3.5-medium",
    "flux": "black-forest-labs/FLUX.1-dev",
    "flux2": "black-forest-labs/FLUX.2-klein-base-4B",
    "flux2dev": "black-forest-labs/FLUX.2-dev",
    "chroma": "lodestones/Chroma1-HD",
    "qwen": "Qwen/Qwen-Image",
    "zimage": "Tongyi-MAI/Z-Image",
    "lumina2": "Alpha-VLLM/Lumina-Image-2.0",
    "hidream": "HiDream-ai/HiDream-I1-Dev",
    "auraflow": "fal/AuraFlow-v0.3",
    "pixart": "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
    "sana": "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers",
}  # those of the presets that ship
DIFFUSION = ("sd", "sdxl", "pixart")
CLIP_FAMILIES = ("sd", "sdxl", "sd3", "flux")  # whose text encoders are adapted
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,60}/[A-Za-z0-9][\w.-]{0,95}")


def family_of(text: str) -> str | None:
    """The family that a name speaks of: "" for a family that isn't trained here, None where it says nothing."""
    name = text.lower().replace("\\", "/")[-200:]
    # The last part says more than the folders above it.
    for part in (name.rpartition("/")[2], name):
        for pattern, family in _FAMILIES:
            if re.search(pattern, part):
                return family
    return None


def usual(family: str) -> str:
    """The base that stands in for a file of another machine."""
    return _USUAL[family]


def put_base(reading: Reading, family: str, *keys: str, family_keys: tuple[str, ...] = ()) -> None:
    """Set family and base from the keys that may name the base, the first that has a value."""
    reading.put("family", family, *family_keys)
    key = next((key for key in keys if reading.has(key)), "")
    name = reading.text(key).strip() if key else ""
    # A hub id may be had anywhere; a path means nothing here.
    if (
        name == "imprimatura"
        or _HUB_ID.fullmatch(name)
        and not name.endswith((".safetensors", ".ckpt", ".sft", ".gguf"))
    ):
        reading.put("base", name, key)
    else:
        reading.put("base", usual(family), *([key] if key else []))
        if key:
            why = (
                f"{shown(name)} is a place of that machine; set base to your copy if it is another than {usual(family)}"
            )
            reading.translated(key, f"base = {usual(family)}", why)
        else:
            reading.notes.append(f"the recipe names no base; {usual(family)} is the usual one of {family}")


def cannot_train(reading: Reading, name: str) -> str:
    """The sentence for a recipe of a family that isn't trained here."""
    return (
        f"{reading.document.path.name} is a recipe of {reading.tool.title} for {shown(name)}, which isn't trained here"
    )
