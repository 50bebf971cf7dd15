"""Adapters beside a model while it runs: base(x) + sum of s_i(image, step, place) * delta_i(x), the base untouched.

For what can't be folded: weights that differ from image to image of one batch, follow a schedule, act in a region or take turns. All low-rank
updates of a layer are one pair of products, down (R, in) and up (out, R), with a factor for each image and each of the R ranks between them
(S-LoRA's idea, arXiv 2311.03285, with a weight instead of an adapter a row); others are a dense product each. Guidance doubles the batch:
rows are counted modulo the number of images.

A region acts on image tokens by their place. It is one for all images or another in each, and may be found while the model runs. What an adapter
does to the keys and values of the text has no place, so cross-attention is computed once without it and once with it, and the two outputs are mixed
by place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trainer import forwards
from trainer.deltas import Delta, Update
from trainer.families.contract import Family

Kind = Literal["image", "joined", "text"]


@dataclass(frozen=True)
class Places:
    """Which of the denoiser's layers have tokens that are no image's, as its family says: expressions searched for in module paths, empty for none."""

    of_text: str = ""
    placeless: str = ""
    joined: str = ""
    image_first: bool = False  # in the joined ones

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


@dataclass
class Moment:
    """What holds now: each adapter's weight in each image (A, B), in the denoiser and in the text encoders; `touch` after a change."""

    denoiser: Tensor
    text: Tensor
    masks: list[Tensor | None]  # (h, w) of the latents or one for each image (B, h, w), in [0, 1]; None acts everywhere
    places: Places = Places()
    only: dict[str, int] = field(default_factory=dict)  # layers in which one adapter alone acts, and which
    placed: frozenset[int] = frozenset()  # regional adapters that act on the text's keys and values just now
    version: int = 0
    sized: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)  # the masks as activations of a shape need them

    def place(self, masks: list[Tensor | None]) -> None:
        """Act there from now on. An adapter that is to have a mask in the end has one from the start: what it hooks depends on that."""
        self.masks = masks
        self.sized.clear()

    def mask(self, like: Tensor, owners: list[int], kind: Kind = "image") -> Tensor:
        """What the regions of these adapters leave of as many channels, in the shape of (1 or n, R, h, w) or (1 or n, tokens, R).

        The text's tokens, all or the joined ones, have no place, and none have those that pad an image's, which follow them.
        """
        key = (like.shape, like.dtype, like.device, tuple(owners), kind)
        if key not in self.sized:
            parts = [None if (mask := self.masks[number]) is None else mask if mask.ndim == 3 else mask[None] for number in owners]
            whole = max((mask for mask in parts if mask is not None), key=len, default=torch.ones(1, 1, 1))
            stacked = torch.stack([torch.ones_like(whole) if mask is None else mask.expand_as(whole) for mask in parts], 1)  # (1 or B, R, h, w)
            repeat = like.shape[0] // self.num_images if len(whole) > 1 else 1
            num_own = -(-whole.shape[1] // 2) * (-(-whole.shape[2] // 2))
            has_others = like.ndim == 3 and (kind == "joined" or kind == "image" and not token_grid(whole.shape[1], whole.shape[2], like.shape[1]))
            num_others = max(0, like.shape[1] - num_own) if has_others else 0
            share = stacked.mean((2, 3))[:, None]
            placed = share if kind == "text" and like.ndim == 3 else _resized(stacked, like[:, num_others:])
            if num_others:
                pair = [share.expand(-1, num_others, -1), placed]
                placed = torch.cat(pair[::-1] if self.places.image_first or kind == "image" else pair, 1)
            self.sized[key] = placed.to(like).repeat(repeat, *[1] * (like.ndim - 1))
        return self.sized[key]

    def touch(self) -> None:
        self.version += 1

    @property
    def num_images(self) -> int:
        return int(self.denoiser.shape[1])


class _Layer:
    """A forward hook with the updates of one module: adapter, factor of this layer, update."""

    def __init__(self, path: str, updates: list[tuple[int, float, Update]], moment: Moment, base: Tensor) -> None:
        self.path, self.moment = path, moment
        self.is_text = not path.startswith(("unet.", "transformer."))
        self.places_text, self.kind = moment.places.is_of_text(path), moment.places.kind(path)
        self.has_place = not self.is_text and not self.places_text and any(moment.masks[number] is not None for number, _, _ in updates)
        low = [(number, factor, update) for number, factor, update in updates if isinstance(update, Delta)]
        kind, device = base.dtype, base.device
        self.down = self.up = None
        if low:
            self.down = torch.cat([update.down.reshape(update.rank, *base.shape[1:]).to(device, kind) for _, _, update in low])  # (R, in[, kh, kw])
            self.up = torch.cat([update.up.flatten(1).to(device, torch.float32) * update.scale for _, _, update in low], 1).to(kind)  # (out, R)
            if base.ndim == 4:
                self.up = self.up[:, :, None, None]
        self.owners = [number for number, _, update in low for _ in range(update.rank)]
        self.factors = torch.tensor([factor for _, factor, update in low for _ in range(update.rank)])
        self.dense = [(number, factor, update.dense(base, torch.float32).to(kind)) for number, factor, update in updates if not isinstance(update, Delta)]
        self._seen: tuple[tuple[int, int], tuple[Tensor, Tensor] | None] = ((-1, 0), None)

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        found = self._scales(x)
        if found is None:
            return output
        weights, scales = found  # (A, n), (n, R)
        if self.down is not None and self.up is not None:
            inner = _apply(module, x.to(self.down.dtype), self.down)
            inner = inner * _spread(scales, inner)
            if self.has_place:
                inner = inner * self.moment.mask(inner, self.owners, self.kind)
            lifted = nn.functional.conv2d(inner, self.up) if self.up.ndim == 4 else nn.functional.linear(inner, self.up)
            output = output + lifted.to(output.dtype)
        for number, factor, weight in self.dense:
            added = _apply(module, x.to(weight.dtype), weight)
            added = added * _spread(weights[number][:, None] * factor, added)
            output = output + (added * self.moment.mask(added, [number], self.kind) if self.has_place else added).to(output.dtype)
        return output

    def _scales(self, like: Tensor) -> tuple[Tensor, Tensor] | None:
        """Each adapter's weight in each row (A, n) and each rank's (n, R), as this layer sees it; None if all are 0."""
        num_rows = like.shape[0]
        if self._seen[0] != (self.moment.version, num_rows):
            weights = self.moment.text if self.is_text else self.moment.denoiser
            if self.path in self.moment.only:
                kept = torch.arange(len(weights)) == self.moment.only[self.path]
                weights = weights * kept[:, None]
            if self.places_text:
                away = [number for number, mask in enumerate(self.moment.masks) if mask is not None and number not in self.moment.placed]
                weights = weights.clone()
                weights[away] = 0
            found = None
            if bool(weights.any()):
                rows = weights.repeat(1, -(-num_rows // self.moment.num_images))[:, :num_rows]  # (A, n); experts have any number, with one weight for all
                kind = self.down.dtype if self.down is not None else like.dtype
                ranks = (rows[self.owners] * self.factors[:, None]).T if self.owners else rows.T[:, :0]
                found = rows.to(like.device, kind), ranks.to(like.device, kind)
            self._seen = ((self.moment.version, num_rows), found)
        return self._seen[1]


def _apply(module: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    if isinstance(module, nn.Conv2d):
        return nn.functional.conv2d(x, weight, None, module.stride, module.padding, module.dilation)
    return nn.functional.linear(x, weight)


def _spread(scales: Tensor, like: Tensor) -> Tensor:
    """(n, R) for an activation (n, R, h, w) or (n, ..., R)."""
    return scales[:, :, None, None] if like.ndim == 4 else scales.reshape(scales.shape[0], *[1] * (like.ndim - 2), scales.shape[1])


def _resized(masks: Tensor, like: Tensor) -> Tensor:
    """Masks (b, R, h, w) in the shape of an activation: (n, C, h', w'), (n, tokens, C) or, where nothing has a place, their mean."""
    if like.ndim == 4:
        return nn.functional.adaptive_avg_pool2d(masks, (like.shape[2], like.shape[3]))
    if like.ndim == 3 and (grid := token_grid(masks.shape[2], masks.shape[3], like.shape[1])):
        return nn.functional.adaptive_avg_pool2d(masks, grid).flatten(2).transpose(1, 2)
    mean = masks.mean((2, 3))
    return mean if like.ndim == 2 else mean[:, None]


def token_grid(height: int, width: int, num_tokens: int) -> tuple[int, int] | None:
    """Rows and columns of the tokens that an image of height x width latents was cut into, or None if it wasn't."""
    for side in (1, 2, 4, 8, 16, 32):
        grid = (-(-height // side), -(-width // side))
        if grid[0] * grid[1] == num_tokens:
            return grid
    return None


@contextmanager
def beside(
    find: Callable[[str], nn.Module], bases: Mapping[str, Tensor], updates: dict[str, list[tuple[int, float, Update]]], moment: Moment
) -> Iterator[None]:
    """The adapters live on the modules that `find` gives for their paths, for the body; afterwards no trace is left."""
    regional = {number for number, mask in enumerate(moment.masks) if mask is not None}
    of_text = [path for path, found in updates.items() if moment.places.is_of_text(path) and regional & {number for number, _, _ in found}]
    crossing = [find(path) for path in sorted({path.rsplit(".", 1)[0] for path in of_text})]
    with ExitStack() as undone:
        for path, found in updates.items():
            undone.callback(find(path).register_forward_hook(_Layer(path, found, moment, bases[path])).remove)
        for attention in crossing:
            undone.enter_context(forwards.wrapped(attention, lambda below: _by_place(below, moment)))
        yield


def _placed(output: Any, changed: Any, base: Any, moment: Moment, number: int, kind: Kind = "image") -> Any:
    """The output with the change of one adapter in its place; joint attention has one for image tokens, then one for the text's, which have none."""
    if isinstance(base, tuple):
        kinds: tuple[Kind, Kind] = ("image", "text")
        return tuple(_placed(out, new, old, moment, number, one) for out, new, old, one in zip(output, changed, base, kinds, strict=True))
    return output + (changed - base) * moment.mask(base, [number], kind)


def _by_place(forward: Callable[..., Tensor], moment: Moment) -> Callable[..., Tensor]:
    """A cross-attention's forward in which each regional adapter changes the text's keys and values for its own place only."""

    def placed(numbers: frozenset[int], *args: Any, **kwargs: Any) -> Tensor:
        moment.placed = numbers
        moment.touch()
        return forward(*args, **kwargs)

    def call(*args: Any, **kwargs: Any) -> Tensor:
        try:
            base = placed(frozenset(), *args, **kwargs)
            output = base
            for number, mask in enumerate(moment.masks):
                if mask is not None and bool(moment.denoiser[number].any()):
                    changed = placed(frozenset({number}), *args, **kwargs)
                    output = _placed(output, changed, base, moment, number)
            return output
        finally:
            moment.placed = frozenset()
            moment.touch()

    return call
