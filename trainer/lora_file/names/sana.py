"""Sana: linear attention and a convolutional feed-forward. There is one spelling, diffusers'."""

from trainer.lora_file.names.rows import Family, Size, TextEncoder, llama, row

_BLOCK = "transformer_blocks.#"

FAMILY = Family(
    name="sana",
    title="Sana",
    component="transformer",
    rows=(
        *(row("", f"{_BLOCK}.attn1.{part}", "D < D") for part in ("to_q", "to_k", "to_v", "to_out.0")),
        *(row("", f"{_BLOCK}.attn2.{part}", "D < D") for part in ("to_q", "to_k", "to_v", "to_out.0")),
        row("", f"{_BLOCK}.ff.conv_inverted", "5D < D"), row("", f"{_BLOCK}.ff.conv_depth", "5D < 9"),
        row("", f"{_BLOCK}.ff.conv_point", "D < E"),
        row("", "patch_embed.proj", "D < 32"), row("", "proj_out", "32 < D"), row("", "time_embed.linear", "6D < D"),
        row("", "time_embed.emb.timestep_embedder.linear_1", "D < 256"),
        row("", "time_embed.emb.timestep_embedder.linear_2", "D < D"),
        row("", "caption_projection.linear_1", "D < 2304"), row("", "caption_projection.linear_2", "D < D"),
    ),
    sizes=(
        Size("1.6B", {"D": 2240, "E": 5600}, {"transformer_blocks": 20}),
        Size("0.6B", {"D": 1152, "E": 2880}, {"transformer_blocks": 28}),
        Size("4.8B", {"D": 2240, "E": 5600}, {"transformer_blocks": 60}),
    ),
    texts=(TextEncoder("text_encoder", ("lora_te", "lora_te1"), "gemma2_2b", llama()),),
    kohya="diffusers",
    default="diffusers",
    versions=("sana",),
    architecture="sana/lora",
    base_version="sana",
    loader="Sana",
    taken={"transformer.": ("diffusers",)},
)  # fmt: skip
