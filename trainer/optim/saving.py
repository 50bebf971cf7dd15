"""An optimizer's whole state as plain tensors and JSON: put back, its next steps are bitwise those of an unbroken run.

Not torch's `state_dict`: its `load_state_dict` casts floating states to the parameter's dtype, some optimizers' own
drop what they keep as attributes, and bitsandbytes' wraps what it holds. Here every tensor is stored as it is, with its
strides (a transposed matrix multiplies in another order) and once even where several parameters share it.

The values are a tree of JSON: None, bool, int, float and str stand for themselves; whatever else is a dict with one
tag, such as {"tensor": name}, {"tuple": [...]} or {"dict": [[key, value], ...]}. Finite floats survive JSON exactly.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from typing import Any

import torch
from torch import Tensor

from trainer.errors import RunError

Tree = Any  # JSON; its shape is checked when it is read
_DTYPES = {str(kind).removeprefix("torch."): kind for kind in vars(torch).values() if isinstance(kind, torch.dtype)}
_OURS = ("state", "param_groups", "defaults")


def state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All that the next step depends on: tensors by name (the live tensors), and the rest as JSON.

    Taken outside of `optim.evaluation`, where the parameters are those that are trained; inside it round-trips too, and
    comes back as an optimizer that is not in training. Raises: RunError if it keeps something that has no such form.
    """
    packed = _Packed(optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = {parameter: number for number, parameter in enumerate(parameters)}
    # Most state is a parameter's; some optimizers keep more, under a name.
    kept = {key if isinstance(key, str) else numbers[key]: value for key, value in optimizer.state.items()}
    values = {
        "optimizer": type(optimizer).__name__,
        "parameters": _shapes(optimizer),
        "groups": [
            packed.pack({key: group[key] for key in group if key != "params"}, f"group.{n}")
            for n, group in enumerate(optimizer.param_groups)
        ],
        "state": packed.pack(kept, "state"),
        "attributes": packed.pack(
            {key: value for key, value in vars(optimizer).items() if _is_plain(key, value)}, "self"
        ),
    }
    return packed.tensors, values


def load_state(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Put back what `state` gave into an optimizer newly built from the same settings.

    A tensor goes to its parameter's device if it was there, and stays on the CPU if not.
    Raises: RunError if it is of another optimizer or other parameters, or is damaged; the optimizer is then as it was.
    """
    try:
        # Is it this optimizer's?
        if values["optimizer"] != type(optimizer).__name__:
            raise RunError(
                f"the saved optimizer is {values['optimizer']!r}, not {type(optimizer).__name__}; put the settings "
                f"back, or start a new run."
            )
        if values["parameters"] != _shapes(optimizer):
            raise RunError(
                "the saved optimizer is of other parameters than this adapter's; put the settings back, or start a "
                "new run."
            )

        # Everything is read before anything is put back.
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        unpacked = _Unpacked(tensors, parameters[0].device)
        unpack = unpacked.unpack
        groups = [unpack(group) for group in values["groups"]]
        kept: dict[Any, Any] = {
            key if isinstance(key, str) else parameters[key]: value for key, value in unpack(values["state"]).items()
        }
        attributes = unpack(values["attributes"])
        if len(groups) != len(optimizer.param_groups) or any(
            name in _OURS or name.startswith("_") or hasattr(type(optimizer), name) for name in attributes
        ):
            raise ValueError("it has other groups or attributes")
        if set(tensors) != set(unpacked.copies):
            raise ValueError(f"nothing refers to {sorted(set(tensors) - set(unpacked.copies))[:3]}")
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise RunError(
            f"the saved state of the optimizer is damaged ({error}); remove that checkpoint to go on from the one "
            f"before."
        ) from None

    # From here on nothing fails.
    for group, saved in zip(optimizer.param_groups, groups, strict=True):
        parameters = group["params"]
        group.clear()
        group.update({"params": parameters, **saved})
    optimizer.state = defaultdict(dict, kept)
    vars(optimizer).update(attributes)


def _shapes(optimizer: torch.optim.Optimizer) -> list[list[list[int]]]:
    """Of the parameters of each group."""
    return [[list(parameter.shape) for parameter in group["params"]] for group in optimizer.param_groups]


def _is_plain(key: str, value: object) -> bool:
    """Whether an attribute is state that can be kept: some count their steps there.

    Hooks, functions and the like are built anew.
    """
    if key.startswith("_") or key in _OURS:
        return False
    plain = (bool, int, float, str, Tensor, type(None))
    parts = value if isinstance(value, list | tuple) else [value]
    return all(isinstance(part, plain) for part in parts)


class _Packed:
    """Tensors put aside by name while a tree is built; a tensor met again keeps its first name."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.name = type(optimizer).__name__
        self.device = optimizer.param_groups[0]["params"][0].device
        self._names: dict[int, str] = {}

    def pack(self, value: object, path: str) -> Tree:
        if value is None or isinstance(value, bool | str):
            return value
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {"float": str(float(value))}
        if isinstance(value, Tensor):
            return self._tensor(value.detach(), path, self._names.setdefault(id(value), path))
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if isinstance(value, dict):
            return {"dict": [[self.pack(key, path), self.pack(part, f"{path}.{key}")] for key, part in value.items()]}
        if isinstance(value, list | tuple | deque) and type(value) in (list, tuple, deque):
            length = {"maxlen": value.maxlen} if isinstance(value, deque) else {}
            return {type(value).__name__: [self.pack(part, f"{path}.{n}") for n, part in enumerate(value)], **length}
        raise RunError(f"{self.name} keeps a {type(value).__name__} ({path}), which no checkpoint can hold.")

    def _tensor(self, tensor: Tensor, path: str, name: str) -> Tree:
        if name == path:
            self.tensors[name] = tensor
        # A stride of 0 shows one number many times; what is written is what it shows.
        stride = {} if tensor.is_contiguous() or 0 in tensor.stride() else {"stride": list(tensor.stride())}
        return {"tensor": name, "beside": tensor.device == self.device, **stride}


class _Unpacked:
    """Values out of a tree; tensors are copies, one each name."""

    def __init__(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        self._tensors, self._device = tensors, device
        self.copies: dict[str, Tensor] = {}

    def unpack(self, tree: Tree) -> Any:
        if tree is None or isinstance(tree, bool | int | float | str):
            return tree
        if not isinstance(tree, dict):
            raise TypeError(f"{tree!r} is no value")
        if "tensor" in tree:
            return self.copies.setdefault(tree["tensor"], self._tensor(tree))
        if "float" in tree:
            return float(tree["float"])
        if "dtype" in tree:
            return _DTYPES[tree["dtype"]]
        if "dict" in tree:
            return {self.unpack(key): self.unpack(value) for key, value in tree["dict"]}
        if "deque" in tree:
            return deque(map(self.unpack, tree["deque"]), maxlen=tree["maxlen"])
        return tuple(map(self.unpack, tree["tuple"])) if "tuple" in tree else list(map(self.unpack, tree["list"]))

    def _tensor(self, tree: Tree) -> Tensor:
        saved = self._tensors[tree["tensor"]]
        # Step counters, for one, may lie on the CPU beside parameters on a GPU, and are read there without waiting.
        device = self._device if tree["beside"] else torch.device("cpu")
        if "stride" not in tree:
            return saved.to(device, copy=True, memory_format=torch.contiguous_format)
        if len(tree["stride"]) != saved.ndim:
            raise ValueError(f"strides {tree['stride']} of {tree['tensor']}")
        return torch.empty_strided(saved.shape, tree["stride"], dtype=saved.dtype, device=device).copy_(saved)
