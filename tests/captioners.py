"""Captioning models in folders, tiny and random: what they say means nothing, how they are asked is real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from trainer import tiny_parts

_TURNS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}IMAGE{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _saved(model: Any, folder: Path) -> None:
    """Few words, so that tests are quick."""
    model.generation_config.max_new_tokens = 8
    model.save_pretrained(folder)


def blip(folder: Path) -> Path:
    """A BLIP that answers in letters."""
    torch.manual_seed(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]"]
    words = [*marks, *letters, *(f"##{letter}" for letter in letters)]
    text = {
        "vocab_size": len(words), "hidden_size": 16, "encoder_hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 512, "bos_token_id": 5,
        "eos_token_id": 3, "pad_token_id": 0, "sep_token_id": 3,
    }  # fmt: skip
    sight = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
        "patch_size": 16,
    }  # fmt: skip
    config = transformers.BlipConfig(
        text_config=text, vision_config=sight, projection_dim=16, image_text_hidden_size=16
    )
    _saved(transformers.BlipForConditionalGeneration(config), folder)
    tokenizer = transformers.BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    pixels = transformers.BlipImageProcessorPil(size={"height": 32, "width": 32})
    transformers.BlipProcessor(pixels, tokenizer).save_pretrained(folder)
    return folder


def llava(folder: Path) -> Path:
    """A LLaVA of bytes, with a chat template."""
    torch.manual_seed(0)
    tokenizer = tiny_parts.llama()[1]
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>"]})
    text = {
        "model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
    }  # fmt: skip
    sight = {
        "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14, "projection_dim": 16,
    }  # fmt: skip
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    config = transformers.LlavaConfig(text_config=text, vision_config=sight, image_token_index=image_token)
    _saved(transformers.LlavaForConditionalGeneration(config), folder)
    pixels = transformers.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    transformers.LlavaProcessor(
        pixels, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=_TURNS.replace("IMAGE", "<image>"),
    ).save_pretrained(folder)  # fmt: skip
    return folder


def qwen_vl(folder: Path) -> Path:
    """A Qwen 2.5-VL of bytes, whose processor also takes videos."""
    torch.manual_seed(0)
    model, tokenizer = tiny_parts.qwen_vl()
    _saved(model, folder)
    tokenizer.chat_template = _TURNS.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    tokenizer.save_pretrained(folder)
    transformers.Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=56 * 56).save_pretrained(folder)
    return folder


def florence2(folder: Path) -> Path:
    """A Florence-2 of bytes."""
    torch.manual_seed(0)
    bytes_ = [piece for piece in tiny_parts.llama()[1].get_vocab() if len(piece) == 1]
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *bytes_]
    tokenizer = transformers.RobertaTokenizer(
        vocab={word: number for number, word in enumerate(words)}, merges=[],
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
    text = {
        "model_type": "bart", "vocab_size": len(tokenizer), "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
        "max_position_embeddings": 512, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2,
        "decoder_start_token_id": 0, "forced_eos_token_id": 2, "init_std": 1.0,
    }  # fmt: skip
    sight = {
        "embed_dim": [8] * 4, "num_heads": [2] * 4, "num_groups": [2] * 4, "depths": [1] * 4, "window_size": 2,
        "projection_dim": 32,
    }  # fmt: skip
    config = transformers.Florence2Config(
        text_config=text, vision_config=sight, image_token_id=tokenizer.image_token_id
    )
    _saved(transformers.Florence2ForConditionalGeneration(config), folder)
    pixels = transformers.CLIPImageProcessorPil(size={"height": 64, "width": 64}, do_center_crop=False)
    pixels.image_seq_length = 5
    rules = {"ocr": {"pattern": "(.+?)<loc_0>", "area_threshold": 0.0}, "phrase_grounding": {}, "pure_text": {}}
    kinds = ("description_with_bboxes", "description_with_polygons", "polygons", "bboxes",
             "description_with_bboxes_or_polygons")  # fmt: skip
    transformers.Florence2Processor(
        pixels, tokenizer, post_processor_config=rules | {kind: {} for kind in kinds}
    ).save_pretrained(folder)
    return folder
