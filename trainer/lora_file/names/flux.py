"""FLUX.1, and the blocks that Chroma shares: Black Forest Labs' names, with q, k and v in one weight."""

from trainer.lora_file.names.rows import Family, Row, Size, TextEncoder, clip, row, t5

_BLOCK, _SINGLE = "transformer_blocks.#", "single_transformer_blocks.#"


def _stream(stream: str, qkv: str, out: str, feed_forward: str, xlabs: str) -> list[Row]:
    """Rows of one stream of the double blocks, "img" or "txt"; `xlabs` is its number in XLabs' names."""
    return [
        row(
            f"double_blocks.#.{stream}_attn.qkv",
            f"{_BLOCK}.attn.{qkv}",
            "D D D < D",
            f"double_blocks.#.processor.qkv_lora{xlabs}",
        ),
        row(
            f"double_blocks.#.{stream}_attn.proj",
            f"{_BLOCK}.attn.{out}",
            "D < D",
            f"double_blocks.#.processor.proj_lora{xlabs}",
        ),
        row(f"double_blocks.#.{stream}_mlp.0", f"{_BLOCK}.{feed_forward}.net.0.proj", "4D < D"),
        row(f"double_blocks.#.{stream}_mlp.2", f"{_BLOCK}.{feed_forward}.net.2", "D < 4D"),
    ]


def _embedder(original: str, diffusers: str, width: str) -> list[Row]:
    """Rows of the two layers that embed one input of `width`."""
    return [
        row(f"{original}.in_layer", f"time_text_embed.{diffusers}.linear_1", f"D < {width}"),
        row(f"{original}.out_layer", f"time_text_embed.{diffusers}.linear_2", "D < D"),
    ]


# XLabs trains attention only, so its single blocks have q, k, v and the output apart.
BLOCKS = (
    *_stream("img", "to_q .to_k .to_v", "to_out.0", "ff", "1"),
    *_stream("txt", "add_q_proj .add_k_proj .add_v_proj", "to_add_out", "ff_context", "2"),
    row("single_blocks.#.linear1", f"{_SINGLE}.attn.to_q .to_k .to_v {_SINGLE}.proj_mlp", "D D D F < D"),
    row("single_blocks.#.linear2", f"{_SINGLE}.proj_out", "D < 5D", "single_blocks.#.processor.proj_lora"),
    row(
        "single_blocks.#.processor.qkv_lora", f"{_SINGLE}.attn.to_q .to_k .to_v", "D D D < D",
        "single_blocks.#.linear1_qkv",
    ),
    row("img_in", "x_embedder", "D < 64|128"), row("txt_in", "context_embedder", "D < 4096"),
    row("final_layer.linear", "proj_out", "64 < D"),
)  # fmt: skip

_NORMS = {
    "double_blocks.#.img_attn.norm.query_norm": f"{_BLOCK}.attn.norm_q",
    "double_blocks.#.img_attn.norm.key_norm": f"{_BLOCK}.attn.norm_k",
    "double_blocks.#.txt_attn.norm.query_norm": f"{_BLOCK}.attn.norm_added_q",
    "double_blocks.#.txt_attn.norm.key_norm": f"{_BLOCK}.attn.norm_added_k",
    "single_blocks.#.norm.query_norm": f"{_SINGLE}.attn.norm_q",
    "single_blocks.#.norm.key_norm": f"{_SINGLE}.attn.norm_k",
}  # fmt: skip

FAMILY = Family(
    name="flux",
    title="FLUX.1",
    component="transformer",
    rows=(
        *BLOCKS,
        row("double_blocks.#.img_mod.lin", f"{_BLOCK}.norm1.linear", "6D < D"),
        row("double_blocks.#.txt_mod.lin", f"{_BLOCK}.norm1_context.linear", "6D < D"),
        row("single_blocks.#.modulation.lin", f"{_SINGLE}.norm.linear", "3D < D"),
        row("final_layer.adaLN_modulation.1", "norm_out.linear", "2D < D", swapped=True),
        *_embedder("time_in", "timestep_embedder", "256"),
        *_embedder("vector_in", "text_embedder", "768"),
        *_embedder("guidance_in", "guidance_embedder", "256"),
        *(row(original, path, "128 < 1") for original, path in _NORMS.items()),  # set by BFL's control files
    ),
    sizes=(
        Size("dev / schnell", {"D": 3072, "F": 12288}, {"transformer_blocks": 19, "single_transformer_blocks": 38}),
    ),
    texts=(
        TextEncoder("text_encoder", ("lora_te1", "lora_te"), "clip_l", clip("768", "3072", "768")),
        TextEncoder("text_encoder_2", ("lora_te3", "lora_te2"), "t5xxl", t5("4096", "4096", "10240")),
    ),
    kohya="original",
    default="kohya",
    versions=("flux1", "flux-1", "flux_1"),
    architecture="flux-1-dev/lora",
    base_version="flux1",
    loader="Flux",
    taken={
        "transformer.": ("diffusers",), "lora_unet_": ("original",), "lora_transformer_": ("diffusers",),
        "": ("alias",),
    },
    read_by=("Forge", "kohya"),
    xlabs=True,
)  # fmt: skip
