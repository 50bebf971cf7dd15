"""Rows of Stable Diffusion's UNets: diffusers' blocks and the numbering of LDM and SGM, made from the structure.

The input blocks of LDM are numbered through: one convolution, then in each level its residual blocks and a downsampler. The output
blocks are too, a level having one residual block more and its upsampler inside the last.
"""

from __future__ import annotations

from trainer.lora_file.names.rows import Row, row

_RESNET = {"in_layers.2": "conv1", "out_layers.3": "conv2", "emb_layers.1": "time_emb_proj", "skip_connection": "conv_shortcut"}


def unet(widths: tuple[int, ...], layers: int, attended: tuple[bool, ...]) -> tuple[Row, ...]:
    """Rows of every linear and convolution; `widths` of the levels from the outside in, `attended` says which have attention. `C` is the width of the text."""
    time = 4 * widths[0]
    rows = [
        row("input_blocks.0.0", "conv_in", f"{widths[0]} < I"), row("out.2", "conv_out", f"O < {9 * widths[0]}"),
        row("time_embed.0", "time_embedding.linear_1", f"{time} < {widths[0]}"), row("time_embed.2", "time_embedding.linear_2", f"{time} < {time}"),
        row("label_emb.0.0", "add_embedding.linear_1", f"{time} < L"), row("label_emb.0.2", "add_embedding.linear_2", f"{time} < {time}"),
    ]  # fmt: skip
    skips, before, number = [widths[0]], widths[0], 1
    for level, width in enumerate(widths):
        for layer in range(layers):
            rows += _resnet(f"input_blocks.{number}.0", f"down_blocks.{level}.resnets.{layer}", before, width, time)
            rows += _attention(f"input_blocks.{number}.1", f"down_blocks.{level}.attentions.{layer}", width) if attended[level] else []
            before, number = width, number + 1
            skips.append(width)
        if level < len(widths) - 1:
            rows.append(row(f"input_blocks.{number}.0.op", f"down_blocks.{level}.downsamplers.0.conv", f"{width} < {9 * width}"))
            number += 1
            skips.append(width)
    rows += _resnet("middle_block.0", "mid_block.resnets.0", before, before, time) + _resnet("middle_block.2", "mid_block.resnets.1", before, before, time)
    rows += _attention("middle_block.1", "mid_block.attentions.0", before)
    number = 0
    for level, width in enumerate(reversed(widths)):
        has = attended[len(widths) - 1 - level]
        for layer in range(layers + 1):
            rows += _resnet(f"output_blocks.{number}.0", f"up_blocks.{level}.resnets.{layer}", before + skips.pop(), width, time)
            rows += _attention(f"output_blocks.{number}.1", f"up_blocks.{level}.attentions.{layer}", width) if has else []
            before, number = width, number + 1
        if level < len(widths) - 1:
            rows.append(row(f"output_blocks.{number - 1}.{2 if has else 1}.conv", f"up_blocks.{level}.upsamplers.0.conv", f"{width} < {9 * width}"))
    return tuple(rows)


def _resnet(original: str, path: str, before: int, width: int, time: int) -> list[Row]:
    into = {"conv1": 9 * before, "conv2": 9 * width, "time_emb_proj": time, "conv_shortcut": before}
    return [
        row(f"{original}.{theirs}", f"{path}.{ours}", f"{width} < {into[ours]}")
        for theirs, ours in _RESNET.items()
        if ours != "conv_shortcut" or before != width
    ]


def _attention(original: str, path: str, width: int) -> list[Row]:
    inner = "transformer_blocks.#"
    shapes = {"proj_in": (width, width), "proj_out": (width, width), f"{inner}.ff.net.0.proj": (8 * width, width), f"{inner}.ff.net.2": (width, 4 * width)}
    shapes |= {f"{inner}.attn1.to_{part}": (width, width) for part in ("q", "k", "v", "out.0")}
    shapes |= {f"{inner}.attn2.to_{part}": (width, width) for part in ("q", "out.0")}
    rows = [row(f"{original}.{name}", f"{path}.{name}", f"{out} < {into}") for name, (out, into) in shapes.items()]
    return rows + [row(f"{original}.{inner}.attn2.to_{part}", f"{path}.{inner}.attn2.to_{part}", f"{width} < C") for part in "kv"]


def of_any_structure() -> tuple[Row, ...]:
    """Rows in diffusers' spelling for UNets of other depths and widths than the published ones."""
    blocks = ("down_blocks.#", "up_blocks.#", "mid_block")
    attention = ["proj_in", "proj_out", "transformer_blocks.#.ff.net.0.proj", "transformer_blocks.#.ff.net.2"]
    attention += [f"transformer_blocks.#.attn{number}.to_{part}" for number in "12" for part in ("q", "k", "v", "out.0")]
    names = [f"attentions.#.{name}" for name in attention] + [f"resnets.#.{name}" for name in _RESNET.values()]
    rows = [row("", f"{block}.{name}", "X < X") for block in blocks for name in names]
    return (*rows, row("", "down_blocks.#.downsamplers.0.conv", "X < X"), row("", "up_blocks.#.upsamplers.0.conv", "X < X"))
