"""Train: settings from a preset, one button to start, and everything shown comes from the job table and the run's log.

So a reload, a second tab or a new server shows the same. Nothing is trained in an event of the page.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import tomli_w

from app import gate, leftovers, views
from app.context import Context, Refresh
from app.form import Form
from app.jobs import LIVE, REHEARSAL, TRAINING, WAITING, Job
from app.notices import mended, tell
from trainer import families, methods, presets, runs
from trainer.config import TrainConfig, parse
from trainer.errors import ConfigError, UserError
from trainer.events import Event, Finished, Recommended, Started

TITLE = "Train"
ORDER = 20
_OWN = frozenset({"version", "data.folder", "data.heldout", "data.trigger"})
_NONE = ("none", "")
# Folded groups of advanced settings in the order of the work; a group that is not named here comes last.
_GROUPS = {
    "captions": "Captions", "data": "Data", "objective": "Objective", "optimizer": "Optimizer", "adapter": "Adapter", "inversion": "New word",
    "against": "Train against", "validation": "Validation", "preview": "Previews", "memory": "Memory", "run": "Run",
}  # fmt: skip
_BELONGS = {"validate_every_steps": "validation", "accumulation": "optimizer"}  # settings of no group, to "run" if not here


Part = tuple[Any, Callable[[], dict[Any, Any]]]  # what it depends on, and its update
Parts = dict[str, Part]


def config_of(context: Context, form_values: dict[str, Any], dataset: str | None, heldout: str, trigger: str) -> TrainConfig:
    """The settings of the form, checked, with folders spelled out. Raises: ConfigError, DataError."""
    from trainer import session  # loads torch, which the page itself must not

    folder = context.dataset(dataset)
    if not context.pictures(folder):
        raise ConfigError(f"dataset {dataset} has no pictures; add some in the Dataset tab.")
    data = form_values.setdefault("data", {})
    data |= {"folder": str(folder), "heldout": str(context.dataset(heldout)) if heldout else "", "trigger": trigger.strip()}
    return session.absolute(gate.checked(context, parse(TrainConfig, form_values, "the form")))


def recipe_of(context: Context, preset: str) -> TrainConfig:
    """The settings of a preset, a LoRA or a config.toml, whose base this server offers. Raises: ConfigError, AdapterError."""
    try:
        config = presets.load(preset, {})
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{Path(preset).name} can't be read as a recipe: {error}") from None
    return config.model_copy(update={"base": context.base(config.base)})


def grouped(form: Form, keys: list[str]) -> dict[str, list[str]]:
    """These settings by the title of their group, in the order of the page."""
    found: dict[str, list[str]] = {title: [] for title in _GROUPS.values()}
    for key in keys:
        path = form.specs[key].path
        group = path[0] if len(path) > 1 else _BELONGS.get(key, "run")
        found.setdefault(_GROUPS.get(group, group.capitalize()), []).append(key)
    return {title: inside for title, inside in found.items() if inside}


def first_preset() -> str:
    """The preset the form starts with: a style, if there is one."""
    found = presets.names()
    return next((name for name in found if name.endswith("style")), found[0])


class _Tab:
    """The tab's components and what happens when they are used."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.start_config = presets.load(first_preset(), {})
        choices = {
            "family": [(module.title, name) for name, module in families.registry().items()], "base": context.base_choices(),
            "adapter.method": [(module.title, name) for name, module in methods.registry().items()],
        }  # fmt: skip
        facts = {"family": {name: {"prediction": module.prediction} for name, module in families.registry().items()}}
        self.form = Form(TrainConfig, self.start_config, _OWN, choices, facts)
        with gr.Row(equal_height=False, elem_classes="halves"):
            with gr.Column(scale=4, min_width=320):
                self._draw_choices()
                self._draw_settings()
            with gr.Column(scale=5, min_width=320):
                self._draw_job()
        self.form.connect()
        self.seen = gr.State({})
        self.live = [
            self.job, self.progress, self.plan, self.notices, self.stop, self.resume, self.plot, self.heldout_plot, self.result, self.recommendation,
            *self.downloads, self.pictures, self.log, self.rehearsal, self.adopt, self.seen,
        ]  # fmt: skip
        self._connect()

    def _draw_choices(self) -> None:
        titles = [(presets.title(name), name) for name in presets.names()]
        with gr.Group():
            self.preset = gr.Dropdown(titles, value=first_preset(), label="Preset", interactive=True, elem_id="preset")
            with gr.Row():
                self.dataset = gr.Dropdown([], label="Dataset", min_width=140, interactive=True, elem_id="train-dataset")
                self.heldout = gr.Dropdown([_NONE], value="", label="Held-out set", min_width=140, interactive=True, elem_id="train-heldout")
            with gr.Row():
                self.name = gr.Textbox(label="Name", placeholder="as the dataset", max_length=80, min_width=140, elem_id="run-name")
                trigger = self.start_config.data.trigger
                self.trigger = gr.Textbox(trigger, label="Trigger", placeholder="word for a character", max_length=80, min_width=140, elem_id="trigger")

    def _draw_settings(self) -> None:
        form = self.form
        with gr.Row():
            form.draw("max_steps", "batch_size")
        with gr.Row():
            form.draw("learning_rate", "resolution_px")
        with gr.Row():
            self.start = gr.Button("Start training", variant="primary", size="lg", scale=2, min_width=150, elem_id="start-training")
            self.rehearse = gr.Button("Rehearse", size="lg", scale=1, min_width=110, elem_id="rehearse")
        self.rehearsal = gr.HTML(visible=False, elem_id="rehearsal")
        self.adopt = gr.Button("Use these settings", visible=False, elem_id="use-suggested")
        with gr.Accordion("Adapter and previews", open=True, elem_classes="fields"):
            form.draw("adapter.method", *[key for key, spec in form.specs.items() if spec.kind and not spec.advanced], "preview.prompts")
        with gr.Accordion("More settings", open=False, elem_classes="fields"):
            form.draw_rest(advanced=False)
        with gr.Accordion("Advanced", open=False, elem_id="advanced"):
            for title, keys in grouped(form, form.left(advanced=True)).items():
                form.draw_group(title, keys)
        with gr.Accordion("Take the settings of a LoRA or a config.toml", open=False):
            self.recipe = gr.File(file_types=[".safetensors", ".toml"], label="Drop a LoRA made here, or a config.toml", height=120, elem_id="recipe-file")

    def _draw_job(self) -> None:
        self.job = gr.Dropdown([], label="Job", interactive=True, elem_id="job")
        self.progress = gr.HTML(views.NOTHING_YET, elem_id="progress")
        self.plan = gr.HTML(visible=False, elem_id="plan")
        self.notices = gr.HTML(visible=False, elem_id="notices")
        self.recommendation = gr.HTML(visible=False, elem_id="recommendation")
        with gr.Row():
            look: dict[str, Any] = {"visible": False, "size": "md", "min_width": 110}
            self.downloads = [gr.DownloadButton(f"Download {name}", elem_id=f"download-{name}", **look) for name in ("best", "last", "report")]
        with gr.Row():
            self.stop = gr.Button("Stop and save", variant="stop", interactive=False, elem_id="stop-training", min_width=120)
            self.resume = gr.Button("Resume", interactive=False, elem_id="resume-training", min_width=120)
        self.plot = gr.HTML(visible=False, elem_id="loss")
        self.heldout_plot = gr.HTML(visible=False, elem_id="heldout-plot")
        self.result = gr.Textbox(label="Held-out result", lines=2, max_lines=4, interactive=False, visible=False, elem_id="heldout-result")
        self.pictures = gr.Gallery(
            label="Previews, newest first",
            columns=4,
            height=300,
            fit_columns=False,
            object_fit="contain",
            interactive=False,
            buttons=["fullscreen", "download"],
            elem_id="samples",
        )
        self.log = gr.Textbox(label="Messages", lines=4, max_lines=10, interactive=False, elem_id="messages")

    def _connect(self) -> None:
        private: dict[str, Any] = {"api_visibility": "private"}
        still: dict[str, Any] = private | {"show_progress": "hidden"}
        fields = [*self.form.components.values(), self.trigger]
        parts = [*self.form.parts(), self.trigger]
        given = {*fields, self.dataset, self.heldout, self.name}
        self.start.click(self.begin, given, [*self.live, self.name], **private)
        self.rehearse.click(self.rehearse_one, given, self.live, **private)
        self.adopt.click(self.adopt_suggested, {*fields}, parts, **still)
        self.preset.input(self.take_preset, self.preset, parts, **still)
        self.recipe.upload(self.take_recipe, self.recipe, [*parts, self.recipe], **private)
        self.dataset.input(self.choose_dataset, [self.dataset, self.heldout], self.heldout, **still)
        self.stop.click(self.stop_one, self.job, self.live, **still)
        self.resume.click(self.resume_one, self.job, self.live, **still)
        self.job.input(self.show_job, self.job, self.live, **still)
        gr.Timer(1.0).tick(self.poll, [self.job, self.seen], self.live, concurrency_id="poll", concurrency_limit=8, **still)

    # The form.

    @mended
    def begin(self, found: dict[Any, Any]) -> dict[Any, Any]:
        config = self._config(found)
        self._end_rehearsals()
        made = self.context.runner.submit(found[self.name] or found[self.dataset], tomli_w.dumps(config.model_dump(mode="json")))
        tell(f"{made.name} is on its way.")
        return {**self._changes(made.id, {}), self.name: ""}

    @mended
    def rehearse_one(self, found: dict[Any, Any]) -> dict[Any, Any]:
        config = self._config(found)
        self._end_rehearsals()
        self.context.runner.submit("rehearsal", tomli_w.dumps(config.model_dump(mode="json")), REHEARSAL)
        return self._changes(found.get(self.job), {})

    def _config(self, found: dict[Any, Any]) -> TrainConfig:
        return config_of(self.context, self.form.values(found), found[self.dataset], found[self.heldout] or "", found[self.trigger] or "")

    def _end_rehearsals(self) -> None:
        for job in self.context.runner.every():
            if job.kind == REHEARSAL and job.state in (*LIVE, *WAITING):
                self.context.runner.stop(job.id)

    @mended
    def adopt_suggested(self, found: dict[Any, Any]) -> dict[Any, Any]:
        job = next((one for one in self.context.runner.every() if one.kind == REHEARSAL), None)
        changes = views.suggested(self.context.runner.answer(job)) if job else {}
        tell("The form now has the rehearsal's settings.")
        return self.form.change(found, changes)

    @mended
    def take_preset(self, chosen: str) -> dict[Any, Any]:
        if chosen not in presets.names():
            raise ConfigError("that preset is not here any more; reload the page to see what is.")
        config = recipe_of(self.context, chosen)
        return {**self.form.fill(config), self.trigger: config.data.trigger}

    @mended
    def take_recipe(self, file: str | None) -> Any:
        if not file:
            return gr.skip()
        try:
            config = recipe_of(self.context, file)
        finally:
            leftovers.taken(self.context, [file])
        tell("The form now has that recipe's settings; choose a dataset.")
        return {**self.form.fill(config), self.trigger: config.data.trigger, self.recipe: None}

    def choose_dataset(self, chosen: str | None, other: str | None) -> dict[Any, Any]:
        return {self.heldout: self._twin(chosen, other or "")}

    def _twin(self, chosen: str | None, other: str) -> str:
        """The held-out set that goes with a dataset: its own if there is one, else what was chosen unless it is another's."""
        there, twin = self.context.dataset_names(), f"{chosen}-heldout"
        return twin if twin in there else other if other in there and not other.endswith("-heldout") else ""

    @mended
    def open_tab(self, chosen: str | None, other: str | None) -> dict[Any, Any]:
        there, named = self.context.dataset_names(), self.context.dataset_choices()
        kept = chosen if chosen in there else next((one for one in there if not one.endswith("-heldout")), None)
        value = self._twin(kept, other or "") if kept != chosen else other if other in there else ""
        return {self.dataset: gr.update(choices=named, value=kept), self.heldout: gr.update(choices=[_NONE, *named], value=value)}

    # The job.

    @mended
    def poll(self, chosen: int | None, before: dict[str, Any]) -> Any:
        return self._changes(chosen, before) or gr.skip()

    @mended
    def show_job(self, chosen: int | None) -> dict[Any, Any]:
        return self._changes(chosen, {})

    @mended
    def stop_one(self, chosen: int | None) -> dict[Any, Any]:
        self.context.runner.stop(chosen or 0)
        return self._changes(chosen, {})

    @mended
    def resume_one(self, chosen: int | None) -> dict[Any, Any]:
        self.context.runner.resume(chosen or 0)
        return self._changes(chosen, {})

    def _changes(self, chosen: int | None, before: dict[str, Any]) -> dict[Any, Any]:
        """Updates of what changed since this page last asked: anything else would flicker and cost."""
        every = self.context.runner.every()
        jobs = [one for one in every if one.kind == TRAINING]
        picked = next((one for one in jobs if one.id == chosen), jobs[0] if jobs else None)
        after: dict[str, Any] = {"jobs": [(one.id, one.state) for one in jobs]}
        update: dict[Any, Any] = {}
        if after["jobs"] != before.get("jobs"):
            update[self.job] = gr.update(choices=[(views.job_label(one), one.id) for one in jobs], value=picked.id if picked else None)
        parts = (self._parts(picked) if picked else {}) | self._rehearsal_parts([one for one in every if one.kind in (TRAINING, REHEARSAL)])
        for part, (signature, change) in parts.items():
            after[part] = signature
            if signature != before.get(part):
                update |= change()
        return update | {self.seen: after} if after != before else {}

    def _told(self, folder: Path) -> tuple[list[Event], int]:
        """The run's events; before it begins those of its newest fold, and how many folds were begun."""
        events = self.context.logs.read(folder / "events.jsonl")
        numbered = [path for path in (folder / "folds").glob("[0-9]*") if path.name.isdecimal()]
        folds = sorted(numbered, key=lambda path: int(path.name)) if views.last(events, Started) is None else []
        return (self.context.logs.read(folds[-1] / "events.jsonl"), len(folds)) if folds else (events, 0)

    def _parts(self, job: Job) -> Parts:
        """Each part of the job's view: what it depends on, and its update."""
        folder = self.context.runs / job.name
        events, fold = self._told(folder)
        bar, log = views.progress_html(job.name, views.progress(job, events, fold)), views.messages(job, events)
        result = views.gain(events) + views.best_step(events)
        samples, files = views.samples(folder, events), views.files(folder, events)
        captions = dict(samples)
        num_points = sum(event.kind in ("step", "validated") for event in events)
        num_measured = sum(event.kind == "validated" for event in events)
        decided = [event for event in events if isinstance(event, Recommended | Finished)]
        return {
            "progress": (bar, lambda: {self.progress: bar}),
            "plan": _shown(self.plan, views.plan_html(events)),
            "notices": _shown(self.notices, views.notices_html(events)),
            "curve": ((job.id, num_points), lambda: _shown(self.plot, views.loss_html(events))[1]()),
            "heldout": ((job.id, num_measured), lambda: _shown(self.heldout_plot, views.heldout_html(events))[1]()),
            "result": (result, lambda: {self.result: gr.update(value=result, visible=bool(result))}),
            "recommendation": (decided, lambda: _shown(self.recommendation, views.recommendation_html(events, self._settings_of(folder)))[1]()),
            "files": ([str(path) for path in files], lambda: self._offered(files)),
            "samples": (
                [str(path) for path, _ in samples],
                lambda: {self.pictures: [(public, captions[path]) for path, public in self.context.published_of(list(captions))]},
            ),
            "log": (log, lambda: {self.log: log}),
            "state": (
                job.state,
                lambda: {
                    self.stop: gr.update(interactive=job.state in (*LIVE, *WAITING)),
                    self.resume: gr.update(interactive=job.state in ("stopped", "failed")),
                },
            ),
        }

    def _settings_of(self, folder: Path) -> TrainConfig | None:
        try:
            return runs.Run(folder).config()
        except UserError:
            return None

    def _offered(self, files: list[Path | None]) -> dict[Any, Any]:
        """The downloads of what is there."""
        public: dict[Path | None, str] = dict(self.context.published_of([path for path in files if path]))
        return {
            button: gr.update(value=public[path], visible=True) if path in public else gr.update(visible=False)
            for button, path in zip(self.downloads, files, strict=True)
        }

    def _rehearsal_parts(self, jobs: list[Job]) -> Parts:
        """The newest rehearsal, until a training is started after it."""
        newest = jobs[0] if jobs and jobs[0].kind == REHEARSAL else None
        answer = self.context.runner.answer(newest) if newest and newest.state == "finished" else {}
        changes = bool(views.suggested(answer))
        return {
            "rehearsal": _shown(self.rehearsal, views.rehearsal_html(newest, answer) if newest else ""),
            "suggested": (changes, lambda: {self.adopt: gr.update(visible=changes)}),
        }


def _shown(box: gr.HTML, html: str) -> Part:
    """A box that is there while it has something to say."""
    return html, lambda: {box: gr.update(value=html, visible=bool(html))}


def build(context: Context) -> Refresh:
    """Draw the tab."""
    tab = _Tab(context)
    return Refresh(tab.open_tab, [tab.dataset, tab.heldout], [tab.dataset, tab.heldout])
