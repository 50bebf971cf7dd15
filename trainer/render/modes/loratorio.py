"""Each adapter where it differs most from the base (LoRAtorio, arXiv 2508.11624).

That takes a pass of the denoiser for each adapter and one for the base. The latents are cut into patches. Where an
adapter's prediction is least like the base's, by cosine, it has learned something about the patch: a softmax over the
adapters of one minus the cosine gives each patch its mixture. The predictions for the negative prompt are the mean of
that mixture and the base's own. Where the denoiser works on tokens, each token is a patch. Patch size and temperature
are ours; the paper's were not available.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from trainer.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

name, title, is_guided, fewest = "loratorio", "LoRAtorio", True, 2
says = "each acts where it differs most from the base"
splits_guidance = True
_PATCH = 2  # latents a side
_TEMPERATURE = 0.1


def predict(
    call: Callable[[list[float]], Tensor], num: int, step: int, num_steps: int, negative_rows: Callable[[int], slice]
) -> Tensor:
    base = call([0.0] * num).float()  # (n, C, h, w), (n, C, f, h, w) or (n, tokens, C)
    each = torch.stack([call([float(number == turn) for number in range(num)]).float() for turn in range(num)])

    # How unlike the base each adapter is, patch by patch.
    # cos = <a, b> / sqrt(|a|^2 |b|^2), each of the three a sum over the patch.
    own = _patches(base * base)
    cosine = torch.stack(
        [_patches(alone * base) / (_patches(alone * alone) * own).sqrt().clamp_min(1e-12) for alone in each]
    )
    share = ((1 - cosine) / _TEMPERATURE).softmax(0)

    # Each patch from whoever is least like it there.
    mixed = (each * torch.stack([_wide(shares, base) for shares in share])).sum(0)
    rows = negative_rows(len(mixed))
    mixed[rows] = (mixed[rows] + base[rows]) / 2
    return mixed


def _patches(product: Tensor) -> Tensor:
    """Summed over channels and patches: (n, 1, h', w'), or (n, tokens, 1)."""
    from torch.nn.functional import avg_pool2d

    return (
        product.sum(-1, keepdim=True)
        if product.ndim == 3
        else avg_pool2d(product.flatten(1, -3).sum(1, keepdim=True), _PATCH, ceil_mode=True)
    )


def _wide(share: Tensor, like: Tensor) -> Tensor:
    """The patches' shares, repeated for every place in a patch, to be multiplied with `like`."""
    from torch.nn.functional import interpolate

    if like.ndim == 3:
        return share
    wide = interpolate(share, scale_factor=_PATCH, mode="nearest")[..., : like.shape[-2], : like.shape[-1]]
    return wide if like.ndim == 4 else wide[:, :, None]
