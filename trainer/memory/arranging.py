"""A training model's parts made as its memory settings say.

They are attention, compiled blocks, what is computed twice, and what waits on the CPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trainer import choices, sample_passes
from trainer.memory import attention, attention_probe, compile_times, compiling, frozen, graphing
from trainer.train_mode import in_training

if TYPE_CHECKING:
    from trainer.training_model import TrainingModel

_WORTH_MOVING = 1 << 16  # numbers of a tensor; smaller tensors take longer to move than they save


def arrange(model: TrainingModel) -> None:
    """Make the parts of a training model as its memory settings say; called again when those change.

    The adapters are attached by then.
    """
    # How attention is computed, and what is computed twice.
    settings, denoiser = model.memory, model.denoiser
    compiles = settings.compile in ("blocks", "graphs")  # where a wrapped layer would be compiled anew in each block
    attention.choose(denoiser, "fused" if compiles else settings.attention, model.device, model.dtype)
    if settings.gradient_checkpointing:
        denoiser.enable_gradient_checkpointing(_computed_twice(model))  # type: ignore[operator]

    # What waits on the CPU.
    match settings.offload:
        case "none":
            pass
        case "encoders":
            _move_encoders(model)
        case "blocks":
            _move_encoders(model)
            layers = _in_blocks(denoiser)
            if any(getattr(layer, "ring", None) is None for layer in layers):  # else they wait there already
                frozen.keep_on_cpu(layers, torch.device(model.device))
            _bring_the_rest(denoiser, torch.device(model.device))
        case other:
            choices.never(other)

    # Kernels and compiled blocks: what they are chosen by are the layers as they now are.
    if settings.attention == "auto" and model.device.startswith("cuda"):
        _choose_kernels(model)
    _scale_inputs(denoiser, model.device)

    key = times_key(model) if compiling.is_possible(settings, model.device) else ""
    times = partial(_known_times, model, key)
    model.memory, model.compile_reason = compiling.choose(
        denoiser, settings, passes(model), lambda: len(_shapes(model)), model.device, times
    )
    model.recorder = (
        graphing.Recorder(model.trained.values(), model.device) if model.memory.compile == "graphs" else None
    )
    is_watched = key and model.memory.compile != "graphs"
    model.watch = (
        compile_times.Watch(key, model.memory.compile == "blocks", passes(model).a_step) if is_watched else None
    )
    if model.device.startswith("cuda"):
        torch.cuda.empty_cache()


def _move_encoders(model: TrainingModel) -> None:
    for part in _movable(model):
        part.to("cpu")
    model.encoded.encoders = lambda: drawing(model)


def passes(model: TrainingModel) -> compiling.Passes:
    """Forward and backward passes of the whole run, about."""
    rows = -(-model.config.batch_size // model.world.size)
    a_step = model.accumulation * -(-rows // (model.memory.micro_batch or rows))
    return compiling.Passes(model.config.max_steps, a_step)


def _shapes(model: TrainingModel) -> set[tuple[int, int, int]]:
    """What this process's passes are computed at: width_px, height_px and pictures at once."""
    return {
        (*bucket, len(rows)) for bucket, num in model.encoded.order.shapes() for rows in model.parts(num) if len(rows)
    }


def times_key(model: TrainingModel) -> str:
    """What the times of this model's passes are kept under."""
    preserves = bool(model.config.objective.preservation_weight)
    about = [*_shapes(model), model.dtype, f"text {model.trains_text}", f"preserving {preserves}"]
    return compile_times.key(attention_probe.machine(model.device), model.denoiser, model.memory, about)


def _known_times(model: TrainingModel, key: str) -> compile_times.Times:
    """What the first process knows, so that all of them choose alike."""
    mine = compile_times.known(key)
    return compile_times.Times(*json.loads(model.world.share(json.dumps([*vars(mine).values()]))))


def _choose_kernels(model: TrainingModel) -> None:
    """Attention by the kernels that the checkpoint names, or that are good and fast here, until the next call."""
    if model.kernels is None:
        shapes = attention_probe.recorded(lambda: sample_passes.each_shape(model))
        torch.cuda.empty_cache()  # the process that tries them shares the card with this process
        candidates, known = attention_probe.candidates(model.denoiser), attention_probe.known_file()
        verdict = attention_probe.verdict(shapes, candidates, known, model.device)
        model.kernels, model.faults = verdict.kernels, verdict.faults
    model.lasting.close()
    model.lasting.enter_context(attention_probe.using(model.denoiser, model.kernels))


def _computed_twice(model: TrainingModel) -> Callable[..., Any]:
    """Gradient checkpointing that drops out the second time what it dropped the first.

    Adapter layers are in train mode only while a step predicts; when backward computes them again, they no longer are.
    """

    def run(module: nn.Module, *inputs: Any) -> Any:
        layers = [layer for attached in model.attachments.values() for layer in attached.dropouts() if layer.training]

        def modes() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), in_training(layers)

        context = modes if layers else _no_modes
        return torch.utils.checkpoint.checkpoint(module, *inputs, use_reentrant=False, context_fn=context)

    return run


def _no_modes() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), nullcontext()


def _encoders(model: TrainingModel) -> list[nn.Module]:
    """What a step does not need: every model of the pipeline but the denoiser and a text encoder that is trained."""
    needed = [model.denoiser]
    if model.trains_text:
        needed += [part for name, part in model.pipe.components.items() if name.startswith("text_encoder")]
    parts = [part for part in model.pipe.components.values() if isinstance(part, nn.Module)]
    return [part for part in parts if all(part is not other for other in needed)]


def _movable(model: TrainingModel) -> list[nn.Module]:
    """Encoders that are moved whole: those that are brought layer by layer stay as they are."""
    texts = [part for name, part in model.pipe.components.items() if model.fetched and name.startswith("text_encoder")]
    return [part for part in _encoders(model) if all(part is not text for text in texts)]


def _in_blocks(denoiser: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    """Frozen linear layers and convolutions of the denoiser's blocks, which are nearly all of it."""
    blocks = [
        part for name, part in denoiser.named_children() if isinstance(part, nn.ModuleList) or name == "mid_block"
    ]
    layers = [layer for block in blocks for layer in block.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    return [layer for layer in layers if not layer.weight.requires_grad]


@torch.no_grad()
def _bring_the_rest(denoiser: nn.Module, device: torch.device) -> None:
    """What is not fetched lies on the device, whether the base was loaded there or not."""
    away = {id(layer.weight) for layer in denoiser.modules() if getattr(layer, "ring", None) is not None}
    for tensor in [*denoiser.parameters(), *denoiser.buffers()]:
        if id(tensor) not in away:
            tensor.data = tensor.data.to(device)


def _scale_inputs(denoiser: nn.Module, device: str) -> None:
    """Let fp8 layers multiply in float8 where the GPU does so itself."""
    # Ada (8.9) is the first with products of float8.
    can_multiply = device.startswith("cuda") and torch.cuda.get_device_capability(device) >= (8, 9)
    for layer in denoiser.modules():
        if isinstance(layer, frozen.NarrowLinear) and layer.kind == "fp8":
            fits_kernel = layer.in_features % 16 == 0 and layer.out_features % 16 == 0
            layer.scales_inputs = can_multiply and fits_kernel  # `scaled_mm` takes sides that are multiples of 16


@contextmanager
def drawing(model: TrainingModel) -> Iterator[None]:
    """All of the pipeline where a preview needs it, for the body."""
    away = _movable(model) if model.memory.offload != "none" else []
    with ExitStack() as stack:
        for part in away:
            stack.callback(part.to, "cpu")
            part.to(model.device)
        yield


def eagerly(model: TrainingModel) -> AbstractContextManager[Any]:
    """Compiled blocks computed as they are written, for the body.

    Measurements and previews have shapes of their own, each of which would be compiled anew.
    """
    return nullcontext() if model.memory.compile in ("off", "auto") else torch.compiler.set_stance("force_eager")


@contextmanager
def kept_away(model: TrainingModel) -> Iterator[None]:
    """What is kept for backward waits on the CPU, for the body, where the settings say so.

    Frozen weights and what is trained are kept as they are.
    """
    if not model.memory.offload_activations:
        yield
        return
    # By storage, not by tensor: autograd also keeps views and transposes of a weight.
    stay = {tensor.untyped_storage().data_ptr() for tensor in [*model.denoiser.parameters(), *model.denoiser.buffers()]}
    pinned = model.device.startswith("cuda")

    def pack(tensor: Tensor) -> tuple[torch.device, Tensor]:
        if tensor.untyped_storage().data_ptr() in stay or tensor.numel() < _WORTH_MOVING:
            return tensor.device, tensor
        away = torch.empty(tensor.size(), dtype=tensor.dtype, pin_memory=pinned)
        return tensor.device, away.copy_(tensor, non_blocking=pinned)

    def unpack(packed: tuple[torch.device, Tensor]) -> Tensor:
        device, tensor = packed
        return tensor.to(device, non_blocking=True)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
