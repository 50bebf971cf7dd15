"""What stacks mean on one base: hashes and names from the files, regions as they travel, trigger words in the prompt, what the base brings.

What was found is kept: a stack that differs from one before in nothing but weights, of files that are as they were, costs next to nothing. Whether a weight
is 0 counts, its size doesn't. Not kept is what depends on more than the stack and its files: tags and wildcards of prompts, LoRAs to be found by their
hash, masks in picture files.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cachetools import LRUCache

from trainer import base_defaults, bases, choices, lora_file
from trainer.config import AdapterChoice, StackConfig
from trainer.errors import AdapterError, ConfigError
from trainer.render import attention_maps, draw, family_checks, modes, prompting, regions, strength, trigger_tokens
from trainer.render.sharing import acts

if TYPE_CHECKING:
    from trainer.render.engine import Engine

_MOST_KEPT = 64
_WEIGHTS = ("weight", "text_weight")
_Key = tuple[Any, ...]


class Resolving:
    """Spells out stacks for one engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._kept: LRUCache[_Key, StackConfig] = LRUCache(_MOST_KEPT)

    def resolved(self, stack: StackConfig) -> StackConfig:
        """The same stack spelled out. Raises: AdapterError, ConfigError; nothing has been changed then."""
        choices.check(stack)
        key = self._key(stack)
        if key is None:
            return self._spelled_out(stack)
        if key not in self._kept:
            self._kept[key] = self._spelled_out(stack)
        found = self._kept[key]
        pairs = zip(stack.adapters, found.adapters, strict=True)
        weighed = [known.model_copy(update={name: getattr(adapter, name) for name in _WEIGHTS}) for adapter, known in pairs]
        return found.model_copy(update={"adapters": tuple(weighed)})

    def _key(self, stack: StackConfig) -> _Key | None:
        """What the meaning of a stack depends on; None if on more than can be told here."""
        spoken = stack.prompt + stack.negative_prompt
        if any(mark in spoken for mark in ("<", "{", "__")) or not all(map(_is_plain, stack.adapters)):
            return None
        adapters = [tuple((name, bool(value) if name in _WEIGHTS and value is not None else value) for name, value in adapter) for adapter in stack.adapters]
        files = [self.engine.shelf.stamp(Path(adapter.file)) for adapter in stack.adapters]
        own = tuple((name, value) for name, value in stack if name != "adapters")
        return frozenset(stack.model_fields_set), own, tuple(adapters), tuple(files)

    def _spelled_out(self, stack: StackConfig) -> StackConfig:
        engine = self.engine
        if stack.base != engine.base or stack.family != engine.family.name:
            raise ConfigError(f"the stack is for base {stack.base!r} ({stack.family}), this engine holds {engine.base!r} ({engine.family.name}).")
        stack = base_defaults.completed(stack)
        bases.check_pixels(engine.folder, {"width_px": stack.width_px, "height_px": stack.height_px})
        family_checks.check(engine.family, stack)
        stack = prompting.without_tags(stack, engine.wildcards, engine.library)
        adapters = [self._choice(adapter, stack) for adapter in stack.adapters]
        triggers = [word for one in adapters if one.trigger and acts(one) for word in prompting.split_triggers(self._trigger(one))]
        said = {"prompt": prompting.with_triggers(stack.prompt, triggers), "guidance_rescale": draw.rescale(engine.pipe, stack)}
        found = stack.model_copy(update={"adapters": tuple(adapters), **said})
        mode = modes.chosen(found.mode, sum(map(acts, adapters)), found.guidance_scale)
        if mode.place:
            attention_maps.check(getattr(engine.pipe, engine.component), engine.family, found.mode)
            trigger_tokens.check(engine.pipe, found, [(one, self._trigger(one)) for one in filter(acts, adapters)])
        return found

    def _choice(self, adapter: AdapterChoice, stack: StackConfig) -> AdapterChoice:
        file, shelf = adapter.file, self.engine.shelf
        if not file:
            here = self.engine.library() if adapter.sha256 else {}
            if adapter.sha256 not in here:
                raise AdapterError(f"LoRA {adapter.name or '(no name)'} with hash {adapter.sha256[:12] or '(none)'} isn't here; name its file.")
            file = str(here[adapter.sha256].path)
        digest = shelf.get(Path(file)).sha256
        if adapter.sha256 and adapter.sha256 != digest:
            raise AdapterError(f"{file} has hash {digest[:12]}; the stack asks for {adapter.sha256[:12]}: it is another file by that name.")
        found = adapter.model_copy(update={"file": file, "name": adapter.name or lora_file.name_of(Path(file)), "sha256": digest})
        strength.schedule(found)
        strength.block_factors(found, self.engine.denoiser_paths)
        return found.model_copy(update={"region": regions.resolved(found, self.engine.latents(stack))})

    def _trigger(self, adapter: AdapterChoice) -> str:
        return self.engine.shelf.get(Path(adapter.file)).trigger


def _is_plain(adapter: AdapterChoice) -> bool:
    region = adapter.region.strip()
    return bool(adapter.file) and (not region.startswith("mask ") or region.startswith("mask data:"))
