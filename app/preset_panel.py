"""The parts of the Library's panel for presets and cards: what a preset would change, keeping it, and sharing it."""

from __future__ import annotations

from typing import Any, get_args

import gradio as gr

from app import browser_state, card_view, shared_cards
from app.browser_state import BrowserStates
from app.context import Context
from app.forecast_view import element_id
from app.form import Form
from app.form_components import as_model_value
from app.library_items import Item
from app.notices import mended, tell
from app.preset_choices import first, load
from app.texts import say
from trainer import families
from trainer.card_file.contents import DatasetKind
from trainer.cards import comparing, places
from trainer.cards.making import Wishes
from trainer.config import TrainConfig, parse
from trainer.errors import UserError

FORM = "form"
_OWN = frozenset({"version", "data.folder", "data.heldout"})


class PresetPanel:
    """The parts of the Library's panel that presets, cards and what can be shared have."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.states = BrowserStates(context.workspace / "browsers")

    def draw(self) -> None:
        """Draw them; none is seen before something is chosen."""
        with gr.Column(visible=False) as self.compared:
            self.versus = gr.Dropdown(
                [(say("preset.form_in_train"), FORM)], value=FORM, label=say("preset.compare_with"), interactive=True,
                elem_id="preset-versus", elem_classes="unkept",
            )  # fmt: skip
            self.difference = gr.HTML(elem_id="preset-difference")
            self.keep = gr.Button(say("preset.keep"), elem_id="keep-preset")
        with gr.Accordion(say("preset.share"), open=False, visible=False, elem_id="share") as self.share:
            with gr.Row():
                self.author = gr.Textbox(
                    label=say("preset.author"), max_length=200, min_width=110, elem_id="share-author"
                )
                self.licence = gr.Textbox(
                    label=say("preset.licence"),
                    placeholder=say("preset.licence_example"),
                    max_length=200,
                    min_width=110,
                    elem_id="share-licence",
                )
            self.words = gr.Textbox(label=say("word.note"), lines=2, max_lines=6, max_length=4000, elem_id="share-note")
            self.kind = gr.Dropdown(
                [
                    (say("preset.kind_unknown"), "unknown"), (say("captions.style"), "style"),
                    (say("captions.character"), "character"), (say("preset.kind_concept"), "concept"),
                ],
                value="unknown", label=say("preset.kind"), elem_id="share-kind",
            )  # fmt: skip
            self.samples = gr.Checkbox(
                label=say("preset.with_previews"), elem_id="share-samples",
                info=say("preset.with_previews_help"),
            )  # fmt: skip
            with gr.Row():
                self.make = gr.Button(say("preset.make_card"), variant="primary", min_width=110, elem_id="make-card")
                self.card = gr.DownloadButton(
                    say("preset.download_card"), visible=False, min_width=110, elem_id="download-card"
                )

    def outputs(self) -> list[Any]:
        """Everything that `updates` may change."""
        return [self.compared, self.versus, self.difference, self.keep, self.share, self.kind, self.samples, self.card]

    def connect(self, key: gr.Textbox, still: dict[str, Any]) -> None:
        """Answer the parts; `key` holds what is chosen, its kind before it."""
        self.versus.input(self.compare, [key, self.versus], self.difference, **still)
        given = [key, self.author, self.licence, self.words, self.kind, self.samples]
        self.make.click(self.make_one, given, self.card, api_visibility="private")

    # Updates.

    def none(self) -> dict[Any, Any]:
        """Nothing of it."""
        return {self.compared: gr.update(visible=False), self.share: gr.update(visible=False)}

    def updates(self, item: Item, browser: str) -> dict[Any, Any]:
        """The parts for a thing that was chosen."""
        # What of it can be shared.
        is_shared = shared_cards.can_be_shared(self.context, item.kind, item.key)
        shown: dict[Any, Any] = {
            self.share: gr.update(visible=is_shared, open=False),
            self.kind: gr.update(visible=item.kind == "runs", value="unknown"),
            self.samples: gr.update(visible=item.kind == "runs", value=False),
            self.card: gr.update(visible=False),
        }

        # What it is compared with; nothing, unless it has settings of a training.
        kept = shared_cards.of_key(item.key) if item.kind == "presets" else None
        if kept is None or kept.settings is None:
            return shown | {self.compared: gr.update(visible=False)}
        return shown | {
            self.compared: gr.update(visible=True),
            self.versus: gr.update(
                choices=[(say("preset.form_in_train"), FORM), *shared_cards.choices(self.context)], value=FORM
            ),
            self.difference: self._table(item.key, FORM, browser),
            self.keep: gr.update(visible=kept.card is not None),
        }

    @mended
    def compare(self, chosen: str, versus: str, request: gr.Request) -> str:
        return self._table(chosen.partition(" ")[2], versus, browser_of(request))

    @mended
    def make_one(self, chosen: str, author: str, licence: str, note: str, taught: str, with_samples: bool) -> Any:
        kind, _, key = chosen.partition(" ")
        kinds: tuple[DatasetKind, ...] = get_args(DatasetKind)
        teaches = next((one for one in kinds if one == taught), kinds[0])
        wishes = Wishes(
            author=author or "", licence=licence or "", note=note or "", kind=teaches, with_samples=bool(with_samples)
        )
        path, notes = shared_cards.shared(self.context, kind, key, wishes)
        tell(" ".join([say("preset.card_ready"), *notes]))
        return gr.update(value=str(path), visible=True)

    # What it would change.

    def _table(self, key: str, versus: str, browser: str) -> str:
        """The settings that another preset, or the form, has otherwise."""
        new = shared_cards.named(self.context, key)
        old = self.form(browser) if versus == FORM else shared_cards.named(self.context, versus)
        if new is None or old is None:
            return f'<p class="quietly">{say("preset.other_unreadable")}</p>'
        pair = [places.without(config, with_names=True) for config in (old, new)]
        found = comparing.differences(*pair)
        return card_view.difference_html(found, say("preset.form_now") if versus == FORM else say("preset.the_other"))

    def form(self, browser: str) -> TrainConfig | None:
        """The settings in this browser's form, as it was kept; None while they can't be used."""
        kept = self.states.read(browser, "train")
        offers = {name: {"prediction": family.prediction} for name, family in families.registry().items()}
        form = Form(TrainConfig, load(first()), _OWN, {}, {"family": offers})
        # What the browser kept, over the first preset's values, as the form itself begins.
        values = dict(form.start)
        for key, spec in form.specs.items():
            if (name := element_id(key)) in kept:
                values[key] = as_model_value(spec, kept[name])

        # Nested as the settings are, without those that nothing would read.
        tree: dict[str, Any] = {}
        for key, is_read in form.read(values).items():
            if is_read and key in values:
                here = tree
                for part in form.specs[key].path[:-1]:
                    here = here.setdefault(part, {})
                here[form.specs[key].path[-1]] = values[key]
        try:
            return parse(TrainConfig, tree, say("where.form"))
        except UserError:
            return None


def browser_of(request: gr.Request) -> str:
    """The browser's id."""
    return browser_state.id_in(request.headers.get("cookie"))
