"""Settings of a picture: a base, LoRAs with a weight each, a prompt and a seed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import StringConstraints, field_validator, model_validator

from trainer import families
from trainer.schema import Settings, setting

USUAL_WEIGHT, WIDEST_WEIGHT = 2.0, 20.0
MAX_REGION_CHARS = (1 << 17) + 100  # a mask that travels, and a box


class AdapterChoice(Settings):
    """One LoRA of a stack: by file on this machine, and by hash wherever the recipe travels."""

    file: str = setting(
        "",
        "File",
        "The LoRA file; may be left out where the hash is found in the library.",
        path="lora",
        max_length=4096,
    )
    name: str = setting("", "Name", "As in <lora:name:weight>.", max_length=400)
    sha256: str = setting(
        "",
        "Hash",
        "sha256 of the tensors, as sshs_model_hash; found by it when the file has moved.",
        pattern=r"^([0-9a-f]{64})?$",
    )
    weight: float = setting(
        1.0, "Weight", "Factor of this LoRA; 0 is as if it were absent.", ge=-WIDEST_WEIGHT, le=WIDEST_WEIGHT
    )
    text_weight: float | None = setting(
        None,
        "Text weight",
        "Factor of its part in the text encoder; empty for the same as Weight.",
        ge=-WIDEST_WEIGHT,
        le=WIDEST_WEIGHT,
    )
    blocks: tuple[Annotated[str, StringConstraints(max_length=400)], ...] = setting(
        (),
        "Blocks",
        "PATTERN=FACTOR for the denoiser's layers: IN, MID or OUT, IN0 to OUT9 counted in its order, any piece of a "
        "layer's path, or curve=NAME.",
        max_length=400,
    )
    schedule: str = setting(
        "",
        "Schedule",
        "How the weight goes with the denoising, from 0 to 1: 'linear 1 0', 'steps 0:1 0.5:0', 'points 0:0 0.3:1 "
        "1:0.5'; empty for constant.",
        max_length=4000,
    )
    region: str = setting(
        "",
        "Region",
        "Where it acts: 'box LEFT TOP RIGHT BOTTOM' from 0 to 1, or 'mask FILE' (white acts); empty for everywhere.",
        path="mask",
        max_length=MAX_REGION_CHARS,
    )
    trigger: bool = setting(
        False, "Insert trigger", "Put its trigger words before the prompt where they are not in it."
    )
    enabled: bool = setting(True, "On", "Off is as if it were absent.")


class StackConfig(Settings):
    """One picture: a base, any number of LoRAs with a weight each, a prompt, a seed."""

    version: Literal[1] = 1
    family: str = setting("sd", "Family", "Architecture of the base model. Left out: the base's own.")
    base: str = setting(
        "imprimatura",
        "Base",
        "imprimatura, a diffusers folder, a checkpoint file, a name from `velatura models list`, or a downloaded hub "
        "id.",
        min_length=1,
        path="base",
    )

    # LoRAs and how they go together.
    adapters: tuple[AdapterChoice, ...] = setting(
        (), "Adapters", "LoRAs and their weights; the order matters only to the mode switch.", max_length=32
    )
    mode: str = setting("sum", "Mode", "How several LoRAs go together; sum adds them up.", advanced=True, max_length=80)
    wide_weights: bool = setting(
        False, "Wide weights", f"Allow weights beyond -2 to 2, up to {WIDEST_WEIGHT:g}.", advanced=True
    )

    # What is drawn, and how.
    prompt: str = setting("", "Prompt", "What to draw.", max_length=8000)
    negative_prompt: str = setting("", "Negative prompt", "What to keep out.", max_length=8000)
    seed: int = setting(1, "Seed", "The same seed and settings give the same picture.", ge=0, le=2**32 - 1)
    sampler: str = setting(
        "", "Sampler", "How the noise is taken away; empty for the base's own.", advanced=True, max_length=80
    )
    steps: int = setting(
        25, "Steps", "Sampling steps; 20-30. Left out: what the base is usually drawn with.", ge=1, le=500
    )
    guidance_scale: float = setting(
        3.0,
        "Guidance",
        "How closely the picture follows the prompt; 1 is off. Left out: what the base is usually drawn with.",
        ge=1,
        le=30,
    )
    guidance_rescale: float | None = setting(
        None,
        "Guidance rescale",
        "Tames the contrast of guidance, 0 to 1; empty for the base's own: 0.7 at zero terminal SNR, else 0.",
        ge=0,
        le=1,
        advanced=True,
        only_with={"prediction": ("epsilon", "v")},
    )
    true_guidance_scale: float = setting(
        1.0,
        "True guidance",
        "For distilled bases such as FLUX.1: guidance by the negative prompt, at twice the time; 1 is off.",
        ge=1,
        le=30,
        advanced=True,
        only_with={"guidance": ("distilled",)},
    )
    width_px: int = setting(128, "Width", "In pixels. Left out: the base's own.", ge=8, le=4096, multiple_of=8)
    height_px: int = setting(128, "Height", "In pixels. Left out: the base's own.", ge=8, le=4096, multiple_of=8)

    @field_validator("family")
    @classmethod
    def _known_family(cls, value: str) -> str:
        return families.known(value)

    @model_validator(mode="after")
    def _usual_weights(self) -> StackConfig:
        for number, adapter in enumerate(self.adapters):
            for key in ("weight", "text_weight"):
                value = getattr(adapter, key)
                if value is not None and abs(value) > USUAL_WEIGHT and not self.wide_weights:
                    raise ValueError(
                        f"adapters.{number}.{key} is {value:g}; allowed: -2 to 2, or up to {WIDEST_WEIGHT:g} with "
                        f"wide_weights."
                    )
        return self
