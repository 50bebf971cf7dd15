"""HiDream-I1: a transformer with experts, told by two CLIPs, T5 and every layer of Llama; predicts flow, its prediction pointing the other way than ours.

Diffusers runs the routed experts without gradients (its training script too), so they are no target, and they see the tokens of all pictures as one row:
pictures of one batch have the same weights. Its pipeline rescales every size to about a megapixel; here the size that is asked for is drawn. No text
encoder is adapted. Llama's layers make a cached caption large: 32 MiB each in bfloat16.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import pipelines

if TYPE_CHECKING:
    import torch
    from diffusers import HiDreamImagePipeline
    from torch import Tensor, nn

    from trainer.objective import Guidance, Schedule

name = "hidream"
title = "HiDream-I1"
pipeline = "HiDreamImagePipeline"
prediction = ("flow",)
guidance = "classifier-free"
joined, ragged = (".single_stream_blocks.", True), "rows"
comfyui_graph = False
unfit_samplers = ("flow_heun",)  # the pipeline gives the scheduler its shift, which that one does not take
caption_tokens = 127
default_px = 1024
multiple_px = 16
patch = 2
components = {"transformer": "transformer."}
file_names = "peft"
words: dict[str, str] = {}
architecture = "hidream-i1/lora"
base_version = "hidream"

_BLOCKS = r"(double|single)_stream_blocks\.\d+\.block"
_ATTENTION = r"attn1\.to_(q|k|v|out)(_t)?"
_FEED_FORWARD = r"(ff_i\.shared_experts|ff_t)\.w[123]"
_TOLD = r"adaLN_modulation\.1"
targets = {
    "attention": rf"{_BLOCKS}\.{_ATTENTION}",
    "attention-ff": rf"{_BLOCKS}\.({_ATTENTION}|{_FEED_FORWARD})",
    "linear": rf"{_BLOCKS}\.({_ATTENTION}|{_FEED_FORWARD}|{_TOLD})|caption_projection\.\d+\.linear",
    "all": rf"{_BLOCKS}\.({_ATTENTION}|{_FEED_FORWARD}|{_TOLD})|caption_projection\.\d+\.linear|x_embedder\.proj|"
    r"(t_embedder\.timestep|p_embedder\.pooled)_embedder\.linear_[12]|final_layer\.(linear|adaLN_modulation\.1)",
}
encode_image = pipelines.encode_image
is_v2 = pipelines.is_not_v2
prediction_of = pipelines.predicts_flow


def load(folder: Path, device: str, dtype: torch.dtype) -> HiDreamImagePipeline:
    """The pipeline of a diffusers folder, frozen, in eval mode."""
    return pipelines.load(pipeline, folder, device, dtype)


def _tokens(pipe: HiDreamImagePipeline) -> int:
    return min(caption_tokens + 1, int(pipe.tokenizer_3.model_max_length))


def window(pipe: HiDreamImagePipeline) -> int:
    """How many tokens of a caption T5 reads, its mark left out; the others read about as many."""
    return _tokens(pipe) - 1


def count_tokens(pipe: HiDreamImagePipeline, caption: str) -> int:
    """How many tokens a caption has for T5, without its mark."""
    return len(pipe.tokenizer_3(caption, add_special_tokens=False).input_ids)


def encode_text(pipe: HiDreamImagePipeline, captions: list[str], chunks: int) -> list[dict[str, Tensor]]:
    """One `{encoder_hidden_states: (L, D), llama: (layers, L, D'), pooled: (P,)}` a caption; long ones are cut off."""
    hidden, _, llama, _, pooled, _ = pipe.encode_prompt(
        captions, do_classifier_free_guidance=False, device=pipe._execution_device, max_sequence_length=_tokens(pipe)
    )  # fmt: skip
    rows = zip(hidden, llama.unbind(1), pooled, strict=True)
    return [{"encoder_hidden_states": row, "llama": layers.contiguous(), "pooled": whole} for row, layers, whole in rows]


def prepare_batch(conditionings: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """`{encoder_hidden_states: (B, L, D), llama: (B, layers, L, D'), pooled: (B, P)}`."""
    return pipelines.together(conditionings, "encoder_hidden_states", "llama", "pooled")


def denoise(denoiser: nn.Module, noised: Tensor, timesteps: Tensor, conditioning: dict[str, Tensor]) -> Tensor:
    """The prediction (B, C, h, w), noise minus latents, for noised latents at timesteps (B,) from 1 to 1000."""
    towards: Tensor = denoiser(
        hidden_states=noised, timesteps=timesteps, encoder_hidden_states_t5=conditioning["encoder_hidden_states"],
        encoder_hidden_states_llama3=conditioning["llama"].transpose(0, 1), pooled_embeds=conditioning["pooled"],
    ).sample  # fmt: skip
    return -towards


def schedule(pipe: HiDreamImagePipeline) -> Schedule:
    """The training noise of this base, with the shift its scheduler draws with: the same for every size, even where the scheduler could tell them apart."""
    from diffusers.pipelines.hidream_image.pipeline_hidream_image import calculate_shift

    from trainer import objective

    config = dict(pipe.scheduler.config)
    if config.get("use_dynamic_shifting"):
        config |= {"use_dynamic_shifting": False, "shift": math.exp(calculate_shift(pipe.transformer.max_seq))}
    return objective.flow_schedule(config)


def will_draw(pipe: HiDreamImagePipeline, width_px: int, height_px: int) -> None:
    """Have the pipeline draw this size, whose area it would else bring to its own; a hair more, since what it computes is cut off."""
    pipe.default_sample_size = math.sqrt(width_px * height_px) * (1 + 1e-9) / pipe.vae_scale_factor


def call_settings(pipe: HiDreamImagePipeline, said: dict[str, Tensor], unsaid: dict[str, Tensor] | None, guidance: Guidance) -> dict[str, Any]:
    """Arguments of the pipeline's call."""
    found: dict[str, Any] = {"guidance_scale": guidance.scale}
    for prefix, one in (("", said), ("negative_", unsaid)):
        if one:
            found[f"{prefix}prompt_embeds_t5"], found[f"{prefix}prompt_embeds_llama3"] = one["encoder_hidden_states"], one["llama"].transpose(0, 1)
            found[f"{prefix}pooled_prompt_embeds"] = one["pooled"]
    return found


def file_keys(pipe: HiDreamImagePipeline) -> dict[str, str]:
    """`component.module.path` of every linear layer -> its name in a LoRA file, which is the same."""
    return pipelines.own_names(pipe, components)


def tiny(folder: Path) -> Path:
    """A random 3 MB model of this architecture, saved in `folder`; needs no network."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, HiDreamImagePipeline, HiDreamImageTransformer2DModel

    from trainer import toys

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, second = toys.clip("CLIPTextModelWithProjection"), toys.clip("CLIPTextModelWithProjection")
        third, fourth = toys.t5(32, tokens=32), toys.llama()
        transformer = HiDreamImageTransformer2DModel(
            patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=4,
            caption_channels=(32, 32), text_emb_dim=64, num_routed_experts=4, num_activated_experts=2, axes_dims_rope=(8, 4, 4), max_resolution=(32, 32),
            llama_layers=(0, 1),
        )  # fmt: skip
        scheduler, vae = FlowMatchEulerDiscreteScheduler(shift=3.0), toys.autoencoder(4, 0.3611, 0.1159)
        pipe = HiDreamImagePipeline(scheduler, vae, *first, *second, *third, *fourth, transformer)
    pipe.save_pretrained(str(folder))
    return folder
