"""Adapters beside a model while it runs: base(x) + sum of s_i(image, step, place) * delta_i(x), the base untouched.

For what can't be folded: weights that differ from image to image of one batch, follow a schedule, act in a region or
take turns. All low-rank updates of a layer are one pair of products, down (R, in) and up (out, R), with a factor for
each image and each of the R ranks between them (S-LoRA's idea, arXiv 2311.03285, with a weight instead of an adapter a
row), or a pair for each image where not every image has every adapter (`own_ranks`); others are a dense product each.
Guidance doubles the batch: rows are counted modulo the number of images.

A region acts on image tokens by their place. It is one for all images or another in each, and may be found while the
model runs. What an adapter does to the keys and values of the text has no place, so cross-attention is computed once
without it and once with it, and the two outputs are mixed by place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trainer import forwards
from trainer.deltas import Delta, Update
from trainer.render.masks import Kind, Masks
from trainer.render.own_ranks import Gathered, OwnRanks

# Component.module.path -> for each adapter there its number, its factor in this layer, and its update.
Updates = dict[str, list[tuple[int, float, Update]]]


@dataclass(frozen=True, eq=False)
class Moment:
    """What holds at one pass of the denoiser. Another pass has another moment; nobody changes this moment."""

    denoiser: Tensor  # (A, B), each adapter's weight in each image, in the denoiser
    text: Tensor  # (A, B), in the text encoders
    masks: Masks
    only: Mapping[str, int] = field(default_factory=dict)  # layers in which one adapter alone acts, and which
    on_text: frozenset[int] = frozenset()  # the regional adapters that act on the text's keys and values in this pass

    @property
    def num_images(self) -> int:
        return int(self.denoiser.shape[1])

    def weighs_as(self, other: Moment | None) -> bool:
        """Whether each adapter has the same weights in the other moment, so that what they come to can be kept."""
        return (
            other is not None
            and self.denoiser is other.denoiser
            and self.text is other.text
            and self.only == other.only
            and self.on_text == other.on_text
            and self.masks.regional == other.masks.regional
        )


class LiveAdapters:
    """The updates of some adapters as forward hooks of a model's layers, made once and attached for each batch.

    `enter` hands a moment to every layer; until the next moment they all act by it.
    """

    def __init__(
        self, find: Callable[[str], nn.Module], bases: Mapping[str, Tensor], updates: Updates, masks: Masks
    ) -> None:
        """`find` gives the module of a path, `bases` its weight without any adapter.

        An adapter that is to get a mask while the model runs has a mask from the start: what is hooked depends on it.
        """
        self._layers = {path: _Layer(path, parts, masks, bases[path]) for path, parts in updates.items()}
        self._hooked = {path: find(path) for path in updates}
        # Attention that reads the text by keys and values which a regional adapter changes.
        crossing = {
            path.rsplit(".", 1)[0]
            for path, parts in updates.items()
            if masks.places.is_of_text(path) and masks.regional & {number for number, _, _ in parts}
        }
        self._attention = {path: find(path) for path in sorted(crossing)}
        self._moment: Moment | None = None

    @property
    def are_low_rank(self) -> bool:
        """True if no update is as large as the weight it adds to."""
        return not any(layer.dense for layer in self._layers.values())

    def enter(self, moment: Moment) -> None:
        """Act as this moment says, from now on."""
        self._moment = moment
        for layer in self._layers.values():
            layer.enter(moment)

    @contextmanager
    def attached(self, moment: Moment) -> Iterator[None]:
        """The adapters act on the model for the body; afterwards no trace is left."""
        self.enter(moment)
        with ExitStack() as undone:
            for path, layer in self._layers.items():
                undone.callback(self._hooked[path].register_forward_hook(layer).remove)
            for path, attention in self._attention.items():
                undone.enter_context(forwards.wrapped(attention, partial(self._by_place, path)))
            undone.callback(self._leave)
            yield

    def _leave(self) -> None:
        """Let the last moment go, whose masks take memory."""
        self._moment = None
        for layer in self._layers.values():
            layer.enter(None)

    def _by_place(self, path: str, forward: forwards.Forward) -> forwards.Forward:
        """An attention's forward in which regional adapters change what is read of the text in their places only."""
        layers = [layer for name, layer in self._layers.items() if name.startswith(f"{path}.")]

        def call(*args: Any, **kwargs: Any) -> Any:
            moment = self._moment
            assert moment, "a layer is attached with a moment"

            def passed(numbers: frozenset[int]) -> Any:
                within = replace(moment, on_text=numbers)
                for layer in layers:
                    layer.enter(within)
                return forward(*args, **kwargs)

            try:
                # Once with no regional adapter on the text, then once with each: what it changed is added in its place.
                base = output = passed(frozenset())
                for number in sorted(moment.masks.regional):
                    if bool(moment.denoiser[number].any()):
                        output = _placed(output, passed(frozenset({number})), base, moment, number)
                return output
            finally:
                for layer in layers:
                    layer.enter(moment)

        return call


class _Layer:
    """A forward hook with the updates of one module."""

    def __init__(self, path: str, parts: list[tuple[int, float, Update]], masks: Masks, base: Tensor) -> None:
        self.path = path
        self.is_text_encoder = not path.startswith(("unet.", "transformer."))
        self.is_of_text, self.kind = masks.places.is_of_text(path), masks.places.kind(path)
        is_regional = any(number in masks.regional for number, _, _ in parts)
        self.has_place = is_regional and not self.is_text_encoder and not self.is_of_text

        # All low-rank updates side by side; each of the R ranks knows its adapter and its factor.
        low = [(number, factor, update) for number, factor, update in parts if isinstance(update, Delta)]
        self.owners = [number for number, _, update in low for _ in range(update.rank)]
        self.factors = torch.tensor([factor for _, factor, update in low for _ in range(update.rank)])
        self.pair = _side_by_side([update for _, _, update in low], base) if low else None

        # The others, whole.
        self.dense = [
            (number, factor, update.dense(base, torch.float32).to(base.dtype))
            for number, factor, update in parts
            if not isinstance(update, Delta)
        ]
        # What holds now, and what it comes to for each number of rows.
        self.moment: Moment | None = None
        self._scales: dict[int, _Scales | None] = {}
        self._own_ranks: OwnRanks | None = None  # made when images first differ in their adapters
        self._gathered: dict[int, tuple[Tensor, list[Gathered]]] = {}  # by number of rows: of which scales, and what

    def enter(self, moment: Moment | None) -> None:
        """Act as this moment says."""
        if moment is None or not moment.weighs_as(self.moment):
            self._scales = {}
        if moment is None:
            self._gathered = {}
        self.moment = moment

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        # Scales by the number of rows: guidance doubles the images, and experts get as many rows as are sent to them.
        x, moment = inputs[0], self.moment
        assert moment, "a layer is attached with a moment"
        if len(x) not in self._scales:
            self._scales[len(x)] = self._scales_at(moment, x)
        scales = self._scales[len(x)]
        if scales is None:
            return output
        for gathered in scales.gathered:
            output = gathered.add(module, x, output)
        if scales.ranks is not None and self.pair is not None:
            down, up = self.pair
            # Weights and masks between the two products, where a row has R numbers, not the layer's width.
            inner = _apply(module, x.to(down.dtype), down)
            inner = inner * _spread(scales.ranks, inner)
            if self.has_place:
                inner = inner * moment.masks.fit(inner, self.owners, self.kind)
            lifted = nn.functional.conv2d(inner, up) if up.ndim == 4 else nn.functional.linear(inner, up)
            output = output + lifted.to(output.dtype)
        for number, factor, weight in self.dense:
            rows, row_weights = scales.rows[number]
            if not len(rows):
                continue
            added = _apply(module, x[rows].to(weight.dtype), weight)
            added = added * _spread(row_weights[:, None] * factor, added)
            if self.has_place:
                added = added * moment.masks.fit(added, [number], self.kind)
            output = output.index_add(0, rows, added.to(output.dtype))
        return output

    def _scales_at(self, moment: Moment, like: Tensor) -> _Scales | None:
        """What each row has of each adapter and rank, as this layer has it; None if all is 0.

        It is found on the CPU, so that no GPU is waited for.
        """
        num_rows = len(like)
        weights = moment.text if self.is_text_encoder else moment.denoiser
        if self.path in moment.only:
            weights = weights * (torch.arange(len(weights)) == moment.only[self.path])[:, None]
        if self.is_of_text:  # in its own pass alone, see `LiveAdapters._by_place`
            weights = weights.clone()
            weights[sorted(moment.masks.regional - moment.on_text)] = 0
        if not bool(weights.any()):
            return None
        # Guidance repeats the images. Experts get any number of rows, with one weight for all of them.
        each = weights.repeat(1, -(-num_rows // moment.num_images))[:, :num_rows]  # (A, n)
        # Masks are of all images, so an adapter that has a place is computed for all rows.
        rows = {
            number: torch.arange(num_rows) if self.has_place else each[number].nonzero().flatten()
            for number, _, _ in self.dense
        }
        of_dense = {
            number: (own.to(like.device), each[number][own].to(like.device, like.dtype)) for number, own in rows.items()
        }
        if self.pair is None:
            return _Scales(None, [], of_dense)
        ranks = (each[self.owners] * self.factors[:, None]).T  # (n, R)
        if not self.has_place and not bool(ranks.all()):
            return _Scales(None, self._gather(ranks), of_dense)
        return _Scales(ranks.to(like.device, self.pair[0].dtype), [], of_dense)

    def _gather(self, ranks: Tensor) -> list[Gathered]:
        """Each row's own ranks, those of the last step where the scales are the same."""
        last_ranks, gathered = self._gathered.get(len(ranks), (None, []))
        if last_ranks is None or not torch.equal(last_ranks, ranks):
            assert self.pair is not None
            self._own_ranks = self._own_ranks or OwnRanks(*self.pair)
            gathered = self._own_ranks.gathered(ranks)
            self._gathered[len(ranks)] = ranks, gathered
        return gathered


@dataclass(frozen=True, eq=False)
class _Scales:
    """What each of n rows has of a layer's adapters."""

    ranks: Tensor | None  # (n, R), where all rows have all ranks, or masks say where
    gathered: list[Gathered]  # where they don't
    rows: Mapping[int, tuple[Tensor, Tensor]]  # by the number of a dense adapter: the rows that have it, their weights


def _side_by_side(deltas: list[Delta], base: Tensor) -> tuple[Tensor, Tensor]:
    """Down (R, in[, kh, kw]) and up (out, R[, 1, 1]) of low-rank updates, their scales in up, as `base` is kept."""
    down = torch.cat([delta.down.reshape(delta.rank, *base.shape[1:]).to(base.device, base.dtype) for delta in deltas])
    # Scaled in float32: the base's dtype then rounds once and not twice.
    ups = [delta.up.flatten(1).to(base.device, torch.float32) * delta.scale for delta in deltas]
    up = torch.cat(ups, 1).to(base.dtype)
    return down, up[:, :, None, None] if base.ndim == 4 else up


def _apply(module: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """What the module would compute with this weight and no bias."""
    if isinstance(module, nn.Conv2d):
        return nn.functional.conv2d(x, weight, None, module.stride, module.padding, module.dilation)
    return nn.functional.linear(x, weight)


def _spread(scales: Tensor, like: Tensor) -> Tensor:
    """(n, R) in the shape of an activation (n, R, h, w) or (n, ..., R)."""
    if like.ndim == 4:
        return scales[:, :, None, None]
    return scales.reshape(scales.shape[0], *[1] * (like.ndim - 2), scales.shape[1])


def _placed(output: Any, changed: Any, base: Any, moment: Moment, number: int, kind: Kind = "image") -> Any:
    """The output with what one adapter changed, in its place only.

    Joint attention gives two outputs: that of the image's tokens, then that of the text's, which have no place.
    """
    if isinstance(base, tuple):
        kinds: tuple[Kind, Kind] = ("image", "text")
        return tuple(
            _placed(out, new, old, moment, number, kind)
            for out, new, old, kind in zip(output, changed, base, kinds, strict=True)
        )
    return output + (changed - base) * moment.masks.fit(base, [number], kind)
