"""Chroma: FLUX.1's blocks without modulation layers, whose values a small network makes. Only T5 reads the caption."""

from trainer.lora_file.names.flux import BLOCKS
from trainer.lora_file.names.rows import Family, Size, TextEncoder, row, t5

_GUIDE = "distilled_guidance_layer"

FAMILY = Family(
    name="chroma",
    title="Chroma",
    component="transformer",
    rows=(
        *BLOCKS,
        row("", f"{_GUIDE}.in_proj", "5120 < 64"),
        row("", f"{_GUIDE}.out_proj", "D < 5120"),
        row(f"{_GUIDE}.layers.#.in_layer", f"{_GUIDE}.layers.#.linear_1", "5120 < 5120"),
        row(f"{_GUIDE}.layers.#.out_layer", f"{_GUIDE}.layers.#.linear_2", "5120 < 5120"),
    ),
    sizes=(Size("1", {"D": 3072, "F": 12288}, {"transformer_blocks": 19, "single_transformer_blocks": 38}),),
    texts=(TextEncoder("text_encoder", ("lora_te1", "lora_te3", "lora_te"), "t5xxl", t5("4096", "4096", "10240")),),
    kohya="original",
    default="diffusers",
    versions=("chroma",),
    architecture="chroma/lora",
    base_version="chroma",
    loader="Flux",
    taken={"transformer.": ("diffusers",), "lora_unet_": ("original",)},
    read_by=("Forge", "kohya"),
    rarity=2,
)  # fmt: skip
