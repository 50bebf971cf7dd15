"""PixArt-Alpha and Sigma. Diffusers has no loader for their LoRAs; PEFT's names are usual."""

from trainer.lora_file.names.rows import Family, Size, TextEncoder, row, t5

_BLOCK = "transformer_blocks.#"

FAMILY = Family(
    name="pixart",
    title="PixArt",
    component="transformer",
    rows=(
        *(row("", f"{_BLOCK}.attn1.{part}", "D < D") for part in ("to_q", "to_k", "to_v", "to_out.0")),
        *(row("", f"{_BLOCK}.attn2.{part}", "D < D") for part in ("to_q", "to_k", "to_v", "to_out.0")),
        row("", f"{_BLOCK}.ff.net.0.proj", "4D < D"), row("", f"{_BLOCK}.ff.net.2", "D < 4D"),
        row("", "pos_embed.proj", "D < 16"), row("", "proj_out", "32 < D"),
        *(row("", f"adaln_single.emb.{name}_embedder.linear_{number}", f"{width} < {256 if number == 1 else width}")
          for name, width in (("timestep", "D"), ("resolution", "384"), ("aspect_ratio", "384")) for number in (1, 2)),
        row("", "adaln_single.linear", "6D < D"), row("", "caption_projection.linear_1", "D < 4096"),
        row("", "caption_projection.linear_2", "D < D"),
    ),
    sizes=(Size("XL", {"D": 1152}, {"transformer_blocks": 28}),),
    texts=(TextEncoder("text_encoder", ("lora_te", "lora_te1"), "t5xxl", t5("4096", "4096", "10240")),),
    kohya="diffusers",
    default="diffusers",
    versions=("pixart",),
    architecture="pixart-sigma/lora",
    base_version="pixart",
)  # fmt: skip
