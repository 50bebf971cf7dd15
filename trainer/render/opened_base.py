"""A base as it was opened for drawing: its pipeline, its family, and the layers that LoRA files know by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import base_match, bases, families
from trainer.memory import quantising
from trainer.render import quantised

if TYPE_CHECKING:
    from torch import nn

    from trainer.config import StackConfig
    from trainer.families.contract import Family


@dataclass(frozen=True, eq=False)
class OpenedBase:
    """What is known of a base while it is open; only its weights ever change, and only through `folding`."""

    name: str
    family: Family
    folder: Path
    pipe: Any
    quantise: str
    file_keys: dict[str, str]  # component.module.path -> the module's name in a LoRA file
    modules: Mapping[str, Any]  # by component.module.path: those that an adapter can be on
    origin: base_match.Origin

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the modules' weights, by path."""
        return {path: tuple(module.weight.shape) for path, module in self.modules.items()}

    @cached_property
    def denoiser_paths(self) -> list[str]:
        """The paths of the denoiser's modules."""
        return [path for path in self.shapes if self.is_in_denoiser(path)]

    @property
    def denoiser(self) -> nn.Module:
        """The UNet or transformer."""
        denoiser: nn.Module = getattr(self.pipe, self.family.denoiser)
        return denoiser

    def is_in_denoiser(self, path: str) -> bool:
        """Whether a path of `component.module.path` lies in the denoiser, not in a text encoder."""
        return path.startswith(f"{self.family.denoiser}.")

    def module(self, path: str) -> nn.Module:
        """Any module of the pipeline, by component.module.path."""
        component, _, path_inside = path.partition(".")
        module: nn.Module = getattr(self.pipe, component).get_submodule(path_inside)
        return module

    def latents_size(self, stack: StackConfig) -> tuple[int, int]:
        """Height and width of the latents of a stack's picture."""
        scale = self.pipe.vae_scale_factor
        return stack.height_px // scale, stack.width_px // scale


def open_base(name: str, family_name: str, device: str, dtype: str, quantise: str) -> OpenedBase:
    """The base, read from disk and frozen, its denoiser's linear layers in fewer bits if `quantise` says so.

    Raises: ModelError, ConfigError.
    """
    quantised.checked(quantise)
    family = families.registry()[family_name]
    folder = bases.resolve(name, family)
    pipe = bases.open_pipeline(family, folder, *bases.hardware(device, dtype, folder))
    file_keys: dict[str, str] = family.file_keys(pipe)
    quantising.quantise(getattr(pipe, family.denoiser), quantise)
    modules = {
        f"{component}.{path}": module
        for component in family.components
        for path, module in getattr(pipe, component).named_modules()
        if f"{component}.{path}" in file_keys
    }
    origin = base_match.of_base(name, folder, family_name)
    return OpenedBase(name, family, folder, pipe, quantise, file_keys, modules, origin)
