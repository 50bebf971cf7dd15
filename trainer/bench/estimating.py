"""What a training step holds on a GPU at most, by arithmetic: the step is taken on tensors that have no memory.

Torch's meta device computes shapes alone. On it a denoiser of full size, the run's own adapter and fused products, its
checkpointing and backward take seconds, and what every tensor would take is added up from when it is made until it is
let go of. Attention keeps what flash attention keeps: query, key, value, output and a number for each row of scores.

Not in it: what an allocator rounds up and can't use again, the device's context, workspaces of kernels, and what
compiled blocks do otherwise.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.checkpoint import checkpoint

from trainer import families, methods
from trainer.adapter import ADAPTER, attach
from trainer.bench import by_shape, full_size
from trainer.config import TrainConfig
from trainer.families.contract import Family
from trainer.memory import fused_lora

DTYPE = torch.bfloat16
_CAPTION = "a red dot on a white page, seen from above, with a thin black line around it and a soft grey shadow"
_ATTENTION = torch.nn.functional.scaled_dot_product_attention
_WORTH_MOVING = 1 << 16  # numbers; smaller activations stay where they are, as in a run
_EXPERTS = 4  # that share the rows, where there are any
_OPTIMIZER_BYTES = 8  # of AdamW's two means, for each number that is trained


class Tally(TorchDispatchMode):
    """Within it, the bytes of all storages on the meta device that are alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak_bytes = 0
        self._alive: dict[int, int] = {}

    def count(self, tensor: Tensor) -> None:
        """Count a tensor's storage until it is let go of; views and what is counted already add nothing."""
        storage = tensor.untyped_storage()
        # By the storage, which views share.
        key = storage._cdata
        if tensor.device.type != "meta" or key in self._alive:
            return
        self._alive[key] = storage.nbytes()
        self.bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self.bytes)
        # Called as the storage goes; another may have its address from then on.
        weakref.finalize(storage, self._let_go, key)

    def _let_go(self, key: int) -> None:
        self.bytes -= self._alive.pop(key)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor):
                self.count(leaf)
        return output


class _Flash(torch.autograd.Function):
    """Attention (B, H, N, D) that computes nothing and keeps what flash attention keeps."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        query, key, value, *_ = ctx.saved_tensors
        query.new_empty(query.shape, dtype=torch.float32)  # in which the query's gradient is added up
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


class _OnMeta(TorchFunctionMode):
    """Within it a model written for real tensors runs on meta tensors: small tensors that it makes on the CPU go along,
    and a question about values is answered with yes (a mask that is asked about is one of whole captions). Rows that
    are chosen by values, which experts do, are as many as each of four experts has on average.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is _ATTENTION:
            named = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
            return _Flash.apply(named["query"], named["key"], named["value"])
        if function is Tensor.__bool__ and args[0].is_meta:
            return True
        if function in (Tensor.__getitem__, Tensor.__setitem__) and _is_choice(args[1]):
            rows = slice(-(-len(args[0]) // _EXPERTS))
            return function(args[0], rows, *args[2:])
        if function is torch.tensor:
            kwargs = kwargs | {"device": "cpu"}  # numbers, such as sizes
        if any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in tree_leaves((args, kwargs))):
            args, kwargs = tree_map_only(Tensor, _beside_meta, (args, kwargs))
        return function(*args, **kwargs)


def _beside_meta(tensor: Tensor) -> Tensor | int:
    """A tensor as it goes with a tensor on the meta device: a size is a number."""
    if tensor.device.type == "cpu" and tensor.ndim == 0 and tensor.dtype == torch.int64:
        return int(tensor)
    return tensor.to("meta")


def _is_choice(index: Any) -> bool:
    return isinstance(index, Tensor) and index.is_meta and index.dtype == torch.bool and index.ndim == 1


def _again_on_meta() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """What surrounds a block that is computed twice: backward computes it outside of the mode that holds now."""
    return nullcontext(), _OnMeta()


class Step:
    """A training step of one picture on a model of full size, its adapter attached, all of it on the meta device."""

    def __init__(self, model: str, config: TrainConfig, depth: int | None, folder: Path) -> None:
        """`folder` is where the base is written, all but its weights; `depth` is for those that can be run."""
        if (shapes := by_shape.all_bases().get(model)) is None:
            self.family = families.registry()[full_size.FAMILIES[model]]
            full_size.write(model, depth, folder)
            self.denoiser = full_size.empty(folder / self.family.denoiser).eval()
            self.latents_shape, self.conditioning = _inputs(self.family, folder, self.denoiser, config.resolution_px)
        else:
            self.family = families.registry()[shapes.family]
            self.denoiser = by_shape.denoiser(shapes, folder)
            self.latents_shape, self.conditioning = by_shape.inputs(shapes, self.family, config.resolution_px)
        self.denoiser.to("meta", DTYPE).requires_grad_(False)
        self.num_weights = sum(parameter.numel() for parameter in self.denoiser.parameters())
        targets = self.family.targets[config.adapter.targets]
        attached = attach(self.denoiser, methods.registry()[config.adapter.method], config.adapter, targets, 0, None)
        fused_lora.fuse(attached.layers.values(), ADAPTER, DTYPE)
        self.num_trained = sum(parameter.numel() for parameter in attached.parameters().values())

    def adapter_bytes(self) -> int:
        """Of the adapter in float32 and of its optimizer; gradients are counted with the step."""
        return self.num_trained * (4 + _OPTIMIZER_BYTES)

    def activation_bytes(self, checkpointing: bool, offloaded: bool) -> int:
        """The most that forward and backward hold beside weights: with blocks computed twice, and with what is kept
        for backward on the CPU.
        """
        if checkpointing:
            self.denoiser.enable_gradient_checkpointing(  # type: ignore[operator]
                partial(checkpoint, use_reentrant=False, preserve_rng_state=False, context_fn=_again_on_meta)
            )
        else:
            self.denoiser.disable_gradient_checkpointing()  # type: ignore[operator]

        # Weights are counted first and taken off again: what the step adds is asked for.
        tally = Tally()
        for tensor in [*self.denoiser.parameters(), *self.denoiser.buffers()]:
            tally.count(tensor)
        before = tally.bytes
        conditioning = {name: _sent(tensor) for name, tensor in self.conditioning.items()}
        noised, timesteps = torch.empty(self.latents_shape, device="meta", dtype=DTYPE), torch.empty(1, device="meta")
        away: AbstractContextManager[Any] = _kept_away(self.denoiser) if offloaded else nullcontext()
        with tally, away:
            with _OnMeta():
                prediction = self.family.denoise(self.denoiser, noised, timesteps, conditioning)
            prediction.float().square().sum().backward()
        self.denoiser.zero_grad(set_to_none=True)
        return tally.peak_bytes - before


def _inputs(
    family: Family, folder: Path, denoiser: nn.Module, size_px: int
) -> tuple[tuple[int, ...], dict[str, Tensor]]:
    """The shape of a picture's latents (1, C, h, w), and a caption's conditioning, from the base's small encoders."""
    pipe = getattr(diffusers, family.pipeline).from_pretrained(
        str(folder), torch_dtype=torch.float32, local_files_only=True, **{family.denoiser: denoiser}
    )
    with torch.no_grad():
        # Autoencoders are the same at every size: a small picture's latents, scaled, are those of a large one.
        small = family.encode_image(pipe, torch.zeros(1, 3, 64, 64))
        (row,) = family.encode_text(pipe, [_CAPTION], 1)
    frame = torch.tensor([size_px, size_px, 0, 0, size_px, size_px])
    height, width = (side * size_px // 64 for side in small.shape[-2:])
    return (*small.shape[:-2], height, width), family.prepare_batch([{**row, "frame": frame}])


def _sent(tensor: Tensor) -> Tensor:
    """Hidden states on the meta device; lengths, which models read, stay numbers."""
    return tensor.to("meta", DTYPE) if tensor.is_floating_point() else tensor


@contextmanager
def _kept_away(denoiser: nn.Module) -> Iterator[None]:
    """What is kept for backward lies elsewhere, for the body; frozen weights and what is trained stay."""
    stay = {tensor.untyped_storage()._cdata for tensor in [*denoiser.parameters(), *denoiser.buffers()]}

    def pack(tensor: Tensor) -> Tensor | Callable[[], Tensor]:
        if tensor.untyped_storage()._cdata in stay or tensor.numel() < _WORTH_MOVING:
            return tensor
        return partial(torch.empty, tensor.shape, dtype=tensor.dtype, device=tensor.device)

    def unpack(packed: Tensor | Callable[[], Tensor]) -> Tensor:
        return packed if isinstance(packed, Tensor) else packed()

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
