"""Z-Image (base, turbo). The first code keeps q, k and v in one weight; most trainers write diffusers' names."""

from trainer.lora_file.names.rows import Family, Row, Size, TextEncoder, llama, row


def _blocks(name: str) -> list[Row]:
    rows = [
        row(f"{name}.#.attention.qkv", f"{name}.#.attention.to_q .to_k .to_v", "D D D < D"),
        row(f"{name}.#.attention.out", f"{name}.#.attention.to_out.0", "D < D"),
        *(
            row("", f"{name}.#.feed_forward.w{number}", "10240 < D" if number != 2 else "D < 10240")
            for number in (1, 2, 3)
        ),
    ]
    if name == "context_refiner":  # the text alone, which is not modulated by the timestep
        return rows
    return [*rows, row("", f"{name}.#.adaLN_modulation.0", "4D < 256")]


FAMILY = Family(
    name="zimage",
    title="Z-Image",
    component="transformer",
    rows=(
        *_blocks("layers"), *_blocks("noise_refiner"), *_blocks("context_refiner"),
        row("x_embedder", "all_x_embedder.2-1", "D < 64"),
        row("final_layer.linear", "all_final_layer.2-1.linear", "64 < D"),
        row("final_layer.adaLN_modulation.1", "all_final_layer.2-1.adaLN_modulation.1", "D < 256"),
        row("", "cap_embedder.1", "D < 2560"), row("", "t_embedder.mlp.0", "1024 < 256"),
        row("", "t_embedder.mlp.2", "256 < 1024"),
    ),
    sizes=(Size("6B", {"D": 3840}, {"layers": 30, "noise_refiner": 2, "context_refiner": 2}),),
    texts=(TextEncoder("text_encoder", ("lora_te", "lora_te1"), "qwen3_4b", llama()),),
    kohya="original",
    default="diffusers",
    versions=("z-image", "zimage", "z_image"),
    architecture="z-image/lora",
    base_version="zimage",
    loader="ZImage",
    taken={"transformer.": ("diffusers",), "lora_unet_": ("original", "diffusers"), "diffusion_model.": ("diffusers",)},
)  # fmt: skip
