"""What stacks mean on one base: a stack becomes a `Resolved`, a value with all that drawing needs to know of it.

Hashes and names come from the files, regions as they travel, trigger words into the prompt, the base's own settings
where the stack has none. Weights of the model aren't touched, and no tensor of an adapter is kept here: the shelf has
them, under its own limit.

What was found is kept: a stack that differs from one before in nothing but weights, of files that are as they were,
costs next to nothing. Whether a weight is 0 counts, its size doesn't. Not kept is what depends on more than the stack
and its files: tags and wildcards of prompts, LoRAs to be found by their hash, masks in picture files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cachetools import LRUCache

from trainer import base_defaults, bases, choices, lora_file
from trainer.config import AdapterChoice, StackConfig
from trainer.errors import AdapterError, ConfigError
from trainer.render import (
    attention_maps,
    family_checks,
    modes,
    pipeline_call,
    prompting,
    regions,
    sharing,
    strength,
    trigger_tokens,
)
from trainer.render.effect import Effect, Weights
from trainer.render.sharing import acts

if TYPE_CHECKING:
    from trainer.render.adapter_cache import Shelf
    from trainer.render.opened_base import OpenedBase

Library = Callable[[], dict[str, lora_file.LoraInfo]]  # gives the LoRAs that are here, by hash

_MAX_KEPT = 64
_WEIGHTS = ("weight", "text_weight")
_Key = tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Resolved:
    """A stack spelled out, and what acts in its picture."""

    stack: StackConfig
    size: tuple[int, int]  # height and width of the latents
    weights: Mapping[Effect, Weights]  # of the adapters that act, in the stack's order; what stands twice counts twice


@dataclass(frozen=True, eq=False)
class _Meaning:
    """A stack spelled out but for the weights."""

    stack: StackConfig
    size: tuple[int, int]
    effects: tuple[tuple[Effect, float] | None, ...]  # of each adapter, and a schedule's constant factor; None: absent


class Resolving:
    """Spells out stacks for one base."""

    def __init__(
        self, base: OpenedBase, shelf: Shelf, library: Library = dict, wildcards: Path | None = None
    ) -> None:  # fmt: skip
        self.base, self.shelf, self.library, self.wildcards = base, shelf, library, wildcards
        self._kept: LRUCache[_Key, _Meaning] = LRUCache(_MAX_KEPT)

    def resolved(self, stack: StackConfig) -> Resolved:
        """What the stack means. Raises: AdapterError, ConfigError; nothing has been changed then."""
        key = self._key(stack)
        if key is None:
            return _resolved(self._spelled_out(stack))
        if key not in self._kept:
            self._kept[key] = self._spelled_out(stack)
        return _resolved(_weighed(self._kept[key], stack))

    def _key(self, stack: StackConfig) -> _Key | None:
        """What the meaning of a stack depends on; None if on more than can be told here."""
        prompts = stack.prompt + stack.negative_prompt
        if any(mark in prompts for mark in ("<", "{", "__")) or not all(map(_is_plain, stack.adapters)):
            return None
        # Whether a weight is 0 decides who acts; its size doesn't, so a slider that moves asks for the same meaning.
        adapters = [
            tuple((name, bool(value) if name in _WEIGHTS and value is not None else value) for name, value in adapter)
            for adapter in stack.adapters
        ]
        files = [lora_file.stamp(Path(adapter.file)) for adapter in stack.adapters]
        own = tuple((name, value) for name, value in stack if name != "adapters")
        return frozenset(stack.model_fields_set), own, tuple(adapters), tuple(files)

    def _spelled_out(self, stack: StackConfig) -> _Meaning:
        choices.check(stack)
        base = self.base
        if stack.base != base.name or stack.family != base.family.name:
            raise ConfigError(
                f"the stack is for base {stack.base!r} ({stack.family}), this engine holds {base.name!r} "
                f"({base.family.name})."
            )

        # Settings that the stack leaves to the base.
        stack = base_defaults.completed(stack)
        bases.check_pixels(base.folder, {"width_px": stack.width_px, "height_px": stack.height_px})
        family_checks.check(base.family, stack)
        stack = prompting.without_tags(stack, self.wildcards, self.library)

        # Adapters, and their trigger words in the prompt.
        adapters = tuple(self._choice(adapter, stack) for adapter in stack.adapters)
        triggers = [
            word
            for adapter in adapters
            if adapter.trigger and acts(adapter)
            for word in prompting.split_triggers(self._trigger(adapter))
        ]
        prompt = prompting.with_triggers(stack.prompt, triggers)
        rescale = pipeline_call.rescale(base.pipe, base.family, stack)
        stack = stack.model_copy(update={"adapters": adapters, "prompt": prompt, "guidance_rescale": rescale})

        # Whether its mode can be used with them.
        mode = modes.chosen(stack.mode, sum(map(acts, adapters)), stack.guidance_scale)
        if mode.place:
            attention_maps.check(base.denoiser, base.family, stack.mode)
            acting = [(adapter, self._trigger(adapter)) for adapter in filter(acts, adapters)]
            trigger_tokens.check(base.pipe, stack, acting)
        effects = tuple(self._effect(adapter, stack) for adapter in adapters)
        return _Meaning(stack, base.latents_size(stack), effects)

    def _choice(self, adapter: AdapterChoice, stack: StackConfig) -> AdapterChoice:
        """The adapter with its file, name and hash, and its region as it travels."""
        file = adapter.file
        if not file:
            loras = self.library() if adapter.sha256 else {}
            if adapter.sha256 not in loras:
                raise AdapterError(
                    f"LoRA {adapter.name or '(no name)'} with hash {adapter.sha256[:12] or '(none)'} isn't here; name "
                    f"its file."
                )
            file = str(loras[adapter.sha256].path)
        digest = self.shelf.get(Path(file)).sha256
        if adapter.sha256 and adapter.sha256 != digest:
            raise AdapterError(
                f"{file} has hash {digest[:12]}; the stack asks for {adapter.sha256[:12]}: it is another file by that "
                f"name."
            )
        name = adapter.name or lora_file.name_of(Path(file))
        adapter = adapter.model_copy(update={"file": file, "name": name, "sha256": digest})
        # Refused here, also where the adapter is switched off.
        strength.schedule(adapter)
        strength.block_factors(adapter, self.base.denoiser_paths)
        region = regions.resolved(adapter, self.base.latents_size(stack))
        return adapter.model_copy(update={"region": region})

    def _effect(self, adapter: AdapterChoice, stack: StackConfig) -> tuple[Effect, float] | None:
        """What an adapter of a stack that is spelled out does, and the constant factor of its schedule."""
        if not acts(adapter):
            return None
        constant = strength.schedule(adapter).constant
        choice, on_shelf = sharing.layer(adapter), self.shelf.get(Path(adapter.file))
        schedule = strength.schedule(choice)
        effect = Effect(
            choice,
            on_shelf.key,
            bool(on_shelf.words),
            strength.block_factors(choice, self.base.denoiser_paths) if choice.blocks else {},
            tuple(schedule.at(strength.progress(step, stack.steps)) for step in range(stack.steps + 1)),
            regions.mask(choice, self.base.latents_size(stack)),
        )
        return effect, 1.0 if constant is None else constant

    def _trigger(self, adapter: AdapterChoice) -> str:
        return self.shelf.get(Path(adapter.file)).trigger


def _weighed(meaning: _Meaning, stack: StackConfig) -> _Meaning:
    """What was found for a stack like this, with this stack's weights."""
    adapters = tuple(
        spelled_out.model_copy(update={name: getattr(adapter, name) for name in _WEIGHTS})
        for adapter, spelled_out in zip(stack.adapters, meaning.stack.adapters, strict=True)
    )
    return _Meaning(meaning.stack.model_copy(update={"adapters": adapters}), meaning.size, meaning.effects)


def _resolved(meaning: _Meaning) -> Resolved:
    weights: dict[Effect, Weights] = {}
    for adapter, found in zip(meaning.stack.adapters, meaning.effects, strict=True):
        if found is not None:
            effect, constant = found
            text_weight = adapter.weight if adapter.text_weight is None else adapter.text_weight
            # Updates are linear in the weight: what stands twice in the stack is one adapter with both weights.
            in_denoiser, in_text = weights.get(effect, (0.0, 0.0))
            weights[effect] = (in_denoiser + adapter.weight * constant, in_text + text_weight)
    return Resolved(meaning.stack, meaning.size, weights)


def _is_plain(adapter: AdapterChoice) -> bool:
    """Whether the adapter's own fields and its file say all of it."""
    region = adapter.region.strip()
    return bool(adapter.file) and (not region.startswith("mask ") or region.startswith("mask data:"))
