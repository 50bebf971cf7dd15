"""LyCORIS' `rs_lora`, which makes the scale alpha / sqrt(rank); two kinds of files have it.

Since July 2024 (3.0) LyCORIS writes alpha * sqrt(rank) into a file, so that alpha / rank is the scale and every reader
is right; in the months before it wrote the plain alpha, which readers take for less than it is. A header has the
setting (`ss_network_alpha`), so the two can be told apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from trainer.errors import AdapterError
from trainer.lora_file.header_meaning import Stated, table

_NEAR = 0.01  # share of an alpha: more than bfloat16 rounds by, less than sqrt(2) differs by
_ALPHAS, _RANKS = ("ss_network_alpha", "conv_alpha"), ("ss_network_dim", "conv_dim")


def applied(stated: Stated, metadata: Mapping[str, str], modules: Sequence[tuple[float, int]]) -> Stated:
    """What a file states, with `rs_lora` taken into account.

    `modules` are (alpha, rank) of each, the rank 0 where a LoKr's factors are whole.
    Raises: AdapterError where a file has `rs_lora`, and nothing tells which of the two kinds it is.
    """
    args = table(metadata.get("ss_network_args", ""))
    # As LyCORIS reads it: on unless false, and two of its algorithms ignore it.
    if str(args.get("rs_lora", "false")).lower() == "false" or args.get("algo") in ("dylora", "tlora"):
        return stated
    folded = _is_folded(stated.file, metadata, modules)
    scales = {alpha: _whole_scale(metadata, alpha, folded) for alpha, rank in modules if not rank and alpha > 0}
    return replace(stated, folded=folded, tool={**stated.tool, "whole_scales": scales})


def _is_folded(file: str, metadata: Mapping[str, str], modules: Sequence[tuple[float, int]]) -> bool:
    """True if the alphas are alpha * sqrt(rank), False if they are the plain setting. Raises: AdapterError."""
    alphas, ranks = _settings(metadata, _ALPHAS), _settings(metadata, _RANKS)
    folded = plain = True  # each until a module contradicts it
    for alpha, rank in modules:
        if rank == 1:  # both are the same
            continue
        # (alpha, rank) as they may have been set; a LoKr of whole factors has its rank as alpha.
        settings = [(set_alpha or rank, rank) for set_alpha in alphas] if rank else [(size, size) for size in ranks]
        folded = folded and any(_is_near(alpha, set_alpha * math.sqrt(size)) for set_alpha, size in settings)
        plain = plain and any(_is_near(alpha, set_alpha) for set_alpha, _ in settings)
    if folded or "resized from" in metadata.get("ss_training_comment", ""):  # kohya's resizing works on alpha / rank
        return True
    if plain:
        return False
    raise AdapterError(
        f"{file} says rs_lora, which LyCORIS has written in two ways whose strengths differ by the root of the rank, "
        f"and nothing in its header (ss_network_alpha is {metadata.get('ss_network_alpha', 'missing')[:40]!r}) tells "
        f"which; save it again with LyCORIS 3 or newer, or ask who made it."
    )


def _whole_scale(metadata: Mapping[str, str], alpha: float, folded: bool) -> float:
    """Scale of a LoKr whose factors are both whole: the root of the rank setting, which is the alpha then."""
    rank = alpha ** (2 / 3) if folded else alpha
    near = min(_settings(metadata, _RANKS), key=lambda size: abs(size - rank), default=rank)
    return math.sqrt(near if _is_near(rank, near) else rank)


def _settings(metadata: Mapping[str, str], keys: tuple[str, str]) -> list[float]:
    """The values of a setting and of the same for convolutions, as far as they are numbers."""
    numbers = []
    for value in (metadata.get(keys[0]), table(metadata.get("ss_network_args", "")).get(keys[1])):
        try:
            numbers.append(float(str(value)))
        except ValueError:
            continue
    return [number for number in numbers if math.isfinite(number) and 0 <= number < 1e9]


def _is_near(one: float, other: float) -> bool:
    return abs(one - other) <= _NEAR * abs(other)
