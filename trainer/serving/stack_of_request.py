"""A request becomes the stacks of its pictures, all that can be refused refused; no weight is touched, no file read.

The prompt's tags are taken out here, where it is known whose request it is: the engine has no library to look in.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from trainer import base_defaults, bases, choices, families
from trainer.config import AdapterChoice, StackConfig, parse
from trainer.config.stack import USUAL_WEIGHT
from trainer.errors import AdapterError, ConfigError, UserError
from trainer.lora_file import LoraInfo
from trainer.render import modes, prompting, samplers, sharing, tags
from trainer.serving.api_error import ApiError
from trainer.serving.image_request import ImageRequest, LoraAsked
from trainer.serving.lora_views import View
from trainer.serving.model_names import ModelNames, Named
from trainer.serving.settings import ServeSettings

_MOST_SEEDS = 2**32


class StackMaker:
    """Makes stacks for the bases of a server."""

    def __init__(self, settings: ServeSettings, names: ModelNames) -> None:
        """Raises: ConfigError, ModelError for a base that isn't here."""
        self.settings, self.names = settings, names
        self.families = {base: bases.family_of(base) for base in settings.bases}
        self.folders: dict[str, Path] = {
            base: bases.resolve(base, families.registry()[family]) for base, family in self.families.items()
        }

    def stacks(self, request: ImageRequest, view: View) -> list[StackConfig]:
        """A stack for each picture: seeds follow each other, the first drawn at random if none is given.

        Raises: ApiError.
        """
        named = self.names.meant(request.model)
        try:
            stack = self._stack(request, named, view)
            choices.check(stack)
            modes.chosen(stack.mode, sum(map(sharing.acts, stack.adapters)), stack.guidance_scale)
            samplers.check(stack.sampler, families.registry()[stack.family])
        except AdapterError as error:
            raise ApiError(404, str(error), param="loras", code="lora_not_found") from None
        except UserError as error:
            raise ApiError(400, str(error), code="invalid_value") from None
        self._check_cost(stack)
        first = secrets.randbelow(_MOST_SEEDS) if request.seed is None else request.seed
        numbers = range(request.num_pictures)
        return [stack.model_copy(update={"seed": (first + number) % _MOST_SEEDS}) for number in numbers]

    def _stack(self, request: ImageRequest, named: Named, view: View) -> StackConfig:
        """The stack but for its seed. Raises: UserError, ApiError."""
        values: dict[str, Any] = {}
        adapters: list[AdapterChoice] = []
        # A saved stack, and over it what the request says.
        if named.saved is not None:
            values = _saved_values(named.saved)
            adapters = [_of_saved(adapter, view) for adapter in named.saved.adapters if adapter.enabled]
        values |= {
            name: value
            for name in ("prompt", "negative_prompt", "steps", "guidance_scale", "mode", "sampler")
            if (value := getattr(request, name)) is not None
        }
        if size := request.size_px:
            values |= {"width_px": size[0], "height_px": size[1]}

        # LoRAs: the saved stack's, then the model name's, then the request's.
        adapters += [
            _choice(view.named(name, f"model {named.name!r}"), LoraAsked(name=name, weight=weight))
            for name, weight in named.loras
        ]
        asked = list(request.loras)
        if request.lora is not None:
            asked.append(LoraAsked(name=request.lora.name, weight=request.lora.scale))
        adapters += [_choice(_found(lora, view), lora) for lora in asked]
        is_wide = any(max(abs(one.weight), abs(one.text_weight or 0)) > USUAL_WEIGHT for one in adapters)
        family = self.families[named.base]
        values |= {"base": named.base, "family": family, "adapters": adapters, "wide_weights": is_wide}
        stack = base_defaults.completed(parse(StackConfig, values, "the request"))

        # A size that the base takes; then the prompt's tags, which name LoRAs that this key sees.
        sides = {"width_px": stack.width_px, "height_px": stack.height_px}
        bases.check_pixels(self.folders[named.base], sides)
        names = [lora.name for text in (stack.prompt, stack.negative_prompt) for lora in tags.take_tags(text).loras]
        return prompting.without_tags(stack, None, lambda: view.for_tags(names))

    def _check_cost(self, stack: StackConfig) -> None:
        """Refuse what no single picture may cost here."""
        settings = self.settings
        if stack.steps > settings.max_steps:
            raise ApiError(
                400,
                f"steps is {stack.steps}; allowed on this server: up to {settings.max_steps}.",
                param="steps",
                code="invalid_value",
            )
        if stack.width_px * stack.height_px > settings.max_pixels:
            raise ApiError(
                400,
                f"size is {stack.width_px}x{stack.height_px}; allowed on this server: up to {settings.max_pixels} "
                f"pixels.",
                param="size",
                code="invalid_value",
            )


def _saved_values(saved: StackConfig) -> dict[str, Any]:
    """What a saved stack says itself, all but its LoRAs, its base and its seed."""
    left_out = ("adapters", "base", "family", "seed", "version")
    return {name: getattr(saved, name) for name in saved.model_fields_set if name not in left_out}


def _of_saved(adapter: AdapterChoice, view: View) -> AdapterChoice:
    """A saved stack's LoRA, found by its hash, or by its name where it has none. Raises: AdapterError, ConfigError."""
    where = "the saved stack"
    if adapter.region.strip().startswith("mask ") and not adapter.region.strip().startswith("mask data:"):
        raise ConfigError(f"{where} has a mask in a file, which isn't opened here; save it again from a picture.")
    found = view.hashed(adapter.sha256, where) if adapter.sha256 else view.named(adapter.name, where)
    return adapter.model_copy(update={"file": str(found.path), "sha256": found.sha256, "name": found.name})


def _found(asked: LoraAsked, view: View) -> LoraInfo:
    """Raises: AdapterError."""
    return view.hashed(asked.sha256, "loras") if asked.sha256 else view.named(asked.name or "", "loras")


def _choice(info: LoraInfo, asked: LoraAsked) -> AdapterChoice:
    return AdapterChoice(
        file=str(info.path),
        name=info.name,
        weight=asked.weight,
        text_weight=asked.text_weight,
        blocks=tuple(asked.blocks),
        schedule=asked.schedule,
        region=asked.region.strip(),
        trigger=asked.trigger,
    )
