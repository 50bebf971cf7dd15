"""The page's keys: what each does, said under `?`. All of them stand in `KEYS`, which a test holds against the scripts.

A key is never taken from somebody who types. Tabs are changed by g and a letter, or by Ctrl and a number.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from app.texts import say
from trainer.printing import escape


class Key(NamedTuple):
    """How a key is spelled on the page, what it does, the file that listens for it, and its names there."""

    shown: str
    does: str
    file: str
    names: tuple[str, ...]


class Group(NamedTuple):
    """Keys of one place, under its name; the tab that it is in, "" for every tab."""

    title: str
    tab: str
    keys: tuple[Key, ...]


_UP, _DOWN, _LEFT, _RIGHT = _ARROWS = ("ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight")
_GALLERY, _PROMPT, _VIEWER, _USE = "dataset_gallery.js", "stack_prompt.js", "viewer.js", say("keys.use")
DATASET = Group(
    say("page.dataset"),
    say("page.dataset"),
    (
        Key("→", say("keys.next"), _GALLERY, (_RIGHT, "j")),
        Key("←", say("keys.previous"), _GALLERY, (_LEFT, "k")),
        Key("E", say("keys.write_caption"), _GALLERY, ("e",)),
        Key("Ctrl+Enter", say("keys.save_next"), _GALLERY, ("Enter",)),
        Key("Ctrl+S", say("keys.save"), _GALLERY, ("KeyS",)),
        Key("Delete", say("keys.delete"), _GALLERY, ("Delete",)),
        Key("Ctrl+Z", say("keys.undo"), _GALLERY, ("KeyZ",)),
        Key("X", say("keys.mark"), _GALLERY, ("x",)),
        Key("Esc", say("keys.unmark"), _GALLERY, ("Escape",)),
        Key("C", say("keys.crop"), _GALLERY, ("c",)),
        Key("M", say("keys.paint_mask"), _GALLERY, ("m",)),
        Key("F", say("keys.flip"), _GALLERY, ("f",)),
    ),
)
_WRITING = Group(
    say("keys.of_writing"),
    say("page.dataset"),
    (
        Key("Alt+N", say("keys.next"), _GALLERY, ("KeyN",)),
        Key("Alt+P", say("keys.previous"), _GALLERY, ("KeyP",)),
        Key("Alt+Z", say("keys.undo"), _GALLERY, ("KeyZ",)),
        Key("Alt+Delete", say("keys.delete"), _GALLERY, ("Delete",)),
        Key("Enter", say("keys.add_tag"), "dataset_caption.js", ("Enter",)),
    ),
)
KEYS = (
    DATASET,
    _WRITING,
    Group(
        say("keys.of_crop"),
        say("page.dataset"),
        (
            Key("↑ ↓ ← →", say("keys.move_box"), "dataset_crop.js", _ARROWS),
            Key("Shift+↑ ↓ ← →", say("keys.size_box"), "dataset_crop.js", _ARROWS),
            Key("Ctrl+Enter", _USE, "dataset_pictures.js", ("Enter",)),
        ),
    ),
    Group(
        say("keys.of_paint"),
        "",
        (
            Key("↑ ↓ ← →", say("keys.move_brush"), "paint.js", _ARROWS),
            Key("Space", say("keys.paint"), "paint.js", (" ",)),
            Key("E", say("keys.erase"), "paint.js", ("e",)),
            Key("[ ]", say("keys.size_brush"), "paint.js", ("[", "]")),
            Key("Ctrl+Z", say("keys.undo"), "paint.js", ("z",)),
        ),
    ),
    Group(
        say("keys.of_viewer"),
        "",
        (
            Key("V", say("keys.see"), _VIEWER, ("v",)),
            Key("← →", say("keys.before_after"), _VIEWER, (_LEFT, _RIGHT)),
            Key("Home", say("keys.first"), _VIEWER, ("Home",)),
            Key("End", say("keys.last"), _VIEWER, ("End",)),
            Key("Z", say("keys.zoom"), _VIEWER, ("z",)),
            Key("+ −", say("keys.larger"), _VIEWER, ("+", "-")),
            Key("C", say("keys.keep_as_a"), _VIEWER, ("c",)),
            Key("M", say("keys.way"), _VIEWER, ("m",)),
            Key("Space", say("keys.see_a"), _VIEWER, (" ",)),
            Key("Shift+↑ ↓ ← →", say("keys.divide"), _VIEWER, _ARROWS),
            Key("P I", say("keys.crisp"), _VIEWER, ("p", "i")),
            Key("K X", say("keys.keep_in_batch"), _VIEWER, ("k", "x")),
            Key("1–5, 0", say("keys.rate_in_batch"), _VIEWER, ("0", "1", "2", "3", "4", "5")),
            Key("Esc", say("keys.leave"), _VIEWER, ("Escape",)),
        ),
    ),
    Group(
        say("page.train"), say("page.train"), (Key("↑ ↓ ← →", say("keys.preset_cards"), "preset_cards.py", _ARROWS),)
    ),
    Group(
        say("keys.of_chart"),
        say("page.train"),
        (
            Key("+ −", say("keys.closer"), "chart_zoom.js", ("+", "=", "-")),
            Key("← →", say("keys.earlier_later"), "chart_zoom.js", (_LEFT, _RIGHT)),
            Key("Esc", say("keys.all_steps"), "chart_zoom.js", ("Escape", "Home")),
        ),
    ),
    Group(
        say("page.stack"),
        say("page.stack"),
        (
            Key("Ctrl+Enter", say("keys.render"), "stack_live.py", ("Enter",)),
            Key("Esc", say("keys.cancel_drawing"), _PROMPT, ("Escape",)),
            Key("Ctrl+↑ ↓", say("keys.weigh_word"), _PROMPT, (_UP, _DOWN)),
            Key("Alt+↑ ↓", say("keys.move_lora"), "stack_order.js", (_UP, _DOWN)),
            Key("Esc", say("keys.drop_lora"), "stack_order.js", ("Escape",)),
            Key("Enter", say("keys.put_lora"), "stack_shelf.js", ("Enter",)),
        ),
    ),
    Group(
        say("keys.of_schedule"),
        say("page.stack"),
        (
            Key("↑ ↓ ← →", say("keys.move_point"), "stack_panel.js", _ARROWS),
            Key("Delete", say("keys.remove_point"), "stack_panel.js", ("Delete", "Backspace")),
            Key("Ctrl+Enter", _USE, "stack_panel.js", ("Enter",)),
        ),
    ),
    Group(
        say("page.batch"),
        say("page.batch"),
        (
            Key("K X", say("keys.keep"), "batch_gallery.js", ("k", "x")),
            Key("1–5, 0", say("keys.rate"), "batch_gallery.js", ("0", "1", "2", "3", "4", "5")),
            Key("← →", say("keys.before_after"), "batch_gallery.js", (_LEFT, _RIGHT)),
        ),
    ),
    Group(
        say("keys.of_voting"),
        say("page.batch"),
        (
            Key("← →", say("keys.vote"), "batch_vote.js", (_LEFT, _RIGHT)),
            Key("↓ T", say("keys.alike"), "batch_vote.js", (_DOWN, "t")),
            Key("S", say("keys.skip"), "batch_vote.js", ("s",)),
            Key("U", say("keys.undo"), "batch_vote.js", ("u",)),
        ),
    ),
)


def of_page(titles: Sequence[str]) -> list[Group]:
    """Every key of a page that has these tabs."""
    tabs = [
        Key(say("keys.open_keys", letter=letter, number=number), say("keys.open", tab=title), "shortcuts.py", ("g",))
        for number, (title, letter) in enumerate(zip(titles, _letters(titles), strict=True), 1)
    ]
    everywhere = Group(say("keys.of_page"), "", (Key("?", say("keys.these"), "shortcuts.py", ("?",)), *tabs))
    return [everywhere, *(group for group in KEYS if not group.tab or group.tab in titles)]


def dialog_html(groups: Sequence[Group]) -> str:
    """The dialog, closed."""
    parts = [f"<h3>{escape(group.title)}</h3><dl>{_rows(group.keys)}</dl>" for group in groups]
    return (
        f'<dialog id="keys" aria-labelledby="keys-title"><h2 id="keys-title">{say("keys.title")}</h2>{"".join(parts)}'
        f'<form method="dialog"><button type="submit">{say("button.close")}</button></form></dialog>'
    )


def _rows(keys: Sequence[Key]) -> str:
    return "".join(f"<dt>{escape(key.shown)}</dt><dd>{escape(key.does)}</dd>" for key in keys)


def line_html(group: Group) -> str:
    """A group's keys as a line on the page."""
    return "".join(f"<span><kbd>{escape(key.shown)}</kbd> {escape(key.does)}</span>" for key in group.keys)


def script(titles: Sequence[str]) -> str:
    """What listens for the keys, run once when the page is there."""
    return _SCRIPT.replace("TITLES", json.dumps(list(titles))).replace("LETTERS", json.dumps(_letters(titles)))


def _letters(titles: Sequence[str]) -> list[str]:
    """A letter for each title, the first of its own that no earlier title has."""
    letters: list[str] = []
    for title in titles:
        # A number, where each of its letters opens another tab.
        letters.append(next((letter for letter in title.lower() if letter not in letters), str(len(letters))))
    return letters


_SCRIPT = """() => {
  if (window.__keys) return;
  window.__keys = true;
  const titles = TITLES, letters = LETTERS;
  let waiting = 0;
  const typing = target => target.isContentEditable
    || /^(textarea|select)$/i.test(target.tagName)
    || (/^input$/i.test(target.tagName) && !/^(checkbox|radio|range|button|file)$/i.test(target.type));
  const open = index => {
    const tabs = [...document.querySelectorAll('#tabs button[role=tab]')];
    const tab = tabs.find(one => one.textContent.trim() === titles[index]);
    if (tab) { tab.click(); tab.focus(); }
  };
  document.addEventListener('click', event => {
    const title = event.target.closest?.('.guide [data-tab]')?.dataset.tab;
    if (title) open(titles.indexOf(title));
  });
  document.addEventListener('keydown', event => {
    const dialog = document.getElementById('keys');
    if (event.altKey || event.metaKey || event.isComposing || dialog?.open) return;
    const number = Number(event.key);
    if (event.ctrlKey && !event.shiftKey && number >= 1 && number <= titles.length) {
      event.preventDefault();
      open(number - 1);
      return;
    }
    if (event.ctrlKey || typing(event.target)) return;
    if (event.key === '?') {
      event.preventDefault();
      dialog?.showModal();
    } else if (event.key === 'g') {
      waiting = Date.now();
    } else if (Date.now() - waiting < 1500 && letters.includes(event.key)) {
      event.preventDefault();
      event.stopImmediatePropagation();
      waiting = 0;
      open(letters.indexOf(event.key));
    }
  }, true);
}"""
