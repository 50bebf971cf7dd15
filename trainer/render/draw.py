"""Pictures from a pipeline as it stands: the family's own diffusers pipeline and scheduler, our settings."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from trainer.config import StackConfig

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL.Image import Image


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

    first = stacks[0]
    said: dict[str, Any] = {"prompt": [stack.prompt for stack in stacks], "negative_prompt": [stack.negative_prompt for stack in stacks]}
    if is_weighted(pipe, first):
        assert len(stacks) == 1, "prompts with weights are encoded one by one"
        from trainer.render import prompting

        positive, negative = prompting.weighted_pair(pipe, first.prompt, first.negative_prompt)
        said = {"prompt_embeds": positive, "negative_prompt_embeds": negative}
    pictures: list[Image] = pipe(
        **said,
        num_inference_steps=first.steps,
        guidance_scale=first.guidance_scale,
        guidance_rescale=first.guidance_rescale if first.guidance_scale > 1 else 0.0,
        width=first.width_px,
        height=first.height_px,
        generator=[torch.Generator().manual_seed(stack.seed) for stack in stacks],
        callback_on_step_end=over,
    ).images
    return pictures


def is_weighted(pipe: Any, stack: StackConfig) -> bool:
    """True if a prompt has weights or fills several windows, and the pipeline's text encoder is one that they are known for."""
    if not hasattr(pipe, "maybe_convert_prompt") or hasattr(pipe, "tokenizer_2"):
        return False
    from trainer.render import prompting

    prompts = [stack.prompt, stack.negative_prompt]
    marked = any(re.search(r"[()\[\]\\]|\bBREAK\b", prompt) for prompt in prompts)
    return marked or any(len(prompt) > 200 and prompting.num_windows(pipe, prompt) > 1 for prompt in prompts)
