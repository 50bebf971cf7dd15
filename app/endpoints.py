"""What other programs may ask of the page: named endpoints, with plain values in and out (`docs/api.md`).

They go through the same gate and the same queue of jobs as the tabs, so nothing can be named or begun here that a
browser could not; and behind the same login.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import tomli_w

from app import batches, cards, forecast, path_gate, preset_choices, train_settings, views
from app.context import Context
from app.form_problems import Problem
from app.job_table import Job
from app.job_work import TRAINING
from app.notices import mended_for_programs
from app.opened_pictures import OpenedPictures
from app.texts import say
from trainer import presets
from trainer.config import StackConfig, parse
from trainer.errors import ConfigError
from trainer.printing import some


class Endpoints:
    """The endpoints of a server; every public method is one."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._seen = OpenedPictures()

    def connect(self) -> None:
        """Offer them; call once, within the page."""
        every: list[Callable[..., Any]] = [
            self.bases, self.datasets, self.presets, self.loras, self.jobs, self.job, self.train, self.render,
            self.batch, self.stop_job, self.resume_job,
        ]  # fmt: skip
        for endpoint in every:
            gr.api(
                mended_for_programs(endpoint),
                api_name=endpoint.__name__,
                concurrency_id="endpoints",
                concurrency_limit=4,
            )

    # What is here.

    def bases(self) -> list[str]:
        """Names of the base models."""
        return [label for label, _ in self.context.base_choices()]

    def datasets(self) -> list[str]:
        """Names of the datasets."""
        return self.context.dataset_names()

    def presets(self) -> list[str]:
        """Names of the presets."""
        return presets.names()

    def loras(self) -> list[dict[str, Any]]:
        """The LoRAs: name, sha256, trigger, family, method and rank of each."""
        return [
            {"name": info.name, "sha256": info.sha256, "trigger": info.trigger, "family": info.family,
             "method": info.method, "rank": info.rank}
            for info in self.context.find_loras().values()
        ]  # fmt: skip

    # Jobs.

    def jobs(self) -> list[dict[str, Any]]:
        """Every job, newest first: id, name, kind, state and error."""
        return [_row(job) for job in self.context.runner.shown()]

    def job(self, job: int) -> dict[str, Any]:
        """One job, with how much of it is done, from 0 to 1, and the files that came of it by name, each an address."""
        found = self.context.runner.get(job)
        if found.kind in batches.KINDS.values():
            folder = self.context.batches / found.name
            share = batches.progress(found, batches.last_events(self.context.runner.log_file(found))).share
            paths = [folder / "manifest.csv", *batches.pictures(folder, batches.MAX_PAGE_PICTURES)[0]]
        else:
            folder = self.context.runs / found.name
            events = self.context.logs.read(folder / "events.jsonl")
            share = views.progress(found, events, 0, None).share
            paths = [path for path in views.files(folder, events) if path]
        files = {path.name: f"/{cards.address(Path(public))}" for path, public in self.context.published_of(paths)}
        return _row(found) | {"done": share, "files": files}

    def train(
        self, preset: str, dataset: str, name: str = "", settings: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """A training of a dataset by a preset, as a job; `settings` by dotted name change the preset's."""
        if not presets.has(preset):
            raise ConfigError(say("preset.no_such", preset=preset[:80], allowed=some(presets.names())))
        base = {"base": preset_choices.filled(self.context, preset).base}
        values = presets.load(preset, base | (settings or {})).model_dump(mode="json")
        data = values["data"]
        wish = forecast.Wish(values, dataset, data["heldout"], data["trigger"], {})
        config = train_settings.config_of(self.context, values, dataset, data["heldout"], data["trigger"])
        self._refuse(forecast.look(self.context, wish, self._seen).problems)
        self._refuse(tuple(forecast.at_start(self.context, wish, config)))
        return _row(self.context.runner.submit(name or dataset, tomli_w.dumps(config.model_dump(mode="json"))))

    def _refuse(self, problems: tuple[Problem, ...]) -> None:
        if problems:
            raise ConfigError(" ".join(problem.text for problem in problems[:10]))

    def batch(self, jobs: str, kind: str = "csv", name: str = "") -> dict[str, Any]:
        """A batch as a job; `jobs` is the text of a jobs file, `kind` says whether it is csv or toml."""
        if f".{kind}" not in batches.KINDS:
            raise ConfigError(say("batch.kind", kind=kind[:80]))
        wanted = batches.read(self.context, jobs.encode(), f"jobs.{kind}")
        batches.plan_text(wanted, [self.context.loras, self.context.runs])  # begins nothing that can't be drawn
        return _row(self.context.runner.submit(name or "batch", wanted.text, wanted.kind))

    def stop_job(self, job: int) -> dict[str, Any]:
        """Have a job save and stop."""
        return _row(self.context.runner.stop(job))

    def resume_job(self, job: int) -> dict[str, Any]:
        """Have a stopped job go on."""
        return _row(self.context.runner.resume(job))

    # Pictures.

    def render(self, stack: dict[str, Any]) -> dict[str, Any]:
        """A picture of a stack: its name, address, A1111 text and seed, and what its LoRAs say of another base.

        `stack` is what a stack's file says; a LoRA is named by `file`, its name in the library, or by `sha256`.
        """
        from trainer.render.picture_metadata import save  # loads torch

        config = path_gate.checked(self.context, parse(StackConfig, stack, say("where.stack")))
        with self.context.engine(config) as engine:
            picture = engine.render(config)
            warnings = engine.warnings(picture.stack)
        path = save(picture, self.context.renders)
        return {
            "name": path.name, "address": f"/{cards.address(self.context.published(path))}", "text": picture.infotext,
            "seed": picture.stack.seed, "warnings": warnings,
        }  # fmt: skip


def _row(job: Job) -> dict[str, Any]:
    kind = {TRAINING: "training"}.get(job.kind, "batch" if job.kind in batches.KINDS.values() else job.kind)
    return {"id": job.id, "name": job.name, "kind": kind, "state": job.state, "error": job.error}
