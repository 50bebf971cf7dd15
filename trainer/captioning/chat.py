"""Models to chat with that can see (LLaVA, JoyCaption, Qwen-VL, SmolVLM, ...): told what to say in words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.captioning.contract import Describe, Kind
from trainer.captioning.opened_model import check_weights, in_words, opened
from trainer.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from PIL import Image

MAX_INSTRUCTION_CHARS = 4000
_FIRST = "Describe this picture in one paragraph of plain sentences, as a caption to train an image model with."
_LAST = "Say only what can be seen. Do not begin with “The image shows”, and do not guess names."
CHARACTER = f"{_FIRST} Name pose, expression, clothes, what is done, the setting, the light and the framing. {_LAST}"
STYLE = f"{_FIRST} Name everything that is shown, and say nothing of how it is drawn or painted. {_LAST}"
# Those of transformers that take a picture and a chat; it is known by name so that help and page need not load them.
TYPES = frozenset({
    "aria", "aya_vision", "cohere2_vision", "deepseek_vl", "deepseek_vl_hybrid", "fast_vlm", "gemma3", "gemma3n",
    "gemma4", "glm46v", "glm4v", "glm4v_moe", "idefics2", "idefics3", "internvl", "janus", "lfm2_vl", "llama4", "llava",
    "llava_next", "llava_onevision", "mistral3", "mllama", "molmo2", "ovis2", "perception_lm", "qwen2_5_vl", "qwen2_vl",
    "qwen3_5", "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe", "smolvlm", "vipllava",
})  # fmt: skip


def _check(folder: Path, instruction: str) -> None:
    if not 0 < len(instruction) <= MAX_INSTRUCTION_CHARS:
        raise ConfigError(
            f"the instruction has {len(instruction):,} characters; allowed: 1 to {MAX_INSTRUCTION_CHARS:,}."
        )
    check_weights(folder)


def _open(folder: Path, instruction: str) -> Describe:
    model = opened(folder)
    if not getattr(model.processor, "chat_template", None):
        raise ModelError(f"{folder.name} has no chat template; its folder lacks chat_template.jinja or .json.")

    def describe(picture: Image.Image) -> str:
        asked: list[dict[str, Any]] = [{"type": "image", "image": picture}, {"type": "text", "text": instruction}]
        with in_words(folder.name, "can't read its instruction"):
            inputs = model.processor.apply_chat_template(
                [{"role": "user", "content": asked}],
                add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
            )  # fmt: skip
        answer = model.generated(inputs)[0]
        return model.text(answer[inputs["input_ids"].shape[1] :])

    return describe


KIND = Kind(
    "chat model", TYPES, {"character": CHARACTER, "style": STYLE}, _check, _open, help="What it is told, in words."
)
