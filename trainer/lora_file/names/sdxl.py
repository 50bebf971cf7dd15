"""Stable Diffusion XL and what was made of it.

kohya spells the UNet as SGM does; diffusers' spelling with underscores is read as well.
"""

from trainer.lora_file.names.rows import Family, Size, TextEncoder, clip
from trainer.lora_file.names.unet import of_any_structure, unet

FAMILY = Family(
    name="sdxl",
    title="Stable Diffusion XL",
    component="unet",
    rows=(*unet((320, 640, 1280), 2, (False, True, True)), *of_any_structure()),
    sizes=(Size("base", {"C": 2048, "I": 36, "O": 4, "L": 2816}),),
    texts=(
        TextEncoder("text_encoder", ("lora_te1",), "clip_l", clip("768", "3072")),
        TextEncoder("text_encoder_2", ("lora_te2",), "clip_g", clip("1280", "5120", "1280")),
    ),
    kohya="original",
    default="kohya",
    versions=("sdxl", "stable-diffusion-xl"),
    architecture="stable-diffusion-xl-v1-base/lora",
    base_version="sdxl_base_v1-0",
    loader="StableDiffusionXL",
    taken={"unet.": ("diffusers",), "lora_unet_": ("original", "diffusers")},
    read_by=("A1111", "Forge", "kohya"),
)
