"""An adapter on a model, through PEFT: put on, switched off for a look at the base, taken off again bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor, nn

from trainer.schema import Settings

ADAPTER = "default"


@dataclass
class Attachment:
    """One adapter on one model (a denoiser or a text encoder). Made by `attach`."""

    model: nn.Module

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name, in a fixed order, float32."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def constants(self) -> dict[str, Tensor]:
        """What else a checkpoint must keep for the adapter to go on exactly (initial factors of PiSSA and OLoRA); often empty."""
        return {}

    def modules(self) -> dict[str, dict[str, Tensor]]:
        """The adapter's tensors by module path of the model, `{path: {"lora_A.weight": ..., "lora_B.weight": ...}}`, as PEFT calls them."""
        from peft import get_peft_model_state_dict

        modules: dict[str, dict[str, Tensor]] = {}
        for name, tensor in get_peft_model_state_dict(self.model, adapter_name=ADAPTER).items():
            path, _, suffix = name.partition(".lora_")
            modules.setdefault(path, {})[f"lora_{suffix}"] = tensor
        return modules

    @contextmanager
    def off(self) -> Iterator[None]:
        """The base as it was for the body."""
        self.model.disable_adapters()  # type: ignore[operator]
        try:
            yield
        finally:
            self.model.enable_adapters()  # type: ignore[operator]


def attach(model: nn.Module, method: ModuleType, config: Settings, targets: str, seed: int, saved: dict[str, Tensor] | None = None) -> Attachment:
    """Put the method's adapter on every layer that `targets` (a regular expression over paths) matches, zero at the start or as `saved`."""
    with torch.random.fork_rng(devices=[]):  # PEFT draws from the global generator
        torch.manual_seed(seed)
        model.add_adapter(method.peft_config(config, targets), adapter_name=ADAPTER)  # type: ignore[operator]
    attachment = Attachment(model)
    for name, parameter in attachment.parameters().items():
        parameter.data = parameter.data.float() if saved is None else saved[name].to(parameter.device)
    return attachment
