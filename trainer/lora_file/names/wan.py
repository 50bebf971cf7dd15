"""Wan 2.1 and 2.2 (video; one frame is a picture)."""

from trainer.lora_file.names.rows import Family, Row, Size, TextEncoder, row, t5

_PARTS = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "k_img": "add_k_proj", "v_img": "add_v_proj"}


def _attention(original: str, diffusers: str, parts: tuple[str, ...]) -> list[Row]:
    return [row(f"blocks.#.{original}.{part}", f"blocks.#.{diffusers}.{_PARTS[part]}", "D < D") for part in parts]


FAMILY = Family(
    name="wan",
    title="Wan",
    component="transformer",
    rows=(
        *_attention("self_attn", "attn1", ("q", "k", "v", "o")), *_attention("cross_attn", "attn2", tuple(_PARTS)),
        row("blocks.#.ffn.0", "blocks.#.ffn.net.0.proj", "F < D"), row("blocks.#.ffn.2", "blocks.#.ffn.net.2", "D < F"),
        row("text_embedding.0", "condition_embedder.text_embedder.linear_1", "D < 4096"),
        row("text_embedding.2", "condition_embedder.text_embedder.linear_2", "D < D"),
        row("time_embedding.0", "condition_embedder.time_embedder.linear_1", "D < 256"),
        row("time_embedding.2", "condition_embedder.time_embedder.linear_2", "D < D"),
        row("time_projection.1", "condition_embedder.time_proj", "6D < D"), row("head.head", "proj_out", "O < D"),
        row("", "patch_embedding", "D < P"),
    ),
    sizes=(
        Size("14B", {"D": 5120, "F": 13824, "O": 64, "P": 64}, {"blocks": 40}),
        Size("5B", {"D": 3072, "F": 14336, "O": 192, "P": 192}, {"blocks": 30}),
        Size("1.3B", {"D": 1536, "F": 8960, "O": 64, "P": 64}, {"blocks": 30}),
    ),
    texts=(TextEncoder("text_encoder", ("lora_te", "lora_te1"), "umt5xxl", t5("4096", "4096", "10240")),),
    kohya="original",
    default="diffusers",
    versions=("wan",),
    architecture="wan/lora",
    base_version="wan",
    loader="Wan",
    taken={"transformer.": ("diffusers",), "lora_unet_": ("original",), "diffusion_model.": ("original",)},
)  # fmt: skip
