"""Layers that other trainers choose by texts or regular expressions -> ours, texts with `*` between.

A pattern that is more than texts, any text, numbers and alternatives has no counterpart: the caller says so. sd-scripts
and musubi-tuner name the layers of FLUX as its authors do.
"""

from __future__ import annotations

import itertools
import re

MOST = 64  # lines
_ANY = (".*?", ".*", ".+?", ".+", r"\d+", r"\d*", r"\d", r"\w+", r"\w*", "[0-9]+", "[^.]+", "[^.]*", r"[^\.]+")
_PLAIN = re.compile(r"[A-Za-z0-9_/-]")
_DIGITS = re.compile(r"\[([0-9]|[0-9]-[0-9]|[0-9]{2,10})\]")
# Parts of a path in FLUX as its authors have it -> diffusers'; the longest that fits counts.
_FLUX = {
    "double_blocks": ("transformer/transformer_blocks",), "single_blocks": ("single_transformer_blocks",),
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"), "img_attn.proj": ("attn.to_out",),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "txt_attn.proj": ("attn.to_add_out",),
    "img_attn": ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out"),
    "txt_attn": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    "img_mlp": (".ff.",), "txt_mlp": (".ff_context.",), "img_mod": (".norm1.",), "txt_mod": (".norm1_context.",),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), "linear2": ("proj_out",),
}  # fmt: skip


def of_pattern(pattern: str) -> list[str] | None:
    """The texts that a regular expression looks for, an alternative each; None if it is more than that."""
    choices = _choices(pattern.strip()[:400].removeprefix("^").removesuffix("$"))
    if choices is None:
        return None
    texts = [re.sub(r"\*+", "*", text).strip("*") for text in choices]
    return texts if 0 < len(texts) <= MOST and all(texts) else None


def _choices(pattern: str) -> list[str] | None:
    """A pattern's alternatives as texts with stars."""
    done, parts, at = list[str](), [""], 0
    while at < len(pattern):
        rest = pattern[at:]
        if star := next((text for text in _ANY if rest.startswith(text)), ""):
            made, at = ["*"], at + len(star)
        elif rest.startswith(("\\.", "\\-", "\\_", "\\/")):
            made, at = [rest[1]], at + 2
        elif digits := _DIGITS.match(rest):
            inner = digits[1]
            # `[0-3]` goes from end to end, `[037]` lists digits.
            ends = range(int(inner[0]), int(inner[-1]) + 1) if inner[1:2] == "-" else map(int, inner)
            made, at = [str(digit) for digit in ends], at + len(digits[0])
        elif rest[0] == "(":
            end = _closing(rest)
            inside = _choices(rest[1:end].removeprefix("?:")) if end else None
            # A group that repeats is more than texts.
            if inside is None or rest[end + 1 : end + 2] in ("?", "*", "+", "{"):
                return None
            made, at = inside, at + end + 1
        elif rest[0] == "|":
            # What is before the bar is done, and the next alternative begins.
            done, parts, made, at = done + parts, [""], [""], at + 1
        elif _PLAIN.match(rest) or rest[0] == ".":
            made, at = [rest[0]], at + 1
        else:
            return None
        # A letter that repeats is more than texts, too; and alternatives multiply.
        if pattern[at : at + 1] in ("?", "*", "+", "{") or len(parts) * len(made) > MOST:
            return None
        parts = [before + after for before, after in itertools.product(parts, made)]
    return done + parts


def _closing(text: str) -> int:
    """Where the group that a text begins with ends; 0 if it doesn't."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return place
    return 0


def in_diffusers_words(text: str, family: str) -> list[str]:
    """A text about sd-scripts' or musubi-tuner's own layers of a family, in diffusers' words: one or several."""
    if family not in ("flux", "flux2", "flux2dev", "chroma"):
        return [text]
    found = [text]
    # The longest first, so that `img_attn.qkv` isn't taken for `img_attn`.
    for theirs in sorted(_FLUX, key=len, reverse=True):
        found = [one.replace(theirs, ours) for one in found for ours in (_FLUX[theirs] if theirs in one else (theirs,))]
    return [re.sub(r"\.{2,}", ".", one) for one in found]


def of_kohya(pattern: str, family: str) -> list[str] | None:
    """The same of a pattern over the layers of sd-scripts or musubi-tuner."""
    texts = of_pattern(pattern)
    if texts is None:
        return None
    made = list(dict.fromkeys(one for text in texts for one in in_diffusers_words(text, family)))
    return made if len(made) <= MOST else None
