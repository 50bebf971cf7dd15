"""The page's keys: what each does, said under `?`; a tab adds its own by a `KEYS` of (key, what it does).

A key is never taken from somebody who types. Tabs are changed by g and a letter, or by Ctrl and a number.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import ModuleType

from app.texts import say
from trainer.printing import escape

Keys = Sequence[tuple[str, str]]


def of_page(modules: Sequence[ModuleType]) -> list[tuple[str, str]]:
    """Every key of the page with what it does."""
    letters = _letters([module.TITLE for module in modules])
    keys = [("?", say("keys.these"))]
    keys += [
        (say("keys.open_keys", letter=letter, number=number), say("keys.open", tab=module.TITLE))
        for number, (module, letter) in enumerate(zip(modules, letters, strict=True), 1)
    ]
    for module in modules:
        keys += getattr(module, "KEYS", ())
    return keys


def dialog_html(keys: Keys) -> str:
    """The dialog, closed."""
    rows = "".join(f"<dt>{escape(key)}</dt><dd>{escape(words)}</dd>" for key, words in keys)
    return (
        f'<dialog id="keys" aria-labelledby="keys-title"><h2 id="keys-title">{say("keys.title")}</h2><dl>{rows}</dl>'
        f'<form method="dialog"><button type="submit">{say("button.close")}</button></form></dialog>'
    )


def script(titles: Sequence[str]) -> str:
    """What listens for the keys, run once when the page is there."""
    return _SCRIPT.replace("TITLES", json.dumps(list(titles))).replace("LETTERS", json.dumps(_letters(titles)))


def _letters(titles: Sequence[str]) -> list[str]:
    """A letter for each title, the first of its own that no earlier one has."""
    letters: list[str] = []
    for title in titles:
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
