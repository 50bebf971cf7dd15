"""Small pieces of a report's HTML."""

from __future__ import annotations

from trainer.printing import escape


def section(title: str, inside: str) -> str:
    """A titled part of the page; nothing without content."""
    return f"<section><h2>{title}</h2>{inside}</section>" if inside else ""


def bullets(lines: list[str]) -> str:
    """The lines as a list, escaped; nothing without lines."""
    return f"<ul>{''.join(f'<li>{escape(line)}' for line in lines)}</ul>" if lines else ""


def sentence(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]
