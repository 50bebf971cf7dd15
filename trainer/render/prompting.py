"""The language of prompts: `<lora:name:weight>`, `{a|b}` and `__name__`, trigger words, `(word:1.3)`.

The spellings are A1111's and sd-dynamic-prompts'. Prompts come from anywhere: everything here is linear in their length and bounded in
depth, number and size; a file of alternatives is only ever found in the folder the caller names. A stack's prompt goes through
`spelled_out`, then `with_triggers`, then `weighted_pair`. What is spelled out once has nothing left in it to draw or to take out, so
that a recipe with the prompt as it was drawn gives the same picture again.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import families
from trainer.config import AdapterChoice, StackConfig, parse
from trainer.config.stack import USUAL_WEIGHT, WIDEST_WEIGHT
from trainer.data import has_trigger, wording
from trainer.errors import AdapterError, ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from trainer.lora_file import LoraInfo

MAX_CHARS = 8000  # of a prompt, drawn out; StackConfig.prompt has as many
MAX_DRAWS = 256  # lines drawn from files in one prompt
MAX_NESTED = 8  # files named by lines of files, tags made by tags
MAX_ROUNDS = 32  # of drawing braces, up to wording.MAX_WILDCARDS each
MAX_FILE_BYTES = 1 << 20
MAX_BRACKETS = 32  # open at once; deeper ones are literal text
_TAG = re.compile(r" ?<([A-Za-z]\w{0,31}):([^<>\n]{1,300})>")
_NUMBER = re.compile(r"[+-]?(?:\d{1,4}\.?\d{0,12}|\.\d{1,12})(?:e[+-]?\d{1,2})?", re.IGNORECASE)
_NAME = re.compile(r"__([A-Za-z0-9](?:[A-Za-z0-9-]|_(?!_)|/(?=[A-Za-z0-9])){0,79})__")
_SHARE = re.compile(r"\s{0,8}(\d{1,4}(?:\.\d{1,4})?|\.\d{1,4})::")
_ATTENTION = re.compile(r"\\[()\[\]\\]|\(|\[|:[ ]{0,4}([+-]?(?:\d{1,4}\.?\d{0,6}|\.\d{1,6}))[ ]{0,4}\)|\)|\]|[^\\()\[\]:]+|.", re.DOTALL)
_LEAST_MEAN = 0.02  # of the spread; below it the quotient of two means is chance. Imprimatura's is 0.001
_BREAK = re.compile(r"\bBREAK\b")
BREAK = ("BREAK", -1.0)  # in what `parse_attention` gives: what follows starts a new window


@dataclass(frozen=True)
class LoraTag:
    """A LoRA that a prompt names."""

    name: str
    weight: float = 1.0
    text_weight: float | None = None  # None: the same


@dataclass(frozen=True)
class Tagged:
    """A prompt without its tags, the LoRAs they name, and the tags that mean nothing here."""

    prompt: str
    loras: tuple[LoraTag, ...]
    unknown: tuple[str, ...]


# Tags.


def take_tags(prompt: str) -> Tagged:
    """The prompt without `<lora:...>` and any other `<word:...>`, which is named in `unknown`.

    As A1111 reads them (extensions-builtin/Lora/extra_networks_lora.py): the first number is the text encoder's weight, the second the
    denoiser's and the same if left out; `te=` and `unet=` go before both. `lyco` is `lora`.
    """
    loras, unknown = [], []

    def taken(match: re.Match[str]) -> str:
        tag = _lora(match[2]) if match[1] in ("lora", "lyco") else None
        loras.append(tag) if tag else unknown.append(match[0].strip())
        return ""

    for _ in range(MAX_NESTED):
        prompt, num = _TAG.subn(taken, prompt)
        if not num:
            break
    else:  # tags within tags within tags
        prompt = prompt.replace("<", "")
        unknown.append("<")
    return Tagged(prompt, tuple(loras), tuple(unknown))


def _lora(arguments: str) -> LoraTag | None:
    name, *parts = (part.strip() for part in arguments.split(":"))
    named = dict(part.split("=", 1) for part in parts if "=" in part)
    plain = [part for part in parts if "=" not in part]
    if not name or "=" in name or len(plain) > 2 or not set(named) <= {"te", "unet"} or not all(map(_NUMBER.fullmatch, [*plain, *named.values()])):
        return None
    text = float(named.get("te", plain[0] if plain else "1"))
    weight = float(named.get("unet", plain[1] if len(plain) > 1 else text))
    if max(abs(text), abs(weight)) > WIDEST_WEIGHT:
        return None
    return LoraTag(name, weight, None if text == weight else text)


def tag(lora: LoraTag) -> str:
    """The tag that A1111 and Forge read so; tools that know one number alone take the denoiser's."""
    both = "" if lora.text_weight in (None, lora.weight) else f":te={lora.text_weight:g}:unet={lora.weight:g}"
    return f"<lora:{lora.name}:{lora.weight:g}{both}>"


def without_tags(stack: StackConfig, folder: Path | None, library: Callable[[], dict[str, LoraInfo]]) -> StackConfig:
    """The stack with its prompts drawn, and each LoRA that the prompt names, found in the library, after its own. Doing it again changes nothing.

    A tag beyond -2 to 2 asks for `wide_weights` by being there. Raises: ConfigError, AdapterError for a name that isn't one LoRA's.
    """
    tagged, negative = spelled_out(stack.prompt, stack.seed, folder), spelled_out(stack.negative_prompt, stack.seed, folder, "negative")
    if tagged.unknown:
        raise ConfigError(f"the prompt has {', '.join(tagged.unknown)}; allowed: <lora:name:weight>.")
    if negative.loras or negative.unknown:
        raise ConfigError(f"the negative prompt has {', '.join([*map(tag, negative.loras), *negative.unknown])}; allowed there: words.")
    drawn = stack.model_copy(update={"prompt": tagged.prompt, "negative_prompt": negative.prompt})
    if not tagged.loras:
        return drawn
    added = [_named(one, library()) for one in tagged.loras]
    is_wide = any(max(abs(one.weight), abs(one.text_weight or 0)) > USUAL_WEIGHT for one in added)
    values = {"adapters": (*stack.adapters, *added), "wide_weights": stack.wide_weights or is_wide}
    return parse(StackConfig, dict(drawn) | values, "the prompt")


def _named(lora: LoraTag, library: dict[str, LoraInfo]) -> AdapterChoice:
    found = [info for info in library.values() if info.name == lora.name]
    if len(found) != 1:
        known = ", ".join(sorted(info.name for info in library.values())[:20])
        raise AdapterError(f"the prompt names the LoRA {lora.name!r}, of which there are {len(found)} here; allowed: one of {known or '(none)'}.")
    return AdapterChoice(file=str(found[0].path), name=lora.name, weight=lora.weight, text_weight=lora.text_weight)


# Wildcards.


def spelled_out(prompt: str, seed: int, folder: Path | None = None, stream: str = "prompt") -> Tagged:
    """The prompt drawn by `expand`, then without its tags, which may come from wildcards too; doing it again changes nothing.

    Raises: ConfigError as `expand` does.
    """
    loras: tuple[LoraTag, ...] = ()
    unknown: tuple[str, ...] = ()
    for _ in range(MAX_NESTED):
        tagged = take_tags(expand(prompt, seed, folder, stream))
        loras, unknown = loras + tagged.loras, unknown + tagged.unknown
        if tagged.prompt == prompt:
            return Tagged(prompt, loras, unknown)
        prompt = tagged.prompt
    raise ConfigError(f"prompt has tags and wildcards that make new ones of each other; allowed: {MAX_NESTED} deep.")


def expand(prompt: str, seed: int, folder: Path | None = None, stream: str = "prompt") -> str:
    """The prompt with one alternative of each `{a|2::b}` and a line of `folder/name.txt` for each `__name__`.

    The draw is seeded from (seed, stream): the same picture, the same words; prompt and negative prompt have a stream each. Braces are
    read as in captions (`trainer.data.wording`), in rounds until none is left. Lines of files may hold braces and names themselves;
    blank ones and those that start with # are not drawn.
    Raises: ConfigError for a name without a file, or a prompt that grows beyond its bounds.
    """
    if not ("{" in prompt or "__" in prompt):
        return prompt
    from trainer import objective

    draw = _Draw(objective.generator(seed, f"wildcards {stream}", 0), folder)
    for _ in range(MAX_ROUNDS):
        before, prompt = prompt, draw.text(prompt, 0)
        if prompt == before:
            return prompt
    raise ConfigError(f"prompt has too many wildcards; allowed: {MAX_ROUNDS * wording.MAX_WILDCARDS}.")


class _Draw:
    """One prompt being drawn: its luck, and how much it may still grow."""

    def __init__(self, rng: torch.Generator, folder: Path | None) -> None:
        self.rng, self.folder = rng, folder
        self.draws_left = MAX_DRAWS
        self.files: dict[str, list[str]] = {}

    def text(self, text: str, nested: int) -> str:
        found = self._parts(wording.parse(text), nested)
        if len(found) > MAX_CHARS:
            raise ConfigError(f"prompt is {len(found)} characters long once its wildcards are drawn; allowed: up to {MAX_CHARS}.")
        return found

    def _parts(self, parts: list[wording.Part], nested: int) -> str:
        said = [self._names(part, nested) if isinstance(part, str) else self._parts(self._chosen(part), nested) for part in parts]
        return "".join(said)

    def _chosen(self, alternatives: list[list[wording.Part]]) -> list[wording.Part]:
        import torch

        heads = [_SHARE.match(parts[0]) if parts and isinstance(parts[0], str) else None for parts in alternatives]
        shares = torch.tensor([float(head[1]) if head else 1.0 for head in heads], dtype=torch.float64)
        if not shares.any():
            raise ConfigError("prompt has a wildcard whose alternatives all have the share 0; allowed: at least one above 0, such as {2::a|b}.")
        number = int(torch.multinomial(shares, 1, generator=self.rng))
        head, parts = heads[number], alternatives[number]
        return [str(parts[0])[head.end() :], *parts[1:]] if head else parts

    def _names(self, text: str, nested: int) -> str:
        return _NAME.sub(lambda match: self._line(match[1], nested + 1), text)

    def _line(self, name: str, nested: int) -> str:
        import torch

        self.draws_left -= 1
        if nested > MAX_NESTED or self.draws_left < 0:
            raise ConfigError(f"prompt has wildcards that name each other without end, at __{name}__; allowed: {MAX_NESTED} deep and {MAX_DRAWS} in all.")
        lines = self.files.setdefault(name, self.files.get(name) or _lines(name, self.folder))
        return self.text(lines[int(torch.randint(len(lines), (1,), generator=self.rng))], nested)


def _lines(name: str, folder: Path | None) -> list[str]:
    """What `__name__` stands for. Raises: ConfigError."""
    if folder is None:
        raise ConfigError(f"prompt has __{name}__, but there is no folder of wildcards; name one, or write {{a|b}}.")
    path = folder / f"{name}.txt"
    if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
        there = sorted(file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.txt"))
        raise ConfigError(f"prompt has __{name}__, and {folder.name} has no {name}.txt; allowed: {', '.join(there[:20]) or 'nothing, it is empty'}.")
    with path.open("rb") as file:
        raw = file.read(MAX_FILE_BYTES + 1)
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"{name}.txt of the wildcards is larger than {MAX_FILE_BYTES} bytes; split it.")
    lines = [line.strip() for line in raw.decode("utf-8-sig", "replace").splitlines()]
    if not (found := [line for line in lines if line and not line.startswith("#")]):
        raise ConfigError(f"{name}.txt of the wildcards has no lines to draw from; write an alternative a line.")
    return found


# Trigger words.


def split_triggers(phrase: str) -> list[str]:
    """The words of a trigger phrase: up to 16 of 200 characters, on one line; none that could begin a tag or a wildcard in a prompt."""
    words = (" ".join(word.split()) for word in phrase[:4000].split(","))
    plain = (word for word in words if word and len(word) <= 200 and word.isprintable())
    return list(dict.fromkeys(word for word in plain if not ("{" in word or _NAME.search(word) or _TAG.search(f"{word}>"))))[:16]


def with_triggers(prompt: str, triggers: list[str]) -> str:
    """The prompt with the words that aren't in it yet put in front, in their order. Raises: ConfigError if that is too long."""
    lacking = [word for word in dict.fromkeys(triggers) if word and not has_trigger(prompt, word)]
    found = ", ".join([*lacking, *([prompt] if prompt else [])])
    if len(found) > MAX_CHARS:
        raise ConfigError(f"prompt is {len(found)} characters long with its trigger words; allowed: up to {MAX_CHARS}.")
    return found


# Weights of words.


def parse_attention(prompt: str) -> list[tuple[str, float]]:
    """The prompt in pieces with a weight each: `(a)` is 1.1, `[a]` is 1 / 1.1, `(a:1.3)` is 1.3, nested ones multiply, `\\(` is a bracket.

    A1111's `modules/prompt_parser.parse_prompt_attention`, whose examples the tests hold; `BREAK` is a piece of its own, as there.
    Raises: ConfigError for a weight beyond -20 to 20.
    """
    pieces: list[list[Any]] = []  # text, weight; None for BREAK
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def weigh(start: int, factor: float) -> None:
        for piece in pieces[start:]:
            piece[1] = None if piece[1] is None else piece[1] * factor

    for match in _ATTENTION.finditer(prompt):
        text, weight = match[0], match[1]
        if text in opened and len(opened[text]) < MAX_BRACKETS:
            opened[text].append(len(pieces))
        elif weight is not None and opened["("]:
            weigh(opened["("].pop(), float(weight))
        elif text == ")" and opened["("]:
            weigh(opened["("].pop(), 1.1)
        elif text == "]" and opened["["]:
            weigh(opened["["].pop(), 1 / 1.1)
        elif text[0] == "\\":
            pieces.append([text[1:], 1.0])
        else:
            for number, part in enumerate(_BREAK.split(text)):
                pieces += [[part, 1.0]] if number == 0 else [[BREAK[0], None], [part, 1.0]]
    for bracket, factor in (("(", 1.1), ("[", 1 / 1.1)):
        for start in opened[bracket]:
            weigh(start, factor)
    return _joined(pieces)


def _joined(pieces: list[list[Any]]) -> list[tuple[str, float]]:
    """Neighbours of one weight as one piece."""
    found: list[tuple[str, float]] = []
    for text, weight in pieces:
        if weight is None:
            found.append(BREAK)
        elif abs(weight) > WIDEST_WEIGHT:
            raise ConfigError(f"prompt gives {text.strip()[:40]!r} the weight {weight:g}; allowed: -{WIDEST_WEIGHT:g} to {WIDEST_WEIGHT:g}.")
        elif found and found[-1] != BREAK and found[-1][1] == weight:
            found[-1] = (found[-1][0] + text, weight)
        elif text:
            found.append((text, weight))
    return found or [("", 1.0)]


def weighted_embeddings(pipe: Any, prompt: str, windows: int = 1) -> dict[str, Tensor]:
    """The conditioning of a prompt with weights: `encoder_hidden_states` (k * L, D), L a window with both marks, k at least `windows`.

    For families whose prompts can be cut into windows. A prompt of one window without weights is encoded by the pipeline itself. Else
    each piece is cut into tokens for itself, windows are encoded one by one and laid end to end, each token's output is multiplied by
    its weight, and each window's mean is restored, for each text encoder by itself: A1111's "Original" emphasis
    (modules/sd_hijack_clip.py, sd_emphasis.py). What a text encoder says of a prompt as a whole is the first window's and has no weights.
    Unlike there a window isn't broken early at a comma, and a mean that is next to nothing isn't restored: it would scale the rest
    by chance. Raises: ConfigError for weights beyond -20 to 20.
    """
    import torch

    family, pieces = families.of(pipe), parse_attention(prompt)
    size = family.window(pipe)
    chunks = _chunks(pipe, pieces, size)
    plain = all(weight == 1 for _, weight in pieces)
    if plain and len(chunks) == windows == 1:
        encoded: dict[str, Tensor] = family.encode_text(pipe, [pieces[0][0]], 1)[0]
        return encoded
    chunks += [[]] * (windows - len(chunks))
    weights = torch.tensor([[1.0, *(weight for _, weight in chunk), 1.0, *[1.0] * (size - len(chunk))] for chunk in chunks])
    hidden, whole = family.encode_windows(pipe, [[token for token, _ in chunk] for chunk in chunks])
    if not plain:
        hidden = [_weighted(one, weights) for one in hidden]
    return {"encoder_hidden_states": torch.cat(hidden, -1).flatten(0, 1), **whole}


def _weighted(hidden: Tensor, weights: Tensor) -> Tensor:
    """A text encoder's output (k, L, D) times each token's weight (k, L), its windows' means as they were."""
    import torch

    before = hidden.float()
    after = before * weights.to(before.device)[..., None]
    wanted, found = before.mean((1, 2), keepdim=True), after.mean((1, 2), keepdim=True)
    is_mean = torch.minimum(wanted.abs(), found.abs()) > _LEAST_MEAN * before.std((1, 2), keepdim=True)
    return torch.where(is_mean, after * (wanted / found), after).to(hidden.dtype)


def weighted_pair(pipe: Any, prompt: str, negative_prompt: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The conditionings of both prompts, as many windows each."""
    windows = max(num_windows(pipe, prompt), num_windows(pipe, negative_prompt))
    return weighted_embeddings(pipe, prompt, windows), weighted_embeddings(pipe, negative_prompt, windows)


def num_windows(pipe: Any, prompt: str) -> int:
    """How many windows of the text encoder a prompt takes, at least one."""
    return len(_chunks(pipe, parse_attention(prompt), families.of(pipe).window(pipe)))


def _chunks(pipe: Any, pieces: list[tuple[str, float]], size: int) -> list[list[tuple[int, float]]]:
    """Tokens and their weights, by window."""
    chunks: list[list[tuple[int, float]]] = [[]]
    for text, weight in pieces:
        if (text, weight) == BREAK:
            chunks.append([])
            continue
        for token in pipe.tokenizer(pipe.maybe_convert_prompt(text, pipe.tokenizer), add_special_tokens=False).input_ids:
            if len(chunks[-1]) == size:
                chunks.append([])
            chunks[-1].append((token, weight))
    return chunks
