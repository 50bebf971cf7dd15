"""Edits of a caption's text, such as are made to many captions at once: text in, text out.

Tags are the parts between commas, as booru captions have them; a sentence without a comma is one tag.
"""

from __future__ import annotations

import re

from trainer.data.caption_variants import tags
from trainer.data.scanning import has_trigger

_SEPARATOR = ","


def replaced(text: str, find: str, put: str) -> str:
    """The text with `put` wherever `find` stands, in capitals or not."""
    return re.sub(re.escape(find), lambda _: put, text, flags=re.IGNORECASE) if find else text


def with_prefix(text: str, prefix: str) -> str:
    """The text with these words in front, unless they are there."""
    words = prefix.strip()
    return text if text.startswith(words) else f"{words} {text}".strip()


def with_suffix(text: str, suffix: str) -> str:
    """The text with these words behind, unless they are there; punctuation needs no blank before it."""
    words = suffix.strip()
    if text.endswith(words):
        return text
    return f"{text}{words}" if words[:1] in (",", ".", ";", ":", "!", "?") else f"{text} {words}".strip()


def sorted_tags(text: str, trigger: str) -> str:
    """The text with its tags in the order of the alphabet; the trigger stays in front."""
    first = [tag for tag in tags(text, _SEPARATOR) if trigger and tag.casefold() == trigger.casefold()]
    others = [tag for tag in tags(text, _SEPARATOR) if tag not in first]
    return ", ".join([*first, *sorted(others, key=str.casefold)])


def without_tag(text: str, tag: str) -> str:
    """The text without this tag, in capitals or not; the very text if it hasn't it."""
    all_tags, unwanted = tags(text, _SEPARATOR), tag.strip().casefold()
    others = [other for other in all_tags if other.casefold() != unwanted]
    return text if len(others) == len(all_tags) else ", ".join(others)


def with_trigger_in_front(text: str, trigger: str) -> str:
    """The text with the trigger in front, unless it stands in it already."""
    if not text:
        return trigger
    return text if has_trigger(text, trigger) else f"{trigger}, {text}"
