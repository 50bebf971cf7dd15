"""LyCORIS' `rs_lora`: the scale is alpha / sqrt(rank), and two kinds of files say so.

Since July 2024 (3.0) LyCORIS writes alpha * sqrt(rank) into a file, so that alpha / rank is the scale and every reader is right; in the months before
it wrote the plain alpha, which readers take for less than it is. A header has the setting (`ss_network_alpha`), so the two can be told apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from trainer.errors import AdapterError
from trainer.lora_file.header_meaning import Stated, table

_NEAR = 0.01  # of an alpha: more than bfloat16 rounds, less than the root of 2
_ALPHAS, _RANKS = ("ss_network_alpha", "conv_alpha"), ("ss_network_dim", "conv_dim")


def told(said: Stated, metadata: Mapping[str, str], modules: Sequence[tuple[float, int]]) -> Stated:
    """What is said of a file, with what LyCORIS' `rs_lora` says of its modules' (alpha, rank); rank 0 where a LoKr's factors are whole.

    Raises: AdapterError where it says so, and nothing tells which of the two ways.
    """
    args = table(metadata.get("ss_network_args", ""))
    # As LyCORIS understands it: anything but false; and two of its kinds don't read it.
    if str(args.get("rs_lora", "false")).lower() == "false" or args.get("algo") in ("dylora", "tlora"):
        return said
    folded = _is_folded(said.file, metadata, modules)
    scales = {alpha: _whole_scale(metadata, alpha, folded) for alpha, rank in modules if not rank and alpha > 0}
    return replace(said, folded=folded, tool={**said.tool, "whole_scales": scales})


def _is_folded(file: str, metadata: Mapping[str, str], modules: Sequence[tuple[float, int]]) -> bool:
    wanted, ranks = _said(metadata, _ALPHAS), _said(metadata, _RANKS)
    folded = plain = True
    for alpha, rank in modules:
        if rank == 1:
            continue
        given = [(one or rank, rank) for one in wanted] if rank else [(one, one) for one in ranks]
        folded = folded and any(_is_near(alpha, one * math.sqrt(size)) for one, size in given)
        plain = plain and any(_is_near(alpha, one) for one, _ in given)
    if folded or "resized from" in metadata.get("ss_training_comment", ""):  # kohya's resizing works on alpha / rank
        return True
    if plain:
        return False
    raise AdapterError(
        f"{file} says rs_lora, which LyCORIS has written in two ways whose strengths differ by the root of the rank, and nothing in its header "
        f"(ss_network_alpha is {metadata.get('ss_network_alpha', 'missing')[:40]!r}) tells which; save it again with LyCORIS 3 or newer, or ask who made it."
    )


def _whole_scale(metadata: Mapping[str, str], alpha: float, folded: bool) -> float:
    """Scale of a LoKr whose factors are both whole: the root of the rank setting, which is the alpha then."""
    rank = alpha ** (2 / 3) if folded else alpha
    near = min(_said(metadata, _RANKS), key=lambda one: abs(one - rank), default=rank)
    return math.sqrt(near if _is_near(rank, near) else rank)


def _said(metadata: Mapping[str, str], keys: tuple[str, str]) -> list[float]:
    """The numbers of a setting and its convolutions' one, as far as they are numbers."""
    found = []
    for value in (metadata.get(keys[0]), table(metadata.get("ss_network_args", "")).get(keys[1])):
        try:
            found.append(float(str(value)))
        except ValueError:
            continue
    return [one for one in found if math.isfinite(one) and 0 <= one < 1e9]


def _is_near(one: float, other: float) -> bool:
    return abs(one - other) <= _NEAR * abs(other)
