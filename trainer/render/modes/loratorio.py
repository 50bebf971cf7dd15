"""Each adapter where it differs most from the base (LoRAtorio, arXiv 2508.11624); a pass of the denoiser for each and one for the base.

The latents are cut into patches. Where an adapter's prediction is least like the base's, by cosine, it knows something of the patch: a softmax
over the adapters of one minus the cosine gives each patch its mixture. The unconditional half of guidance, the first rows of the batch, is the
mean of that mixture and the base's own. Patch size and temperature are ours; the paper's were not at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

name, title, is_guided, fewest = "loratorio", "LoRAtorio", True, 2
splits_guidance = True
_PATCH = 2  # latents a side
_TEMPERATURE = 0.1


def predict(call: Callable[[list[float]], Tensor], num: int, step: int, num_steps: int) -> Tensor:
    import torch
    from torch.nn.functional import avg_pool2d, interpolate

    base = call([0.0] * num).float()  # (n, C, h, w)
    each = torch.stack([call([float(number == turn) for number in range(num)]).float() for turn in range(num)])  # (A, n, C, h, w)
    rows, columns = base.shape[2:]

    def patches(product: Tensor) -> Tensor:
        return avg_pool2d(product.sum(-3, keepdim=True), _PATCH, ceil_mode=True)  # (n, 1, h', w')

    own = patches(base * base)
    cosine = torch.stack([patches(one * base) / (patches(one * one) * own).sqrt().clamp_min(1e-12) for one in each])
    share = ((1 - cosine) / _TEMPERATURE).softmax(0)  # (A, n, 1, h', w')
    wide = torch.stack([interpolate(one, scale_factor=_PATCH, mode="nearest")[..., :rows, :columns] for one in share])
    mixed = (each * wide).sum(0)
    half = len(mixed) // 2
    return torch.cat([(mixed[:half] + base[:half]) / 2, mixed[half:]])
