"""From what a model says of a picture to the caption that a set needs: the trigger in front, its meaning left out.

Whatever stands in every caption is learnt as a thing of its own; whatever no caption names goes into the trigger. So a
character's own marks, and a style's own words, are left out. Text in, text out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from trainer.data.caption_variants import tags
from trainer.errors import ConfigError

Purpose = Literal["character", "style"]
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)
# An entry that ends in "..." takes what follows with it, up to the next comma or stop.
STYLE_WORDS = (
    "in the style of ...", "illustration", "digital illustration", "drawing", "pencil drawing", "line drawing",
    "line art", "painting", "digital painting", "oil painting", "watercolor painting", "watercolour painting",
    "watercolor", "watercolour", "digital art", "concept art", "artwork", "sketch", "cartoon", "cartoon style", "anime",
    "anime style", "manga", "comic", "render", "traditional media",
)  # fmt: skip
MAX_RAW_CHARS, MAX_LIST_CHARS, MAX_ENTRIES = 8000, 4000, 200
_LONGEST_TAG_WORDS = 5
_MARK = "\x00"  # where a phrase was taken out
_ARTICLE = r"(?:(?<!\w)(?:an?|the|her|his|its|their)\s)?"
_LEADS = "with|wearing|wears|has|have|having|holding|carrying|in|as|of|and"
# Around what was taken out, in this order, as often as it changes anything: words that only led to it go too.
_AROUND = [
    (re.compile(pattern, re.IGNORECASE), put)
    for pattern, put in (
        (r"\x00 ?,? ?(?:and ?)?\x00", _MARK),  # two of a list
        (r"\x00 (?:style|(?:is )?(?:of|showing|depicting|featuring))(?!\w)", _MARK),  # "a painting of"
        (r"(^|[.!?] )\x00 (?:is|are|was|were|has|hangs?|falls?)(?!\w)[^,.;!?\x00]*", rf"\1{_MARK}"),  # said of it alone
        (rf"(?<!\w)({_LEADS}) \x00 ?(?:, ?and|and|,) (?=an? |the |her |his |its |their )", r"\1 "),
        (rf",? ?(?<!\w)(?:and )?(?:is |are )?(?:{_LEADS}) \x00", _MARK),
        (r"(^|[.!?] )(?:she|he|it|they) ?\x00 ?(?=[.!?]|$)", r"\1"),  # a sentence of which nothing is left
    )
]
_MAX_PASSES = 50


@dataclass(frozen=True)
class Rules:
    """What becomes of a raw caption."""

    purpose: Purpose
    trigger: str = ""
    leave_out: tuple[str, ...] = ()


def entries(text: str) -> tuple[str, ...]:
    """The words and phrases of a list with commas between. Raises: ConfigError if it is too long."""
    found = dict.fromkeys(filter(None, (" ".join(part.split()) for part in re.split(r"[,\n]", text))))
    if len(text) > MAX_LIST_CHARS or len(found) > MAX_ENTRIES:
        raise ConfigError(
            f"the words to leave out are {len(found)}, with {len(text):,} characters; allowed: up to {MAX_ENTRIES} "
            f"words or phrases with commas between, and {MAX_LIST_CHARS:,} characters."
        )
    return tuple(found)


def rules(purpose: str, trigger: str, leave_out: str | None) -> Rules:
    """The rules that a person asks for; None leaves a style's usual words out and nothing of a character.

    Raises: ConfigError.
    """
    known = next((one for one in PURPOSES if one == purpose), None)
    if known is None:
        raise ConfigError(f"captions are for {purpose[:40]!r}; allowed: {' or '.join(PURPOSES)}.")
    usual = STYLE_WORDS if known == "style" else ()
    return Rules(known, " ".join(trigger.split()), usual if leave_out is None else entries(leave_out))


def caption(raw: str, asked: Rules) -> str:
    """The set's caption; "" if nothing is left and there is no trigger."""
    text = tidied(raw[:MAX_RAW_CHARS])
    cut = without_tags(text, asked.leave_out) if looks_like_tags(text) else without_phrases(text, asked.leave_out)
    return with_trigger(cut, asked.trigger)


def tidied(text: str) -> str:
    """The text on one line, one blank between words, and no comma without words before it."""
    # What can't be printed goes, and with it any mark that was in the text before.
    text = " ".join("".join(sign for sign in text if sign.isprintable() or sign.isspace()).split())
    text = re.sub(r" ([,.;:!?])", r"\1", text)
    text = re.sub(r",[, ]*,", ",", text)
    text = re.sub(r",([.;:!?])", r"\1", text)
    return text.strip(" ,;")


def looks_like_tags(text: str) -> bool:
    """Whether this is a list of tags and no sentence: short parts between commas, no article, no full stop."""
    parts = tags(text, ",")
    short = all(len(part.split()) <= _LONGEST_TAG_WORDS for part in parts)
    return len(parts) > 2 and short and not re.search(r"\.|(?<!\w)(?:an?|the|and)(?!\w)", text)


def without_tags(text: str, unwanted: Sequence[str]) -> str:
    """The tags but those of the list, in capitals or not, underscores as blanks."""
    # An entry with "..." stands for every tag that begins so.
    open_ended = tuple(_plain(entry[:-3]) for entry in unwanted if entry.endswith("...") and _plain(entry[:-3]))
    known = {_plain(entry) for entry in unwanted}
    kept = [tag for tag in tags(text, ",") if _plain(tag) not in known and not _plain(tag).startswith(open_ended)]
    return ", ".join(kept)


def without_phrases(text: str, unwanted: Sequence[str]) -> str:
    """The prose without these phrases, nor the article, comma or "and" that only led to them."""
    # The longest first: without "painting", "oil painting" would leave "oil" behind.
    longest_first = sorted(unwanted, key=len, reverse=True)
    # Again while anything goes: what stood apart may be such a phrase now.
    for _ in range(_MAX_PASSES):
        cut = text
        for entry in longest_first:
            cut = _cut(cut, entry)
        if cut == text:
            break
        text = _joined(cut)
    return text


def _cut(text: str, entry: str) -> str:
    """The text with a mark wherever the phrase stood."""
    goes_on = entry.endswith("...")
    words = [re.escape(word) for word in (entry[:-3] if goes_on else entry).split()]
    if not words:
        return text
    rest = r"[^,.;:!?\x00]*" if goes_on else ""
    return re.sub(rf"{_ARTICLE}(?<!\w){' '.join(words)}(?!\w){rest}", _MARK, text, flags=re.IGNORECASE)


def _joined(text: str) -> str:
    """The text without marks, its commas and blanks put right."""
    before = ""
    while text != before:
        before = text
        for pattern, put in _AROUND:
            text = pattern.sub(put, text)
    text = text.replace(_MARK, " ")
    text = tidied(re.sub(r"(^|[.!?])(?: +[.!?])+", r"\1", text))  # a stop without a sentence
    text = re.sub(r"^(?:and|of|with) ", "", text.lstrip(" .,;!?"), flags=re.IGNORECASE)
    return tidied(text) if re.search(r"\w", text) else ""


def with_trigger(text: str, trigger: str) -> str:
    """The text with the trigger in front, unless it begins with it."""
    if not trigger or not text:
        return text or trigger
    begins = text.casefold().startswith(trigger.casefold()) and not text[len(trigger) :][:1].isalnum()
    return text if begins else f"{trigger}, {text}"


def _plain(tag: str) -> str:
    return " ".join(tag.replace("_", " ").casefold().split())
