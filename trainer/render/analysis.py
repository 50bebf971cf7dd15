"""What a stack will do, before a pixel is drawn: what was read, which adapters meet and where, whether the sum is
likely to burn, and what weights keep it down.

`overlap` says how two updates meet in one layer. Of a pair, in a layer, a block or the whole:
- cosine, overlap, chance: of the layers, weighed by |a| |b|; interference = 2 sum |a| |b| overlap over the energy
  (squared Frobenius norm) of the strongest adapter of the stack: how far meeting can change the energy of the sum. It
  ranks pairs and layers, and is a sum over layers;
- writes, reads: share of the two's energy in the space that the other one writes to, or reads from.

Two that act at other times or places meet by as much as they act together (`overlap.acting`). Of a mode only this is
seen: whether its adapters take turns or wait.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.render import strength
from trainer.render.overlap import DENOISERS, Loaded, measure, text_weight_of

MILD, BURN, CANCEL = 1.2, 1.5, 0.7  # of the summed norm over the strongest single one's; a heuristic, see `_verdict`
_LEAST_COSINE = 0.05  # from which a direction is named


@dataclass(frozen=True)
class Strength:
    """How much an adapter changes a place."""

    energy: float  # squared Frobenius norm of weight * delta
    relative: float | None  # norm over that of the base's same weights; None without them


@dataclass(frozen=True)
class AdapterReport:
    """What was read of one adapter, and where it is strong."""

    name: str
    file: str
    sha256: str
    method: str
    weight: float
    text_weight: float
    matched: int
    modules: int  # in the file; all of them matched, or the file is refused
    ranks: tuple[int, int]  # least and largest
    alpha: str
    total: Strength
    blocks: dict[str, Strength]
    layers: dict[str, Strength]


@dataclass(frozen=True)
class Meeting:
    """How two adapters meet in a place; the module says what each number is."""

    cosine: float
    overlap: float
    chance: float
    writes: float
    reads: float
    interference: float


@dataclass(frozen=True)
class PairReport:
    """Two adapters by their place in the stack and by name."""

    numbers: tuple[int, int]
    names: tuple[str, str]
    total: Meeting
    blocks: dict[str, Meeting]
    layers: dict[str, Meeting]


@dataclass(frozen=True)
class Sum:
    """What all adapters together do to a place."""

    energy: float
    strongest: float  # energy of the strongest single adapter here
    strongest_name: str
    ratio: float  # norm of the sum over that of the strongest
    relative: float | None  # norm of the sum over the base's


@dataclass(frozen=True)
class Analysis:
    """The whole report; pairs and layers are ranked, the worst first."""

    adapters: list[AdapterReport]
    pairs: list[PairReport]
    total: Sum
    blocks: dict[str, Sum]
    layers: dict[str, float]  # interference of all pairs together
    not_analysed: list[str]
    verdict: str
    warnings: list[str] = field(default_factory=list)  # of LoRAs that are for another base


@dataclass(frozen=True)
class Balance:
    """Weights that keep the sum at the strongest single adapter's energy."""

    factor: float
    weights: list[float]
    text_weights: list[float]
    energy: float  # of the sum as it is
    balanced: float  # of the sum as proposed
    strongest: float
    reason: str


# The numbers of all pairs of adapters in a place: row a, column b.
Square = list[list[float]]


class _Place(NamedTuple):
    """Sums over the layers of a place, weights counted."""

    gram: Square  # <a, b>
    contact: Square  # |a| |b| overlap
    chance: Square  # |a| |b| chance
    writes: Square  # energy of b in the space a writes to
    reads: Square  # energy of b in the space a reads from

    @property
    def energies(self) -> list[float]:
        return [max(0.0, row[number]) for number, row in enumerate(self.gram)]


def block_of(path: str) -> str:
    """The block of a denoiser's layer as `AdapterChoice.blocks` names it; a text encoder is one block."""
    return strength.block_of(path) if path.startswith(DENOISERS) else path.partition(".")[0]


def analyse(
    adapters: list[Loaded],
    weights: Mapping[str, Tensor],
    together: Tensor | None = None,
    part_done: Callable[[int, int], None] | None = None,
) -> Analysis:
    """The report on a stack.

    `weights` are the base's by path as they are without any adapter, or none; `together` is what `overlap.acting` says.
    `part_done` is told after each layer how many of all are done.
    Raises: AdapterError.
    """
    # Layers, and their sums over blocks and over all.
    measured, left_out = measure(adapters, weights, together, part_done)
    layers = {path: _Place(*square.tolist()) for path, square in measured.items()}
    # In float32: squares of float16 weights overflow.
    base = {path: float(torch.linalg.vector_norm(weights[path].float())) ** 2 for path in layers if path in weights}
    groups = _blocks(layers)
    blocks = {
        block: _Place(*torch.stack([measured[path] for path in paths]).sum(0).tolist())
        for block, paths in groups.items()
    }
    nothing = torch.zeros(5, len(adapters), len(adapters), dtype=torch.float64)
    whole = _Place(*torch.stack([nothing, *measured.values()]).sum(0).tolist())
    names, strongest = _distinct([adapter.name for adapter in adapters]), max(whole.energies, default=0.0)

    # Pairs, where both of them act, and layers; the worst first.
    pairs = [
        PairReport(
            numbers=(a, b),
            names=(names[a], names[b]),
            total=_meeting(whole, a, b, strongest),
            blocks=_meetings(blocks, a, b, strongest),
            layers=_meetings(layers, a, b, strongest),
        )
        for a, b in itertools.combinations(range(len(adapters)), 2)
    ]
    pairs.sort(key=lambda pair: -pair.total.interference)
    interference = {
        path: math.fsum(pair.layers[path].interference for pair in pairs if path in pair.layers) for path in layers
    }

    # The sum of all adapters.
    total = _sum(whole, names, _total(base, layers))
    block_sums = {block: _sum(place, names, _total(base, groups[block])) for block, place in blocks.items()}
    return Analysis(
        adapters=[
            _report(adapter, number, names[number], layers, groups, base) for number, adapter in enumerate(adapters)
        ],
        pairs=pairs,
        total=total,
        blocks=block_sums,
        layers=dict(sorted(interference.items(), key=lambda item: (-item[1], item[0]))),
        not_analysed=left_out,
        verdict=_verdict(total, block_sums, pairs),
    )


def _blocks(paths: Iterable[str]) -> dict[str, list[str]]:
    """Layers by block, in the order of the denoiser's depth, text encoders last."""
    layers = list(paths)
    depth = strength.depths([path for path in layers if path.startswith(DENOISERS)])  # 0 to 1
    blocks: dict[str, list[str]] = {}
    for path in sorted(layers, key=lambda path: (depth.get(path, 2.0), path)):
        blocks.setdefault(block_of(path), []).append(path)
    return blocks


def _distinct(names: list[str]) -> list[str]:
    """The names, numbered where one stands twice."""
    return [
        f"{name} ({names[: number + 1].count(name)})" if names.count(name) > 1 else name
        for number, name in enumerate(names)
    ]


def _total(base: dict[str, float], paths: Iterable[str]) -> float | None:
    """Squared norm of the base's weights in these layers, if all are known."""
    energies = [base.get(path) for path in paths]
    return None if None in energies else math.fsum(energy for energy in energies if energy is not None)


def _strength(energy: float, base: float | None) -> Strength:
    return Strength(energy, math.sqrt(energy / base) if base else None)


def _report(
    adapter: Loaded,
    number: int,
    name: str,
    layers: dict[str, _Place],
    groups: dict[str, list[str]],
    base: dict[str, float],
) -> AdapterReport:
    """What was read of the adapter with this number in the stack; `base` has the base's squared norms by path."""
    # The layers it changes, and those by block.
    own = {path: place.energies[number] for path, place in layers.items() if path in adapter.updates}
    own_blocks = {block: [path for path in paths if path in own] for block, paths in groups.items()}

    ranks = [update.rank for update in adapter.updates.values()]
    return AdapterReport(
        name=name,
        file=adapter.choice.file,
        sha256=adapter.sha256,
        method=adapter.method,
        weight=adapter.choice.weight,
        text_weight=text_weight_of(adapter.choice),
        matched=len(ranks),
        modules=len(ranks),
        ranks=(min(ranks, default=0), max(ranks, default=0)),
        alpha=adapter.alpha,
        total=_strength(math.fsum(own.values()), _total(base, own)),
        blocks={
            block: _strength(math.fsum(own[path] for path in paths), _total(base, paths))
            for block, paths in own_blocks.items()
            if paths
        },
        layers={path: _strength(energy, _total(base, [path])) for path, energy in own.items()},
    )


def _meetings(places: dict[str, _Place], a: int, b: int, strongest: float) -> dict[str, Meeting]:
    """How adapters a and b meet in those of the places where both act."""
    return {
        name: _meeting(place, a, b, strongest)
        for name, place in places.items()
        if place.gram[a][a] and place.gram[b][b]
    }


def _meeting(place: _Place, a: int, b: int, strongest: float) -> Meeting:
    """How adapters a and b meet in a place; `strongest` is the energy of the strongest adapter of the stack.

    Shares are held to what they can be: rounding takes them a little beyond.
    """
    energy_a, energy_b = place.energies[a], place.energies[b]
    lengths = math.sqrt(energy_a) * math.sqrt(energy_b)
    if not lengths:
        return Meeting(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    return Meeting(
        cosine=max(-1.0, min(1.0, place.gram[a][b] / lengths)),
        overlap=min(1.0, place.contact[a][b] / lengths),
        chance=min(1.0, place.chance[a][b] / lengths),
        writes=min(1.0, (place.writes[a][b] + place.writes[b][a]) / (energy_a + energy_b)),
        reads=min(1.0, (place.reads[a][b] + place.reads[b][a]) / (energy_a + energy_b)),
        interference=2 * place.contact[a][b] / strongest,
    )


def _sum(place: _Place, names: list[str], base: float | None) -> Sum:
    """What all adapters together do to a place; `base` is the base's squared norm there."""
    # |sum of updates|^2 is the sum over the whole Gram matrix.
    energy = max(0.0, math.fsum(map(math.fsum, place.gram)))
    strongest = max(place.energies, default=0.0)
    name = names[place.energies.index(strongest)] if strongest else ""
    ratio = math.sqrt(energy / strongest) if strongest else 0.0
    return Sum(energy, strongest, name, ratio, _strength(energy, base).relative)


def _verdict(total: Sum, blocks: dict[str, Sum], pairs: list[PairReport]) -> str:
    """The report's outcome in words.

    The limits are a rule of thumb: a LoRA is mostly tried alone, at the weight it was made for, so that moving the base
    much farther than the strongest one alone is beyond what anyone has looked at. Two that have nothing in common give
    1.41, two alike 2.
    """
    if not total.strongest:
        return "nothing acts: every weight or update is 0."

    # The whole.
    text = f"the stack moves the base {total.ratio:.2f} times as far as {total.strongest_name} alone, the strongest: "
    if total.ratio >= BURN:
        text += f"likely to burn (from {BURN} on, a rule of thumb)."
    elif total.ratio >= MILD:
        text += f"more than any of them was made for; look at the pictures (from {MILD} on, a rule of thumb)."
    elif total.ratio <= CANCEL:
        text += f"they undo each other (up to {CANCEL}, a rule of thumb)."
    else:
        text += "no burn to be expected."

    # The block that most is added in.
    name, worst = max(blocks.items(), key=lambda item: item[1].energy - item[1].strongest)
    if worst.ratio >= MILD:
        text += f" Most is added in {name}: {worst.ratio:.2f} times {worst.strongest_name}."

    # The two that interfere most.
    if pairs and pairs[0].total.overlap:
        (first, second), meeting = pairs[0].names, pairs[0].total
        text += (
            f" {first} and {second} interfere most: overlap {meeting.overlap:.2f} where chance gives "
            f"{meeting.chance:.2f}; cosine {meeting.cosine:+.2f}, they {_direction(meeting.cosine)}."
        )
    return text


def _direction(cosine: float) -> str:
    if cosine >= _LEAST_COSINE:
        return "push the same way"
    return "undo each other" if cosine <= -_LEAST_COSINE else "go neither with nor against each other"


def balance(analysis: Analysis) -> Balance:
    """The weights at which the sum has the energy of the strongest single adapter, in the proportions they have.

    |k sum_i w_i dW_i|^2 = max_i |w_i dW_i|^2 has k = sqrt(max_i G_ii / sum_ij G_ij), G the Gram matrix. Weights are
    never raised: a sum that is weak because its adapters undo each other would only show their remains larger.
    """
    # A Gram matrix is quadratic in the weights, so one factor on all of them scales the norm of the sum by itself.
    total = analysis.total
    factor = min(1.0, 1 / total.ratio) if total.ratio else 1.0
    if factor < 1:
        reason = (
            f"the sum is {total.ratio:.2f} times as strong as {total.strongest_name} alone; all weights times "
            f"{factor:.3f} make it as strong as that."
        )
    else:
        reason = (
            "the sum is no stronger than the strongest adapter alone; the weights stay, since raising them would "
            "only show what is left larger."
        )
    return Balance(
        factor=factor,
        weights=[adapter.weight * factor for adapter in analysis.adapters],
        text_weights=[adapter.text_weight * factor for adapter in analysis.adapters],
        energy=total.energy,
        balanced=total.energy * factor**2,
        strongest=total.strongest,
        reason=reason,
    )
