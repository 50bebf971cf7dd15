"""What families do alike with a diffusers pipeline: opening it, latents of a KL autoencoder, tokens of 2 x 2 latents, names that are diffusers' own.

A family that does otherwise says so in its own file and uses none of this.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from trainer.objective import Guidance, Schedule


def load(kind: str, folder: Path, device: str, dtype: torch.dtype, **parts: Any) -> Any:
    """The pipeline of a diffusers folder, frozen, in eval mode; nothing is fetched and no remote code runs. `parts` take the place of the folder's."""
    import diffusers
    from torch import nn

    pipe = getattr(diffusers, kind).from_pretrained(str(folder), torch_dtype=dtype, local_files_only=True, use_safetensors=True, **parts).to(device)
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def device_of(pipe: Any) -> torch.device:
    """Where a pipeline computes, also while its weights wait elsewhere: the public `pipe.device` is then where they wait."""
    found: torch.device = pipe._execution_device
    return found


def predicts_flow(folder: Path) -> str:
    """What the model in a diffusers folder predicts, where there is no choice."""
    return "flow"


def is_not_v2(pipe: Any) -> bool:
    """False: `ss_v2` is about Stable Diffusion 2.x."""
    return False


def flow_schedule(pipe: Any) -> Schedule:
    """The training noise of a flow base, with the shift its scheduler draws with."""
    from trainer import objective

    return objective.flow_schedule(pipe.scheduler.config)


def encode_image(pipe: Any, images: Tensor) -> Tensor:
    """Latents (B, C, H/f, W/f) of images (B, 3, H, W) in [-1, 1], shifted and scaled as the denoiser knows them."""
    latents: Tensor = pipe.vae.encode(images.to(pipe.vae.device, pipe.vae.dtype)).latent_dist.mode()
    scale, shift = float(pipe.vae.config.scaling_factor), float(getattr(pipe.vae.config, "shift_factor", None) or 0)
    return (latents - shift) * scale


def together(conditionings: list[dict[str, Tensor]], *keys: str) -> dict[str, Tensor]:
    """Dicts of one caption each as one of a batch."""
    import torch

    return {key: torch.stack([one[key] for one in conditionings]) for key in keys}


def masked_batch(conditionings: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """`{encoder_hidden_states: (B, L, D), mask: (B, L)}`; the mask is 0 where nothing is said."""
    return together(conditionings, "encoder_hidden_states", "mask")


def masked_call(pipe: Any, said: dict[str, Tensor], unsaid: dict[str, Tensor] | None, guidance: Guidance) -> dict[str, Any]:
    """Arguments of the call of a pipeline that takes a mask with what is said."""
    found = {"prompt_embeds": said["encoder_hidden_states"], "prompt_attention_mask": said["mask"], "guidance_scale": guidance.scale}
    if unsaid:
        found |= {"negative_prompt_embeds": unsaid["encoder_hidden_states"], "negative_prompt_attention_mask": unsaid["mask"]}
    return found


def tokens(latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) as tokens (B, h/2 * w/2, 4C) of 2 x 2."""
    count, channels, height, width = latents.shape
    split = latents.reshape(count, channels, height // 2, 2, width // 2, 2)
    return split.permute(0, 2, 4, 1, 3, 5).reshape(count, height * width // 4, channels * 4)


def latents(tokens: Tensor, like: Tensor) -> Tensor:
    """Tokens of 2 x 2 as latents of the shape of `like` (B, C, h, w)."""
    count, channels, height, width = like.shape
    return tokens.reshape(count, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(like.shape)


def places(like: Tensor, axes: int) -> Tensor:
    """Row and column (h/2 * w/2, axes) of every token of 2 x 2 latents (B, C, h, w), in the second and third axis; 0 in the others."""
    import torch

    rows, columns = like.shape[-2] // 2, like.shape[-1] // 2
    found = torch.zeros(rows, columns, axes)
    found[..., 1], found[..., 2] = torch.arange(rows)[:, None], torch.arange(columns)[None, :]
    return found.reshape(-1, axes).to(like.device, like.dtype)


def own_names(pipe: Any, components: Iterable[str]) -> dict[str, str]:
    """`component.module.path` of every linear layer and ungrouped convolution -> its name in a LoRA file, which is the same."""
    from torch import nn

    found = {}
    for component in components:
        for path, module in part.named_modules() if (part := getattr(pipe, component)) is not None else ():
            if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
                found[f"{component}.{path}"] = f"{component}.{path}".replace(".base_layer", "")
    return found


def padded(conditionings: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """What captions of their own lengths say, (L, D) each, as `{encoder_hidden_states: (B, longest, D), lengths: (B,)}`."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    rows = [one["encoder_hidden_states"] for one in conditionings]
    return {"encoder_hidden_states": pad_sequence(rows, batch_first=True), "lengths": torch.tensor([len(row) for row in rows], device=rows[0].device)}
