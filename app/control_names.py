"""Names that Gradio 6.31 leaves out for a screen reader, and a Tab key that loses no focus; a script of the page.

A picture that can be clicked is a button without a name, and a box with a copy button is labelled by that button. Both
get their block's label; a picture whose label is not shown is a Picture. A list of options that scrolls would take the
focus and vanish with it, and would stay unfolded behind whoever goes on with the Tab key.
"""

from __future__ import annotations

import json

from app.texts import say

SCRIPT = """() => {
  if (window.__named) return;
  window.__named = true;
  const label = block => [...block.querySelectorAll('[data-testid=block-label], [data-testid=block-info]')]
    .map(one => one.textContent.trim()).find(text => text);
  const unnamed = '.image-container > button:not([aria-label]), '
    + 'label.container > .icon-button-wrapper ~ .input-container textarea:not([aria-label])';
  let waits = false;
  const name = () => {
    waits = false;
    for (const control of document.querySelectorAll(unnamed))
      control.setAttribute('aria-label', label(control.closest('.block')) || PICTURE);
  };
  new MutationObserver(() => {
    if (!waits) setTimeout(name, 300);
    waits = true;
  }).observe(document.body, {childList: true, subtree: true});
  name();
  document.addEventListener('keydown', event => {
    if (event.key !== 'Tab') return;
    // Gradio would unfold a list again that Tab has just left; leaving it says all that it needs.
    if (event.target.matches?.('input[role=combobox]')) event.stopPropagation();
    document.querySelectorAll('[role=listbox]').forEach(list => { list.tabIndex = -1; });
  }, true);
}""".replace("PICTURE", json.dumps(say("word.picture")))
