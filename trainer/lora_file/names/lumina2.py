"""Lumina-Image 2.0: Z-Image's ancestor, with fewer key and value heads than query heads."""

from trainer.lora_file.names.rows import Family, Row, Size, TextEncoder, llama, row


def _blocks(name: str) -> list[Row]:
    rows = [
        row(f"{name}.#.attention.qkv", f"{name}.#.attn.to_q .to_k .to_v", "D K K < D"),
        row(f"{name}.#.attention.out", f"{name}.#.attn.to_out.0", "D < D"),
        *(
            row(
                f"{name}.#.feed_forward.w{number}",
                f"{name}.#.feed_forward.linear_{number}",
                "4D < D" if number != 2 else "D < 4D",
            )
            for number in (1, 2, 3)
        ),
    ]
    if name == "context_refiner":  # the text alone, which is not modulated by the timestep
        return rows
    return [*rows, row(f"{name}.#.adaLN_modulation.1", f"{name}.#.norm1.linear", "4D < 1024")]


FAMILY = Family(
    name="lumina2",
    title="Lumina-Image 2.0",
    component="transformer",
    rows=(
        *_blocks("layers"), *_blocks("noise_refiner"), *_blocks("context_refiner"),
        row("", "x_embedder", "D < 64"), row("cap_embedder.1", "time_caption_embed.caption_embedder.1", "D < 2304"),
        row("t_embedder.mlp.0", "time_caption_embed.timestep_embedder.linear_1", "1024 < 256"),
        row("t_embedder.mlp.2", "time_caption_embed.timestep_embedder.linear_2", "1024 < 1024"),
        row("final_layer.adaLN_modulation.1", "norm_out.linear_1", "D < 1024"),
        row("final_layer.linear", "norm_out.linear_2", "64 < D"),
    ),
    sizes=(Size("2B", {"D": 2304, "K": 768}, {"layers": 26, "noise_refiner": 2, "context_refiner": 2}),),
    texts=(TextEncoder("text_encoder", ("lora_te", "lora_te1"), "gemma2_2b", llama()),),
    kohya="original",
    default="comfyui",
    versions=("lumina",),
    architecture="lumina-2/lora",
    base_version="lumina2",
    loader="Lumina2",
    taken={"transformer.": ("diffusers",), "diffusion_model.": ("original",)},
    read_by=("kohya",),
)  # fmt: skip
