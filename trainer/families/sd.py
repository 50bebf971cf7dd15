"""Stable Diffusion 1.x and 2.x: a UNet with one CLIP text encoder. Imprimatura is one of them.

The autoencoder may be a KL one (latents are the mode of its posterior, scaled) or a tiny one (deterministic).
transformers >= 5.6 dropped `text_model.` from CLIPTextModel's module paths; every other tool still expects it in a
LoRA file, so `file_keys` puts it back.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainer import foreign_json, pipelines
from trainer.lazy import diffusers, torch, transformers

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline
    from torch import Tensor, nn

    from trainer.objective import Guidance, Schedule

name = "sd"
title = "Stable Diffusion 1.x / 2.x"
pipeline = "StableDiffusionPipeline"
prediction = ("epsilon", "v")
guidance = "classifier-free"
default_px = 512
usual = (25, 7.5)  # the pipeline's own guidance; of its 50 steps half do
multiple_px = 8
patch = 1
components = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
file_names = "kohya"
words = {"text_encoder": "string_to_param.*"}
architecture = "stable-diffusion-v1/lora"
base_version = "sd_v1"

_KINDS: dict[str, Literal["epsilon", "v"]] = {"epsilon": "epsilon", "v_prediction": "v"}
_ATTENTION = r"attn[12]\.to_(q|k|v|out\.0)"
_FEED_FORWARD = r"ff\.net\.(0\.proj|2)"
_CONVOLUTIONS = r"proj_in|proj_out|conv[12]|conv_shortcut|[du][a-z]+samplers\.0\.conv"
targets = {
    "attention": rf".*\.{_ATTENTION}",
    "attention-ff": rf".*\.({_ATTENTION}|{_FEED_FORWARD})",
    "linear": rf".*\.({_ATTENTION}|{_FEED_FORWARD}|time_emb_proj)",
    "all": rf".*\.({_ATTENTION}|{_FEED_FORWARD}|time_emb_proj|{_CONVOLUTIONS})",
}
text_targets = r".*\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"
text_layers = r"\.attn2\.to_[kv]$"
placeless_layers = ""
joined_layers = ""
cross_attention = (r"up_blocks\.(.*\.)?attn2", r"(down_blocks|mid_block)\.(.*\.)?attn2")  # the decoder's, else all


def load(folder: Path, device: str, dtype: torch.dtype) -> diffusers.StableDiffusionPipeline:
    """The pipeline of a diffusers folder, frozen, in eval mode; nothing is fetched and no remote code runs."""
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(
        str(folder),
        torch_dtype=dtype,
        local_files_only=True,
        use_safetensors=True,
        safety_checker=None,
        requires_safety_checker=False,
    ).to(device)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.requires_grad_(False).eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def prediction_of(folder: Path) -> str:
    """What the model in this diffusers folder predicts, read from its scheduler's config."""
    config = foreign_json.table(folder / "scheduler" / "scheduler_config.json")
    return _KINDS[config.get("prediction_type", "epsilon")]


def window(pipe: StableDiffusionPipeline) -> int:
    """How many tokens of a caption the text encoder reads, its two marks left out."""
    return int(pipe.tokenizer.model_max_length) - 2


def count_tokens(pipe: StableDiffusionPipeline, caption: str) -> int:
    """How many tokens a caption has, without the two marks."""
    return len(pipe.tokenizer(pipe.maybe_convert_prompt(caption, pipe.tokenizer), add_special_tokens=False).input_ids)


def num_chunks(pipe: StableDiffusionPipeline, caption: str) -> int:
    """How many windows a caption fills, at least one."""
    return max(1, -(-count_tokens(pipe, caption) // window(pipe)))


def encode_text(pipe: StableDiffusionPipeline, captions: list[str], chunks: int) -> list[dict[str, Tensor]]:
    """One `{encoder_hidden_states: (chunks * L, D)}` a caption; L is the encoder's window with its marks.

    One chunk is encoded by the pipeline itself. More are encoded window by window and laid end to end, as A1111 and
    sd-scripts do; what is beyond the last is cut off.
    """
    if chunks == 1:
        hidden, _ = pipe.encode_prompt(captions, pipelines.device_of(pipe), 1, do_classifier_free_guidance=False)
        return [{"encoder_hidden_states": row} for row in hidden]
    tokenizer, size = pipe.tokenizer, window(pipe)
    rows: list[dict[str, Tensor]] = []
    for caption in captions:
        ids = tokenizer(pipe.maybe_convert_prompt(caption, tokenizer), add_special_tokens=False).input_ids
        parts = [ids[start * size : (start + 1) * size] for start in range(chunks)]
        hidden, _ = encode_windows(pipe, parts)  # one of (chunks, L, D)
        rows.append({"encoder_hidden_states": hidden[0].flatten(0, 1)})  # (chunks * L, D)
    return rows


def encode_windows(pipe: StableDiffusionPipeline, windows: list[list[int]]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The text encoder's hidden states of k windows of token ids without marks: one tensor (k, L, D); nothing else."""
    tokenizer, size = pipe.tokenizer, window(pipe)
    first, last, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    marked = [[first, *part, last, *[pad] * (size - len(part))] for part in windows]
    return [pipe.text_encoder(torch.tensor(marked, device=pipelines.device_of(pipe)))[0]], {}


def encode_image(pipe: StableDiffusionPipeline, images: Tensor) -> Tensor:
    """Latents (B, C, H/f, W/f) of images (B, 3, H, W) in [-1, 1], scaled as the denoiser knows them."""
    # The mean of the autoencoder's distribution, not a draw from it: latents are cached, and alike in every epoch.
    encoded = pipe.vae.encode(images.to(pipe.vae.device, pipe.vae.dtype))
    latents: Tensor = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
    scale: float = pipe.vae.config.scaling_factor
    return latents * scale


def prepare_batch(conditionings: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """`{encoder_hidden_states: (B, L, D)}`."""
    return pipelines.together(conditionings, *conditionings[0])


def denoise(denoiser: nn.Module, noised: Tensor, timesteps: Tensor, conditioning: dict[str, Tensor]) -> Tensor:
    """The prediction (B, C, h, w) for noised latents at integer timesteps (B,)."""
    prediction: Tensor = denoiser(noised, timesteps, conditioning["encoder_hidden_states"]).sample
    return prediction


def schedule(pipe: StableDiffusionPipeline) -> Schedule:
    """The training noise of this base: its scheduler's own alphas and prediction type."""
    from trainer.objective import Schedule

    return Schedule(
        prediction=_KINDS[pipe.scheduler.config.prediction_type],
        alphas_cumprod=pipe.scheduler.alphas_cumprod.float().cpu(),
    )


def call_settings(
    pipe: StableDiffusionPipeline, positive: dict[str, Tensor], negative: dict[str, Tensor] | None, guidance: Guidance
) -> dict[str, Any]:
    """Arguments of the pipeline's call."""
    return {
        "prompt_embeds": positive["encoder_hidden_states"],
        "negative_prompt_embeds": negative["encoder_hidden_states"] if negative else None,
        "guidance_scale": guidance.scale,
        "guidance_rescale": guidance.rescale if guidance.scale > 1 else 0.0,
    }


def is_v2(pipe: StableDiffusionPipeline) -> bool:
    """True for Stable Diffusion 2.x, whose text encoder is 1,024 wide."""
    return bool(pipe.text_encoder.config.hidden_size == 1024)


def file_keys(pipe: StableDiffusionPipeline) -> dict[str, str]:
    """`component.module.path` of every linear and convolution -> its kohya key, as sd-scripts spells it."""
    keys = {}
    for component, prefix in components.items():
        for path, module in getattr(pipe, component).named_modules():
            if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
                spelled = path.replace(".base_layer", "")
                if component == "text_encoder" and not spelled.startswith("text_model."):
                    spelled = f"text_model.{spelled}"
                keys[f"{component}.{path}"] = prefix + spelled.replace(".", "_")
    return keys


def tiny(folder: Path) -> Path:
    """A random 0.4 MB model of this architecture (KL autoencoder, epsilon), saved in `folder`; needs no network."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        str(Path(__file__).parents[1] / "imprimatura" / "tokenizer"), local_files_only=True
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = diffusers.UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, layers_per_block=1,
            block_out_channels=(16, 32), norm_num_groups=8, cross_attention_dim=32,
            attention_head_dim=8, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip
        vae = diffusers.AutoencoderKL(
            block_out_channels=(8, 16),
            norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
        )
        text = transformers.CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        scheduler = diffusers.DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        )
        pipe = diffusers.StableDiffusionPipeline(
            vae, transformers.CLIPTextModel(text), tokenizer, unet, scheduler, None, None, requires_safety_checker=False
        )
    pipe.save_pretrained(str(folder))
    return folder
