"""Pictures from a pipeline as it stands: the family's own diffusers pipeline, a scheduler by its sampler's name."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch

from trainer import families
from trainer.config import StackConfig
from trainer.families.contract import Family
from trainer.lazy import diffusers
from trainer.objective import Guidance
from trainer.render import prompting
from trainer.render.samplers import SAMPLERS

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL.Image import Image
    from torch import Tensor

    Conditioning = dict[str, Tensor]


# Is given the number of a step that is over, the pipeline's latents, and the stacks that they become pictures of.
Look = Callable[[int, "Tensor", Sequence[StackConfig]], None]

_RESCALE = 0.7


def draw(pipe: DiffusionPipeline, stack: StackConfig) -> Image:
    """The stack's picture with whatever weights `pipe` holds now.

    Noise comes from the CPU, so that it is the same on every device.
    """
    return draw_batch(pipe, families.of(pipe), [stack])[0]


@torch.no_grad()
def draw_batch(
    pipe: DiffusionPipeline,
    family: Family,
    stacks: list[StackConfig],
    step_done: Callable[[int], None] | None = None,
    look: Look | None = None,
) -> list[Image]:
    """Pictures that differ in prompt and seed only, as one batch.

    `step_done` is called with the number of each step that is over, `look` before it with the latents too.
    """

    def on_step_end(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        callback(step, timestep, tensors["latents"])
        return tensors

    def callback(step: int, timestep: Any, latents: Tensor) -> None:
        if look:
            look(step, latents, stacks)
        if step_done:
            step_done(step)

    first = stacks[0]
    # PixArt's pipeline has only the older of diffusers' two callbacks.
    has_step_end = "callback_on_step_end" in signature(pipe.__call__).parameters
    callbacks = {"callback_on_step_end": on_step_end} if has_step_end else {"callback": callback}
    guidance = Guidance(first.guidance_scale, rescale(pipe, family, first) or 0.0, first.true_guidance_scale)
    # A generator a picture, on the CPU: its noise is the same alone, in any batch, and on any device.
    generators = [torch.Generator().manual_seed(stack.seed) for stack in stacks]
    if family.prepare_call:
        family.prepare_call(pipe, first.width_px, first.height_px, generators)
    pictures: list[Image] = pipe(
        **family.call_settings(pipe, *_conditioning(pipe, family, stacks), guidance),
        num_inference_steps=first.steps,
        width=first.width_px,
        height=first.height_px,
        generator=generators,
        **callbacks,
    ).images
    return pictures


def scheduler(sampler: str, own: Any) -> Any:
    """A fresh scheduler with the base's own settings: of the base's own kind if `sampler` is empty."""
    kind, changes = SAMPLERS[sampler] if sampler else (type(own).__name__, {})
    if kind.startswith("FlowMatch") and "flow_shift" in own.config:  # as the other schedulers call it
        changes = changes | {"shift": own.config["flow_shift"]}
    return getattr(diffusers, kind).from_config(own.config, **changes)


def rescale(pipe: Any, family: Family, stack: StackConfig) -> float | None:
    """How far guidance is rescaled; None where nothing would read it.

    It is what the stack says, else what suits the base's noise schedule (arXiv 2305.08891).
    """
    if stack.guidance_rescale is not None or "flow" in family.prediction or not family.rescales:
        return stack.guidance_rescale
    return _RESCALE if pipe.scheduler.config.get("rescale_betas_zero_snr") else 0.0


def _conditioning(pipe: Any, family: Family, stacks: list[StackConfig]) -> tuple[Conditioning, Conditioning | None]:
    """Conditionings of the positive and of the negative prompts; without guidance there are no negative prompts."""
    first = stacks[0]
    if is_weighted(pipe, family, first):
        assert len(stacks) == 1, "prompts with weights are encoded one by one"
        pair = prompting.weighted_pair(pipe, first.prompt, first.negative_prompt)
        return family.prepare_batch([pair[0]]), family.prepare_batch([pair[1]])
    prompts, negative_prompts = [stack.prompt for stack in stacks], [stack.negative_prompt for stack in stacks]
    positive = family.prepare_batch(family.encode_text(pipe, prompts, 1))
    scale = first.true_guidance_scale if family.guidance == "distilled" else first.guidance_scale
    if scale <= 1:
        return positive, None
    negative = (
        family.encode_negative(pipe, negative_prompts)
        if family.encode_negative
        else family.encode_text(pipe, negative_prompts, 1)
    )
    return positive, family.prepare_batch(negative)


def is_weighted(pipe: Any, family: Family, stack: StackConfig) -> bool:
    """True if a prompt has weights or fills several windows, and the family can take them."""
    if family.encode_windows is None:
        return False
    prompts = [stack.prompt, stack.negative_prompt]
    marked = any(re.search(r"[()\[\]\\]|\bBREAK\b", prompt) for prompt in prompts)
    # A token stands for a byte or more of what the tokenizer is given (50: to lower a letter may lengthen it), so that
    # short prompts need no tokenising to know; a new word may stand for any number of tokens.
    words = pipe.tokenizer.get_added_vocab()
    long = [text for text in prompts if len(text.encode()) > 50 or any(word in text for word in words)]
    return marked or any(prompting.num_windows(pipe, text) > 1 for text in long)
