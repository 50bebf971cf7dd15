"""Stable Diffusion 3 and 3.5.

The last block of the text stream has no output of its own, and its modulation is swapped.
"""

from trainer.lora_file.names.rows import Family, Row, Size, TextEncoder, clip, row, t5

_BLOCK, _JOINT = "transformer_blocks.#", "joint_blocks.#"


def _stream(stream: str, qkv: str, out: str, feed_forward: str, norm: str) -> list[Row]:
    """Rows of one stream of the joint blocks, the image's or the text's."""
    return [
        row(f"{_JOINT}.{stream}.attn.qkv", f"{_BLOCK}.attn.{qkv}", "D D D < D"),
        row(f"{_JOINT}.{stream}.attn.proj", f"{_BLOCK}.attn.{out}", "D < D"),
        row(f"{_JOINT}.{stream}.mlp.fc1", f"{_BLOCK}.{feed_forward}.net.0.proj", "4D < D"),
        row(f"{_JOINT}.{stream}.mlp.fc2", f"{_BLOCK}.{feed_forward}.net.2", "D < 4D"),
        row(f"{_JOINT}.{stream}.adaLN_modulation.1", f"{_BLOCK}.{norm}.linear", "6D|9D < D"),
    ]


def _last_modulation(block: int) -> Row:
    """The row of the modulation of a model's last text block, which has shift and scale alone."""
    original = f"joint_blocks.{block}.context_block.adaLN_modulation.1"
    return row(original, f"transformer_blocks.{block}.norm1_context.linear", "2D|6D < D", swapped=True)


FAMILY = Family(
    name="sd3",
    title="Stable Diffusion 3 / 3.5",
    component="transformer",
    rows=(
        # These stand before the rows of all blocks, as the first row that fits a name counts. The last text block of
        # each size has its shift and scale the other way round.
        _last_modulation(23), _last_modulation(37),
        *_stream("x_block", "to_q .to_k .to_v", "to_out.0", "ff", "norm1"),
        *_stream("context_block", "add_q_proj .add_k_proj .add_v_proj", "to_add_out", "ff_context", "norm1_context"),
        row(f"{_JOINT}.x_block.attn2.qkv", f"{_BLOCK}.attn2.to_q .to_k .to_v", "D D D < D"),
        row(f"{_JOINT}.x_block.attn2.proj", f"{_BLOCK}.attn2.to_out.0", "D < D"),
        row("", "context_embedder", "D < 4096"), row("x_embedder.proj", "pos_embed.proj", "D < 64"),
        row("t_embedder.mlp.0", "time_text_embed.timestep_embedder.linear_1", "D < 256"),
        row("t_embedder.mlp.2", "time_text_embed.timestep_embedder.linear_2", "D < D"),
        row("y_embedder.mlp.0", "time_text_embed.text_embedder.linear_1", "D < 2048"),
        row("y_embedder.mlp.2", "time_text_embed.text_embedder.linear_2", "D < D"),
        row("final_layer.linear", "proj_out", "64 < D"),
        row("final_layer.adaLN_modulation.1", "norm_out.linear", "2D < D", swapped=True),
    ),
    sizes=(
        Size("medium", {"D": 1536}, {"transformer_blocks": 24}),
        Size("3.5 large", {"D": 2432}, {"transformer_blocks": 38}),
    ),
    texts=(
        TextEncoder("text_encoder", ("lora_te1",), "clip_l", clip("768", "3072", "768")),
        TextEncoder("text_encoder_2", ("lora_te2",), "clip_g", clip("1280", "5120", "1280")),
        TextEncoder("text_encoder_3", ("lora_te3",), "t5xxl", t5("4096", "4096", "10240")),
    ),
    kohya="original",
    default="diffusers",
    versions=("sd3", "stable-diffusion-3", "stable-diffusion-v3"),
    architecture="stable-diffusion-3/lora",
    base_version="sd3",
    loader="SD3",
    taken={"transformer.": ("diffusers",)},
    read_by=("Forge", "kohya"),
)  # fmt: skip
