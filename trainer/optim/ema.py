"""The running mean of what is trained: smoother than its last state, and often better (EMA)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainer.errors import RunError

_UPDATES = "updates"  # no parameter's name: those have dots


class Mean:
    """float32 means of parameters, on their devices; diffusers' EMAModel by the parameters' names.

    mean = d mean + (1 - d) parameter, d = min(decay, (1 + n) / (10 + n)) after n updates: at the first d is 0, so that
    the untrained adapter weighs nothing.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], decay: float) -> None:
        from diffusers.training_utils import EMAModel

        assert _UPDATES not in parameters
        self.names, self.parameters = [*parameters], [*parameters.values()]
        self.model = EMAModel(self.parameters, decay=decay, foreach=True)
        self.model.to(dtype=torch.float32)

    def update(self) -> None:
        """Take in the parameters as they are."""
        self.model.step(self.parameters)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The parameters hold the mean for the body, and are bitwise as they were afterwards."""
        # Not EMAModel's own `store`: it goes by the CPU, and holds one state alone.
        kept = [parameter.detach().clone() for parameter in self.parameters]
        self.model.copy_to(self.parameters)
        try:
            yield
        finally:
            for parameter, value in zip(self.parameters, kept, strict=True):
                parameter.data.copy_(value)

    def tensors(self) -> dict[str, Tensor]:
        """The means by name, and how many updates they have seen."""
        return {**self._means(), _UPDATES: torch.tensor(self.model.optimization_step)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `tensors` gave. Raises: RunError if it is of other parameters."""
        shapes = {name: mean.shape for name, mean in self._means().items()}
        if {name: tensor.shape for name, tensor in tensors.items()} != {**shapes, _UPDATES: torch.Size()}:
            raise RunError(
                "the saved running mean is of other parameters than this adapter's; put the settings back, or start a "
                "new run."
            )
        for name, mean in self._means().items():
            mean.copy_(tensors[name])
        self.model.optimization_step = int(tensors[_UPDATES])

    def _means(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.model.shadow_params, strict=True))
