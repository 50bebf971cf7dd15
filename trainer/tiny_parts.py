"""Small parts that the families' `tiny()` put together: random models of the real architectures, made offline.

They are the same every time. The caller seeds torch. Tokenizers are Imprimatura's CLIP one and a T5 one that knows
letters only: it is built here, since a trained one would be a file of 150 kB to ship for nothing that a test would
notice.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

from trainer.lazy import diffusers, transformers

_TOKENIZER = Path(__file__).parent / "imprimatura" / "tokenizer"
_WIDTH = 32
_LETTERS = [letter for letter in string.printable if not letter.isspace()]


# Text encoders of CLIP and T5.


def clip(model: str, width: int = _WIDTH, tokens: int | None = None) -> tuple[Any, Any]:
    """A CLIP text encoder of this transformers class, and its tokenizer; by default of Imprimatura's window."""
    settings = {"model_max_length": tokens} if tokens else {}
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(_TOKENIZER), local_files_only=True, **settings)
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=width,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return getattr(transformers, model)(config), tokenizer


def t5(width: int, kind: str = "T5", tokens: int = 512) -> tuple[Any, Any]:
    """A T5 encoder, or one of T5's kin such as UMT5, and a tokenizer of letters that takes so many of them."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), *((letter, -3.0) for letter in _LETTERS)]
    tokenizer = transformers.T5Tokenizer(vocab=pieces, model_max_length=tokens, extra_ids=0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    return getattr(transformers, f"{kind}EncoderModel")(config), tokenizer


# Autoencoders.


def autoencoder(
    latent_channels: int, scaling_factor: float, shift_factor: float, stages: int = 3
) -> diffusers.AutoencoderKL:
    """A KL autoencoder whose latents are four times smaller than its pictures, or 2^(stages - 1) times."""
    return diffusers.AutoencoderKL(
        block_out_channels=(*[8] * (stages - 1), 16),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * stages,
        up_block_types=("UpDecoderBlock2D",) * stages,
        latent_channels=latent_channels,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


# Language models as text encoders.


def gemma(tokens: int) -> tuple[Any, Any]:
    """A Gemma 2 text model, 32 wide, and a tokenizer of letters that takes so many of them."""
    # Gemma's own marks, and a piece for each byte, which it falls back to.
    marks = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    vocabulary = {
        piece: number
        for number, piece in enumerate([*marks, *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *_LETTERS])
    }
    tokenizer = transformers.GemmaTokenizer(vocab=vocabulary, merges=[], model_max_length=tokens)
    config = transformers.Gemma2Config(
        vocab_size=len(tokenizer),
        head_dim=8,
        hidden_size=_WIDTH,
        intermediate_size=64,
        num_attention_heads=4,
        num_hidden_layers=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
    )
    return transformers.Gemma2Model(config), tokenizer


def deep_autoencoder(latent_channels: int, scaling_factor: float) -> Any:
    """A deep-compression autoencoder (as Sana's), whose latents are here four times smaller than its pictures."""
    blocks, channels = ("ResBlock", "ResBlock", "EfficientViTBlock"), (8, 8, 16)
    return diffusers.AutoencoderDC(
        latent_channels=latent_channels,
        attention_head_dim=4,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        encoder_qkv_multiscales=((), (), (5,)),
        decoder_qkv_multiscales=((), (), (5,)),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=scaling_factor,
    )


def _qwen_tokenizer(tokens: int) -> Any:
    """A tokenizer of bytes that takes so many of them, with the Qwen family's marks and chat template."""
    from tokenizers import pre_tokenizers

    names = ("endoftext", "im_start", "im_end", "vision_start", "vision_end", "vision_pad", "image_pad", "video_pad")
    marks = [f"<|{name}|>" for name in names]
    # The alphabet that byte-level tokenizers write bytes in; no merges, so that each byte is a token.
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = transformers.Qwen2Tokenizer(
        vocab={piece: number for number, piece in enumerate(letters)},
        merges=[],
        model_max_length=tokens,
        additional_special_tokens=marks[1:],
    )
    # Without the thinking of the real one, which pipelines leave out too.
    tokenizer.chat_template = (
        "{% for one in messages %}<|im_start|>{{ one.role }}\n"
        "{% if one.content is string %}{{ one.content }}{% else %}{% for part in one.content %}{{ part.text }}{% "
        "endfor %}{% endif %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer


def qwen(model: str, tokens: int = 4096, width: int = _WIDTH) -> tuple[Any, Any]:
    """A Qwen 3 text model of this transformers class and a tokenizer of bytes that takes so many of them."""
    tokenizer = _qwen_tokenizer(tokens)
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=1024,
    )
    return getattr(transformers, model)(config), tokenizer


def qwen_vl(width: int = _WIDTH) -> tuple[Any, Any]:
    """A Qwen 2.5-VL model that can see too, its heads 16 wide, and a tokenizer of bytes."""
    tokenizer = _qwen_tokenizer(4096)
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{mark}|>")
        for name, mark in (
            ("vision_start", "vision_start"),
            ("vision_end", "vision_end"),
            ("image", "image_pad"),
            ("video", "video_pad"),
        )
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": width // 16,
        "num_key_value_heads": 2,
        "rope_scaling": {"mrope_section": [2, 3, 3], "rope_type": "default", "type": "default"},
        "rope_theta": 1e6,
    }
    # The part that sees is as small as can be: prompts never use it.
    sight = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": width}
    return transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(text_config=text, vision_config=sight, **ids)
    ), tokenizer


def llama() -> tuple[Any, Any]:
    """A Llama model, 32 wide, of three layers, and a tokenizer of bytes."""
    tokenizer = _qwen_tokenizer(4096)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=_WIDTH,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
    )
    return transformers.LlamaForCausalLM(config), tokenizer


def mistral(tokens: int) -> tuple[Any, Any]:
    """A Mistral 3 model, 32 wide, that can see too, and a tokenizer of bytes that takes so many of them."""
    from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE

    # FLUX.2's long instruction is one token here, so that it fits.
    tokenizer = _qwen_tokenizer(tokens)
    tokenizer.add_tokens([SYSTEM_MESSAGE])
    text = {
        "model_type": "mistral",
        "vocab_size": len(tokenizer),
        "hidden_size": _WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 1024,
        "sliding_window": None,
    }
    sight = {
        "model_type": "pixtral",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 28,
        "patch_size": 14,
    }
    config = transformers.Mistral3Config(
        text_config=text, vision_config=sight, image_token_index=1, vision_feature_layer=-1
    )
    return transformers.Mistral3ForConditionalGeneration(config), tokenizer
