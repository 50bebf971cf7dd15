"""Krea 2: one stream of gated attention with shared keys and values.

A small network joins the layers of the text encoder.
"""

from trainer.lora_file.names.rows import Family, Row, Size, TextEncoder, llama, row

_ATTENTION = {"wq": "to_q", "wk": "to_k", "wv": "to_v", "wo": "to_out.0", "gate": "to_gate"}


def _blocks(original: str, diffusers: str, width: str, shared: str, hidden: str) -> list[Row]:
    rows = [
        row(
            f"{original}.attn.{part}",
            f"{diffusers}.attn.{path}",
            f"{shared if part in ('wk', 'wv') else width} < {width}",
        )
        for part, path in _ATTENTION.items()
    ]
    rows += [row(f"{original}.mlp.{part}", f"{diffusers}.ff.{part}", f"{hidden} < {width}") for part in ("gate", "up")]
    return [*rows, row(f"{original}.mlp.down", f"{diffusers}.ff.down", f"{width} < {hidden}")]


FAMILY = Family(
    name="krea2",
    title="Krea 2",
    component="transformer",
    rows=(
        *_blocks("blocks.#", "transformer_blocks.#", "D", "K", "F"),
        *_blocks("txtfusion.layerwise_blocks.#", "text_fusion.layerwise_blocks.#", "T", "T", "U"),
        *_blocks("txtfusion.refiner_blocks.#", "text_fusion.refiner_blocks.#", "T", "T", "U"),
        row("first", "img_in", "D < 64"), row("last.linear", "final_layer.linear", "64 < D"),
        row("tmlp.0", "time_embed.linear_1", "D < 256"), row("tmlp.2", "time_embed.linear_2", "D < D"),
        row("tproj.1", "time_mod_proj", "6D < D"),
        row("txtmlp.1", "txt_in.linear_1", "D < T"), row("txtmlp.3", "txt_in.linear_2", "D < D"),
        row("txtfusion.projector", "text_fusion.projector", "1 < 12"),
    ),
    sizes=(Size("2", {"D": 6144, "K": 1536, "F": 16384, "T": 2560, "U": 6912}, {"transformer_blocks": 28}),),
    texts=(TextEncoder("text_encoder", ("lora_te", "lora_te1"), "qwen3_4b", llama()),),
    kohya="original",
    default="diffusers",
    versions=("krea2", "krea-2", "krea_2"),
    architecture="krea-2/lora",
    base_version="krea2",
    loader="Krea2",
    taken={"transformer.": ("diffusers",), "diffusion_model.": ("original",), "base_model.model.": ("original",)},
)  # fmt: skip
