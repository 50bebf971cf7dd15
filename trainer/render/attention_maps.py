"""How much each place of the pictures attends to each adapter's trigger words, while the denoiser runs.

Read are the layer's own queries and keys as they are at that step, in the half of guidance that has the prompt. Of a
UNet it is `attn2` of the decoder where the image has the number of tokens nearest to 256, as in Attend-and-Excite
(arXiv 2301.13826, 16 x 16 for SD 1.x). Measured on Imprimatura, where a heart lies over two people ("couple with heart,
man, man" and the same with a woman, three seeds each): how well the attention to `heart` finds the heart's pixels is,
as the area under the curve, 0.94 to 0.96 in the last decoder block (8 x 8 tokens), in the first two steps as in the
first five, 0.3 to 0.8 in the block before it (4 x 4), 0.6 to 0.75 in the middle and 0.4 to 0.6 in the encoder.

Transformers are left out until it is measured there. Those with cross-attention (PixArt, Sana) mask what pads a prompt
and read it in small letters or after an instruction, which `trigger_tokens` would have to know; what Stable Diffusion
3.5 calls `attn2` is no cross-attention. A transformer's joint attention takes one more function like
`of_cross_attention`, with the image's queries and the keys of image and text, of which the text's columns count.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trainer.errors import ConfigError
from trainer.families.contract import Family
from trainer.render.masks import token_grid
from trainer.render.modes.contract import Mode

_TOKENS = 256


def layers(denoiser: nn.Module, family: Family) -> list[nn.Module]:
    """The cross-attention that is read; empty where a family names none.

    Of a UNet it is the decoder's, or the others where the decoder has none.
    """
    matches = (
        [module for path, module in denoiser.named_modules() if re.fullmatch(paths, path)]
        for paths in family.cross_attention
    )
    return next(filter(None, matches), [])


def check(denoiser: nn.Module, family: Family, mode: str) -> None:
    """Raises: ConfigError if nothing of this denoiser can be read."""
    if not layers(denoiser, family):
        raise ConfigError(
            f"mode is {mode!r}, which reads the cross-attention of a UNet; {type(denoiser).__name__} has none."
        )


def shares(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """softmax(q k^T * scale), the mean of the heads (n, N, L), in float32.

    Queries are (n, heads, N, D) and keys (n, heads, L, D).
    """
    return (query.float() @ key.float().transpose(-1, -2) * scale).softmax(-1).mean(1)


def of_cross_attention(attention: Any, hidden: Tensor, text: Tensor) -> Tensor:
    """How much each image token attends to each text token (n, N, L), in a cross-attention of diffusers."""
    query, key = (
        projected.unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        for projected in (attention.to_q(hidden), attention.to_k(text))
    )
    return shares(query, key, attention.scale)


class Attended:
    """The attention to the words of each adapter in each image, added up over layers and steps.

    Layers differ in their number of image tokens; each number has a sum of its own.
    """

    def __init__(self, token_places: list[list[set[int]]], size: tuple[int, int]) -> None:
        self.token_places, self.size = token_places, size  # by adapter and image; height and width of the latents
        self._totals: dict[tuple[int, int], Tensor] = {}  # by rows and columns of tokens

    def add(self, attention: Tensor) -> None:
        """Count what one layer (n, N, L) attends to; its last rows are the images with the prompt."""
        grid = token_grid(*self.size, attention.shape[1])
        if grid is None:
            return
        # Guidance puts the negative prompt's rows first in every family that is read here.
        rows = attention[-len(self.token_places[0]) :].cpu()
        maps = [
            torch.stack([row[:, sorted(places)].sum(-1) for row, places in zip(rows, by_image, strict=True)])
            for by_image in self.token_places
        ]
        self._totals[grid] = self._totals.get(grid, torch.zeros(())) + torch.stack(maps).unflatten(-1, grid)

    @property
    def total(self) -> Tensor:
        """(A, B, rows, columns), of the layers with the number of tokens nearest to 256."""
        # Nearest as a ratio: 128 and 512 tokens are equally far.
        grid = min(self._totals, key=lambda grid: abs(math.log(grid[0] * grid[1] / _TOKENS)))
        return self._totals[grid]


@contextmanager
def watching(
    watched: list[nn.Module], mode: Mode, num_steps: int, attended: Attended, found: Callable[[list[Tensor]], None]
) -> Iterator[Callable[[int], None]]:
    """Calls `found` with the mode's masks as soon as it has watched long enough.

    What is yielded is to be called after each step with its number.
    """
    place, num_watched = mode.place, mode.watched(num_steps) if mode.watched else 0
    assert place, "only a mode that finds regions watches"

    def read(attention: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        attended.add(of_cross_attention(attention, inputs[0], named["encoder_hidden_states"]))

    def step_done(step: int) -> None:
        # Hooks go as soon as enough was seen.
        if handles and step + 1 >= num_watched:
            while handles:
                handles.pop().remove()
            found(list(place(attended.total, attended.size)))

    handles = [layer.register_forward_pre_hook(read, with_kwargs=True) for layer in watched]
    try:
        yield step_done
    finally:
        for handle in handles:
            handle.remove()
