"""Anima: a Cosmos transformer, with an adapter from a small language model (`text_conditioner` in diffusers)."""

from trainer.lora_file.names.rows import Family, Row, Size, TextEncoder, llama, row

_BLOCK = "transformer_blocks.#"
_PARTS = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "output_proj": "to_out.0"}


def _attention(original: str, diffusers: str, context: str) -> list[Row]:
    """Rows of one attention; `context` is the width of what keys and values are made of."""
    return [
        row(
            f"blocks.#.{original}.{part}",
            f"{_BLOCK}.{diffusers}.{path}",
            f"D < {context if part in ('k_proj', 'v_proj') else 'D'}",
        )
        for part, path in _PARTS.items()
    ]


def _modulation(original: str, norm: int) -> list[Row]:
    """Rows of the two layers that modulate one part of a block."""
    return [
        row(f"blocks.#.adaln_modulation_{original}.1", f"{_BLOCK}.norm{norm}.linear_1", "256 < D"),
        row(f"blocks.#.adaln_modulation_{original}.2", f"{_BLOCK}.norm{norm}.linear_2", "3D < 256"),
    ]


FAMILY = Family(
    name="anima",
    title="Anima",
    component="transformer",
    rows=(
        *_attention("self_attn", "attn1", "D"), *_attention("cross_attn", "attn2", "1024"),
        row("blocks.#.mlp.layer1", f"{_BLOCK}.ff.net.0.proj", "4D < D"),
        row("blocks.#.mlp.layer2", f"{_BLOCK}.ff.net.2", "D < 4D"),
        *_modulation("self_attn", 1), *_modulation("cross_attn", 2), *_modulation("mlp", 3),
        row("final_layer.adaln_modulation.1", "norm_out.linear_1", "256 < D"),
        row("final_layer.adaln_modulation.2", "norm_out.linear_2", "2D < 256"),
        row("final_layer.linear", "proj_out", "64 < D"), row("x_embedder.proj.1", "patch_embed.proj", "D < 68"),
        row("t_embedder.1.linear_1", "time_embed.t_embedder.linear_1", "D < D"),
        row("t_embedder.1.linear_2", "time_embed.t_embedder.linear_2", "3D < D"),
        *(row("", f"llm_adapter.blocks.#.self_attn.{part}_proj", "W < V") for part in "qkvo"),
        *(row("", f"llm_adapter.blocks.#.cross_attn.{part}_proj", "W < V") for part in "qkvo"),
        *(row("", f"llm_adapter.blocks.#.mlp.{number}", "W < V") for number in (0, 2)),
    ),
    sizes=(Size("2B", {"D": 2048}, {"transformer_blocks": 28}),),
    texts=(TextEncoder("text_encoder", ("lora_te", "lora_te1"), "qwen3_06b", llama()),),
    kohya="original",
    default="diffusers",
    versions=("anima",),
    architecture="anima/lora",
    base_version="anima",
    loader="Anima",
    taken={"transformer.": ("diffusers",), "diffusion_model.": ("original",)},
    read_by=("kohya",),
)  # fmt: skip
