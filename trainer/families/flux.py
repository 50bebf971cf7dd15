"""FLUX.1, dev and schnell: a transformer that predicts flow; T5 encodes a caption's tokens, CLIP the whole of it.

Latents go in as tokens of 2 x 2. dev is distilled: how closely it follows a prompt is one of its inputs, and no second
pass is made for it; it is trained at 1 there, as the trainers that publish settings do. Guidance by a negative prompt
(`true_scale`) is a second pass on top. schnell has no such input. T5 is never adapted.

A plain LoRA of the blocks of a real base, 3072 wide, is written in kohya's names, which are Black Forest Labs' own: q,
k and v in one module, as sd-scripts writes it and every tool reads it. diffusers' reader of these names has that width
built in and loses what lies outside the blocks (0.42: `_convert_kohya_flux_lora_to_diffusers`), so files of other
widths and of the embedders ("all") keep diffusers' names at scale 1, and so does what isn't plain LoRA, which has no
fused form; diffusers, ComfyUI, Forge and InvokeAI read those too.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import foreign_json, pipelines, tiny_parts
from trainer.lazy import diffusers, torch

if TYPE_CHECKING:
    import torch
    from diffusers import FluxPipeline
    from torch import Tensor, nn

    from trainer.objective import Guidance

name = "flux"
title = "FLUX.1"
pipeline = "FluxPipeline"
prediction = ("flow",)
guidance = "distilled"
unfit_samplers = ("flow_heun",)  # the pipeline gives the scheduler its sigmas, which that sampler doesn't take
default_px = 1024
usual = (28, 3.5)  # the pipeline's own
multiple_px = 16
patch = 2
components = {"transformer": "transformer.", "text_encoder": "text_encoder."}
file_names = "peft"
words: dict[str, str] = {}
architecture = "flux-1-dev/lora"
base_version = "flux1"

_TRAINED_GUIDANCE = 1.0
_KOHYA_WIDTH = 3072
_ATTENTION = r"attn\.(to_(q|k|v|out\.0|add_out)|add_[qkv]_proj)"
_FEED_FORWARD = r"ff(_context)?\.net\.(0\.proj|2)|proj_mlp|proj_out"
_BLOCKS = r"(single_)?transformer_blocks\.\d+"
targets = {
    "attention": rf"{_BLOCKS}\.{_ATTENTION}",
    "attention-ff": rf"{_BLOCKS}\.({_ATTENTION}|{_FEED_FORWARD})",
    "linear": rf"{_BLOCKS}\.({_ATTENTION}|{_FEED_FORWARD}|norm(1|1_context)?\.linear)",
    "all": rf"{_BLOCKS}\.({_ATTENTION}|{_FEED_FORWARD}|norm(1|1_context)?\.linear)|x_embedder|context_embedder",
}
text_targets = r".*\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"
text_layers = r"\.attn\.(add_[kqv]_proj|to_add_out)$"
placeless_layers = r"\.context_embedder|_context\."
joined_layers = r"\.single_transformer_blocks\."
encode_image = pipelines.encode_image
is_v2 = pipelines.is_not_v2
prediction_of = pipelines.predicts_flow
schedule = pipelines.flow_schedule


def usual_of(folder: Path) -> tuple[int, float]:
    """Steps and guidance that this base is drawn with.

    schnell has no input for guidance and takes 4 steps (its model card).
    """
    is_guided = foreign_json.table(folder / "transformer" / "config.json").get("guidance_embeds")
    return usual if is_guided else (4, 1.0)


def load(folder: Path, device: str, dtype: torch.dtype) -> FluxPipeline:
    """The pipeline of a diffusers folder, frozen, in eval mode; nothing is fetched and no remote code runs."""
    return pipelines.load(pipeline, folder, device, dtype)


def _tokens(pipe: FluxPipeline) -> int:
    """T5's window: 512 tokens for dev, 256 for schnell."""
    return 512 if pipe.transformer.config.guidance_embeds else 256


def window(pipe: FluxPipeline) -> int:
    """How many tokens of a caption T5 reads, its mark left out."""
    return _tokens(pipe) - 1


def count_tokens(pipe: FluxPipeline, caption: str) -> int:
    """How many tokens a caption has for T5, without its mark."""
    return len(pipe.tokenizer_2(caption, add_special_tokens=False).input_ids)


def encode_text(pipe: FluxPipeline, captions: list[str], chunks: int) -> list[dict[str, Tensor]]:
    """One `{encoder_hidden_states: (L, D), pooled: (P,)}` a caption.

    CLIP, which gives `pooled`, cuts long captions off at its own, shorter window.
    """
    hidden, pooled, _ = pipe.encode_prompt(
        captions, None, device=pipelines.device_of(pipe), max_sequence_length=_tokens(pipe)
    )
    return [{"encoder_hidden_states": row, "pooled": whole} for row, whole in zip(hidden, pooled, strict=True)]


def prepare_batch(conditionings: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """`{encoder_hidden_states: (B, L, D), pooled: (B, P)}`."""
    return pipelines.together(conditionings, "encoder_hidden_states", "pooled")


def denoise(denoiser: nn.Module, noised: Tensor, timesteps: Tensor, conditioning: dict[str, Tensor]) -> Tensor:
    """The prediction (B, C, h, w), noise minus latents, for noised latents at timesteps (B,) from 1 to 1000."""
    text = conditioning["encoder_hidden_states"]
    config: Any = denoiser.config
    prediction: Tensor = denoiser(
        hidden_states=pipelines.tokens(noised),
        timestep=timesteps / 1000,
        guidance=torch.full((len(noised),), _TRAINED_GUIDANCE, device=noised.device)
        if config.guidance_embeds
        else None,
        pooled_projections=conditioning["pooled"],
        encoder_hidden_states=text,
        txt_ids=torch.zeros(text.shape[1], 3, device=noised.device, dtype=noised.dtype),
        img_ids=pipelines.places(noised, 3),
    ).sample
    return pipelines.latents(prediction, noised)


def call_settings(
    pipe: FluxPipeline, positive: dict[str, Tensor], negative: dict[str, Tensor] | None, guidance: Guidance
) -> dict[str, Any]:
    """Arguments of the pipeline's call."""
    settings = pipelines.pooled_call(positive, negative, guidance)
    return settings | {"true_cfg_scale": guidance.true_scale} if negative else settings


def file_keys(pipe: FluxPipeline) -> dict[str, str]:
    """`component.module.path` of every linear layer -> its name in a LoRA file.

    The names are the same, with CLIP's `text_model.` put back where transformers dropped it.
    """
    keys = {}
    for component, prefix in components.items():
        for path, module in getattr(pipe, component).named_modules():
            if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
                spelled = path.replace(".base_layer", "")
                if component == "text_encoder" and not spelled.startswith("text_model."):
                    spelled = f"text_model.{spelled}"
                keys[f"{component}.{path}"] = prefix + spelled
    return keys


def named_as(pipe: FluxPipeline, modules: set[str]) -> tuple[str, str]:
    """Scheme and published size to write a plain LoRA of these modules in; both empty where diffusers can't read it."""
    is_whole = all("transformer_blocks." in module or module.startswith("text_encoder.") for module in modules)
    return ("kohya", "dev / schnell") if is_whole and pipe.transformer.inner_dim == _KOHYA_WIDTH else ("", "")


def tiny(folder: Path) -> Path:
    """A random 1 MB model of this architecture (dev's guidance input), saved in `folder`; needs no network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = diffusers.FluxTransformer2DModel(
            patch_size=1, in_channels=16, num_layers=2, num_single_layers=2,
            attention_head_dim=16, num_attention_heads=4, joint_attention_dim=32,
            pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
        )  # fmt: skip
        clip, t5, vae = tiny_parts.clip("CLIPTextModel"), tiny_parts.t5(32), tiny_parts.autoencoder(4, 0.3611, 0.1159)
        pipe = diffusers.FluxPipeline(
            diffusers.FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True, shift=3.0, base_shift=0.5, max_shift=1.15
            ),
            vae,
            *clip,
            *t5,
            transformer,
        )
    pipe.save_pretrained(str(folder))
    return folder
