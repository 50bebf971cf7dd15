"""Stable Diffusion 1.x and 2.x. kohya spells their UNet as diffusers does, ComfyUI's own format as LDM."""

from trainer.lora_file.names.rows import Family, Size, TextEncoder, clip
from trainer.lora_file.names.unet import of_any_structure, unet

FAMILY = Family(
    name="sd",
    title="Stable Diffusion 1.x / 2.x",
    component="unet",
    rows=(*unet((320, 640, 1280, 1280), 2, (True, True, True, False)), *of_any_structure()),
    sizes=(Size("1.x", {"C": 768, "T": 768, "I": 36, "O": 4}), Size("2.x", {"C": 1024, "T": 1024, "I": 36, "O": 4})),
    texts=(TextEncoder("text_encoder", ("lora_te", "lora_te1"), "clip_l", clip("T", "4T")),),
    kohya="diffusers",
    default="kohya",
    versions=("sd_v1", "sd_v2", "sd1", "sd2", "stable-diffusion-v1", "stable-diffusion-v2"),
    architecture="stable-diffusion-v1/lora",
    base_version="sd_v1",
    loader="StableDiffusion",
    taken={"unet.": ("diffusers",), "lora_unet_": ("diffusers",)},
    read_by=("A1111", "Forge", "kohya"),
)
