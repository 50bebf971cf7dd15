"""A frozen base in fewer bits: its linear layers swapped for layers that keep 8 or 4 bits a weight.

This is QLoRA's idea (arXiv 2305.14314). The layers are `frozen`'s. Convolutions stay as they are, and so do the
embeddings of time, text and pictures: they are small, and everything else the model computes depends on them. PEFT
takes the swapped layers for plain linear ones, which is right for LoRA: it adds its product to whatever they give.
Methods that compute with the base's own weights are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from torch import Tensor, nn

from trainer.errors import ConfigError
from trainer.memory.frozen import NarrowLinear, NF4Linear

_KINDS = ("none", "int8", "nf4", "fp8")
Original = Callable[[str], Tensor]  # module path -> its weight as the base has it on disk


def has_nf4() -> bool:
    """True if bitsandbytes is installed."""
    return find_spec("bitsandbytes") is not None


def quantise(model: nn.Module, kind: str, original: Original | None = None) -> int:
    """Swap the model's frozen linear layers, adapters on them or not, for layers of this kind; how many were.

    Layers that are quantised already are made anew from `original`, never from their rounded weights: a run that came
    here by steps must have the weights that a resumed one has. Raises: ConfigError for another kind, or without
    bitsandbytes.
    """
    if kind not in _KINDS:
        raise ConfigError(f"memory.quantise is {kind!r}, which nothing here computes; allowed: {', '.join(_KINDS)}.")
    layers = [] if kind == "none" else _layers(model)
    if layers and kind == "nf4" and not has_nf4():
        raise ConfigError(
            "memory.quantise is 'nf4', which needs bitsandbytes; install it with: pip install 'velatura[gpu]'."
        )
    for path, layer in layers:
        if not layer.weight.is_floating_point():
            if original is None:
                continue
            layer = _filled(layer, original(path.removesuffix(".base_layer")))
        parent, _, name = path.rpartition(".")
        swapped = NF4Linear(layer) if kind == "nf4" else NarrowLinear(layer, "int8" if kind == "int8" else "fp8")
        setattr(model.get_submodule(parent), name, swapped)
        del layer  # so that its weight is gone before the next is made
    return len(layers)


def _layers(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    """Frozen linear layers by path, without the embeddings and what is adapted around them."""
    return [
        (path, layer)
        for path, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
        and not layer.weight.requires_grad
        and "embed" not in path  # few weights, and all other layers read what they make
        and ".lora_" not in path
    ]


def _filled(layer: nn.Linear, weight: Tensor) -> nn.Linear:
    """A plain layer with this weight and the old layer's bias."""
    plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    plain.weight, plain.bias = nn.Parameter(weight.to(layer.weight.device), requires_grad=False), layer.bias
    return plain.train(layer.training)
