"""Where the trigger words of a stack's adapters stand among the tokens that the denoiser attends to.

Words are found in the prompt as `with_triggers` finds them, then every token that covers one of their characters
counts: a word may be several tokens, a trigger several words, and it may stand in the prompt more than once. Of the
several triggers of one adapter each that stands there counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trainer import families
from trainer.config import AdapterChoice, StackConfig
from trainer.data import trigger_spans
from trainer.errors import ConfigError
from trainer.render import pipeline_call, prompting

# The first character of a token in the text, the character after its last, and its place in the text encoder's output.
_Token = tuple[int, int, int]


def positions(pipe: Any, stack: StackConfig, triggers: str) -> set[int]:
    """Places in the text encoder's output, over all its windows, of the tokens of these trigger words.

    `triggers` are divided by commas. Empty if the prompt has none of them.
    """
    is_weighted = pipeline_call.is_weighted(pipe, families.of(pipe), stack)
    text, tokens = _by_window(pipe, stack.prompt) if is_weighted else _in_one(pipe, stack.prompt)
    spans = [
        span for word in prompting.split_triggers(triggers) for span in trigger_spans(text, _written_out(pipe, word))
    ]
    return {place for start, end, place in tokens if any(start < after and before < end for before, after in spans)}


def check(pipe: Any, stack: StackConfig, adapters: Sequence[tuple[AdapterChoice, str]]) -> None:
    """Each adapter, given with its trigger words, has tokens of its own in the prompt and no region.

    Raises: ConfigError that names the adapter.
    """
    if stack.steps < 2:
        raise ConfigError(
            f"mode is {stack.mode!r}, which watches the first steps, but steps is {stack.steps}; allowed with it: at "
            f"least 2."
        )
    # Places of tokens, by the adapter that has them.
    taken: dict[int, str] = {}
    for adapter, triggers in adapters:
        name = adapter.name or adapter.file
        if adapter.region.strip():
            raise ConfigError(
                f"mode is {stack.mode!r}, which finds each LoRA's region, but {name} has the region "
                f"{adapter.region[:40]!r}; allowed: none."
            )
        if not prompting.split_triggers(triggers):
            raise ConfigError(
                f"mode is {stack.mode!r}, but {name} has no trigger word in its header; allowed: LoRAs that name "
                f"theirs."
            )
        places = positions(pipe, stack, triggers)
        if not places:
            raise ConfigError(
                f"mode is {stack.mode!r}, but the prompt has no trigger word of {name} ({triggers[:80]}); write "
                f"it there."
            )
        # A token that two adapters have speaks for neither.
        if shared := sorted({taken[place] for place in places if place in taken}):
            raise ConfigError(
                f"mode is {stack.mode!r}, but {name} ({triggers[:80]}) has trigger words in common with "
                f"{', '.join(shared)} in the prompt."
            )
        taken |= dict.fromkeys(places, name)


def _written_out(pipe: Any, text: str) -> str:
    """The text with words of several vectors as the pipeline writes them."""
    written: str = pipe.maybe_convert_prompt(text, pipe.tokenizer) if hasattr(pipe, "maybe_convert_prompt") else text
    return written


def _in_one(pipe: Any, prompt: str) -> tuple[str, list[_Token]]:
    """The prompt as the pipeline encodes it: one window."""
    text, tokenizer = _written_out(pipe, prompt), pipe.tokenizer
    encoded = tokenizer(text, truncation=True, max_length=tokenizer.model_max_length, return_offsets_mapping=True)
    return text, [(start, end, place) for place, (start, end) in enumerate(encoded.offset_mapping)]


def _by_window(pipe: Any, prompt: str) -> tuple[str, list[_Token]]:
    """The prompt without its marks as `weighted_embeddings` encodes it.

    Each piece is cut into tokens for itself, and the windows lie end to end.
    """
    size = int(pipe.tokenizer.model_max_length) - 2  # every window has a token before and one after the text
    text, tokens, window, filled = "", [], 0, 0
    for piece, weight in prompting.parse_attention(prompt):
        if (piece, weight) == prompting.BREAK:
            text, window, filled = f"{text}\n", window + 1, 0
            continue
        written = _written_out(pipe, piece)
        for start, end in pipe.tokenizer(written, add_special_tokens=False, return_offsets_mapping=True).offset_mapping:
            if filled == size:
                window, filled = window + 1, 0
            tokens.append((len(text) + start, len(text) + end, window * (size + 2) + 1 + filled))
            filled += 1
        text += written
    return text, tokens
