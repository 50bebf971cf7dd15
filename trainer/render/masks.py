"""Where in the picture live adapters act, brought to the shapes of a layer's activations.

A mask lies over the latents. A denoiser's activations are pictures of some other size, or tokens, of which some belong
to the text or fill up the picture's and have no place at all.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from trainer.families.contract import Family

Kind = Literal["image", "joined", "text"]  # whose tokens a layer has: the image's, both, or the text's


@dataclass(frozen=True)
class Places:
    """Which layers have tokens that are not the image's, as the family says.

    The texts are regular expressions that are searched for in module paths, empty for no such layers.
    """

    of_text: str = ""
    placeless: str = ""
    joined: str = ""
    image_first: bool = False  # in the joined layers

    @classmethod
    def of(cls, family: Family) -> Places:
        return cls(family.text_layers, family.placeless_layers, family.joined_layers, family.image_first)

    def is_of_text(self, path: str) -> bool:
        """True for the text's part of a layer in which image and text meet."""
        return bool(self.of_text and re.search(self.of_text, path))

    def kind(self, path: str) -> Kind:
        if self.joined and re.search(self.joined, path):
            return "joined"
        return "text" if self.placeless and re.search(self.placeless, path) else "image"


@dataclass(frozen=True, eq=False)
class Masks:
    """The mask of each live adapter; other masks are another `Masks`."""

    each: Sequence[Tensor | None]  # (h, w) of the latents, or (B, h, w) by image, in [0, 1]; None acts everywhere
    places: Places = Places()
    _fitted: dict[tuple[Any, ...], Tensor] = field(default_factory=dict, init=False, repr=False)  # by shape, see `fit`

    @cached_property
    def regional(self) -> frozenset[int]:
        """The numbers of the adapters that don't act everywhere."""
        return frozenset(number for number, mask in enumerate(self.each) if mask is not None)

    def fit(self, like: Tensor, owners: list[int], kind: Kind = "image") -> Tensor:
        """How much of each channel acts in each place: (1 or n, R, h, w) or (1 or n, tokens, R).

        `owners` are the adapters that the R channels of `like` belong to. Every step and many layers ask for the same
        shapes, so the answers are kept.
        """
        key = (like.shape, like.dtype, like.device, tuple(owners), kind)
        if key not in self._fitted:
            stacked = self._stacked(owners)
            repeats = like.shape[0] // len(stacked) if len(stacked) > 1 else 1  # guidance doubles the images
            fitted = self._over_tokens(stacked, like, kind).to(like)
            self._fitted[key] = fitted.repeat(repeats, *[1] * (like.ndim - 1))
        return self._fitted[key]

    def _stacked(self, owners: list[int]) -> Tensor:
        """The owners' masks side by side (1 or B, R, h, w)."""
        masks = [None if (mask := self.each[number]) is None else mask if mask.ndim == 3 else mask[None]
                 for number in owners]  # fmt: skip
        whole = max((mask for mask in masks if mask is not None), key=len, default=torch.ones(1, 1, 1))
        return torch.stack([torch.ones_like(whole) if mask is None else mask.expand_as(whole) for mask in masks], 1)

    def _over_tokens(self, stacked: Tensor, like: Tensor, kind: Kind) -> Tensor:
        """The masks in the shape of `like`; tokens without a place get each mask's mean."""
        height, width = stacked.shape[2:]
        # What is said of a whole picture: an adapter on half of it has half its strength there.
        share = stacked.mean((2, 3))[:, None]  # (1 or B, 1, R)
        if kind == "text" and like.ndim == 3:
            return share
        # Tokens beside the image's own: the text's, or such as fill the image's up to a round number.
        has_others = like.ndim == 3 and (kind == "joined" or not token_grid(height, width, like.shape[1]))
        # A token is 2 x 2 latents in every family that joins its tokens or fills them up.
        num_own = -(-height // 2) * (-(-width // 2))
        num_others = max(0, like.shape[1] - num_own) if has_others else 0
        own = _resized(stacked, like[:, num_others:])
        if not num_others:
            return own
        others = share.expand(-1, num_others, -1)
        # What fills up an image's tokens follows them.
        return torch.cat([own, others] if self.places.image_first or kind == "image" else [others, own], 1)


def _resized(masks: Tensor, like: Tensor) -> Tensor:
    """Masks (b, R, h, w) in the shape of an activation: (n, C, h', w') or (n, tokens, C), else their mean."""
    if like.ndim == 4:
        return nn.functional.adaptive_avg_pool2d(masks, (like.shape[2], like.shape[3]))
    if like.ndim == 3 and (grid := token_grid(masks.shape[2], masks.shape[3], like.shape[1])):
        return nn.functional.adaptive_avg_pool2d(masks, grid).flatten(2).transpose(1, 2)
    mean = masks.mean((2, 3))
    return mean if like.ndim == 2 else mean[:, None]


def token_grid(height: int, width: int, num_tokens: int) -> tuple[int, int] | None:
    """Rows and columns of the tokens that an image of height x width latents was cut into, or None if it wasn't."""
    # Each level of a UNet halves the sides, rounded up; a transformer's patch halves them once.
    for side in (1, 2, 4, 8, 16, 32):
        grid = (-(-height // side), -(-width // side))
        if grid[0] * grid[1] == num_tokens:
            return grid
    return None
