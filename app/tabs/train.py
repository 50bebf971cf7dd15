"""Train: settings from a preset, one button to start; what is shown comes from the job table and the run's log alone.

A reload, a second tab or a new server shows the same. Nothing is trained in an event of the page."""

from __future__ import annotations

import dataclasses
from typing import Any

import gradio as gr
import tomli_w

from app import branch_form, guide, leftovers, preset_choices, rehearsal_settings, retraining, start_choices, starting
from app.context import Context, Refresh
from app.dataset_sets import heldout_of
from app.forecast import Forecast, Wish
from app.forecast_view import OWN_IDS, ForecastPanel, cure_of, element_id
from app.form import Form
from app.form_filling import FormFilling
from app.notices import mended, mended_unasked, tell, warn
from app.opened_pictures import OpenedPictures
from app.preset_cards import PresetPicker, pressed
from app.retrain_box import RetrainBox
from app.setting_groups import grouped
from app.settings_finder import SettingsFinder
from app.texts import say
from app.train_settings import config_of, recipe_of
from app.training_view import TrainingView
from trainer import families, methods
from trainer.config import TrainConfig

TITLE = say("page.train")
ORDER = 20
# Settings that the form does not draw: the version, which nobody sets, and those that the tab draws itself.
_OWN = frozenset({"version", "data.folder", "data.heldout", "data.trigger"})


class _Tab:
    """The tab's components and what happens when they are used."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.start_config = preset_choices.load(preset_choices.first())
        self.seen = OpenedPictures()  # decoded already, so that a look decodes few
        choices = {
            "family": [(family.title, name) for name, family in families.registry().items()],
            "base": preset_choices.base_choices(context),
            "start.source": start_choices.offered(context),
            "adapter.method": [(method.title, name) for name, method in methods.registry().items()],
        }
        offers = {name: {"prediction": family.prediction} for name, family in families.registry().items()}
        self.form = Form(TrainConfig, self.start_config, _OWN, choices, {"family": offers})
        self.view = TrainingView(context)
        self.panel, self.finder = ForecastPanel(), SettingsFinder(self.form)
        self.box = RetrainBox(context)
        with gr.Row(equal_height=False, elem_classes="halves"):
            with gr.Column(scale=4, min_width=320):
                self._draw_choices()
                self._draw_settings()
            with gr.Column(scale=5, min_width=320):
                self.view.draw()
        self.source = self.form.components["start.source"]
        own = (self.dataset, self.heldout, self.trigger, self.card, self.filled, self.box)
        self.filling = FormFilling(context, self.form, *own)
        self.form.connect()
        self.view.connect()
        self._connect()

    def _draw_choices(self) -> None:
        self.picker = PresetPicker(self.context)
        self.box.draw()
        with gr.Group():
            self.picker.draw()
            self.preset = self.picker.preset
            with gr.Row():
                self.dataset = gr.Dropdown(
                    [], label=say("word.dataset"), min_width=140, interactive=True, elem_id="train-dataset"
                )
                self.heldout = gr.Dropdown(
                    [(say("word.none"), "")], value="", label=say("train.heldout"), min_width=140, interactive=True,
                    elem_id="train-heldout",
                )  # fmt: skip
            with gr.Row():
                self.name = gr.Textbox(
                    label=say("word.name"), placeholder=say("train.name_example"), max_length=80, min_width=140,
                    elem_id="run-name",
                )  # fmt: skip
                self.trigger = gr.Textbox(
                    self.start_config.data.trigger, label=say("word.trigger"), placeholder=say("train.trigger_example"),
                    max_length=80, min_width=140, elem_id="trigger",
                )  # fmt: skip

    def _draw_settings(self) -> None:
        form = self.form
        # What nearly everybody sets, and the buttons.
        with gr.Row():
            form.draw("max_steps", "batch_size")
        with gr.Row():
            form.draw("learning_rate", "resolution_px")
        with gr.Row():
            self.start = gr.Button(
                say("train.start"), variant="primary", size="lg", scale=2, min_width=150, elem_id="start-training"
            )
            self.rehearse = gr.Button(say("train.try"), size="lg", scale=1, min_width=110, elem_id="rehearse")
        self.grid_after = gr.Checkbox(
            False, label=say("train.grid_after"), info=say("train.grid_after_help"), container=False,
            elem_id="grid-after",
        )  # fmt: skip
        self.panel.draw()
        self.view.draw_rehearsal()
        self.finder.draw()

        # Everything else, folded by how seldom it is needed.
        self.folds: dict[str, list[gr.Accordion]] = {}  # by key: the folded groups that it lies in
        with gr.Accordion(say("train.adapter_and_previews"), open=True, elem_classes="fields") as everyday:
            of_methods = [key for key, spec in form.specs.items() if spec.kind and not spec.advanced]
            usual = ["start.source", "start.optimizer", "adapter.method", *of_methods, "preview.prompts"]
            form.draw(*usual)
        with gr.Accordion(say("train.more_settings"), open=False, elem_classes="fields") as more:
            rest = form.undrawn(advanced=False)
            form.draw(*rest)
        with gr.Accordion(say("train.advanced"), open=False, elem_id="advanced") as advanced:
            for title, keys in grouped(form, form.undrawn(advanced=True)).items():
                form.draw_group(title, keys)
        self.folds |= {key: [everyday] for key in usual}
        self.folds |= {key: [more] for key in rest}
        self.folds |= {key: [advanced, group] for group, keys in form.groups for key in keys}
        with gr.Accordion(say("train.take_settings"), open=False):
            self.recipe = gr.File(
                file_types=[".safetensors", ".toml", ".velatura"], label=say("train.drop_settings"), height=120,
                elem_id="recipe-file",
            )  # fmt: skip

        # What the form was filled from and with, which problems were already unfolded, and what looks again.
        self.card = gr.Textbox("", visible=False, elem_id="train-card")
        self.filled = gr.State(self.form.by_path(self.start_config))
        self.unfolded = gr.State([])
        self.again = gr.Timer(0.8, active=True)

    def _connect(self) -> None:
        private: dict[str, Any] = {"api_visibility": "private"}
        still: dict[str, Any] = private | {"show_progress": "hidden"}
        fields = [*self.form.components.values(), self.trigger]
        parts = self.filling.parts()
        sent = [self.unfolded, self.panel.sent, self.finder.sent, self.view.form]
        given = {*fields, self.dataset, self.heldout, self.filled, self.card, self.box.key, *sent}
        begun = {*given, self.name, self.view.job, self.grid_after, *self.view.loss.look.fields()}
        shown = [
            *self.panel.outputs(), *self.finder.outputs(), self.start, self.rehearse, self.unfolded, self.again,
            *self._accordions(), self.view.form, self.view.rehearsal, self.view.adopt, *self.box.outputs(),
        ]  # fmt: skip

        # Start, and what may be asked before.
        progress: dict[str, Any] = private | {"show_progress": "minimal", "show_progress_on": self.start}
        every = list(dict.fromkeys([*self.view.outputs(), *shown]))  # the rehearsal's box is in both
        self.start.click(self.begin, begun, [*every, self.name, self.box.key], **progress)
        progress["show_progress_on"] = self.rehearse
        self.rehearse.click(self.rehearse_one, begun, every, **progress)

        # What fills the form; what would happen then is said at once.
        chosen = [*parts, self.preset, self.dataset, self.heldout]
        look: dict[str, Any] = {"fn": self.look, "inputs": given, "outputs": shown, "queue": False, **still}
        self.view.adopt.click(self.adopt_suggested, given, self.form.parts(), **still).then(**look)
        self.preset.input(self.take_preset, {*fields, self.dataset, self.preset}, parts, **still).then(**look)
        self.picker.connect()
        self.picker.cards.select(self.take_card, {*fields, self.dataset}, [*parts, self.preset], **still).then(**look)
        self.recipe.upload(self.take_recipe, {*fields, self.recipe}, [*parts, self.recipe], **private).then(**look)
        self.dataset.input(self.choose_dataset, [self.dataset, self.heldout], self.heldout, **still)
        branch = {*fields, self.view.onward.step, self.view.onward.with_optimizer}
        self.view.onward.branch.click(self.branch_off, branch, chosen, **still).then(**look)
        self.source.input(self.take_source, {*fields}, chosen, **still).then(**look)
        self.filling.connect_box(chosen, look, still)
        once: dict[str, Any] = {"trigger_mode": "once"}
        advised = {*fields, self.view.job}
        self.view.recommendation.advised(self.as_advised, advised, chosen, **once, **still).then(**look)
        self.panel.lines.cured(self.cure, {*fields, self.panel.sent}, chosen, **once, **still).then(**look)
        reset = {*fields, self.filled}
        self.finder.lines.reset(self.reset, reset, self.form.parts(), **once, **still).then(**look)
        search: dict[str, Any] = {"queue": False, "trigger_mode": "always_last", **still}
        shown_by_search = [*self.form.parts(), *self._top_folds()]
        self.finder.search.change(self.find, {*fields, self.finder.search}, shown_by_search, **search)

        self.dataset.change(trigger_mode="always_last", **look)
        self.again.tick(**look)
        self.edited = Refresh(self.look, list(given), shown)

    def _top_folds(self) -> list[gr.Accordion]:
        return list(dict.fromkeys(folds[0] for folds in self.folds.values()))

    def _accordions(self) -> list[gr.Accordion]:
        return list(dict.fromkeys(fold for folds in self.folds.values() for fold in folds))

    # What a start would do.

    def _wish(self, held: dict[Any, Any]) -> Wish:
        values = self.form.values(held)
        sets = held.get(self.dataset) or "", held.get(self.heldout) or ""
        return Wish(
            values, *sets, held.get(self.trigger) or "", held.get(self.filled) or {}, str(held.get(self.card) or "")
        )

    @mended_unasked
    def look(self, held: dict[Any, Any]) -> dict[Any, Any]:
        return self._shown(held, self._ahead(held))

    def _ahead(self, held: dict[Any, Any]) -> Forecast:
        return retraining.look(self.context, self._wish(held), self._again(held), self.seen)

    def _again(self, held: dict[Any, Any]) -> str:
        """What is trained again; "" for nothing."""
        return str(held.get(self.box.key) or "")

    def _shown(self, held: dict[Any, Any], ahead: Forecast) -> dict[Any, Any]:
        """The panel's updates; Start can be used while nothing stands against it."""
        read = self.form.read_of(held)
        keys = {".".join(spec.path): key for key, spec in self.form.specs.items() if read.get(key)}
        ids = {path: element_id(key) for path, key in keys.items()} | OWN_IDS
        changed = self.finder.changed(held, held.get(self.filled) or {})
        marked = [".".join(self.form.specs[key].path) for key in changed]
        updates = self.panel.updates(ahead, ids, marked, held.get(self.panel.sent) or [])
        updates |= self.finder.updates(changed, held.get(self.finder.sent) or [])
        updates |= self.box.updates(self._again(held), str(held.get(self.source) or ""))

        if (form := rehearsal_settings.asked(self._wish(held))) != held.get(self.view.form):
            updates |= self.view.of_form(form)

        # The folded groups of what is wrong are opened, once for each.
        wrong = [problem.key for problem in ahead.problems if problem.key in keys]
        news = [key for key in wrong if key not in (held.get(self.unfolded) or [])]
        updates |= {fold: gr.update(open=True) for key in news for fold in self.folds.get(keys[key], [])}
        can_start = not ahead.problems
        return updates | {
            self.unfolded: wrong,
            self.start: gr.update(interactive=can_start),
            self.rehearse: gr.update(interactive=can_start),
            self.again: gr.Timer(active=ahead.num_unseen > 0),  # until every picture was decoded once
        }

    def _ready(self, held: dict[Any, Any]) -> tuple[TrainConfig | None, dict[Any, Any]]:
        """The settings to start with, None if they must fail, and the panel's updates, which say why."""
        wish, ahead, again = self._wish(held), self._ahead(held), self._again(held)
        config = None if ahead.problems else self._config(held)
        if config:
            config, problems = retraining.at_start(self.context, wish, again, config)
            if problems:
                config, ahead = None, dataclasses.replace(ahead, problems=tuple(problems))
        if config is None:
            warn(say("train.cannot_start", problems=" ".join(problem.text for problem in ahead.problems[:3])))
        return config, self._shown(held, ahead)

    @mended
    def cure(self, held: dict[Any, Any], event: gr.EventData) -> Any:
        """Do what the button beside a problem says."""
        cure = cure_of(event, held[self.panel.sent])
        if cure is None:
            return gr.skip()
        if cure.preset:
            return {self.preset: cure.preset, **self.filling.with_preset(held, cure.preset)}
        own = {"data.trigger": self.trigger, "data.folder": self.dataset, "data.heldout": self.heldout}
        changes = dict(cure.changes)
        return self.form.change(held, changes) | {own[key]: value for key, value in changes.items() if key in own}

    @mended
    def reset(self, held: dict[Any, Any], event: gr.EventData) -> Any:
        """Put a changed setting back to what the form was filled with."""
        key = getattr(event, "key", None)
        if not isinstance(key, str) or key not in self.form.specs:  # a browser may send anything
            return gr.skip()
        spec, filled = self.form.specs[key], held[self.filled]
        path = ".".join(spec.path)
        return self.form.change(held, {path: filled.get(path, spec.default)})

    @mended_unasked
    def find(self, held: dict[Any, Any]) -> dict[Any, Any]:
        """The settings that match what is searched for, wherever they are folded."""
        words = (held[self.finder.search] or "").strip()
        updates = self.finder.found(held, words, list(self.folds))
        everyday = self._top_folds()[0]  # open also where nothing is searched for
        for fold in self._top_folds():
            inside = [key for key, folds in self.folds.items() if folds[0] is fold]
            some = any(updates[self.form.components[key]]["visible"] for key in inside)
            updates[fold] = gr.update(visible=some, open=bool(words) or fold is everyday)
        return updates

    # Jobs from the form.

    @mended
    def begin(self, held: dict[Any, Any]) -> dict[Any, Any]:
        config, shown = self._ready(held)
        if config is None:
            return shown
        card, grid = str(held.get(self.card) or ""), held.get(self.grid_after) is True
        wanted = starting.Wanted(held[self.name] or held[self.dataset], card, self._again(held), grid)
        job = starting.begin(self.context, config, wanted)
        tell(say("job.on_its_way", name=job.name))
        form = rehearsal_settings.asked(self._wish(held))
        done = {self.box.key: "", self.box.box: gr.update(visible=False)}  # the next start is another training
        return {**shown, **self.view.changes(job.id, {}, form, self.view.loss.look.of(held)), **done, self.name: ""}

    @mended
    def rehearse_one(self, held: dict[Any, Any]) -> dict[Any, Any]:
        config, shown = self._ready(held)
        if config is None:
            return shown
        rehearsal_settings.begin(self.context, tomli_w.dumps(config.model_dump(mode="json")), self._wish(held))
        form = rehearsal_settings.asked(self._wish(held))
        return {**shown, **self.view.changes(held.get(self.view.job), {}, form, self.view.loss.look.of(held))}

    def _config(self, held: dict[Any, Any]) -> TrainConfig:
        values, heldout, trigger = self.form.values(held), held[self.heldout] or "", held[self.trigger] or ""
        return config_of(self.context, values, held[self.dataset], heldout, trigger)

    @mended
    def adopt_suggested(self, held: dict[Any, Any]) -> dict[Any, Any]:
        changes = rehearsal_settings.to_adopt(self.context, rehearsal_settings.asked(self._wish(held)))
        tell(say("train.form_of_rehearsal"))
        return self.form.change(held, changes)

    # What fills the form.

    @mended
    def take_preset(self, held: dict[Any, Any], request: gr.Request | None = None) -> dict[Any, Any]:
        guide.preset_chosen(self.context, held.get(self.dataset), request)
        return self.filling.with_preset(held, held[self.preset])

    @mended
    def take_card(self, held: dict[Any, Any], event: gr.EventData, request: gr.Request | None = None) -> dict[Any, Any]:
        chosen = pressed(event)
        guide.preset_chosen(self.context, held.get(self.dataset), request)
        return {self.preset: chosen, **self.filling.with_preset(held, chosen)}

    @mended
    def take_recipe(self, held: dict[Any, Any]) -> Any:
        file = held[self.recipe]
        if not file:
            return gr.skip()
        try:
            config, card = recipe_of(self.context, file)
        finally:
            leftovers.taken(self.context, [file])
        tell(say("train.form_of_recipe"))
        return {**self.filling.with_config(held, config, card), self.recipe: None}

    @mended
    def branch_off(self, held: dict[Any, Any]) -> dict[Any, Any]:
        key = str(held.get(self.view.onward.step) or "")
        tell(say("train.goes_on_from", step=start_choices.label(key)))
        return self.filling.from_step(held, key, held.get(self.view.onward.with_optimizer) is True)

    @mended
    def take_source(self, held: dict[Any, Any]) -> dict[Any, Any]:
        """The form as what was chosen to go on from asks for."""
        key = str(held.get(self.source) or "")
        if not key:
            return {}
        return self.filling.from_step(held, key, False) if "/" in key else self.filling.from_lora(held, key)

    @mended
    def as_advised(self, held: dict[Any, Any]) -> dict[Any, Any]:
        """The form with the settings of the run that is shown, changed as its log advises."""
        config = branch_form.next_time(self.context, held[self.view.job])
        tell(say("train.as_advised"))
        return self.filling.with_run(held, config)

    def choose_dataset(self, chosen: str | None, other: str | None) -> dict[Any, Any]:
        return {self.heldout: heldout_of(self.context, chosen, other or "")}

    @mended
    def open_tab(
        self, chosen: str | None, other: str | None, preset: str | None, source: str | None, again: str | None = None
    ) -> dict[Any, Any]:
        """The datasets and bases that are here now; what was chosen stays if it is still here."""
        names, choices = self.context.dataset_names(), self.context.dataset_choices()
        # Of what is trained again the new pictures are for a person to choose.
        first = next((name for name in names if not name.endswith("-heldout") and not again), None)
        kept = chosen if chosen in names else first
        heldout = (other if other in names else "") if kept == chosen else heldout_of(self.context, kept, other or "")
        return {
            self.dataset: gr.update(choices=choices, value=kept),
            self.heldout: gr.update(choices=[(say("word.none"), ""), *choices], value=heldout),
            self.preset: gr.update(choices=preset_choices.choices(self.context)),
            self.picker.cards: self.picker.html(preset),
            self.again: gr.Timer(active=True),  # looks anew at what is here now
            self.source: gr.update(choices=start_choices.offered(self.context, source or "")),
        }


def build(context: Context) -> Refresh:
    """Draw the tab."""
    tab = _Tab(context)
    sets = [tab.dataset, tab.heldout]
    shown = [*sets, tab.preset, tab.picker.cards, tab.again, tab.source]
    opens, read = tab.view.opens(), [*sets, tab.preset, tab.source, tab.box.key]
    return Refresh(tab.open_tab, read, shown, opens=opens, edited=tab.edited, look=tab.view.look())
