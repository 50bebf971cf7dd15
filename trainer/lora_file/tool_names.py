"""The schemes of names in LoRA files (kohya's, diffusers', ComfyUI's ...), and a module's name in each."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.errors import AdapterError
from trainer.lora_file.names import Family, Target
from trainer.lora_file.names.rows import filled

SCHEMES = ("kohya", "diffusers", "comfyui", "peft", "onetrainer", "lycoris", "bare", "xlabs")


@dataclass(frozen=True)
class Scheme:
    """How a scheme writes names, and whether its modules carry an alpha."""

    name: str
    prefix: str  # of the denoiser's modules
    original: bool  # names of the code that the model was published with; else diffusers'
    dotted: bool  # dots between a name's parts; else underscores
    alpha: bool


def scheme_of(name: str, family: Family) -> Scheme:
    """A scheme's rules for a family. Raises: AdapterError for a scheme that nobody has for this family."""
    if name not in SCHEMES:
        raise AdapterError(f"scheme is {name!r}; allowed: {', '.join(SCHEMES)}.")
    if name == "xlabs" and not family.xlabs:
        raise AdapterError(f"XLabs has names for FLUX.1 only, not for {family.title}.")
    component = f"{family.component}."
    onetrainer = "lora_transformer_" if family.component == "transformer" else "lora_unet_"
    return {
        "kohya": Scheme("kohya", "lora_unet_", original=family.kohya == "original", dotted=False, alpha=True),
        "diffusers": Scheme("diffusers", component, original=False, dotted=True, alpha=False),
        "comfyui": Scheme("comfyui", "diffusion_model.", original=True, dotted=True, alpha=False),
        "peft": Scheme("peft", "base_model.model.", original=False, dotted=True, alpha=False),
        "onetrainer": Scheme("onetrainer", onetrainer, original=False, dotted=False, alpha=True),
        "lycoris": Scheme("lycoris", "lycoris_", original=False, dotted=False, alpha=True),
        "bare": Scheme("bare", "", original=False, dotted=True, alpha=False),
        "xlabs": Scheme("xlabs", "", original=True, dotted=True, alpha=False),
    }[name]


def module_name(family: Family, target: Target, part: int | None, scheme: Scheme) -> str:
    """A module's name in a scheme. Raises: AdapterError where the scheme has none for it.

    `part` is which of the row's layers it is, None for the only one or for all of them together.
    """
    row = target.row
    # A text encoder's.
    if target.component != family.component:
        text = next(text for text in family.texts if text.component == target.component)
        name = filled(row.paths[0], target.numbers)
        if scheme.name == "comfyui":
            return f"text_encoders.{text.comfy}.transformer.{name}"
        if scheme.name in ("kohya", "onetrainer", "lycoris"):
            return f"{text.kohya[0]}_{name.replace('.', '_')}"
        if scheme.name == "diffusers":
            return f"{text.component}.{name}"
        raise AdapterError(
            f"{scheme.name} has no names for text encoders, and the file has {text.component}; allowed: kohya, "
            f"diffusers, comfyui."
        )
    # The denoiser's. XLabs' names are aliases of rows.
    if scheme.name == "xlabs":
        alias = next((alias for alias in (row.original, *row.aliases) if ".processor." in alias), None)
        if alias is None:
            raise AdapterError(
                f"XLabs has no name for {filled(row.paths[0], target.numbers)}; it trains the attention of double "
                f"blocks only."
            )
        return filled(alias, target.numbers)
    name = filled(row.original if scheme.original else row.paths[part or 0], target.numbers)
    return scheme.prefix + (name if scheme.dotted else name.replace(".", "_"))
