"""FLUX.2, dev and klein: Black Forest Labs' blocks again.

Modulation is shared by all blocks, and a single block's first layer stays in one weight in diffusers too.
"""

from trainer.lora_file.names.rows import Family, Row, Size, TextEncoder, llama, row

_BLOCK, _SINGLE = "transformer_blocks.#", "single_transformer_blocks.#"


def _stream(stream: str, qkv: str, out: str, feed_forward: str) -> list[Row]:
    """Rows of one stream of the double blocks, "img" or "txt"."""
    return [
        row(f"double_blocks.#.{stream}_attn.qkv", f"{_BLOCK}.attn.{qkv}", "D D D < D"),
        row(f"double_blocks.#.{stream}_attn.proj", f"{_BLOCK}.attn.{out}", "D < D"),
        row(f"double_blocks.#.{stream}_mlp.0", f"{_BLOCK}.{feed_forward}.linear_in", "6D < D"),
        row(f"double_blocks.#.{stream}_mlp.2", f"{_BLOCK}.{feed_forward}.linear_out", "D < 3D"),
    ]


def _embedder(original: str, diffusers: str) -> list[Row]:
    """Rows of the two layers that embed one number."""
    return [
        row(f"{original}.in_layer", f"time_guidance_embed.{diffusers}.linear_1", "D < 256"),
        row(f"{original}.out_layer", f"time_guidance_embed.{diffusers}.linear_2", "D < D"),
    ]


FAMILY = Family(
    name="flux2",
    title="FLUX.2",
    component="transformer",
    rows=(
        *_stream("img", "to_q .to_k .to_v", "to_out.0", "ff"),
        *_stream("txt", "add_q_proj .add_k_proj .add_v_proj", "to_add_out", "ff_context"),
        row("single_blocks.#.linear1", f"{_SINGLE}.attn.to_qkv_mlp_proj", "9D < D"),
        row("single_blocks.#.linear2", f"{_SINGLE}.attn.to_out", "D < 4D"),
        row("img_in", "x_embedder", "D < 128"), row("txt_in", "context_embedder", "D < T"),
        row("double_stream_modulation_img.lin", "double_stream_modulation_img.linear", "6D < D"),
        row("double_stream_modulation_txt.lin", "double_stream_modulation_txt.linear", "6D < D"),
        row("single_stream_modulation.lin", "single_stream_modulation.linear", "3D < D"),
        *_embedder("time_in", "timestep_embedder"), *_embedder("guidance_in", "guidance_embedder"),
        row("final_layer.linear", "proj_out", "128 < D"),
        row("final_layer.adaLN_modulation.1", "norm_out.linear", "2D < D", swapped=True),
    ),
    sizes=(
        Size("dev", {"D": 6144, "T": 15360}, {"transformer_blocks": 8, "single_transformer_blocks": 48}),
        Size("klein 4B", {"D": 3072, "T": 7680}, {"transformer_blocks": 5, "single_transformer_blocks": 20}),
        Size("klein 9B", {"D": 4096, "T": 12288}, {"transformer_blocks": 8, "single_transformer_blocks": 24}),
    ),
    texts=(TextEncoder("text_encoder", ("lora_te", "lora_te1"), "qwen3", llama("model.layers")),),
    kohya="original",
    default="diffusers",
    versions=("flux2", "flux-2", "flux_2"),
    architecture="flux-2/lora",
    base_version="flux2",
    loader="Flux2",
    taken={
        "transformer.": ("diffusers",), "lora_unet_": ("original",),
        "diffusion_model.": ("original", "diffusers"), "base_model.model.": ("original", "diffusers"),
    },
    rarity=1,
)  # fmt: skip
