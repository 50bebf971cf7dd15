"""Rates, ranks and layers by block in kohya's words (`network_args`) -> block_rates, block_ranks, layers.

A UNet's blocks are counted: of SD 12 down, one in the middle, 12 up; of SDXL 9, 3 and 9. Other bases' layers are chosen
by regular expressions over their names.
"""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass

from trainer import schema
from trainer.other_trainers import layer_texts
from trainer.other_trainers.kohya_network import RATES_BY_BLOCK
from trainer.other_trainers.reading import Reading, shown

_ARGS, _MOST_RANK, _MOST_LINES = "network_args.", 256, schema.MOST_LINES
_THRESHOLD = "block_lr_zero_threshold"
_LISTS = ("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas")
_OWN_SCALES = (
    "blocks have the one scale {scale:g} here; those with another learn that much faster or slower in lora_B, which is "
    "the same but for weight decay and clipping"
)
_CURVES = ("cosine", "sine", "linear", "reverse_linear", "zeros")


def put_blocks(reading: Reading) -> None:
    """Set what single blocks have of their own."""
    if reading.settings["family"] in ("sd", "sdxl"):
        _put_unet(reading)
    _put_pattern_rates(reading)
    _put_pattern_ranks(reading)
    _put_layers(reading)


# A UNet's blocks by their number.


@dataclass(frozen=True)
class _Layers:
    """What the layers of a block with this text in their path have."""

    text: str
    rank: float  # 0: they are left out
    scale: float  # alpha / rank
    rate: float


def _put_unet(reading: Reading) -> None:
    """Rates, ranks and alphas of blocks, as `networks/lora.py` of sd-scripts reads them.

    Lists of ranks and alphas count where there are `block_dims` or rates by block; those of convolutions are of the
    3x3 ones.
    """
    given = [name for name in (*_LISTS, *RATES_BY_BLOCK, _THRESHOLD) if reading.has(_ARGS + name)]
    if not {"block_dims", *RATES_BY_BLOCK} & {*given}:
        for name in given:
            reading.no_effect(_ARGS + name, "it is read with block_dims or rates by block only")
        return

    # What each block has.
    settings = reading.settings
    convolves = "conv_block_dims" in given or reading.whole(f"{_ARGS}conv_dim") > 0
    sides = _texts(settings["family"], convolves)
    rates, blocks = _rates(reading, [len(side) for side in sides]), [block for side in sides for block in side]
    if settings["family"] == "sdxl":  # its lists begin and end with what has no LoRA
        rates, blocks = [1.0, *rates, 1.0], [[], *blocks, []]
    ranks = _list(reading, "block_dims", settings["adapter.rank"], len(blocks))
    alphas = _list(reading, "block_alphas", settings["adapter.alpha"], len(blocks))
    conv_ranks = _list(reading, "conv_block_dims", reading.whole(f"{_ARGS}conv_dim"), len(blocks))
    conv_alphas = _list(reading, "conv_block_alphas", reading.number(f"{_ARGS}conv_alpha", 1.0), len(blocks))
    if "conv_block_dims" not in given:
        reading.no_effect(f"{_ARGS}conv_block_alphas", "it is read with conv_block_dims only")

    # The same by text; the convolutions first, since the first line that fits counts.
    layers = [
        _Layers(text, rank, alpha / (rank or 1), rate)
        for block, rank, alpha, rate in zip(blocks, conv_ranks, conv_alphas, rates, strict=True)
        for text in _convolutions(block)
    ]
    layers += [
        _Layers(text, rank, alpha / (rank or 1), rate)
        for block, rank, alpha, conv_rank, rate in zip(blocks, ranks, alphas, conv_ranks, rates, strict=True)
        for text in _others(block, only=rank == 0 < conv_rank)
    ]
    _put_ranks(reading, layers, [_ARGS + name for name in given if name.endswith("dims")])
    _put_rates(reading, layers, [_ARGS + name for name in given if not name.endswith("dims")])


def _texts(family: str, convolves: bool) -> tuple[list[list[str]], list[list[str]], list[list[str]]]:
    """The texts of each block's layers, down, in the middle, up; none for a block that isn't adapted."""
    kinds = ("attentions", "resnets") if convolves else ("attentions",)
    # Places per stage, stages, and the stages of the way down that have no attention.
    per_block, stages, plain = (3, 3, (0,)) if family == "sdxl" else (3, 4, (3,))

    def side(name: str, layers: int, bare: tuple[int, ...], sampler: str, without: int) -> list[list[str]]:
        blocks = [[f"{name}.{stage}.{kind}.{layer}." for kind in kinds if kind == "resnets" or stage not in bare]
                  if layer < layers else [] for stage in range(stages) for layer in range(per_block)]  # fmt: skip
        for stage in range(stages):
            if convolves and stage != without:
                blocks[stage * per_block + 2].append(f"{name}.{stage}.{sampler}")
        return blocks

    # The first place down is the convolution before all stages, which isn't adapted.
    last = stages - 1
    down = [[], *side("down_blocks", 2, plain, "downsamplers", last)]
    up = side("up_blocks", 3, (last,) if family == "sdxl" else (0,), "upsamplers", last)
    resnets = [[f"mid_block.resnets.{number}."] * convolves for number in (0, 1)]
    if family == "sdxl":  # its middle is counted by layer
        return down[:9], [resnets[0], ["mid_block.attentions"], resnets[1]], up
    return down[:12], [["mid_block.attentions", *resnets[0], *resnets[1]]], up


def _convolutions(block: list[str]) -> list[str]:
    """Texts of a block's 3x3 convolutions."""
    inside = [f"{text}{name}" for text in block if ".resnets." in text for name in ("conv1", "conv2")]
    return inside + [text for text in block if text.endswith("samplers")]


def _others(block: list[str], only: bool) -> list[str]:
    """Texts of its other layers; `only` of these, where convolutions beside them are meant not to be."""
    parts = ("time_emb_proj", "conv_shortcut") if only else ("",)
    return [
        f"{text}{part}"
        for text in block
        if not text.endswith("samplers")
        for part in (parts if ".resnets." in text else ("",))
    ]


def _rates(reading: Reading, lengths: list[int]) -> list[float]:
    """Factors of all blocks' learning rates, down, in the middle, up; 1 where none is given."""
    threshold, rates = reading.number(_ARGS + _THRESHOLD), list[float]()
    for name, length in zip(RATES_BY_BLOCK, lengths, strict=True):
        weights = [weight if weight > threshold else 0.0 for weight in _weights(reading, _ARGS + name, length)]
        rates += [*weights, *[1.0] * (length - len(weights))]
    return rates


def _weights(reading: Reading, key: str, count: int) -> list[float]:
    """Factors of blocks: numbers with commas between, or a curve's name with a number added to it."""
    text = reading.text(key).strip("\"' ")
    if not text:
        return []
    name, _, added = text.partition("+")
    try:
        if name not in _CURVES:
            return [min(1000.0, abs(float(part))) for part in text.split(",")[:count]]
        more = float(added or 0)
    except ValueError:
        reading.cannot(key, f"it is {shown(text)}; allowed: numbers with commas between, or {', '.join(_CURVES)}")
        return []

    # Curves rise or fall over the blocks, from 0 to 1 or back.
    shares = [place / max(1, count - 1) for place in range(count)]
    if name in ("cosine", "sine"):
        shares = [math.sin(math.pi * share / 2) for share in shares]
    if name in ("cosine", "reverse_linear"):
        shares = shares[::-1]
    return [(0.0 if name == "zeros" else share) + more for share in shares]


def _list(reading: Reading, name: str, default: float, count: int) -> list[float]:
    """A number for each block; the default for all where the key is left out or can't be read."""
    text = reading.text(_ARGS + name).strip("\"' ")
    if not text:
        return [default] * count
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count or not all(0 <= number < 1e6 for number in numbers):
        reading.cannot(_ARGS + name, f"it is {shown(text)}; allowed: {count} numbers with commas between")
        return [default] * count
    return numbers


def _put_ranks(reading: Reading, layers: list[_Layers], keys: list[str]) -> None:
    held = [(text, float(rank)) for text, _, rank in _split(reading, "adapter.block_ranks")]
    ranks = [(layer.text, float(min(int(layer.rank), _MOST_RANK))) for layer in layers if layer.rank]
    lines = _needed(ranks, reading.settings["adapter.rank"], held)
    _add(reading, "adapter.block_ranks", [f"{text}={rank:g}" for text, rank in lines], *keys)
    _add(reading, "adapter.without_layers", [layer.text for layer in layers if not layer.rank], *keys)


def _put_rates(reading: Reading, layers: list[_Layers], keys: list[str]) -> None:
    """Rates of blocks. What has an own alpha / rank has it as a rate of the second matrices, `lora_B`, that begin at 0.

    A matrix that counts twice and one that grows twice as fast are the same update, to any optimizer whose steps don't
    go by how large gradients are, such as Adam: but for weight decay and the limit of a gradient's length.
    """
    scale = reading.settings["adapter.alpha"] / reading.settings["adapter.rank"]
    held = [(text, float(rate)) for text, _, rate in _split(reading, "optimizer.block_rates")]
    there = [layer for layer in layers if layer.rank]
    own = _needed([(layer.text, layer.rate) for layer in there], 1.0, held)
    seconds = [(layer.text, layer.rate * layer.scale / scale) for layer in there] if scale > 0 else []
    seconds = _needed(seconds, 1.0, [*own, *held])
    lines = [f"{text}*lora_B={min(1000.0, rate):.6g}" for text, rate in seconds]
    _add(reading, "optimizer.block_rates", [*lines, *(f"{text}={rate:g}" for text, rate in own)], *keys)
    if seconds:
        reading.notes.append(_OWN_SCALES.format(scale=scale))
    else:
        for key in (key for key in keys if key.endswith("alphas")):
            reading.translated(key, "adapter.alpha", "each block's alpha / rank is the one scale there is here")


def _needed(pairs: list[tuple[str, float]], default: float, held: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Those of these texts and numbers that say something else than the next line that fits, or the default."""
    after = list(held)  # the lines that come later, in their order
    num_held = len(after)
    for text, number in reversed(pairs):
        otherwise = next((other for piece, other in after if piece in text), default)
        if abs(number - otherwise) > 1e-6 * max(1.0, abs(otherwise)):
            after.insert(0, (text, number))
    return after[: len(after) - num_held]


def _split(reading: Reading, setting: str) -> list[tuple[str, str, str]]:
    """The lines that a setting holds already, at their last `=`."""
    return [line.rpartition("=") for line in reading.settings.get(setting, [])]


# Layers by regular expressions.


def _pairs(reading: Reading, key: str) -> list[tuple[list[str], float]]:
    """Texts and number of each `PATTERN=NUMBER` of a list; those that ours can't say are marked."""
    found, strange = [], []
    for pair in reading.text(key).strip("\"' ").split(",")[:_MOST_LINES]:
        pattern, equals, number = (part.strip() for part in pair.rpartition("="))
        texts = layer_texts.of_kohya(pattern, reading.settings["family"]) if equals else None
        try:
            value = float(number)
        except ValueError:
            texts, value = None, 0.0
        if texts is None or not 0 <= value < 1e6:
            strange.append(pair.strip())
        else:
            found.append((texts, value))
    if strange and reading.has(key):
        reading.cannot(key, _strange(strange))
    return found


def _strange(patterns: list[str]) -> str:
    return (
        f"{shown(patterns[0])} is more than texts, numbers and alternatives; say it by texts of a path, with * for any"
    )


def _put_pattern_rates(reading: Reading) -> None:
    # Rates stand there as they are, here as factors of the main rate.
    key, main = "network_args.network_reg_lrs", float(reading.settings.get("learning_rate", 0)) or 1.0
    lines = [f"{text}={rate / main:.6g}" for texts, rate in _pairs(reading, key) for text in texts]
    _add(reading, "optimizer.block_rates", lines, key)


def _put_pattern_ranks(reading: Reading) -> None:
    key, lines, absent = "network_args.network_reg_dims", list[str](), list[str]()
    pairs = _pairs(reading, key)
    if not pairs:
        return
    for texts, rank in pairs:
        lines += [f"{text}={int(min(rank, _MOST_RANK))}" for text in texts if rank >= 1]
        absent += texts if rank < 1 else []
    _add(reading, "adapter.block_ranks", lines, key)
    _add(reading, "adapter.without_layers", absent, key)
    # A pattern's layers keep the one alpha, and so have a scale of their own.
    alpha = reading.settings["adapter.alpha"]
    held = _split(reading, "optimizer.block_rates")
    layers = [
        _Layers(text, rank, alpha / rank, next((float(rate) for other, _, rate in held if other in text), 1.0))
        for texts, rank in pairs
        if rank >= 1
        for text in texts
    ]
    _put_rates(reading, layers, [key])


def _put_layers(reading: Reading) -> None:
    key = "network_args.exclude_patterns"
    texts, strange = _listed(reading, key)
    _add(reading, "adapter.without_layers", texts, key)
    if strange:
        reading.cannot(key, _strange(strange))
    if reading.has("network_args.include_patterns"):
        reading.cannot(
            "network_args.include_patterns",
            "what is left out can't be taken in again here; say with adapter.only_layers which layers there are",
        )


def _listed(reading: Reading, key: str) -> tuple[list[str], list[str]]:
    """The texts of a list of patterns, spelled as Python does, and the patterns that ours can't say."""
    text = reading.text(key).strip()
    if not text:
        return [], []
    try:
        # literal_eval makes values and runs nothing, but a long text could exhaust the parser.
        value = ast.literal_eval(text) if len(text) < 2000 else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = None
    patterns = [value] if isinstance(value, str) else value if isinstance(value, list) else [text]
    found, strange = list[str](), list[str]()
    for pattern in patterns[:_MOST_LINES]:
        texts = layer_texts.of_kohya(str(pattern), reading.settings["family"])
        if texts is None:
            strange.append(str(pattern))
        else:
            found += texts
    return found, strange


def _add(reading: Reading, setting: str, lines: list[str], *keys: str) -> None:
    """Put lines before those that are held already: the first that fits counts."""
    if not lines:
        return
    together = list(dict.fromkeys([*lines, *reading.settings.get(setting, [])]))
    if len(together) <= _MOST_LINES:
        reading.put(setting, together, *keys)
        return
    why = f"{setting} would have {len(together)} lines; allowed: {_MOST_LINES}"
    for key in keys:
        reading.cannot(key, why)
    reading.notes.append(f"what single blocks have of their own was left out: {why}")
