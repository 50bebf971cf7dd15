"""A pass of a step, forwards and backwards, recorded once for each of its shapes and then replayed: CUDA graphs.

At batch 1 a GPU waits for Python to launch some ten thousand kernels; a replay is one launch. What a recording reads
must lie where it lay: a part's tensors are copied into the recording's own, weights are trained in place, and gradients
are added up in buffers that stay, so that a step may be several passes. What a pass decides on the CPU (lengths of
captions, the number of pictures) belongs to the shape. The first passes of a shape are computed as they are written, on
the stream that will record: kernels are chosen, and blocks compiled, by then.

Recordings share their memory, since only one runs at a time and what it gives is copied out. By torch's rules for the
capture of a whole network (torch.cuda.CUDAGraph, torch 2.13); not tried on a GPU yet.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainer.encoded_data import Part
from trainer.errors import ConfigError
from trainer.memory import mechanics
from trainer.pipelines import LENGTHS

WARM_PASSES = 2  # of a shape, before it is recorded
MOST = 16  # recordings; shapes beyond them are computed as they are written, and so are those that can't be recorded
Compute = Callable[[Part, int], Tensor]


class Recording(NamedTuple):
    """A recorded pass: its own tensors, what computes with them anew, and the losses (n,) that this writes."""

    part: Part
    replay: Callable[[], None]
    losses: Tensor


class Card:
    """Where passes are recorded and replayed: a stream of its own, beside the stream that everything else is on."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.stream = torch.cuda.Stream(self.device)
        self.pool = torch.cuda.graph_pool_handle()

    def aside(self, compute: Callable[[], Tensor]) -> Tensor:
        """What it gives, computed on the stream that will record it."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            given = compute()
        current.wait_stream(self.stream)
        return given

    def record(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """What computes it anew, and where what it gives will lie; nothing is computed yet."""
        graph, failure = torch.cuda.CUDAGraph(), None
        gc.collect()  # a graph that is freed during a capture would break it
        try:
            # Torch leaves its own stream's block only where ending the capture succeeds.
            with torch.cuda.stream(self.stream), torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                try:
                    given = compute()
                except RuntimeError as error:
                    failure = error  # ending the capture will raise another error over it
                    raise
        except RuntimeError as error:
            raise failure or error from None
        return graph.replay, given


class Recorder:
    """The recorded passes of a run over these parameters."""

    def __init__(self, parameters: Iterable[nn.Parameter], device: str) -> None:
        self._trained = [*parameters]
        self._card = Card(device)
        self._num_seen: dict[Hashable, int] = {}
        self._recordings: dict[Hashable, Recording | None] = {}
        self._addresses: list[int] = []  # where the parameters lie that recordings read
        # Gradients of what some pass reached; what none reaches has none, and is left alone by optimizers.
        self._gradients: dict[nn.Parameter, Tensor] = {}

    def __call__(self, compute: Compute, part: Part, num: int) -> Tensor:
        """The losses (n,) of `compute(part, num)`, which adds to the parameters' gradients.

        Raises: ConfigError if it does what can't be recorded.
        """
        self._look_for_moved()
        key = _key(part, num)

        # A shape is recorded once it was seen often enough, as long as there are few recordings.
        if key not in self._recordings and _is_recordable(part):
            seen = self._num_seen[key] = self._num_seen.get(key, 0) + 1
            if seen > WARM_PASSES and len(self._recordings) < MOST:
                self._recordings[key] = self._recorded(compute, part, num)
        recording = self._recordings.get(key)
        if recording is None:
            losses = self._card.aside(lambda: compute(part, num))
            self._find_gradients()
            return losses

        # The recording reads its inputs from, and writes its losses to, the same places each time.
        self._put_gradients()
        for name, tensor in _tensors(part).items():
            _tensors(recording.part)[name].copy_(tensor)
        recording.replay()
        return recording.losses.clone()

    def _recorded(self, compute: Compute, part: Part, num: int) -> Recording | None:
        """A recording; None where this shape alone can't be recorded."""
        own = _with(part, {name: tensor.clone() for name, tensor in _tensors(part).items()})
        self._put_gradients()
        try:
            return Recording(own, *self._card.record(lambda: compute(own, num)))
        except RuntimeError as error:
            if mechanics.is_shortage(error):
                raise
            if any(self._recordings.values()):
                return None
            first = str(error).strip().split("\n")[0]
            raise ConfigError(
                f"memory.compile is 'graphs', but a pass of this model can't be recorded: {first} Allowed instead: "
                f"auto, off, blocks."
            ) from error

    def _look_for_moved(self) -> None:
        """Forget all recordings if a parameter lies elsewhere than before, as some optimizers have it."""
        addresses = [parameter.data_ptr() for parameter in self._trained]
        if addresses != self._addresses:
            self._addresses = addresses
            self._recordings.clear()
            self._num_seen.clear()

    def _find_gradients(self) -> None:
        for parameter in self._trained:
            if parameter.grad is not None and parameter not in self._gradients:
                self._gradients[parameter] = torch.zeros_like(parameter)

    def _put_gradients(self) -> None:
        """Let every parameter that is reached add up its gradient where recordings do, with what it has of one."""
        new = []
        for parameter, gradient in self._gradients.items():
            if parameter.grad is None:
                new.append(gradient)
            elif parameter.grad is not gradient:
                gradient.copy_(parameter.grad)
            parameter.grad = gradient
        if new:
            torch._foreach_zero_(new)


def _key(part: Part, num: int) -> Hashable:
    """All that decides what a pass computes, beside the numbers in its tensors."""
    shapes = tuple((name, tensor.shape, tensor.dtype) for name, tensor in _tensors(part).items())
    lengths = (part.conditioning or {}).get(LENGTHS)
    return shapes, num, None if lengths is None else tuple(lengths.tolist())


def _is_recordable(part: Part) -> bool:
    """False for captions of several lengths, whose mask comes from the CPU within the pass: it would come only once."""
    lengths = (part.conditioning or {}).get(LENGTHS)
    return lengths is None or len({*lengths.tolist()}) == 1


_FIELDS, _CONDITIONING = ("noised", "timesteps", "target", "weights", "masks"), "conditioning "


def _tensors(part: Part) -> dict[str, Tensor]:
    """A part's tensors on the device, by name."""
    given = {name: getattr(part, name) for name in _FIELDS} | {
        _CONDITIONING + name: tensor for name, tensor in (part.conditioning or {}).items() if name != LENGTHS
    }
    return {name: tensor for name, tensor in given.items() if tensor is not None}


def _with(part: Part, tensors: dict[str, Tensor]) -> Part:
    """The part with these tensors in place of its own."""
    fields = {name: tensor for name, tensor in tensors.items() if name in _FIELDS}
    conditioning = {
        name.removeprefix(_CONDITIONING): tensor for name, tensor in tensors.items() if name.startswith(_CONDITIONING)
    }
    return dataclasses.replace(part, **fields, conditioning={**(part.conditioning or {}), **conditioning})  # type: ignore[arg-type]
