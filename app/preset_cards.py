"""The presets as cards: those that run here, and folded those whose base isn't here; facts are the presets' own.

The dropdown below the cards holds which preset is chosen. A card is a button, so that it is reached and pressed by
keyboard; the mark follows the dropdown in the browser, so that no card is drawn anew under a pressing finger.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from app import preset_choices
from app.context import Context
from app.form_words import in_page_words
from app.texts import say
from trainer import families, preset_heads, preset_listing, preset_tiers, presets
from trainer.cards.comparing import scale
from trainer.printing import escape

# Arrows go from card to card; a press says which card.
_JS_ON_LOAD = """
element.addEventListener('click', event => {
  const card = event.target.closest('[data-key]');
  if (card) trigger('select', {key: card.dataset.key});
});
element.addEventListener('keydown', event => {
  const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
  if (!step || !event.target.closest('[data-key]')) return;
  event.preventDefault();
  const cards = [...element.querySelectorAll('[data-key]')].filter(card => card.offsetParent);
  const at = cards.indexOf(event.target.closest('[data-key]'));
  cards[Math.min(Math.max(at + step, 0), cards.length - 1)].focus();
});
"""
_MARK = """name => {
  for (const card of document.querySelectorAll('#preset-cards [data-key]'))
    card.setAttribute('aria-pressed', card.dataset.key === name);
}"""


class PresetPicker:
    """The cards and the dropdown below them."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def draw(self) -> None:
        titles, first = preset_choices.choices(self.context), preset_choices.first()
        self.cards = gr.HTML(self.html(first), js_on_load=_JS_ON_LOAD, elem_id="preset-cards")
        self.preset = gr.Dropdown(titles, value=first, label=say("word.preset"), interactive=True, elem_id="preset")

    def connect(self) -> None:
        """Have the mark follow the dropdown, whoever sets it."""
        self.preset.change(None, self.preset, None, js=_MARK, api_visibility="private", queue=False)

    def html(self, chosen: object) -> str:
        """The cards as they stand now, the chosen preset's marked."""
        here, elsewhere = list[str](), list[str]()
        for name in presets.names():
            base = preset_choices.base_here(self.context, preset_choices.load(name))
            (here if base else elsewhere).append(_card(self.context, name, base, name == chosen))
        parts = [f'<div class="preset-cards">{"".join(here)}</div>'] if here else []
        if elsewhere:
            # Folded, unless nothing else is there or the chosen preset is among them.
            is_open = " open" if not here or chosen in presets.names() and not _is_here(self.context, chosen) else ""
            parts.append(
                f'<details class="elsewhere"{is_open}><summary>'
                f"{say('preset.for_other_models', num=len(elsewhere))}</summary>"
                f"<p>{say('preset.bases_elsewhere')}</p>"
                f'<div class="preset-cards">{"".join(elsewhere)}</div></details>'
            )
        return "".join(parts)


def pressed(event: gr.EventData) -> str:
    """Which card was pressed; anything, until it is looked up."""
    return str(getattr(event, "key", ""))[:200]


def _is_here(context: Context, name: Any) -> bool:
    return bool(preset_choices.base_here(context, preset_choices.load(name)))


def _card(context: Context, name: str, base: str, is_chosen: bool) -> str:
    """A card: what it is for, and what it fits. All else is folded below the card that is chosen."""
    config, head = preset_choices.load(name), preset_heads.of(name)
    labels = {value: label for label, value in context.base_choices()}
    # A base that isn't here, or stands in for the preset's own, is named at once, so that nobody takes it for that.
    family = families.registry()[config.family].title
    is_own = bool(base) and base == config.base
    if not base:
        where = say("preset.needs", family=family, base=config.base)
    elif is_own:
        where = say("preset.on", family=family, base=labels[base])
    else:
        where = say("preset.on_alike", family=family, base=labels[base])
    lines = [
        ("for", say("preset.for", made_for=head.made_for) if head.made_for else ""),
        ("facts", _fits(name)),
        ("facts", "" if is_own else where),
    ]
    more = [
        say("preset.facts", steps=config.max_steps, rank=config.adapter.rank, px=config.resolution_px),
        say("preset.scale", scale=factor) if (factor := scale(config)) is not None else "",
        say("preset.fits", tiers=tiers) if (tiers := preset_listing.tiers_in_words(name)) else "",
        say("preset.memory", memory=in_page_words(head.memory)) if head.memory else "",
        where if is_own else "",
        {True: say("preset.tried"), False: say("preset.not_tried"), None: ""}[head.was_run],
    ]
    shown = "".join(f'<span class="{kind}">{escape(text, 300)}</span>' for kind, text in lines if text)
    folded = "".join(f"<li>{escape(text, 300)}</li>" for text in more if text)
    return (
        f'<div class="preset-cell"><button type="button" data-key="{escape(name)}" '
        f'aria-pressed="{str(is_chosen).lower()}">'
        f'<span class="name">{escape(presets.title(name), 120)}</span>{shown}</button>'
        f"<details><summary>{say('preset.details')}</summary><ul>{folded}</ul></details></div>"
    )


def _fits(name: str) -> str:
    """Which cards it fits, in short; "" where that isn't known."""
    sizes = preset_tiers.gpu_sizes(name).values()
    if not sizes:
        return ""
    least = min(sizes)
    return say("preset.fits_any") if least <= min(preset_tiers.SIZES_GB) else say("preset.fits_from", gb=least)
