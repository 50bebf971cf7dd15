"""A warm base and whatever stack is on it.

The truth is the base plus the sum of `weight_i * delta_i`. What is constant is folded into the base's weights (`folding`): a step then
costs what the base costs, however many adapters. What differs from image to image, follows a schedule, acts in a region or takes turns runs
live beside the base (`live`), and pictures that differ only in that are one batch. An adapter at weight 0 is absent. New words that a file brings are
known to the text encoder while the file is in the stack at another weight than 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trainer import base_match, bases, families, forwards, lora_file
from trainer.config import AdapterChoice, StackConfig
from trainer.errors import ConfigError
from trainer.memory import mechanics, quantising
from trainer.render import attention_maps, draw, image, modes, quantised, regions, requantising, samplers, sharing, strength, trigger_tokens
from trainer.render.adapter_cache import KEPT_BYTES, Adapter, Shelf
from trainer.render.folding import ByPath, Folding, Part
from trainer.render.layout import Share
from trainer.render.live import Moment, Places, beside
from trainer.render.modes.contract import Mode
from trainer.render.new_words import Vocabulary
from trainer.render.resolving import Resolving
from trainer.render.sharing import acts

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.deltas import Update

_PIXELS_AT_ONCE = 1 << 20  # of a batch: 64 pictures of 128 px, 4 of 512 px


Updates = dict[str, list[tuple[int, float, "Update"]]]  # by path: an adapter's number, its factor there, its update
Weights = tuple[float, float]  # of the denoiser's part and of the text encoder's


class Engine:
    """One base, kept warm. Not for two threads at once."""

    def __init__(
        self, base: str = "imprimatura", family: str = "sd", device: str = "auto", dtype: str = "auto", quantise: str = "none",
        library: Callable[[], dict[str, lora_file.LoraInfo]] | None = None, wildcards: Path | None = None, kept_bytes: int = KEPT_BYTES,
    ) -> None:  # fmt: skip
        """`quantise` keeps the denoiser's linear layers in fewer bits. Raises: ModelError, ConfigError."""
        self.base, self.quantise = base, quantised.checked(quantise)
        self.family = families.registry()[family]
        self.folder = bases.resolve(base, self.family)
        self.pipe = bases.open_pipeline(self.family, self.folder, *bases.hardware(device, dtype, self.folder))
        self.file_keys: dict[str, str] = self.family.file_keys(self.pipe)
        self.component = self.family.denoiser
        quantising.quantise(getattr(self.pipe, self.component), quantise)
        modules = {
            f"{component}.{path}": module
            for component in self.family.components
            for path, module in getattr(self.pipe, component).named_modules()
            if f"{component}.{path}" in self.file_keys
        }
        self.shapes = {path: tuple(module.weight.shape) for path, module in modules.items()}
        self.denoiser_paths = [path for path in self.shapes if path.startswith(f"{self.component}.")]
        self.origin = base_match.of_base(base, self.folder, family)
        narrow = requantising.narrow(modules, Path(self.folder), self.pipe.dtype)
        self.folding = Folding({path: module.weight.data for path, module in modules.items() if path not in narrow}, narrow)
        self.weights: Mapping[str, Tensor] = ByPath(modules.keys(), self.folding.weight) if narrow else self.folding.weights
        self.vocabulary = Vocabulary(self.pipe, self.family)
        self.shelf = Shelf(self.file_keys, self.shapes, self.vocabulary.check, kept_bytes)
        self.library, self.wildcards = library or (lambda: {}), wildcards
        self._scheduler = self.pipe.scheduler
        self._resolving = Resolving(self)
        self._factors: dict[tuple[str, ...], dict[str, float]] = {}
        self._last_prepared: tuple[Any, Any] = (None, None)

    # What a stack means here.

    def resolve(self, stack: StackConfig) -> StackConfig:
        """The same stack spelled out: hashes and names from the files, regions as they travel, trigger words in the prompt.

        Raises: AdapterError, ConfigError; nothing has been changed then.
        """
        return self._resolving.resolved(stack)

    def warnings(self, stack: StackConfig) -> list[str]:
        """A sentence for each LoRA of a resolved stack that acts and says that it is for another base than this one."""
        files = dict.fromkeys(Path(adapter.file) for adapter in stack.adapters if acts(adapter))
        return [said for file in files if (said := base_match.warning(file, self.origin))]

    def latents(self, stack: StackConfig) -> tuple[int, int]:
        """Height and width of the picture's latents."""
        return stack.height_px // self.pipe.vae_scale_factor, stack.width_px // self.pipe.vae_scale_factor

    def _module(self, path: str) -> torch.nn.Module:
        component, _, rest = path.partition(".")
        found: torch.nn.Module = getattr(self.pipe, component).get_submodule(rest)
        return found

    def _adapter(self, choice: AdapterChoice) -> Adapter:
        return self.shelf.get(Path(choice.file))

    def _layers(self, stack: StackConfig) -> dict[AdapterChoice, Weights]:
        """The adapters of a resolved stack that act, and their weights; what stands twice counts twice."""
        found: dict[AdapterChoice, Weights] = {}
        for adapter in filter(acts, stack.adapters):
            curve = strength.schedule(adapter).constant
            layer = sharing.layer(adapter)
            weight, text = adapter.weight * (1.0 if curve is None else curve), adapter.weight if adapter.text_weight is None else adapter.text_weight
            before = found.get(layer, (0.0, 0.0))
            found[layer] = (before[0] + weight, before[1] + text)
        return found

    # Pictures.

    def render(self, stack: StackConfig) -> image.Picture:
        """The stack's picture. Raises: AdapterError, ConfigError before anything is changed; the stack that was on stays on."""
        return self._fitting([self.resolve(stack)])[0]

    def render_all(self, stacks: Iterable[StackConfig]) -> Iterator[image.Picture]:
        """The pictures of several stacks, in their order; neighbours that can be one batch are. Raises: as `render`, when it comes to that stack."""
        batch: list[StackConfig] = []
        for stack in stacks:
            resolved = self.resolve(stack)
            if batch and (self._kind(resolved) != self._kind(batch[0]) or len(batch) >= max(1, _PIXELS_AT_ONCE // (stack.width_px * stack.height_px))):
                yield from self._fitting(batch)
                batch = []
            batch.append(resolved)
        if batch:
            yield from self._fitting(batch)

    def _fitting(self, stacks: list[StackConfig]) -> list[image.Picture]:
        """Pictures of resolved stacks of one kind, in halves if memory runs out."""
        try:
            return self._render(stacks)
        except (RuntimeError, MemoryError) as error:
            if len(stacks) == 1 or not mechanics.is_shortage(error):
                raise
        half = len(stacks) // 2
        return self._fitting(stacks[:half]) + self._fitting(stacks[half:])

    def _kind(self, stack: StackConfig) -> tuple[Any, ...]:
        """What pictures of one batch have in common."""
        layers = self._layers(stack)
        words = tuple(sorted({layer.sha256 for layer in layers if self._adapter(layer).words}))
        ours = tuple(layers) if stack.mode != "sum" else ()
        alone = stack if draw.is_weighted(self.pipe, stack) else None
        tied = tuple(layers.items()) if self.family.ragged == "rows" else ()
        said = (stack.prompt, stack.negative_prompt) if self.family.ragged and any(layer.region for layer in layers) else ()
        return alone, tied, said, sharing.key(stack), ours, words

    def _render(self, stacks: list[StackConfig]) -> list[image.Picture]:
        """Pictures of resolved stacks of one kind, as one batch."""
        weights = [self._layers(stack) for stack in stacks]
        layers = list(dict.fromkeys(layer for found in weights for layer in found))
        live = [layer for layer in layers if self._is_live(layer, weights, stacks[0].mode)]
        self._hold({layer: weights[0][layer] for layer in layers if layer not in live}, layers)
        steady = _matrix(weights, live, 0)
        masks = [regions.mask(layer, self.latents(stacks[0])) for layer in live]
        moment = Moment(steady, _matrix(weights, live, 1), masks, Places.of(self.family))
        curves = [strength.schedule(layer) for layer in live]
        num_steps = stacks[0].steps

        def enter(step: int, factors: list[float] | None = None, only: dict[str, int] | None = None) -> None:
            now = [curve.at(strength.progress(step, num_steps)) * (factors[number] if factors else 1.0) for number, curve in enumerate(curves)]
            moment.denoiser, moment.only = steady * torch.tensor(now)[:, None] if live else steady, only or {}
            moment.touch()

        def over(step: int) -> None:
            placed(step)
            mixed(step)

        enter(0)
        updates = self._updates(live)
        bases_ = ByPath(updates.keys(), self.folding.base)
        self.pipe.scheduler = samplers.make(stacks[0].sampler, self._scheduler)
        try:
            with (
                self._placed(stacks, live, moment) as placed,
                beside(self._module, bases_, updates, moment),
                self._mixed(stacks[0], live, updates, enter) as mixed,
            ):
                drawn = draw.draw_batch(self.pipe, stacks, over)
        finally:
            sampler = type(self.pipe.scheduler).__name__.removesuffix("Scheduler")
            self.pipe.scheduler = self._scheduler
        name = Path(self.base).name
        return [image.Picture(one, stack, image.infotext(stack, name, self.origin.sha256, sampler)) for one, stack in zip(drawn, stacks, strict=True)]

    def _is_live(self, layer: AdapterChoice, weights: list[dict[AdapterChoice, Weights]], mode: str) -> bool:
        """True if what this adapter does isn't the same constant sum in every picture of the batch."""
        return mode != "sum" or bool(layer.schedule or layer.region) or len({found.get(layer) for found in weights}) > 1

    @contextmanager
    def _placed(self, stacks: list[StackConfig], live: list[AdapterChoice], moment: Moment) -> Iterator[Callable[[int], None]]:
        """For the body, a mode that finds regions finds them; what is given is to be called after each step with its number."""
        mode = modes.registry()[stacks[0].mode]
        if mode.place is None:
            yield lambda step: None
            return
        places = [[trigger_tokens.positions(self.pipe, stack, self._adapter(layer).trigger) for stack in stacks] for layer in live]
        seen = attention_maps.Seen(places, self.latents(stacks[0]))
        watched = attention_maps.layers(getattr(self.pipe, self.component), self.family)
        with attention_maps.placing(watched, mode, stacks[0].steps, seen, moment) as over:
            yield over

    @contextmanager
    def _mixed(self, stack: StackConfig, live: list[AdapterChoice], updates: Updates, enter: Callable[..., None]) -> Iterator[Callable[[int], None]]:
        """The stack's mode over the denoiser for the body; what is given is to be called after each step with its number."""
        mode, denoiser, at = modes.registry()[stack.mode], getattr(self.pipe, self.component), [0]
        prepared, calls = self._prepared(mode, live, updates), [0]

        def unsaid(rows: int) -> slice:
            second = slice((calls[0] == 1) * rows, None)
            return {"unsaid first": slice(rows // 2), "said first": slice(rows // 2, None), "said, unsaid": second}[self.family.halves]

        def mixing(forward: forwards.Forward) -> forwards.Forward:
            def mixed(*args: Any, **kwargs: Any) -> Any:
                def call(factors: list[float], only: dict[str, int] | None = None) -> Tensor:
                    enter(at[0], factors, only)
                    found = forward(*args, **kwargs)[0]
                    return torch.stack(found) if isinstance(found, list) else found  # Z-Image's says a list of pictures

                calls[0] += 1
                return (mode.predict(call, len(live), at[0], stack.steps, *prepared, *([unsaid] if mode.splits_guidance else [])),)

            return mixed

        def done(step: int) -> None:
            at[0], calls[0] = step + 1, 0
            enter(at[0])

        with nullcontext() if stack.mode == "sum" else forwards.wrapped(denoiser, mixing):
            yield done

    def _prepared(self, mode: Mode, live: list[AdapterChoice], updates: Updates) -> tuple[Any, ...]:
        """What a mode made of these adapters before the first step, kept for the next picture."""
        if mode.prepare is None:
            return ()
        key = (mode.name, tuple(live))
        if self._last_prepared[0] != key:
            self._last_prepared = (key, mode.prepare(updates, self.folding.base))
        return (self._last_prepared[1],)

    def _block_factors(self, layer: AdapterChoice) -> dict[str, float]:
        """Factors of the denoiser's layers by path; where it names none they are 1."""
        if layer.blocks and layer.blocks not in self._factors:
            self._factors[layer.blocks] = strength.block_factors(layer, self.denoiser_paths)
        return self._factors[layer.blocks] if layer.blocks else {}

    def _updates(self, layers: list[AdapterChoice]) -> Updates:
        """By path, each adapter's number, its factor there and its update."""
        found: Updates = {}
        for number, layer in enumerate(layers):
            factors = self._block_factors(layer)
            for path, update in self._adapter(layer).updates.items():
                if factor := factors.get(path, 1.0):
                    found.setdefault(path, []).append((number, factor, update))
        return found

    # What is folded.

    def parts(self, stack: StackConfig) -> tuple[dict[str, list[Part]], dict[str, dict[str, Tensor]]]:
        """What a resolved stack adds to each weight, by path, and the words it brings. Raises: ConfigError for what isn't constant."""
        weights = self._constant(stack)
        return self._parts(weights), self._words(weights)

    def _constant(self, stack: StackConfig) -> dict[AdapterChoice, Weights]:
        """The adapters of a resolved stack and their weights. Raises: ConfigError for what isn't constant."""
        weights = self._layers(stack)
        if moving := [layer for layer in weights if self._is_live(layer, [weights], stack.mode)]:
            raise ConfigError(f"{Path(moving[0].file).name} has a schedule or a region, or the stack a mode, which can't be folded; allowed: constant weights.")
        return weights

    def _parts(self, weights: dict[AdapterChoice, Weights]) -> dict[str, list[Part]]:
        parts: dict[str, list[Part]] = {}
        for layer, (weight, text) in weights.items():
            key = self._adapter(layer).key
            for path, found in self._updates([layer]).items():
                if factor := found[0][1] * (weight if path.startswith(f"{self.component}.") else text):
                    parts.setdefault(path, []).append((key, factor, found[0][2]))
        return parts

    def _shares(self, weights: dict[AdapterChoice, Weights]) -> list[Share]:
        """The same for folding, component by component."""
        found = []
        for layer, (weight, text) in weights.items():
            adapter = self._adapter(layer)
            for component, packed in adapter.components.items():
                if component != self.component and text:
                    found.append(Share(adapter.key, component, text, packed))
                elif component == self.component and weight:
                    found.append(Share(adapter.key, component, weight, packed, layer.blocks, self._block_factors(layer) or None))
        return found

    def _words(self, layers: Iterable[AdapterChoice]) -> dict[str, dict[str, Tensor]]:
        return self.vocabulary.together([self._adapter(layer).words for layer in sorted(layers, key=lambda layer: layer.sha256)])

    def _hold(self, weights: dict[AdapterChoice, Weights], brought: Iterable[AdapterChoice]) -> None:
        """Fold these, and know the words of all that are `brought`."""
        shares, words = self._shares(weights), self._words({*weights, *brought})
        self.vocabulary.show(words)
        self.folding.hold(shares)

    def fold(self, stack: StackConfig) -> None:
        """Put a resolved stack's adapters on the base; a broken-off fold is made good by the next one. Raises: ConfigError for what isn't constant."""
        assert all(adapter.sha256 for adapter in stack.adapters), "fold takes what `resolve` gave"
        self._hold(self._constant(stack), ())

    def restore(self) -> None:
        """The base as it was loaded, bit for bit."""
        self._hold({}, ())

    @contextmanager
    def folded(self, stack: StackConfig) -> Iterator[None]:
        """The stack on the base for the body, the base restored after it, also when the body raises."""
        resolved = self.resolve(stack)
        try:
            self.fold(resolved)
            yield
        finally:
            self.restore()


def _matrix(weights: list[dict[AdapterChoice, Weights]], layers: list[AdapterChoice], part: int) -> Tensor:
    """Weights of the denoiser's (0) or the text encoder's (1) part: adapters by pictures (A, B)."""
    return torch.tensor([[found.get(layer, (0.0, 0.0))[part] for found in weights] for layer in layers]).reshape(len(layers), len(weights))
