"""What a safetensors file holds that is no LoRA, or no LoRA that can be used here, by its tensors' names."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Patterns of names that any tensor may have -> what the file is.
_ADAPTERS = (
    (r"\.(on_input|ia3_l)(\.|$)", "an IA3, which stretches what layers give instead of adding to their weights"),
    (r"\.(boft_R|boft_s)(\.|$)", "a BOFT, which turns a layer's weights in several steps"),
    (r"\.(a1|a2|b1|b2|bm)\.weight$", "a GLoRA of LyCORIS"),
    (r"\.vera_lambda_[bd](\.|$)|^.*vera_[AB]$", "a VeRA, whose factors are drawn at random and not in the file"),
    (r"\.(lambda_layer|q_layer|p_layer)(\.|$)", "a T-LoRA of LyCORIS, whose rank goes with the noise"),
    (
        r"\.(fourierft_|hra_|vblora_|randlora_|bone_|miss_|shira_|waveft_|c3a_|road_|delora_)",
        "an adapter of a kind that only PEFT reads",
    ),
)
# The same where no tensor's name is a LoRA's.
_WHOLES = (
    (
        r"^(emb_params|clip_[lg]|t5xxl|string_to_param.*)$",
        "an embedding (textual inversion), which is a word and no LoRA",
    ),
    (r"^(image_proj|ip_adapter)", "an IP-Adapter"),
    (r"^(control_model|controlnet|controlnet_\w+)\.", "a ControlNet"),
    (
        r"^(model\.diffusion_model|first_stage_model|conditioner\.embedders|cond_stage_model)\.",
        "a whole model (a checkpoint), which can be a base",
    ),
    (r"^(encoder|decoder)\.(conv_in|down|up_blocks|down_blocks|mid)", "an autoencoder (VAE)"),
    (
        r"^((down_|up_|transformer_|double_|joint_|single_)?blocks|layers)\..*\.weight$",
        "a whole denoiser, not the change of one",
    ),
    (r"^text_model\.", "a text encoder"),
)


def explain(file: str, strange: Iterable[str], is_all: bool) -> str:
    """A sentence on what the file is, by names of its tensors that no LoRA has; empty if they tell nothing.

    `is_all` says that all of its names are such.
    """
    names = list(strange)[:1000]
    for pattern, kind in (*_ADAPTERS, *(_WHOLES if is_all else ())):
        example = next((name for name in names if re.search(pattern, name[:300])), None)
        if example is not None:
            return (
                f"{file} is {kind}, such as {example[:100]!r}; it can't be used as a LoRA. Allowed: LoRA, LoHa, "
                f"LoKr, DoRA and OFT, and full differences."
            )
    return ""
