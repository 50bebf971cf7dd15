"""Rates, ranks and layers by block in kohya's words (`network_args`) -> block_rates, block_ranks, layers.

A UNet's blocks are counted: of SD 12 down, one in the middle, 12 up; of SDXL 9, 3 and 9. Other bases' layers are chosen
by regular expressions over their names.
"""

from __future__ import annotations

import ast
import math

from trainer.other_trainers import layer_texts
from trainer.other_trainers.reading import Reading, shown

_MOST_RANK, _MOST_LINES = 256, 64
_CURVES = ("cosine", "sine", "linear", "reverse_linear", "zeros")


def put_blocks(reading: Reading) -> None:
    """Set what single blocks have of their own."""
    if reading.settings["family"] in ("sd", "sdxl"):
        _put_rates(reading)
        _put_ranks(reading)
    _put_pattern_rates(reading)
    _put_pattern_ranks(reading)
    _put_layers(reading)


# A UNet's blocks by their number.


def _texts(family: str, convolves: bool) -> tuple[list[list[str]], list[list[str]], list[list[str]]]:
    """The texts of each block's layers, down, in the middle, up; none for a block that isn't adapted."""
    kinds = ("attentions", "resnets") if convolves else ("attentions",)
    per_block, stages, plain = (3, 3, (0,)) if family == "sdxl" else (3, 4, (3,))

    def side(name: str, layers: int, bare: tuple[int, ...], sampler: str, without: int) -> list[list[str]]:
        blocks = [[f"{name}.{stage}.{kind}.{layer}." for kind in kinds if kind == "resnets" or stage not in bare]
                  if layer < layers else [] for stage in range(stages) for layer in range(per_block)]  # fmt: skip
        for stage in range(stages):
            if convolves and stage != without:
                blocks[stage * per_block + 2].append(f"{name}.{stage}.{sampler}")
        return blocks

    last = stages - 1
    down = [[], *side("down_blocks", 2, plain, "downsamplers", last)]
    up = side("up_blocks", 3, (last,) if family == "sdxl" else (0,), "upsamplers", last)
    if family == "sdxl":  # its middle is counted by layer
        resnets = [[f"mid_block.resnets.{number}."] * convolves for number in (0, 1)]
        return down[:9], [resnets[0], ["mid_block.attentions"], resnets[1]], up
    return down[:12], [["mid_block."]], up


def _put_rates(reading: Reading) -> None:
    names = ("down_lr_weight", "mid_lr_weight", "up_lr_weight")
    if not any(reading.has(f"network_args.{name}") for name in names):
        return
    blocks = _texts(reading.settings["family"], reading.whole("network_args.conv_dim") > 0)
    threshold, lines = reading.number("network_args.block_lr_zero_threshold"), []
    for name, side in zip(names, blocks, strict=True):
        weights = _weights(reading, f"network_args.{name}", len(side))
        for texts, weight in zip(side, weights, strict=False):
            factor = weight if weight > threshold else 0.0
            lines += [f"{text}={factor:g}" for text in texts if factor != 1]
    keys = [f"network_args.{name}" for name in (*names, "block_lr_zero_threshold")]
    _add(reading, "optimizer.block_rates", lines, *(key for key in keys if reading.has(key)))


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
    shares = [place / max(1, count - 1) for place in range(count)]
    if name in ("cosine", "sine"):
        shares = [math.sin(math.pi * share / 2) for share in shares]
    if name in ("cosine", "reverse_linear"):
        shares = shares[::-1]
    return [(0.0 if name == "zeros" else share) + more for share in shares]


def _put_ranks(reading: Reading) -> None:
    """Ranks of all blocks in one list; a block of rank 0 is left out."""
    key, alphas_key = "network_args.block_dims", "network_args.block_alphas"
    family, settings = reading.settings["family"], reading.settings
    if not reading.has(key):
        reading.cannot(alphas_key, "it goes with block_dims, which the recipe doesn't say")
        return
    down, middle, up = _texts(family, reading.has("network_args.conv_block_dims"))
    blocks = [[], *down, *middle, *up, []] if family == "sdxl" else [*down, *middle, *up]
    try:
        ranks = [int(part) for part in reading.text(key).strip("\"' ").split(",")]
        alphas = [float(part) for part in reading.text(alphas_key).strip("\"' ").split(",") if part]
    except ValueError:
        reading.cannot(key, "allowed: whole numbers with commas between")
        return
    lines, absent = [], []
    for texts, rank in zip(blocks, ranks, strict=False):
        lines += [f"{text}={min(rank, _MOST_RANK)}" for text in texts if 0 < rank != settings["adapter.rank"]]
        absent += texts if rank == 0 else []
    _add(reading, "adapter.block_ranks", lines, key)
    _add(reading, "adapter.without_layers", absent, key)
    alphas = alphas or [settings["adapter.alpha"]] * len(ranks)
    scales = [
        (text, alpha / rank)
        for texts, rank, alpha in zip(blocks, ranks, alphas, strict=False)
        for text in texts
        if rank > 0
    ]
    _put_scales(reading, scales, alphas_key if reading.has(alphas_key) else key)


def _put_scales(reading: Reading, scales: list[tuple[str, float]], key: str) -> None:
    """Set what blocks have of an own alpha / rank as a rate of their second matrices, `lora_B`; they begin at 0.

    A matrix that counts twice and one that grows twice as fast are the same update, to any optimizer whose steps don't
    go by how large gradients are, such as Adam: but for weight decay and the limit of a gradient's length.
    """
    scale = reading.settings["adapter.alpha"] / reading.settings["adapter.rank"]
    lines = [line.rpartition("=") for line in reading.settings.get("optimizer.block_rates", [])]
    held = {text: float(rate) for text, _, rate in lines}
    own = [(text, value / scale) for text, value in scales if scale > 0 and abs(value / scale - 1) > 1e-9]
    rates = [f"{text}*lora_B={min(1000.0, factor * held.get(text, 1.0)):.6g}" for text, factor in own]
    if not rates:
        reading.translated(key, "adapter.alpha", "each block's alpha / rank is the one scale there is here")
    elif len(rates) + len(lines) > _MOST_LINES or scale <= 0:
        why = f"blocks have the one scale {scale:g} here, and their own ones would be {len(rates)} lines of rates"
        reading.cannot(key, f"{why}; allowed: {_MOST_LINES}")
        reading.notes.append(f"scales of single blocks were left out: {why}")
    else:
        _add(reading, "optimizer.block_rates", rates, key)
        reading.notes.append(
            f"blocks have the one scale {scale:g} here; those with another learn that much faster or slower in lora_B, "
            f"which is the same but for weight decay and clipping"
        )


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
    alpha = reading.settings["adapter.alpha"]
    _put_scales(reading, [(text, alpha / rank) for texts, rank in pairs if rank >= 1 for text in texts], key)


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
    if lines:
        held = list(reading.settings.get(setting, []))
        reading.put(setting, list(dict.fromkeys([*lines, *held]))[:_MOST_LINES], *keys)
