"""Rows of Stable Diffusion's UNets: diffusers' blocks and the numbering of LDM and SGM, made from the structure.

LDM numbers its input blocks in one row: a convolution, then in each level its residual blocks and a downsampler. It
numbers the output blocks so too; there a level has one residual block more, and its upsampler is part of the last.
"""

from __future__ import annotations

from trainer.lora_file.names.rows import Row, row

_RESNET = {
    "in_layers.2": "conv1",
    "out_layers.3": "conv2",
    "emb_layers.1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}


def unet(widths: tuple[int, ...], layers: int, attended: tuple[bool, ...]) -> tuple[Row, ...]:
    """Rows of every linear layer and convolution of a UNet with so many residual blocks a level.

    `widths` are those of the levels from the outside in, `attended` says which levels have attention. The symbol `C` is
    the width of the text, `I` and `O` are inputs of the first and outputs of the last convolution, `L` those of labels.
    """
    time = 4 * widths[0]
    down, skips = _down(widths, layers, attended, time)
    inner = widths[-1]
    return (
        *_outside(widths[0], time), *down,
        *_resnet("middle_block.0", "mid_block.resnets.0", inner, inner, time),
        *_resnet("middle_block.2", "mid_block.resnets.1", inner, inner, time),
        *_attention("middle_block.1", "mid_block.attentions.0", inner),
        *_up(widths, layers, attended, time, skips),
    )  # fmt: skip


def _outside(width: int, time: int) -> list[Row]:
    """Rows of the layers outside the blocks."""
    return [
        row("input_blocks.0.0", "conv_in", f"{width} < I"), row("out.2", "conv_out", f"O < {9 * width}"),
        row("time_embed.0", "time_embedding.linear_1", f"{time} < {width}"),
        row("time_embed.2", "time_embedding.linear_2", f"{time} < {time}"),
        row("label_emb.0.0", "add_embedding.linear_1", f"{time} < L"),
        row("label_emb.0.2", "add_embedding.linear_2", f"{time} < {time}"),
    ]  # fmt: skip


def _down(widths: tuple[int, ...], layers: int, attended: tuple[bool, ...], time: int) -> tuple[list[Row], list[int]]:
    """Rows of the way down, and the width of each skip connection that leaves it."""
    rows: list[Row] = []
    skips, before, number = [widths[0]], widths[0], 1  # block 0 is the first convolution
    for level, width in enumerate(widths):
        for layer in range(layers):
            rows += _resnet(f"input_blocks.{number}.0", f"down_blocks.{level}.resnets.{layer}", before, width, time)
            rows += (
                _attention(f"input_blocks.{number}.1", f"down_blocks.{level}.attentions.{layer}", width)
                if attended[level]
                else []
            )
            before, number = width, number + 1
            skips.append(width)
        if level < len(widths) - 1:
            rows.append(
                row(f"input_blocks.{number}.0.op", f"down_blocks.{level}.downsamplers.0.conv", f"{width} < {9 * width}")
            )
            number += 1
            skips.append(width)
    return rows, skips


def _up(widths: tuple[int, ...], layers: int, attended: tuple[bool, ...], time: int, skips: list[int]) -> list[Row]:
    """Rows of the way up; a residual block's inputs are those of the block before and of a skip connection."""
    rows: list[Row] = []
    before, number = widths[-1], 0
    waiting = [*skips]  # the last skip out is the first in
    for level, width in enumerate(reversed(widths)):
        has_attention = attended[len(widths) - 1 - level]
        # One residual block more than on the way down, as each level takes in the skip of its downsampler too.
        for layer in range(layers + 1):
            rows += _resnet(
                f"output_blocks.{number}.0", f"up_blocks.{level}.resnets.{layer}", before + waiting.pop(), width, time
            )
            rows += (
                _attention(f"output_blocks.{number}.1", f"up_blocks.{level}.attentions.{layer}", width)
                if has_attention
                else []
            )
            before, number = width, number + 1
        if level < len(widths) - 1:
            rows.append(
                row(
                    f"output_blocks.{number - 1}.{2 if has_attention else 1}.conv",
                    f"up_blocks.{level}.upsamplers.0.conv",
                    f"{width} < {9 * width}",
                )
            )
    return rows


def _resnet(original: str, path: str, before: int, width: int, time: int) -> list[Row]:
    """Rows of one residual block, from `before` channels to `width`."""
    into = {"conv1": 9 * before, "conv2": 9 * width, "time_emb_proj": time, "conv_shortcut": before}
    return [
        row(f"{original}.{ldm}", f"{path}.{diffusers}", f"{width} < {into[diffusers]}")
        for ldm, diffusers in _RESNET.items()
        if diffusers != "conv_shortcut" or before != width  # a shortcut is only there where the width changes
    ]


def _attention(original: str, path: str, width: int) -> list[Row]:
    """Rows of one stack of transformer blocks: self-attention, cross-attention to the text, feed-forward."""
    inner = "transformer_blocks.#"
    shapes = {
        "proj_in": (width, width),
        "proj_out": (width, width),
        f"{inner}.ff.net.0.proj": (8 * width, width),
        f"{inner}.ff.net.2": (width, 4 * width),
    }
    shapes |= {f"{inner}.attn1.to_{part}": (width, width) for part in ("q", "k", "v", "out.0")}
    shapes |= {f"{inner}.attn2.to_{part}": (width, width) for part in ("q", "out.0")}
    rows = [row(f"{original}.{name}", f"{path}.{name}", f"{out} < {into}") for name, (out, into) in shapes.items()]
    return rows + [
        row(f"{original}.{inner}.attn2.to_{part}", f"{path}.{inner}.attn2.to_{part}", f"{width} < C") for part in "kv"
    ]


def of_any_structure() -> tuple[Row, ...]:
    """Rows in diffusers' spelling for UNets of other depths and widths than the published models."""
    blocks = ("down_blocks.#", "up_blocks.#", "mid_block")
    # `X < X` fits no size: such layers are known by name alone.
    attention = ["proj_in", "proj_out", "transformer_blocks.#.ff.net.0.proj", "transformer_blocks.#.ff.net.2"]
    attention += [
        f"transformer_blocks.#.attn{number}.to_{part}" for number in "12" for part in ("q", "k", "v", "out.0")
    ]
    names = [f"attentions.#.{name}" for name in attention] + [f"resnets.#.{name}" for name in _RESNET.values()]
    rows = [row("", f"{block}.{name}", "X < X") for block in blocks for name in names]
    return (
        *rows,
        row("", "down_blocks.#.downsamplers.0.conv", "X < X"),
        row("", "up_blocks.#.upsamplers.0.conv", "X < X"),
    )
