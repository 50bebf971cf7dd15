"""Qwen-Image, and its Edit models, which have the same layers: diffusers' names, often without any prefix."""

from trainer.lora_file.names.rows import Family, Size, TextEncoder, llama, row

_BLOCK = "transformer_blocks.#"

FAMILY = Family(
    name="qwen",
    title="Qwen-Image",
    component="transformer",
    rows=(
        *(row("", f"{_BLOCK}.attn.{part}", "D < D")
          for part in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")),
        *(row("", f"{_BLOCK}.{stream}_mod.1", "6D < D") for stream in ("img", "txt")),
        *(row("", f"{_BLOCK}.{stream}_mlp.net.0.proj", "4D < D") for stream in ("img", "txt")),
        *(row("", f"{_BLOCK}.{stream}_mlp.net.2", "D < 4D") for stream in ("img", "txt")),
        row("", "img_in", "D < 64"), row("", "txt_in", "D < 3584"), row("", "proj_out", "64 < D"),
        row("", "norm_out.linear", "2D < D"),
        row("", "time_text_embed.timestep_embedder.linear_1", "D < 256"),
        row("", "time_text_embed.timestep_embedder.linear_2", "D < D"),
    ),
    sizes=(Size("20B", {"D": 3072}, {"transformer_blocks": 60}),),
    texts=(TextEncoder("text_encoder", ("lora_te", "lora_te1"), "qwen25_7b", llama("model.layers")),),
    kohya="diffusers",
    default="diffusers",
    versions=("qwen_image", "qwen-image", "qwen"),
    architecture="qwen-image/lora",
    base_version="qwen_image",
    loader="QwenImage",
    taken={
        "transformer.": ("diffusers",), "lora_unet_": ("diffusers",), "diffusion_model.": ("diffusers",),
        "": ("diffusers",),
    },
    bare=True,
)  # fmt: skip
