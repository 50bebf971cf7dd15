"""A studio's models made as its memory settings say: attention, compiled blocks, what is computed twice, and what waits on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trainer import choices, system
from trainer.memory import attention, compiling, fetching, frozen, mechanics, probing

if TYPE_CHECKING:
    from trainer.studio import Studio


def arrange(studio: Studio) -> None:
    """Make the studio's models as its memory settings say, adapters attached; may be called again when those change."""
    settings, denoiser = studio.memory, studio.denoiser
    compiles = settings.compile in ("blocks", "graphs")  # where a wrapped layer would be compiled anew in each block
    attention.choose(denoiser, "fused" if compiles else settings.attention, studio.device, studio.dtype)
    if settings.gradient_checkpointing:
        denoiser.enable_gradient_checkpointing(_computed_twice(studio))  # type: ignore[operator]
    match settings.offload:
        case "none":
            pass
        case "encoders":
            _move_encoders(studio)
        case "blocks":
            _move_encoders(studio)
            fetching.keep_on_cpu(_in_blocks(denoiser), torch.device(studio.device))
            _bring_the_rest(denoiser, torch.device(studio.device))
        case other:
            choices.never(other)
    if settings.attention == "auto" and studio.device.startswith("cuda"):
        _choose_kernels(studio)
    _scale_inputs(denoiser, studio.device)
    studio.memory = compiling.choose(denoiser, settings, num_passes(studio), lambda: len({entry.bucket for entry in studio.material.entries}), studio.device)
    if studio.device.startswith("cuda"):
        torch.cuda.empty_cache()


def _move_encoders(studio: Studio) -> None:
    for part in _movable(studio):
        part.to("cpu")
    studio.material.encoders = lambda: drawing(studio)


def num_passes(studio: Studio) -> int:
    """Forward and backward passes of the whole run, about."""
    rows = -(-studio.config.batch_size // studio.world.size)
    return studio.config.max_steps * studio.config.accumulation * -(-rows // (studio.memory.micro_batch or rows))


def _choose_kernels(studio: Studio) -> None:
    """Attention by the kernels that the checkpoint names, or that are found good and fast at this run's shapes; until this is called again."""
    if studio.kernels is None:
        shapes = probing.recorded(studio.pass_each_shape)
        found = probing.verdict(shapes, probing.candidates(studio.denoiser), studio.material.store.folder / "attention.json", studio.device)
        studio.kernels, studio.faults = found.kernels, found.faults
    studio.lasting.close()
    studio.lasting.enter_context(probing.using(studio.denoiser, studio.kernels))


def _computed_twice(studio: Studio) -> Callable[..., Any]:
    """Gradient checkpointing that drops out the second time what it dropped the first: adapter layers are in train mode only while a step predicts."""

    def run(module: nn.Module, *inputs: Any) -> Any:
        layers = [layer for attached in studio.attachments.values() for layer in attached.dropouts() if layer.training]

        def modes() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), training(layers)

        return torch.utils.checkpoint.checkpoint(module, *inputs, use_reentrant=False, context_fn=modes if layers else _no_modes)

    return run


def _no_modes() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), nullcontext()


@contextmanager
def training(layers: list[nn.Module]) -> Iterator[None]:
    """These adapter layers in train mode for the body, where their dropout works; the base stays as in use."""
    for layer in layers:
        layer.train()
    try:
        yield
    finally:
        for layer in layers:
            layer.eval()


def _encoders(studio: Studio) -> list[nn.Module]:
    """What a step does not need: every model of the pipeline but the denoiser and a text encoder that is trained."""
    needed = [studio.denoiser, *(part for name, part in studio.pipe.components.items() if studio.trains_text and name.startswith("text_encoder"))]
    return [part for part in studio.pipe.components.values() if isinstance(part, nn.Module) and all(part is not one for one in needed)]


def _movable(studio: Studio) -> list[nn.Module]:
    """Encoders that are moved whole: those that are brought layer by layer stay as they are."""
    texts = [part for name, part in studio.pipe.components.items() if studio.fetched and name.startswith("text_encoder")]
    return [part for part in _encoders(studio) if all(part is not one for one in texts)]


def fetch_encoders(pipe: Any, component: str, device: str) -> None:
    """Everything but the denoiser, which stays on the CPU, ready to encode: the autoencoder on the device, text encoders brought there layer by layer.

    By diffusers' group offloading; T5's encoder alone is 9.5 GB in bf16.
    """
    from diffusers.hooks import apply_group_offloading

    for name, part in pipe.components.items():
        if isinstance(part, nn.Module) and name.startswith("text_encoder"):
            apply_group_offloading(part, torch.device(device), offload_type="leaf_level", use_stream=device.startswith("cuda"))
        elif isinstance(part, nn.Module) and name != component:
            part.to(device)


def _in_blocks(denoiser: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    """Frozen linear layers and convolutions of the denoiser's blocks, which are nearly all of it."""
    blocks = [part for name, part in denoiser.named_children() if isinstance(part, nn.ModuleList) or name == "mid_block"]
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
    can = device.startswith("cuda") and torch.cuda.get_device_capability(device) >= (8, 9)
    for layer in denoiser.modules():
        if isinstance(layer, frozen.NarrowLinear) and layer.kind == "fp8":
            layer.scales_inputs = can and layer.in_features % 16 == 0 and layer.out_features % 16 == 0  # what its kernel takes


def limit(device: str, budget_gib: float) -> None:
    """Hold this process to the budget on a GPU, so that it runs out there. Without one on Windows, to what is free: beyond it, the driver
    moves memory over the bus without a word, and a run that seems to fit takes ten times as long.
    """
    if device.startswith("cuda"):
        free, total = torch.cuda.mem_get_info(device)
        most = budget_gib * mechanics.GIB or (free + torch.cuda.memory_reserved(device) if system.gpu_spills() else total)
        torch.cuda.set_per_process_memory_fraction(min(1.0, most / total), torch.device(device))


@contextmanager
def drawing(studio: Studio) -> Iterator[None]:
    """All of the pipeline where a preview needs it, for the body."""
    away = _movable(studio) if studio.memory.offload != "none" else []
    with ExitStack() as stack:
        for part in away:
            stack.callback(part.to, "cpu")
            part.to(studio.device)
        yield


def eagerly(studio: Studio) -> AbstractContextManager[Any]:
    """Compiled blocks computed as they are written, for the body: for what is looked at, in shapes that would each be compiled anew."""
    return nullcontext() if studio.memory.compile in ("off", "auto") else torch.compiler.set_stance("force_eager")


@contextmanager
def kept_away(studio: Studio) -> Iterator[None]:
    """What is kept for backward waits on the CPU, for the body, where the settings say so. Frozen weights and what is trained are kept as they are."""
    if not studio.memory.offload_activations:
        yield
        return
    stay = {tensor.untyped_storage().data_ptr() for tensor in [*studio.denoiser.parameters(), *studio.denoiser.buffers()]}
    pinned = studio.device.startswith("cuda")

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


_WORTH_MOVING = 1 << 16  # numbers
