"""What is trained, put on a frozen base: the adapter and the new word, at their start or as saved."""

from __future__ import annotations

import torch
from torch import nn

from trainer import adapter_places, against_stack, system
from trainer.adapter import ADAPTER
from trainer.checkpoint import Checkpoint
from trainer.memory import arranging, attention_probe, convolving, fused_lora, quantising
from trainer.new_word import Word
from trainer.optim import scaling
from trainer.start_weights import Source
from trainer.training_model import TrainingModel


def attach(
    model: TrainingModel, checkpoint: Checkpoint | None, source: Source | None = None
) -> dict[str, nn.Parameter]:
    """Put the adapter and the new word on the base, as saved, with a source's weights, or at their start.

    Gives the parameters by name. What the adapter is trained against is folded into the base first.
    """
    config = model.config
    saved = checkpoint.tensors["adapter"] if checkpoint else source.tensors() if source else None
    shapes = {path: tuple(weight.shape) for path, weight in model.base_weights().items()}
    if checkpoint:
        model.kernels = attention_probe.restored(checkpoint.state.get("kernels"), model.device)

    # The base: with the stack in it, then quantised, since a stack can't be added to quantised weights.
    if config.against.adapters:
        spans, model.span_energy = against_stack.fold(config.against.adapters, model.base_weights(), model.file_keys)
        model.spans = {path: (outs.to(model.device), ins.to(model.device)) for path, (outs, ins) in spans.items()}
    quantising.quantise(model.denoiser, model.memory.quantise)

    # What is trained.
    model.attachments = adapter_places.attach_all(model, saved)
    if config.inversion.token:
        model.word = Word(model.pipe, config.inversion, saved)
    if source and source.lora and not checkpoint:
        source.put_on(model, shapes)
    loss_scale = checkpoint.state["loss_scale"] if checkpoint else None
    model.scaler = scaling.scaler(model.device, model.dtype == torch.float16, loss_scale)
    model.needs_autocast = not fuse(model)
    model.trained = model.parameters()

    # How it lies in memory; arranging comes last, as it goes by what each layer has become.
    if model.sharded:
        model.world.shard(model.denoiser, model.trained.values())
    else:
        convolving.lay_out(model.denoiser)
    arranging.arrange(model)
    system.give_back_freed()
    return model.trained


def fuse(model: TrainingModel) -> bool:
    """One product a LoRA layer; False if some adapter layer still computes in float32 by itself.

    `velatura bench train --without` measures what this and the other choices of speed bring.
    """
    # A list, not a generator: every component is fused, also behind a component that can't be.
    return all(
        [fused_lora.fuse(attached.layers.values(), ADAPTER, model.dtype) for attached in model.attachments.values()]
    )
