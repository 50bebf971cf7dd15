"""Draws a batch: its constant adapters folded into the base, the others live beside it, the sampler run once for all.

What an adapter does is constant if it is the same weighted sum in every picture, step and place: it is folded into the
base's weights, and a step then costs what the base costs, however many adapters there are. All else is live.

The data goes one way: a `Batch` says what acts, and for each pass of the denoiser a `Moment` is made and handed to the
live adapters. What costs time to make and may serve the next batch is kept: the folded sums, and the live adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trainer import forwards
from trainer.render import attention_maps, modes, picture_metadata, pipeline_call, trigger_tokens
from trainer.render.folding import ByPath
from trainer.render.live import LiveAdapters, Moment
from trainer.render.masks import Masks, Places

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.config import StackConfig
    from trainer.render.adapter_cache import Shelf
    from trainer.render.effect import Effect, Weights
    from trainer.render.folding import Folding
    from trainer.render.modes.contract import Mode
    from trainer.render.new_words import Vocabulary
    from trainer.render.opened_base import OpenedBase
    from trainer.render.resolving import Resolved

StepDone = Callable[[int], None]  # is given the number of the step that is over
Watch = Callable[[int, int, int], None]  # is given how many steps are over, of how many, and of how many pictures
_Key = tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Batch:
    """Stacks of one kind, and what each adapter does in their pictures."""

    stacks: tuple[StackConfig, ...]
    size: tuple[int, int]  # height and width of the latents
    effects: tuple[Effect, ...]  # of all stacks, each once
    folded: Mapping[Effect, Weights]  # the constant effects
    live: tuple[Effect, ...]
    denoiser: Tensor  # (A, B), weights of the live effects in each picture, in the denoiser
    text: Tensor  # (A, B), in the text encoders

    def at(self, step: int, turns: list[float] | None = None) -> Tensor:
        """The live adapters' weights in the denoiser at a step (A, B); `turns` are a mode's factors for them."""
        turns = turns or [1.0] * len(self.live)
        if all(effect.is_steady for effect in self.live) and set(turns) <= {1.0}:
            return self.denoiser  # the very same, by which it is known that nothing has changed
        factors = [effect.at(step) * turn for effect, turn in zip(self.live, turns, strict=True)]
        return self.denoiser * torch.tensor(factors)[:, None]


def together(pictures: list[Resolved]) -> Batch:
    """The batch of some resolved stacks, which must be of one kind."""
    first = pictures[0]
    effects = tuple(dict.fromkeys(effect for picture in pictures for effect in picture.weights))
    live = tuple(effect for effect in effects if not is_constant(effect, pictures))
    folded = {effect: first.weights[effect] for effect in effects if effect not in live}
    stacks = tuple(picture.stack for picture in pictures)
    return Batch(stacks, first.size, effects, folded, live, _matrix(pictures, live, 0), _matrix(pictures, live, 1))


def is_constant(effect: Effect, pictures: list[Resolved]) -> bool:
    """True if what this adapter does is the same constant sum in every picture, at every step and in every place."""
    varies = pictures[0].stack.mode != "sum" or effect.choice.schedule or effect.choice.region
    return not varies and len({picture.weights.get(effect) for picture in pictures}) == 1


def _matrix(pictures: list[Resolved], effects: tuple[Effect, ...], part: int) -> Tensor:
    """Weights of the denoiser's (0) or the text encoders' (1) part: adapters by pictures (A, B)."""
    absent = (0.0, 0.0)
    rows = [[picture.weights.get(effect, absent)[part] for picture in pictures] for effect in effects]
    return torch.tensor(rows).reshape(len(effects), len(pictures))


class Drawing:
    """One base with whatever is folded into it now."""

    def __init__(self, base: OpenedBase, shelf: Shelf, folding: Folding, vocabulary: Vocabulary) -> None:
        self.base, self.shelf, self.folding, self.vocabulary = base, shelf, folding, vocabulary
        self.places = Places.of(base.family)
        self._scheduler = base.pipe.scheduler
        # What is folded, and whose words are known; None: broken off.
        self._held: _Key | None = None
        self._known: _Key | None = None
        self._live: tuple[_Key, LiveAdapters] | None = None  # those of the last batch
        self._prepared: tuple[_Key, Any] | None = None  # what a mode made of the adapters it last had
        self.watch: Watch | None = None  # called after each sampling step; what it raises ends the drawing there
        self.look: pipeline_call.Look | None = None  # called with the latents after each sampling step

    def draw(self, resolved: list[Resolved]) -> list[picture_metadata.Picture]:
        """The pictures of resolved stacks of one kind, in their order, drawn as one batch."""
        batch = together(resolved)
        if self._live is not None and self._live[0] != _key(batch):
            self._live = None  # before folding, which may need the memory
        self._hold(batch.folded, batch.effects)
        first, pipe = batch.stacks[0], self.base.pipe
        pipe.scheduler = pipeline_call.scheduler(first.sampler, self._scheduler)
        try:
            with self._beside(batch) as step_done:
                drawn = pipeline_call.draw_batch(
                    pipe, self.base.family, list(batch.stacks), self._watched(step_done, batch), self.look
                )
        finally:
            sampler = type(pipe.scheduler).__name__.removesuffix("Scheduler")
            pipe.scheduler = self._scheduler
        name, sha256 = Path(self.base.name).name, self.base.origin.sha256
        return [
            picture_metadata.Picture(picture, stack, name, sha256, sampler)
            for picture, stack in zip(drawn, batch.stacks, strict=True)
        ]

    def _watched(self, step_done: StepDone | None, batch: Batch) -> StepDone | None:
        """The same, and whoever watches is told before it."""
        watch = self.watch
        if watch is None:
            return step_done

        def watched_step(step: int) -> None:
            watch(step + 1, batch.stacks[0].steps, len(batch.stacks))
            if step_done:
                step_done(step)

        return watched_step

    # What is constant.

    def fold(self, weights: Mapping[Effect, Weights]) -> None:
        """Make the base hold exactly these, and know their words; what was broken off is made good by the next fold."""
        self._live = None
        self._hold(weights, tuple(weights))

    def _hold(self, folded: Mapping[Effect, Weights], effects: tuple[Effect, ...]) -> None:
        """Make the base hold exactly the `folded` adapters, and its text encoders know the words of all `effects`.

        Where that is so already, no adapter has to be in memory. Raises: AdapterError if two words clash; nothing has
        been changed then.
        """
        bringing = [effect for effect in effects if effect.brings_words]
        held = tuple(sorted((effect.key, effect.choice.blocks, *weights) for effect, weights in folded.items()))
        known = tuple(sorted(effect.key for effect in bringing))
        if (held, known) == (self._held, self._known):
            return
        shares = self.shelf.shares(folded)
        if known != self._known:
            words = self.vocabulary.together(self.shelf.words(bringing))
            self._known = None  # until it is done: what breaks off in between is made good by the next batch
            self.vocabulary.show(words)
            self._known = known
        self._held = None
        self.folding.hold(shares)
        self._held = held

    # What is live.

    @contextmanager
    def _beside(self, batch: Batch) -> Iterator[StepDone | None]:
        """The batch's live adapters act for the body; what is yielded is to be called after each step."""
        if not batch.live:
            yield None
            return
        stack, mode = batch.stacks[0], modes.registry()[batch.stacks[0].mode]
        # A mode that finds regions first has adapters act everywhere.
        masks = Masks([torch.ones(batch.size) if mode.place else effect.mask for effect in batch.live], self.places)
        adapters = self._adapters(batch, masks)
        steps = Steps(batch, adapters, masks)
        watching = self._watching(batch, mode, steps) if mode.place else nullcontext()
        mixing = self._mixing(batch, mode, steps) if stack.mode != "sum" else nullcontext()
        with watching as watched, adapters.attached(steps.moment()), mixing:

            def step_done(step: int) -> None:
                if watched:
                    watched(step)
                steps.done(step)

            yield step_done

    def _adapters(self, batch: Batch, masks: Masks) -> LiveAdapters:
        """The batch's live adapters, those of the last batch where they are the same.

        Only low-rank updates are kept: others are as large as the base's own weights.
        """
        if self._live is not None:
            return self._live[1]
        updates = self.shelf.updates(batch.live, self.folding.on_device.updates)
        adapters = LiveAdapters(self.base.module, ByPath(updates.keys(), self.folding.base), updates, masks)
        self._live = (_key(batch), adapters) if adapters.are_low_rank else None
        return adapters

    def _watching(
        self, batch: Batch, mode: Mode, steps: Steps
    ) -> AbstractContextManager[StepDone]:  # fmt: skip
        """The mode reads where the pictures attend to each adapter's trigger words, and gives the adapters masks."""
        triggers = [self.shelf.get(Path(effect.choice.file)).trigger for effect in batch.live]
        token_places = [
            [trigger_tokens.positions(self.base.pipe, stack, trigger) for stack in batch.stacks] for trigger in triggers
        ]
        attended = attention_maps.Attended(token_places, batch.size)
        watched = attention_maps.layers(self.base.denoiser, self.base.family)
        return attention_maps.watching(watched, mode, batch.stacks[0].steps, attended, steps.place)

    def _mixing(self, batch: Batch, mode: Mode, steps: Steps) -> AbstractContextManager[None]:
        """The mode lies over the denoiser's forward: it calls it with some adapters, or several times."""
        prepared = self._prepare(batch, mode)

        def negative_rows(num_rows: int) -> slice:
            """The rows of the denoiser's input that have the negative prompt."""
            is_first = steps.num_passes == 1
            return {
                "negative first": slice(num_rows // 2),
                "positive first": slice(num_rows // 2, None),
                "separate calls": slice(num_rows if is_first else 0, None),
            }[self.base.family.guidance_layout]

        extra = [*prepared, *([negative_rows] if mode.splits_guidance else [])]

        def mixed(forward: forwards.Forward) -> forwards.Forward:
            def predict(*args: Any, **kwargs: Any) -> Any:
                def call(turns: list[float], only: dict[str, int] | None = None) -> Tensor:
                    steps.enter(turns, only)
                    output = forward(*args, **kwargs)[0]
                    return torch.stack(output) if isinstance(output, list) else output  # Z-Image: a list of pictures

                # Families that guide in two calls make the call with the prompt first, see `negative_rows`.
                steps.num_passes += 1
                return (mode.predict(call, len(batch.live), steps.step, batch.stacks[0].steps, *extra),)

            return predict

        return forwards.wrapped(self.base.denoiser, mixed)

    def _prepare(self, batch: Batch, mode: Mode) -> list[Any]:
        """What the mode makes of these adapters before the first step, kept for the next picture; nothing for most."""
        if mode.prepare is None:
            return []
        key = (mode.name, _key(batch))
        if self._prepared is None or self._prepared[0] != key:
            updates = self.shelf.updates(batch.live)
            self._prepared = (key, mode.prepare(updates, self.folding.base))
        return [self._prepared[1]]


def _key(batch: Batch) -> _Key:
    """What the batch's live adapters are made from, all but their weights and masks."""
    finds_regions = modes.registry()[batch.stacks[0].mode].place is not None
    return tuple((effect.key, effect.choice.blocks, finds_regions or effect.mask is not None) for effect in batch.live)


class Steps:
    """Where a batch's drawing is: its step, the passes of the denoiser in it, and where adapters act by now."""

    def __init__(self, batch: Batch, adapters: LiveAdapters, masks: Masks) -> None:
        self.batch, self.adapters, self.masks = batch, adapters, masks
        self.step = self.num_passes = 0

    def moment(self, turns: list[float] | None = None, only: Mapping[str, int] | None = None) -> Moment:
        """What holds in a pass of this step; `turns` and `only` are a mode's."""
        return Moment(self.batch.at(self.step, turns), self.batch.text, self.masks, only or {})

    def enter(self, turns: list[float], only: Mapping[str, int] | None = None) -> None:
        """Begin a pass of this step."""
        self.adapters.enter(self.moment(turns, only))

    def place(self, masks: list[Tensor]) -> None:
        """Have the adapters act there from the next step on."""
        self.masks = Masks(masks, self.masks.places)

    def done(self, step: int) -> None:
        """Go on to the step after this."""
        self.step, self.num_passes = step + 1, 0
        self.adapters.enter(self.moment())
