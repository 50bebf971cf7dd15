"""How much each place of the pictures attends to each adapter's trigger words, read from the denoiser's cross-attention while it runs.

Read are the layer's own queries and keys as they are at that step, in the half of guidance that has the prompt. Of a UNet it is `attn2` of the
decoder where the image has the number of tokens nearest to 256, as in Attend-and-Excite (arXiv 2301.13826, 16 x 16 for SD 1.x). Measured on
Imprimatura, where a heart lies over two people ("couple with heart, man, man" and the same with a woman, three seeds each): how well the attention
to `heart` finds the heart's pixels is, as the area under the curve, 0.94 to 0.96 in the last decoder block (8 x 8 tokens), in the first two steps as
in the first five, 0.3 to 0.8 in the block before it (4 x 4), 0.6 to 0.75 in the middle and 0.4 to 0.6 in the encoder.

Transformers are left out until it is measured there. Those with cross-attention (PixArt, Sana) mask what pads a prompt and read it in small letters or
after an instruction, which `trigger_tokens` would have to know; what Stable Diffusion 3.5 calls `attn2` is no cross-attention. A transformer's joint attention
takes one more function like `of_cross_attention`, with the image's queries and the keys of image and text, of which the text's columns count.
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
from trainer.render.live import Moment, token_grid
from trainer.render.modes.contract import Mode

_TOKENS = 256


def layers(denoiser: nn.Module, family: Family) -> list[nn.Module]:
    """The cross-attention that is read, of a UNet the decoder's, or the rest where the decoder has none; nothing where it can't be read."""
    every = ([module for path, module in denoiser.named_modules() if re.fullmatch(paths, path)] for paths in family.cross_attention)
    return next(filter(None, every), [])


def check(denoiser: nn.Module, family: Family, mode: str) -> None:
    """Raises: ConfigError if nothing of this denoiser can be read."""
    if not layers(denoiser, family):
        raise ConfigError(f"mode is {mode!r}, which reads the cross-attention of a UNet; {type(denoiser).__name__} has none.")


def shares(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """softmax(q k^T * scale) of queries (n, heads, N, D) and keys (n, heads, L, D), the mean of the heads (n, N, L), in float32."""
    return (query.float() @ key.float().transpose(-1, -2) * scale).softmax(-1).mean(1)


def of_cross_attention(attention: Any, hidden: Tensor, text: Tensor) -> Tensor:
    """How much each image token attends to each text token (n, N, L), in a cross-attention of diffusers."""
    query, key = (one.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for one in (attention.to_q(hidden), attention.to_k(text)))
    return shares(query, key, attention.scale)


class Seen:
    """The attention to the words of each adapter in each image, added up over layers and steps for each number of image tokens."""

    def __init__(self, places: list[list[set[int]]], size: tuple[int, int]) -> None:
        self.places, self.size = places, size  # of tokens, by adapter and image; height and width of the latents
        self.totals: dict[tuple[int, int], Tensor] = {}

    def add(self, attended: Tensor) -> None:
        """What one layer (n, N, L) attends to; its last rows are the images with the prompt."""
        grid = token_grid(*self.size, attended.shape[1])
        if grid is None:
            return
        rows = attended[-len(self.places[0]) :].cpu()
        words = [[row[:, sorted(places)].sum(-1) for row, places in zip(rows, each, strict=True)] for each in self.places]
        maps = torch.stack([torch.stack(one) for one in words]).unflatten(-1, grid)  # (A, B, rows, columns)
        self.totals[grid] = self.totals.get(grid, torch.zeros(())) + maps

    @property
    def total(self) -> Tensor:
        """(A, B, rows, columns), of the layers with the number of tokens nearest to 256."""
        return min(self.totals.items(), key=lambda found: abs(math.log(found[0][0] * found[0][1] / _TOKENS)))[1]


@contextmanager
def placing(watched: list[nn.Module], mode: Mode, num_steps: int, seen: Seen, moment: Moment) -> Iterator[Callable[[int], None]]:
    """The mode's regions on the moment as soon as it has watched long enough; what is given is to be called after each step with its number.

    Enter it before the adapters go beside the denoiser.
    """

    def read(attention: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.add(of_cross_attention(attention, inputs[0], named["encoder_hidden_states"]))

    place, num_watched = mode.place, mode.watched(num_steps) if mode.watched else 0
    assert place, "only a mode that finds regions has them placed"

    def over(step: int) -> None:
        if handles and step + 1 >= num_watched:
            while handles:
                handles.pop().remove()
            moment.place(list(place(seen.total, seen.size)))

    moment.place([torch.ones(seen.size) for _ in seen.places])
    handles = [layer.register_forward_pre_hook(read, with_kwargs=True) for layer in watched]
    try:
        yield over
    finally:
        for handle in handles:
            handle.remove()
