"""Each adapter where the picture attends to its trigger words (after FreeFuse, arXiv 2510.23515).

The places are found in the first fifth of the steps.

The paper's: masks come from the attention to each adapter's words early in the denoising, cells at the edge that draw
attention whatever the word are left out (attention sinks), and no two adapters act in one place. The watched steps run
without the adapters in the denoiser, which its authors advise for clean attention; they then begin again from the same
noise, here the denoising goes on, so a picture costs what one with fixed regions does.

Ours: a map's edge cells among its highest tenth take its median, each map is divided by its mean, smoothed over 3 x 3
tokens and brought to the latents' size, and each cell goes to the highest; there is no background of its own. The
paper's spreading by self-attention and its vote by superpixels are left out.

Measured on Imprimatura (a heart over two people, two adapters of 80 steps, two prompts with three seeds each, cells of
the picture the base draws): of the heart's cells 100 % go to its adapter, of the people's 82 % to theirs; with the
words as the adapters themselves read them 60 %. The choices were made on the base alone, four pairs of words: 85 % of
the people's, with the edge left as it is 50 %, without smoothing 53 %, divided by rank, spread or logarithm instead of
mean 83 to 85 %. The base has to tell the words apart in space: Imprimatura does for things, not for two people side by
side. A word made up for an adapter says little to the base, so it does best as part of a phrase, or with a part in the
text encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

name, title, is_guided, fewest = "regions", "Automatic regions", False, 2
says = "each acts where its trigger words show"
_WATCHED = 0.2  # of the steps
_HIGHEST = 0.1  # of a map's cells


def watched(num_steps: int) -> int:
    """How many of the first steps are read."""
    return max(1, round(_WATCHED * num_steps))


def place(attention: Tensor, size: tuple[int, int]) -> Tensor:
    """Each adapter's mask in each image (A, B, h, w), 0 or 1; in each place one adapter has the 1.

    `attention` is how much each place attends to the adapter's words (A, B, rows, columns).
    """
    from torch.nn.functional import avg_pool2d, interpolate, one_hot

    level = _without_sinks(attention)
    level = level / level.mean((-2, -1), keepdim=True).clamp_min(1e-12)
    smooth = avg_pool2d(level, 3, stride=1, padding=1, count_include_pad=False)
    highest = interpolate(smooth, size, mode="bilinear").argmax(0)  # (B, h, w)
    return one_hot(highest, len(attention)).movedim(-1, 0).to(attention)


def _without_sinks(attention: Tensor) -> Tensor:
    """The maps with the median in those of their edge cells that are among their highest."""
    cells = attention.flatten(-2)
    high = cells.quantile(1 - _HIGHEST, dim=-1)[..., None, None]
    inside = attention.new_zeros(attention.shape[-2:])
    inside[1:-1, 1:-1] = 1
    return attention.where((inside > 0) | (attention < high), cells.median(-1).values[..., None, None])


def acting(num: int, step: int, num_steps: int) -> list[float]:
    return [float(step >= watched(num_steps))] * num


def predict(call: Callable[[list[float]], Tensor], num: int, step: int, num_steps: int) -> Tensor:
    return call(acting(num, step, num_steps))
