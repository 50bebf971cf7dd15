"""How the updates of a stack's adapters meet, layer by layer, with the stack's signed weights.

Low-rank updates dW = s up @ down need the r x r Gram matrices of their factors only: <dW_a, dW_b> = s_a s_b sum((up_a^T
up_b) o (down_a down_b^T)), and the principal angles between the spaces they write to (columns of up) and read from
(rows of down) follow from the same. No dense update is made: ten rank-32 LoRAs on the 560 attention layers of SDXL's
UNet take 5 s on two CPU cores. Updates of other methods are made dense, a layer at a time.

overlap(a, b) = (p q)^(1/4) with p, q the shares of the energy (squared Frobenius norm) of each that lie inside the
other's two spaces at once. It is what |cosine| could be if the two agreed wherever they meet, never below it, 1 where
they share both spaces. Random spaces of ranks r_a, r_b give sqrt(r_a r_b / (out in)), the `chance`. An update that
isn't low-rank writes and reads everywhere, which says nothing: there the space of each is the line it lies on, and
overlap is |cosine|.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainer import lora_file
from trainer.config import AdapterChoice
from trainer.deltas import Delta, Update
from trainer.errors import AdapterError
from trainer.render import modes, regions, sharing, strength

DENOISERS = ("unet", "transformer")
_CUT = 1e-6  # singular values below this share of the largest are rounding


@dataclass(frozen=True)
class Loaded:
    """An adapter read for a base, and the signed factor of each of its layers in the stack."""

    choice: AdapterChoice
    name: str
    sha256: str
    method: str
    alpha: str  # where its scale comes from, in words
    updates: dict[str, Update]  # by component.module.path
    factors: dict[str, float]


def load(choice: AdapterChoice, file_keys: dict[str, str], shapes: dict[str, tuple[int, ...]]) -> Loaded:
    """The adapter in a file, matched to a base. Raises: AdapterError, ConfigError as `lora_file` and `strength` do."""
    path = Path(choice.file)
    info = lora_file.inspect(path)
    if choice.sha256 and choice.sha256 != info.sha256:
        raise AdapterError(
            f"{path.name} has hash {info.sha256[:12]}; the stack asks for {choice.sha256[:12]}: it is another file by "
            f"that name."
        )
    updates = lora_file.read(path, file_keys, shapes)
    return weigh(choice, updates, shapes, info.sha256, info.method, _alpha(path, len(updates)))


def weigh(
    choice: AdapterChoice,
    updates: dict[str, Update],
    shapes: Iterable[str],
    sha256: str = "",
    method: str = "",
    alpha: str = "",
) -> Loaded:
    """Updates that were read already, with the factors that the stack gives them.

    Raises: ConfigError for blocks that fit no layer.
    """
    text_weight = text_weight_of(choice)
    of_block = strength.block_factors(choice, [path for path in shapes if path.startswith(DENOISERS)])
    # What is not of the denoiser is of a text encoder.
    factors = (
        {path: choice.weight * of_block[path] if path in of_block else text_weight for path in updates}
        if choice.enabled
        else dict.fromkeys(updates, 0.0)
    )
    return Loaded(choice, choice.name or lora_file.name_of(Path(choice.file)), sha256, method, alpha, updates, factors)


def text_weight_of(choice: AdapterChoice) -> float:
    """The weight of the part in the text encoders."""
    return choice.weight if choice.text_weight is None else choice.text_weight


def _alpha(path: Path, num_modules: int) -> str:
    """Where a file's scale comes from, in words."""
    header = lora_file.read_header(path)
    num_alphas = sum(name.endswith(".alpha") for name in header.shapes)
    if num_alphas == num_modules and num_alphas:
        return "in the file"
    if num_alphas:
        return f"in the file for {num_alphas} of {num_modules} modules, scale 1 for the rest"
    config = " ".join(header.metadata.get(key, "") for key in ("lora_adapter_metadata", "adapter_config"))
    return "in the header" if "alpha" in config else "missing: scale 1"


def acting(adapters: list[AdapterChoice], mode: str, num_steps: int, size: tuple[int, int]) -> Tensor:
    """How much of the time and the picture each two act in together: (A, A).

    It is the mean over steps and places of both factors' product: 1 for adapters without schedule or region, 0 for two
    that are apart in time or place. The mode itself is asked at which step each acts. `size` is the latents' height and
    width. Raises: ConfigError for a schedule or region that can't be read, or an unknown mode.
    """
    # Time.
    curves = [strength.schedule(adapter) for adapter in adapters]
    when = torch.tensor(
        [[curve.at(strength.progress(step, num_steps)) for step in range(num_steps)] for curve in curves],
        dtype=torch.float64,
    )  # (A, T)
    when = when * _turns(adapters, mode, num_steps)

    # Place.
    masks = [regions.mask(adapter, size) for adapter in adapters]
    where = torch.stack([torch.ones(size).double() if mask is None else mask.double() for mask in masks]).flatten(
        1
    )  # (A, H * W)
    return (when @ when.T / num_steps) * (where @ where.T / where.shape[1])


def _turns(adapters: list[AdapterChoice], mode: str, num_steps: int) -> Tensor:
    """Each adapter's factor at each step by the mode: (A, T).

    As the engine asks the mode: of those adapters that act, a file that is there twice in the same way being one.
    """
    keys = [
        sharing.layer(adapter) if adapter.file or adapter.sha256 else number for number, adapter in enumerate(adapters)
    ]
    acting_keys = list(dict.fromkeys(key for key, adapter in zip(keys, adapters, strict=True) if sharing.acts(adapter)))
    chosen = modes.known(mode)
    by_step = [chosen.acting(len(acting_keys), step, num_steps) for step in range(num_steps)] if acting_keys else []
    rows = [
        [factors[acting_keys.index(key)] for factors in by_step] if key in acting_keys else [0.0] * num_steps
        for key in keys
    ]
    return torch.tensor(rows, dtype=torch.float64)


@torch.no_grad()
def measure(
    adapters: list[Loaded],
    weights: Mapping[str, Tensor],
    together: Tensor | None = None,
    part_done: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, Tensor], list[str]]:
    """How the updates meet in each layer, by path, and the updates left out.

    A layer's is (5, A, A) in float64, row a, column b, weights counted: <a, b>; |a| |b| overlap; |a| |b| chance; the
    energy of b in the space that a writes to; the energy of b in the space that a reads from. Each can be summed over
    layers. `together` is what `acting` says of the denoiser's; `part_done` is told how many layers are done, and of how
    many. Left out is what needs a weight of the base that `weights` (by path) lacks.

    Raises: AdapterError for numbers too large to square.
    """
    measured: dict[str, Tensor] = {}
    left_out = []
    paths = sorted({path for adapter in adapters for path in adapter.updates})
    for num, path in enumerate(paths):
        if part_done:
            part_done(num, len(paths))
        # The adapters that have this layer, by their number. Only low-rank updates can do without the base's weight.
        updates = {number: adapter.updates[path] for number, adapter in enumerate(adapters) if path in adapter.updates}
        low_rank = {number: update for number, update in updates.items() if isinstance(update, Delta)}
        if path not in weights:
            left_out += [f"{path} of {adapters[number].name}" for number in updates if number not in low_rank]
            updates = {**low_rank}

        # All updates dense where any has to be; then the low-rank updates among themselves, which tells more.
        squares = torch.zeros(5, len(adapters), len(adapters), dtype=torch.float64)
        factors = {number: adapters[number].factors[path] for number in updates}
        if len(low_rank) < len(updates):
            rows = torch.tensor(list(updates))
            squares[:, rows[:, None], rows] = _dense(list(updates.values()), list(factors.values()), weights[path])
        if low_rank:
            rows = torch.tensor(list(low_rank))
            low_rank_factors = [factors[number] for number in low_rank]
            squares[:, rows[:, None], rows] = _low_rank(list(low_rank.values()), low_rank_factors)
        if not torch.isfinite(squares).all():
            raise AdapterError(
                f"{path} of {', '.join(adapters[number].name for number in updates)} has numbers too large to be "
                f"squared; a file is damaged."
            )
        if updates:
            # Schedules, regions and modes are the denoiser's alone.
            measured[path] = squares if together is None or not path.startswith(DENOISERS) else squares * together
    return measured, left_out


def _low_rank(deltas: list[Delta], factors: list[float]) -> Tensor:
    """(5, A, A) of low-rank updates from Gram matrices; ranks are filled up with zeros to the largest, r."""
    # Factors side by side, and their Gram matrices.
    num, rank = len(deltas), max(delta.rank for delta in deltas)
    down = torch.zeros(num, rank, deltas[0].down.flatten(1).shape[1], dtype=torch.float64)
    up = torch.zeros(num, rank, deltas[0].up.shape[0], dtype=torch.float64)
    for number, delta in enumerate(deltas):
        down[number, : delta.rank] = delta.down.flatten(1)
        up[number, : delta.rank] = delta.up.flatten(1).T
    scales = [factor * delta.scale for factor, delta in zip(factors, deltas, strict=True)]
    size = torch.tensor(scales, dtype=torch.float64)  # (A,), signed
    reads, writes = (_products(side) for side in (down, up))  # (A, A, r, r)
    gram = (reads * writes).sum((-2, -1)) * size[:, None] * size  # (A, A)
    if not torch.isfinite(gram).all() or not torch.isfinite(reads).all() or not torch.isfinite(writes).all():
        return torch.full((5, num, num), math.nan, dtype=torch.float64)

    # Thin SVD of each: up @ left has orthonormal columns, right @ down orthonormal rows, up @ down = (up @ left) sigma
    # (right @ down).
    own = torch.arange(num)
    # From r x r matrices alone: sigma^2 are the eigenvalues of root^T (up^T up) root, as root root^T = down down^T.
    values, vectors = torch.linalg.eigh(reads[own, own])
    root = vectors * values.clamp_min(0).sqrt()[:, None]  # down down^T = root root^T
    squares, turn = torch.linalg.eigh(root.mT @ writes[own, own] @ root)
    sigma = squares.clamp_min(0).sqrt()  # (A, r)
    # Directions that are rounding alone would have cosines by chance.
    kept = sigma > _CUT * sigma.amax(1, keepdim=True)
    inverse = torch.where(kept, 1 / sigma, 0.0)
    left = root @ turn * inverse[:, None]
    right = inverse[..., None] * (left.mT @ writes[own, own])

    # Cosines between the directions of a and b, and how much of b lies along a's.
    sigma = torch.where(kept, sigma, 0.0) * size.abs()[:, None]
    written = (left[:, None].mT @ writes @ left) * sigma[:, None]  # (A, A, r, r)
    cosines = right[:, None] @ reads @ right.mT
    inside = (written @ cosines.mT).square().sum((-2, -1))
    ranks = kept.sum(1).double()
    # By chance a share r_a / n of b's energy lies in a's space on each side, so p = r_a^2 / (in out) of it in both;
    # with q alike, `_stacked`'s (p q)^(1/4) is this.
    chance = (ranks[:, None] * ranks).sqrt() / math.sqrt(down.shape[2] * up.shape[2])
    written_energy = written.square().sum((-2, -1))
    read_energy = (cosines * sigma[:, None]).square().sum((-2, -1))
    return _stacked(gram, inside, chance, written_energy, read_energy)


def _products(side: Tensor) -> Tensor:
    """Inner products (A, A, r, r) of the rows of (A, r, n)."""
    num, rank, _ = side.shape
    flat = side.flatten(0, 1)
    return (flat @ flat.T).reshape(num, rank, num, rank).transpose(1, 2)


def _dense(updates: list[Update], factors: list[float], base: Tensor) -> Tensor:
    """The same from the updates themselves, the space of each being the line that it lies on."""
    flat = torch.stack(
        [
            factor * update.dense(base, torch.float32).flatten().cpu()
            for factor, update in zip(factors, updates, strict=True)
        ]
    )  # (A, out * in)
    gram = (flat @ flat.T).double()
    inside = gram.square() / gram.diagonal()[:, None].clamp_min(1e-300)
    chance = torch.full_like(gram, 1 / math.sqrt(base.numel()))
    return _stacked(gram, inside, chance, inside, inside)


def _stacked(gram: Tensor, inside: Tensor, chance: Tensor, writes: Tensor, reads: Tensor) -> Tensor:
    """The five of `measure`; `inside` is the energy of b that lies in both spaces of a."""
    # |a| |b| (p q)^(1/4) with p = inside_ab / |b|^2 and q = inside_ba / |a|^2: no division by a norm of 0.
    norms = gram.diagonal().clamp_min(0).sqrt()
    lengths = norms[:, None] * norms
    contact = lengths.sqrt() * (inside.sqrt() * inside.T.sqrt()).sqrt()
    return torch.stack([gram, contact, lengths * chance, writes, reads])
