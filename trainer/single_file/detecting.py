"""Which model a checkpoint file holds, by the names and shapes of its tensors.

Names are facts of the code each model was published with; where those are diffusers' own,
`diffusers/loaders/single_file_utils.py` (Apache-2.0) names the same ones. Names don't show everything: an SD 2.x file
may predict v or the noise. A marker tensor (`v_pred`, `ztsnr`: NoobAI's and ComfyUI's) or the file's own metadata
(modelspec) decides; without either, SD 2.x is taken for v, as the 768 px models are, and everything else for epsilon.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer import families
from trainer.errors import ModelError
from trainer.single_file.head import Head

# Family (its module's name, whether that is here or not), title, and names that all must be there, after the denoiser's
# prefix.
_TRANSFORMERS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("flux3", "FLUX.3", ("early_stream_modulations.image.lin.weight",)),
    ("flux2", "FLUX.2", ("single_stream_modulation.lin.weight",)),
    ("chroma", "Chroma", ("distilled_guidance_layer.in_proj.weight",)),
    ("hunyuan_video", "HunyuanVideo", ("txt_in.individual_token_refiner.blocks.0.adaLN_modulation.1.bias",)),
    ("flux", "FLUX.1", ("double_blocks.0.img_attn.norm.key_norm.scale",)),
    ("sd3", "Stable Diffusion 3 / 3.5", ("joint_blocks.0.context_block.adaLN_modulation.1.bias",)),
    ("auraflow", "AuraFlow", ("double_layers.0.attn.w2q.weight",)),
    ("zimage", "Z-Image", ("layers.0.adaLN_modulation.0.weight", "cap_embedder.0.weight")),
    ("lumina2", "Lumina 2", ("cap_embedder.0.weight",)),
    ("qwen", "Qwen-Image", ("transformer_blocks.0.img_mod.1.weight",)),
    ("hidream", "HiDream", ("double_stream_blocks.0.block.adaLN_modulation.1.bias",)),
    ("sana", "Sana", ("blocks.0.cross_attn.q_linear.weight", "blocks.0.mlp.inverted_conv.conv.weight")),
    ("pixart", "PixArt", ("blocks.0.cross_attn.q_linear.weight", "t_block.1.weight")),
    ("wan", "Wan", ("head.modulation",)),
    ("ltx", "LTX-Video", ("patchify_proj.weight",)),
    ("krea2", "Krea 2", ("txtfusion.projector.weight",)),
    ("hunyuan_dit", "HunyuanDiT", ("blocks.0.default_modulation.1.weight",)),
    ("cascade", "Stable Cascade", ("clip_txt_mapper.weight",)),
    (
        "flux",
        "FLUX.1",
        ("single_transformer_blocks.0.attn.to_q.weight", "context_embedder.weight", "x_embedder.weight"),
    ),
    ("sd3", "Stable Diffusion 3 / 3.5", ("transformer_blocks.0.attn.add_q_proj.weight", "pos_embed.proj.weight")),
)
_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "net.", "model.", "transformer.", "unet.", "")
_DIFFUSERS_UNET = (
    "conv_in.weight",
    "time_embedding.linear_1.weight",
    "down_blocks.0.resnets.0.conv1.weight",
    "conv_out.weight",
)
# What isn't a base, by names any of which gives it away.
_OTHERS = (
    ("a ControlNet", ("control_model.", "controlnet_", "input_hint_block.", "controlnet_cond_embedding.")),
    ("an IP-Adapter", ("ip_adapter.", "image_proj.")),
    ("an embedding (a new word)", ("emb_params", "string_to_param")),
    ("an autoencoder (VAE) alone", ("decoder.conv_in.", "first_stage_model.", "vae.", "decoder.conv1.")),
    (
        "a text encoder alone",
        ("text_model.", "encoder.block.", "transformer.resblocks.", "model.embed_tokens.", "text_encoders."),
    ),
)
_LORA = (".lora_", "_lora.", "lora_unet_", "lora_te", "lora_transformer_", ".hada_w", ".lokr_w", "oft_blocks")
_SCALES = (".scale_weight", ".weight_scale", "scaled_fp8", ".absmax", ".quant_state")
_INPAINTING = {9: "inpainting", 8: "instruct-pix2pix", 5: "depth", 7: "upscaler"}


@dataclass(frozen=True)
class Detected:
    """What a file's names and shapes say."""

    family: str  # a module's name in `families`, whether it is here or not
    title: str
    variant: str  # sd1, sd2, sdxl ...: which architecture of the family; empty where the shapes fit none that is known
    prefix: str  # of the denoiser's names
    prediction: str | None  # epsilon or v, where a UNet may be either
    why: str  # what that was read from
    zero_snr: bool = False  # noise to the very end: rescale_betas_zero_snr
    certain: bool = False  # the prediction was stated, not guessed


def detect(head: Head) -> Detected:
    """The model in a file. Raises: ModelError for what is no base, or a variant of a base that can't be trained."""
    names = head.shapes
    if any(part in name for name in names for part in _LORA):
        raise ModelError(
            f"{head.path} is a LoRA, not a base; allowed: a whole model. `velatura inspect` says what is in it."
        )
    # Quantised weights.
    scaled = next((name for name in names if name.endswith(_SCALES)), None)
    if scaled or any("bitsandbytes" in name for name in names):
        raise ModelError(
            f"{head.path} has quantised weights with scales beside them ({scaled}); allowed: float32, float16, "
            f"bfloat16, or plain float8."
        )
    # A denoiser, under any prefix.
    for prefix in _PREFIXES:
        if prefix + "input_blocks.0.0.weight" in names and prefix + "time_embed.0.weight" in names:
            return _unet(head, prefix)
        for family, title, markers in _TRANSFORMERS:
            if all(prefix + marker in names for marker in markers):
                # FLUX.1 in diffusers' names has no blueprint.
                variant = family if markers[0] != "single_transformer_blocks.0.attn.to_q.weight" else ""
                return _transformer(head, Detected(family, title, variant, prefix, None, ""))
        if all(prefix + name in names for name in _DIFFUSERS_UNET):
            _refuse_channels(head, prefix + "conv_in.weight")
            family = "sdxl" if prefix + "add_embedding.linear_1.weight" in names else "sd"
            return Detected(family, _title(family), "", prefix, *_prediction(head, False))
    # No denoiser.
    for what, starts in _OTHERS:
        if any(name.startswith(starts) for name in names):
            raise ModelError(
                f"{head.path} is {what}, not a base; allowed: a file that holds a denoiser (UNet or transformer)."
            )
    some = ", ".join(sorted(names)[:3]) or "nothing"
    raise ModelError(
        f"{head.path} is no model that is known here: its tensors are {some[:300]} ...; allowed: "
        f"{', '.join(families.registry())}."
    )


def trained_here(detected: Detected) -> bool:
    """True if there is a family for it."""
    return detected.family in families.registry()


def refuse_strangers(detected: Detected, path: str, family: str) -> None:
    """Raises: ModelError if the file is another family's, or of none that is here."""
    if not trained_here(detected):
        raise ModelError(
            f"base {path!r} is {detected.title}, which no family here trains yet; allowed: "
            f"{', '.join(families.registry())}."
        )
    if detected.family != family:
        raise ModelError(
            f"base {path!r} is {detected.title} (family {detected.family}), by its tensors' names; family is "
            f"{family!r}: set family to {detected.family!r}."
        )


def _title(family: str) -> str:
    return str(families.registry()[family].title)


def _refuse_channels(head: Head, name: str) -> None:
    """Raises: ModelError if the first convolution takes more than latents, as inpainting models' does."""
    channels = head.shapes[name][1:2]
    if channels and channels[0] in _INPAINTING:
        raise ModelError(
            f"{head.path} is an {_INPAINTING[channels[0]]} model (its UNet takes {channels[0]} channels); allowed: 4 "
            f"channels. Take the model it was made from."
        )


def _unet(head: Head, prefix: str) -> Detected:
    """Which Stable Diffusion a UNet in LDM's names is, by the width of the text and the input of labels."""
    _refuse_channels(head, prefix + "input_blocks.0.0.weight")
    # What attention to the text reads is as wide as the text encoder's output.
    widths = {
        head.shapes[name][-1]
        for name in head.under(prefix)
        if name.endswith(".attn2.to_k.weight") and head.shapes[name]
    }
    width = widths.pop() if len(widths) == 1 else 0
    labelled = prefix + "label_emb.0.0.weight" in head.shapes
    if labelled and width in (1280, 1024):
        raise ModelError(
            f"{head.path} is {'SDXL refiner' if width == 1280 else 'SD 2.1 unCLIP'}, which is no base to train; "
            f"allowed: a base model."
        )
    is_base = head.shapes[prefix + "input_blocks.0.0.weight"][0] == 320
    if labelled:
        deep = prefix + "input_blocks.7.1.transformer_blocks.9.attn2.to_k.weight" in head.shapes
        variant = "sdxl" if is_base and width == 2048 and deep else ""
        return Detected("sdxl", _title("sdxl"), variant, prefix, *_prediction(head, False))
    deep = prefix + "input_blocks.11.0.in_layers.0.weight" in head.shapes
    variant = {768: "sd1", 1024: "sd2"}.get(width, "") if is_base and deep else ""
    return Detected("sd", _title("sd"), variant, prefix, *_prediction(head, variant == "sd2"))


def _prediction(head: Head, often_v: bool) -> tuple[str, str, bool, bool]:
    """What a UNet predicts, why, whether its noise reaches the very end, and whether that is certain."""
    zero_snr = "ztsnr" in head.shapes
    if "v_pred" in head.shapes:
        return "v", "its tensor v_pred", zero_snr, True
    stated = head.metadata.get("modelspec.prediction_type", "")
    if stated in ("v", "epsilon"):
        return stated, "its metadata", zero_snr, True
    if often_v:
        why = "a guess, since SD 2.x files don't say: for a 512 px base add it with --prediction epsilon"
        return "v", why, zero_snr, False
    return "epsilon", "no sign of v in it", zero_snr, False


def _transformer(head: Head, detected: Detected) -> Detected:
    """What was detected. Raises: ModelError for FLUX.1's models that take more than latents."""
    shape = head.shapes.get(detected.prefix + "img_in.weight") if detected.family == "flux" else None
    if shape and len(shape) == 2 and shape[1] in (384, 128, 196, 256):
        raise ModelError(
            f"{head.path} is FLUX.1 Fill, Depth or Canny (it takes {shape[1]} values a token); allowed: dev, schnell "
            f"or one made from them, which take 64."
        )
    return detected
