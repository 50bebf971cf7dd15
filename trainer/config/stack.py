"""Settings of a picture: a base, LoRAs with a weight each, a prompt and a seed."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from trainer import families
from trainer.schema import Settings, setting


class AdapterChoice(Settings):
    """One LoRA of a stack: by file on this machine, and by hash wherever the recipe travels."""

    file: str = setting("", "File", "The LoRA file.")
    name: str = setting("", "Name", "As in <lora:name:weight>.")
    sha256: str = setting("", "Hash", "sha256 of the tensors, as sshs_model_hash; found by it when the file has moved.", pattern=r"^([0-9a-f]{64})?$")
    weight: float = setting(1.0, "Weight", "Factor of this LoRA; 0 is as if it were absent.", ge=-2, le=2)


class StackConfig(Settings):
    """One picture: a base, any number of LoRAs with a weight each, a prompt, a seed."""

    version: Literal[1] = 1
    family: str = setting("sd", "Family", "Architecture of the base model.")
    base: str = setting("imprimatura", "Base", "imprimatura, a diffusers folder, or the hub id of a model already downloaded.", min_length=1)
    adapters: tuple[AdapterChoice, ...] = setting((), "Adapters", "LoRAs and their weights; the order does not matter.", max_length=32)
    prompt: str = setting("", "Prompt", "What to draw.", max_length=8000)
    negative_prompt: str = setting("", "Negative prompt", "What to keep out.", max_length=8000)
    seed: int = setting(1, "Seed", "The same seed and settings give the same picture.", ge=0, le=2**32 - 1)
    steps: int = setting(25, "Steps", "Sampling steps; 20-30.", ge=1, le=500)
    guidance_scale: float = setting(3.0, "Guidance", "How closely the picture follows the prompt; 1 is off.", ge=1, le=30)
    guidance_rescale: float = setting(0.7, "Guidance rescale", "Tames the contrast of guidance for zero-terminal-SNR bases.", ge=0, le=1)
    width_px: int = setting(128, "Width", "In pixels.", ge=8, le=4096, multiple_of=8)
    height_px: int = setting(128, "Height", "In pixels.", ge=8, le=4096, multiple_of=8)

    @field_validator("family")
    @classmethod
    def _known_family(cls, value: str) -> str:
        return families.known(value)
