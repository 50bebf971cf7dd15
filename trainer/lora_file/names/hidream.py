"""HiDream-I1: double and single blocks with experts; the first code and diffusers call the layers alike."""

from trainer.lora_file.names.rows import Family, Row, Size, TextEncoder, clip, llama, row, t5


def _feed_forward(name: str, hidden: int) -> list[Row]:
    return [row("", f"{name}.w{number}", f"{hidden} < D" if number != 2 else f"D < {hidden}") for number in (1, 2, 3)]


def _block(name: str, parts: tuple[str, ...], modulation: str) -> list[Row]:
    rows = [row("", f"{name}.attn1.{part}", "D < D") for part in parts]
    return [
        *rows,
        *_feed_forward(f"{name}.ff_i.shared_experts", 3584),
        *_feed_forward(f"{name}.ff_i.experts.#", 6912),
        row("", f"{name}.adaLN_modulation.1", f"{modulation} < D"),
    ]


_IMAGE = ("to_q", "to_k", "to_v", "to_out")

FAMILY = Family(
    name="hidream",
    title="HiDream-I1",
    component="transformer",
    rows=(
        *_block("double_stream_blocks.#.block", (*_IMAGE, *(f"{part}_t" for part in _IMAGE)), "12D"),
        *_feed_forward("double_stream_blocks.#.block.ff_t", 6912),
        *_block("single_stream_blocks.#.block", _IMAGE, "6D"),
        row("", "caption_projection.#.linear", "D < 4096"), row("", "x_embedder.proj", "D < 64"),
        row("", "t_embedder.timestep_embedder.linear_1", "D < 256"),
        row("", "t_embedder.timestep_embedder.linear_2", "D < D"),
        row("", "p_embedder.pooled_embedder.linear_1", "D < 2048"),
        row("", "p_embedder.pooled_embedder.linear_2", "D < D"),
        row("", "final_layer.linear", "64 < D"), row("", "final_layer.adaLN_modulation.1", "2D < D"),
    ),
    sizes=(Size("17B", {"D": 2560}, {"double_stream_blocks": 16, "single_stream_blocks": 32}),),
    texts=(
        TextEncoder("text_encoder", ("lora_te1",), "clip_l", clip("768", "3072", "768")),
        TextEncoder("text_encoder_2", ("lora_te2",), "clip_g", clip("1280", "5120", "1280")),
        TextEncoder("text_encoder_3", ("lora_te3",), "t5xxl", t5("4096", "4096", "10240")),
        TextEncoder("text_encoder_4", ("lora_te4",), "llama", llama()),
    ),
    kohya="diffusers",
    default="diffusers",
    versions=("hidream",),
    architecture="hidream-i1/lora",
    base_version="hidream",
    loader="HiDreamImage",
    taken={"transformer.": ("diffusers",), "diffusion_model.": ("diffusers",)},
)  # fmt: skip
