"""The running mean of what is trained: smoother than its last state, and often better (EMA)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainer.errors import RunError

_UPDATES = "updates"  # no parameter's name: those have dots


class Mean:
    """float32 means of parameters, on their devices."""

    def __init__(self, parameters: dict[str, nn.Parameter], decay: float) -> None:
        assert _UPDATES not in parameters
        self.parameters, self.decay, self.num_updates = parameters, decay, 0
        self.shadows = {name: parameter.detach().float().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters as they are: mean = d mean + (1 - d) parameter, d = min(decay, (1 + n) / (10 + n)).

        n counts the updates before; at the first d is 0, so that the untrained adapter weighs nothing. As diffusers' EMAModel.
        """
        n = self.num_updates
        decay = min(self.decay, (1 + n) / (10 + n)) if n else 0.0
        for name, parameter in self.parameters.items():
            self.shadows[name].lerp_(parameter.detach().float(), 1 - decay)
        self.num_updates = n + 1

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The parameters hold the mean for the body, and are bitwise as they were afterwards."""
        kept = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self._put(self.shadows)
        try:
            yield
        finally:
            self._put(kept)

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])

    def tensors(self) -> dict[str, Tensor]:
        """The means by name, and how many updates they have seen."""
        return {**self.shadows, _UPDATES: torch.tensor(self.num_updates)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `tensors` gave. Raises: RunError if it is of other parameters."""
        shapes = {name: shadow.shape for name, shadow in self.shadows.items()}
        if {name: tensor.shape for name, tensor in tensors.items()} != {**shapes, _UPDATES: torch.Size()}:
            raise RunError("the saved running mean is of other parameters than this adapter's; put the settings back, or start a new run.")
        for name, shadow in self.shadows.items():
            shadow.copy_(tensors[name])
        self.num_updates = int(tensors[_UPDATES])
