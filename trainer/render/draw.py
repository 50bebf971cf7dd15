"""Pictures from a pipeline as it stands: the family's own diffusers pipeline and scheduler, our settings."""

from __future__ import annotations

import re
from collections.abc import Callable
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch

from trainer import families
from trainer.config import StackConfig
from trainer.families.contract import Family
from trainer.objective import Guidance

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL.Image import Image
    from torch import Tensor

    Conditioning = dict[str, Tensor]


_RESCALE = 0.7


def draw(pipe: DiffusionPipeline, stack: StackConfig) -> Image:
    """The stack's picture with whatever weights `pipe` holds now; noise comes from the CPU, the same on every device."""
    return draw_batch(pipe, [stack])[0]


@torch.no_grad()
def draw_batch(pipe: DiffusionPipeline, stacks: list[StackConfig], step_done: Callable[[int], None] | None = None) -> list[Image]:
    """Pictures that differ in prompt and seed only, as one batch; `step_done` is called with the number of each step that is over."""

    def over(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step_done:
            step_done(step)
        return tensors

    def over_at(step: int, timestep: Any, latents: Tensor) -> None:
        if step_done:
            step_done(step)

    first, family = stacks[0], families.of(pipe)
    # PixArt's pipeline has but the older of diffusers' two ways to tell of a step.
    telling = {"callback_on_step_end": over} if "callback_on_step_end" in signature(pipe.__call__).parameters else {"callback": over_at}
    guidance = Guidance(first.guidance_scale, rescale(pipe, first) or 0.0, first.true_guidance_scale)
    generators = [torch.Generator().manual_seed(stack.seed) for stack in stacks]
    if family.ready:
        family.ready(pipe, first.width_px, first.height_px, generators)
    pictures: list[Image] = pipe(
        **family.call_settings(pipe, *_conditioning(pipe, family, stacks), guidance),
        num_inference_steps=first.steps,
        width=first.width_px,
        height=first.height_px,
        generator=generators,
        **telling,
    ).images
    return pictures


def rescale(pipe: Any, stack: StackConfig) -> float | None:
    """How far guidance is rescaled: what the stack says, else what the base's noise asks for (arXiv 2305.08891); None where nothing would read it."""
    family = families.of(pipe)
    if stack.guidance_rescale is not None or "flow" in family.prediction or not family.rescales:
        return stack.guidance_rescale
    return _RESCALE if pipe.scheduler.config.get("rescale_betas_zero_snr") else 0.0


def _conditioning(pipe: Any, family: Family, stacks: list[StackConfig]) -> tuple[Conditioning, Conditioning | None]:
    """Of the prompts and of the negative ones, which are not asked for without guidance."""
    first = stacks[0]
    if is_weighted(pipe, first):
        assert len(stacks) == 1, "prompts with weights are encoded one by one"
        from trainer.render import prompting

        said, unsaid = prompting.weighted_pair(pipe, first.prompt, first.negative_prompt)
        return family.prepare_batch([said]), family.prepare_batch([unsaid])
    prompts, negative = [stack.prompt for stack in stacks], [stack.negative_prompt for stack in stacks]
    given = family.prepare_batch(family.encode_text(pipe, prompts, 1))
    scale = first.true_guidance_scale if family.guidance == "distilled" else first.guidance_scale
    if scale <= 1:
        return given, None
    against = family.encode_negative(pipe, negative) if family.encode_negative else family.encode_text(pipe, negative, 1)
    return given, family.prepare_batch(against)


def is_weighted(pipe: Any, stack: StackConfig) -> bool:
    """True if a prompt has weights or fills several windows, and the family is one that they are known for."""
    if families.of(pipe).encode_windows is None:
        return False
    from trainer.render import prompting

    prompts = [stack.prompt, stack.negative_prompt]
    marked = any(re.search(r"[()\[\]\\]|\bBREAK\b", prompt) for prompt in prompts)
    return marked or any(len(prompt) > 200 and prompting.num_windows(pipe, prompt) > 1 for prompt in prompts)
