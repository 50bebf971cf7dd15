"""An adapter on a model, through PEFT: put on, switched off to compute the base, taken off again bit for bit.

PEFT makes adapters in the base's dtype. Beside a small base, lengths (DoRA) or starting factors (PiSSA, OLoRA) rounded
there would move the model before the first step; what it rounds is computed again here in float32.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from trainer import eva_start, layer_patterns, methods
from trainer.errors import ConfigError
from trainer.memory.frozen import full_weight
from trainer.methods.contract import Method
from trainer.schema import Settings

ADAPTER = "default"
INITIAL = ".initial"  # after a parameter's name: what it was when it was taken out of the base


@dataclass
class Attachment:
    """One adapter on one model (a denoiser or a text encoder). Made by `attach`."""

    model: nn.Module
    layers: dict[str, Any]  # PEFT's, by module path
    originals: dict[str, Tensor] = field(default_factory=dict)  # the weights that attaching changed, on the CPU
    # Down and up as they were taken out of those weights.
    initial: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name, in a fixed order, float32."""
        return {f"{path}.{name}": parameter for path, layer in self.layers.items() for name, parameter in _own(layer)}

    def own(self, path: str) -> dict[str, nn.Parameter]:
        """A layer's parameters by PEFT's names without the adapter's."""
        return {name.replace(f".{ADAPTER}", ""): parameter for name, parameter in _own(self.layers[path])}

    def scales(self) -> dict[str, float]:
        """What each layer's update is scaled by, 1 where the method has no scale."""
        return {path: getattr(layer, "scaling", {}).get(ADAPTER, 1.0) for path, layer in self.layers.items()}

    def constants(self) -> dict[str, Tensor]:
        """What else a checkpoint must keep for the adapter to go on exactly: initial factors of PiSSA and OLoRA."""
        return {
            f"{path}.{name}": tensor
            for path, pair in self.initial.items()
            for name, tensor in zip(_initial_names(), pair, strict=True)
        }

    def dropouts(self) -> list[nn.Module]:
        """The layers whose train mode switches adapter dropout on; it changes nothing else in them."""
        return list(self.layers.values())

    def modules(self) -> dict[str, dict[str, Tensor]]:
        """The adapter's tensors by module path and PEFT's name: `{path: {"lora_A.weight": ..., ...}}`.

        They hold for the base as it was before: what started inside the base has twice the rank here.
        """
        return {path: {name: tensor.detach() for name, tensor in self._parts(path).items()} for path in self.layers}

    def factors(self) -> dict[str, tuple[Tensor, Tensor, float]]:
        """Down, up and scale by module path of what is low-rank, with gradients.

        They are the parameters, unless the adapter started inside the base: then they are made of them.
        """
        parts_by_path = {path: self._parts(path) for path in self.layers}
        return {
            path: (parts["lora_A.weight"], parts["lora_B.weight"], self.layers[path].scaling[ADAPTER])
            for path, parts in parts_by_path.items()
            if "lora_A.weight" in parts
        }

    def _parts(self, path: str) -> dict[str, Tensor]:
        """A layer's tensors for the base as it was before."""
        own: dict[str, Tensor] = {name: parameter for name, parameter in _own(self.layers[path])}
        initial = dict(zip(_initial_names(), self.initial[path], strict=True)) if path in self.initial else {}
        return combined(own | initial)

    def base(self, path: str) -> Tensor:
        """A module's weight as it was before, on the CPU; a quantised one as it is computed with."""
        layer = self.layers[path].get_base_layer()
        if path in self.originals:
            return self.originals[path]
        return full_weight(layer).cpu()

    @torch.no_grad()
    def change(self, path: str) -> Tensor:
        """What the adapter adds to a module's weight, float64 on the CPU: PEFT's own merge minus the base's weight."""
        layer = self.layers[path]
        if not layer.get_base_layer().weight.is_floating_point():  # quantised, with plain LoRA on it
            delta: Tensor = layer.get_delta_weight(ADAPTER)
            return delta.cpu().double()

        # Merged on a copy of the layer, on the CPU: not every device has float64.
        base, twin = self.base(path).double(), copy.deepcopy(layer).to("cpu", torch.float64)
        merged = base.clone()
        if path in self.initial:  # the layer's base is what was left when these were taken out
            down0, up0 = (factor.to("cpu", torch.float64) for factor in self.initial[path])
            merged -= layer.scaling[ADAPTER] * (up0 @ down0)
        twin.get_base_layer().weight.data = merged
        twin.merge(adapter_names=[ADAPTER])
        change: Tensor = twin.get_base_layer().weight.data - base
        return change

    @contextmanager
    def off(self) -> Iterator[None]:
        """The base as it was for the body."""
        changed = {path: self.layers[path].get_base_layer().weight.data.clone() for path in self.originals}
        self._put(self.originals)
        for layer in self.layers.values():
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.enable_adapters(True)
            self._put(changed)

    def detach(self) -> None:
        """Take the adapter off: the model's modules and weights as they were before, bit for bit."""
        self._put(self.originals)
        # PEFT's wrapper goes; the module that it holds was never copied, so its bits are the old ones.
        for path, layer in self.layers.items():
            parent, _, name = path.rpartition(".")
            setattr(self.model.get_submodule(parent), name, layer.get_base_layer())
        # What PEFT, and diffusers for it, note on the model.
        for name in ("peft_config", "_hf_peft_config_loaded"):
            if name in vars(self.model):
                delattr(self.model, name)
        self.layers, self.originals, self.initial = {}, {}, {}

    def _put(self, weights: dict[str, Tensor]) -> None:
        """Write these weights into the base's layers, in place."""
        for path, weight in weights.items():
            self.layers[path].get_base_layer().weight.data.copy_(weight)


# Tensors by name.


def combined(saved: dict[str, Tensor]) -> dict[str, Tensor]:
    """A layer's parameters and constants, as a checkpoint has them, for the base as it was before.

    The names are PEFT's without the adapter's.

    up @ down - up0 @ down0 = [up, up - up0] @ [down - down0; down0], without the difference of two nearly equal
    products.
    """
    parts = {name.replace(f".{ADAPTER}", ""): tensor for name, tensor in saved.items() if not name.endswith(INITIAL)}
    if initial := [saved[name] for name in _initial_names() if name in saved]:
        down0, up0 = initial
        down, up = parts["lora_A.weight"], parts["lora_B.weight"]
        parts = {"lora_A.weight": torch.cat([down - down0, down0]), "lora_B.weight": torch.cat([up, up - up0], 1)}
    return parts


def _own(layer: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """A layer's parameters that are the adapter's."""
    return [(name, parameter) for name, parameter in layer.named_parameters() if not name.startswith("base_layer.")]


def _initial_names() -> tuple[str, str]:
    """How a checkpoint names the initial down and up of a layer."""
    return f"lora_A.{ADAPTER}.weight{INITIAL}", f"lora_B.{ADAPTER}.weight{INITIAL}"


# Putting an adapter on.


def attach(
    model: nn.Module,
    method: Method,
    config: Settings,
    targets: str,
    seed: int,
    saved: dict[str, Tensor] | None = None,
    samples: Callable[[], None] | None = None,
) -> Attachment:
    """Put the method's adapter on every layer whose path `targets`, a regular expression, matches.

    It changes nothing at the start, or is as `saved`: what `parameters` and `constants` gave. `samples` runs a few
    batches through the model, for a start that depends on what flows there. Raises: ConfigError if the method can't lie
    on these layers; the model is as it was then.
    """
    # PEFT's layers, and for some starts what they take out of the base.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using Rank-Stabilized LoRA")  # about a way to save that isn't ours
        settings = method.peft_config(config, targets)
    start = method.start(config)
    if start not in method.starts_on_quantised:
        _refuse_quantised(model, targets)
    attachment = _inject(model, settings, seed, start in method.starts_from_base, starts_fresh=saved is None)
    if start in method.starts_from_base:
        _take_out_of_base(attachment, start, saved)

    # Their values: as the method starts, or as saved.
    if saved is None:
        for layer in attachment.layers.values():
            _measure_lengths(layer)
        if start in method.starts_from_inputs:
            assert samples is not None, "a start from activations needs samples"
            _start_from_activations(attachment, samples)
    else:
        for name, parameter in attachment.parameters().items():
            parameter.data = saved[name].to(parameter.device, torch.float32, copy=True)
    return attachment


def _layers(model: nn.Module) -> dict[str, Any]:
    """PEFT's layers in a model, by path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


def _inject(model: nn.Module, settings: Any, seed: int, from_base: bool, starts_fresh: bool) -> Attachment:
    """Put PEFT's layers into the model, float32, in the mode the model is in.

    If the start takes its factors out of the base's weights, those are kept first.
    """
    # The weights that PEFT will change.
    before: dict[str, tuple[Tensor, Tensor]] = {}  # storage and copy
    if from_base:
        for path in matching(model, settings.target_modules):
            weight = model.get_parameter(f"{path}.weight").data
            before[path] = (weight, weight.cpu().clone())
        if not starts_fresh:
            settings.init_lora_weights = True  # the factors come from the checkpoint

    # PEFT draws from the global generator, which is put back as it was.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Invalid `oft_block_size`")  # the setting's help says so
        torch.manual_seed(seed)
        inject_adapter_in_model(settings, model, ADAPTER)
    # What diffusers' own `add_adapter` sets, without which it knows of no adapter; PixArt's model has no such method.
    model._hf_peft_config_loaded = True  # type: ignore[assignment]

    # The layers as training wants them.
    attachment = Attachment(model, _layers(model), {path: copied for path, (_, copied) in before.items()})
    for path, layer in attachment.layers.items():
        layer.train(model.training)
        if path in before:
            layer.get_base_layer().weight.data = before[path][0]  # PEFT put another tensor there
    # PEFT has taken the factors out already, in the base's dtype; `_take_out_of_base` does it again in float32.
    attachment._put(attachment.originals)
    for parameter in attachment.parameters().values():
        parameter.data = parameter.data.float()
    return attachment


def matching(model: nn.Module, targets: str) -> list[str]:
    """Paths of the layers that PEFT will adapt."""
    return [path for path, module in model.named_modules() if re.fullmatch(targets, path) and hasattr(module, "weight")]


# What can't be adapted.


def refuse_ranks_of_nothing(config: Settings, targets: list[tuple[nn.Module, str]]) -> None:
    """Refuse ranks of single blocks that no adapted layer would have. Raises: ConfigError.

    `targets` are models, each with the pattern over paths that its adapter is put on by.
    """
    paths = [path for model, pattern in targets for path in matching(model, pattern)]
    for line in getattr(config, "block_ranks", ()):
        text = line.partition("=")[0].strip()
        if not any(layer_patterns.fits(text, path) for path in paths):
            raise ConfigError(
                f"adapter.block_ranks has {line!r}, but no adapted layer has {text!r} in its path; one of them is "
                f"{paths[0] if paths else 'none'}."
            )


def _refuse_quantised(model: nn.Module, targets: str) -> None:
    """Raises: ConfigError if a layer to be adapted is quantised."""
    if any(not model.get_parameter(f"{path}.weight").is_floating_point() for path in matching(model, targets)):
        raise ConfigError(
            f"adapter.method works on the base's weights, which memory.quantise has quantised; allowed there: "
            f"{methods.on_quantised()}."
        )


# Starts.


@torch.no_grad()
def _take_out_of_base(attachment: Attachment, start: str, saved: dict[str, Tensor] | None) -> None:
    """Keep the factors as they start and leave in the base what they don't hold, both from float32."""
    for path, layer in attachment.layers.items():
        # The factors: as PEFT has just made them, or as a checkpoint kept them.
        weight = layer.get_base_layer().weight
        if saved is None:
            pair = tuple(layer.get_parameter(f"lora_{letter}.{ADAPTER}.weight").detach().clone() for letter in "AB")
        else:
            pair = tuple(saved[f"{path}.{name}"].to(weight.device).float() for name in _initial_names())
        if pair[0].shape[0] != layer.r[ADAPTER]:
            attachment.detach()
            raise ConfigError(
                f"adapter.rank is {layer.r[ADAPTER]}, but {path} is {pair[0].shape[0]} wide; {start} takes that at "
                f"most."
            )

        # What they don't hold of the weight stays in the base.
        attachment.initial[path] = (pair[0], pair[1])
        # W - s B0 A0, computed in float32 and rounded once to the base's dtype.
        weight.data.copy_(weight.float() - layer.scaling[ADAPTER] * (pair[1] @ pair[0]))


@torch.no_grad()
def _measure_lengths(layer: Any) -> None:
    """DoRA's lengths in float32, by the very operation that its forward divides by."""
    lengths = getattr(layer, "lora_magnitude_vector", None)
    if lengths is not None and ADAPTER in lengths:
        weight = layer.get_base_layer().weight.float()
        lengths[ADAPTER].weight.data = lengths[ADAPTER].get_weight_norm(
            weight, torch.zeros_like(weight), layer.scaling[ADAPTER]
        )


@torch.no_grad()
def _start_from_activations(attachment: Attachment, samples: Callable[[], None]) -> None:
    """EVA: down is the main directions of a layer's inputs; rows beyond those it has stay random."""
    ranks = {path: layer.r[ADAPTER] for path, layer in attachment.layers.items()}
    for path, rows in eva_start.directions(attachment.layers, ranks, samples).items():
        attachment.layers[path].lora_A[ADAPTER].weight[: len(rows)] = rows
