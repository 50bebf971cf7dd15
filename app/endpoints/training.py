"""The settings half of the Train tab for programs: what a training would do, a rehearsal of it, and its start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tomli_w

from app import forecast, preset_choices, rehearsal_settings, shared_cards, starting, train_settings, views
from app.context import Context
from app.endpoints.asking import Name, Number, Settings
from app.endpoints.rows import job_row
from app.forecast import Forecast, Wish
from app.form_problems import Problem
from app.job_work import REHEARSAL
from app.opened_pictures import OpenedPictures
from app.texts import say
from trainer import presets
from trainer.config import TrainConfig
from trainer.errors import ConfigError
from trainer.printing import some

_ANSWERED = ("fits", "step_s", "eta_s", "peak_bytes", "disk_bytes", "budget_bytes")


class TrainingEndpoints:
    """What can be asked before a training; every public method is an endpoint."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._seen = OpenedPictures()

    def bases(self) -> list[str]:
        """Names of the base models."""
        return [label for label, _ in self.context.base_choices()]

    def presets(self) -> list[str]:
        """Names of the presets."""
        return presets.names()

    def forecast(self, preset: Name, dataset: Name, settings: Settings | None = None) -> dict[str, Any]:
        """What a training would do: a headline, facts on base, length and disk, every problem, and what is to be known.

        A problem is what Start would be refused for. Each names the setting that it is about, "" for none, and what
        would cure it: settings by dotted name, or another preset.
        """
        wish, ahead = self._look(preset, dataset, settings)
        problems = ahead.problems
        # All that the trainer itself refuses, asked last: it opens every picture.
        if not problems:
            problems = tuple(forecast.at_start(self.context, wish, self._config(wish)))
        return told(ahead, problems)

    def rehearse(self, preset: Name, dataset: Name, settings: Settings | None = None) -> dict[str, Any]:
        """Have a training's cost measured by a few real steps, as a job that leaves no run; the job's row.

        What would fail is refused.
        """
        wish, config = self._ready(preset, dataset, settings)
        return job_row(rehearsal_settings.begin(self.context, _text(config), wish))

    def rehearsal(self, job: Number) -> dict[str, Any]:
        """What a rehearsal found: its state, whether it fits, seconds and bytes, and settings with which it would."""
        found = self.context.runner.get(job)
        if found.kind != REHEARSAL:
            raise ConfigError(say("api.no_rehearsal", name=found.name))
        answer = self.context.runner.answer(found) if found.state == "finished" else {}
        told = {key: answer.get(key) for key in _ANSWERED}
        return {"state": found.state, "error": found.error, **told, "settings": views.suggested(answer)}

    def train(
        self, preset: Name, dataset: Name, name: Name = "", settings: Settings | None = None, grid: bool = False
    ) -> dict[str, Any]:
        """Begin a training of a dataset by a preset, as a job; its row. What would fail is refused.

        `settings` by dotted name change the preset's. With `grid`, its saved steps are drawn as a batch afterwards.
        """
        _, config = self._ready(preset, dataset, settings)
        wanted = starting.Wanted(name or dataset, shared_cards.source_of(preset), grid=grid)
        return job_row(starting.begin(self.context, config, wanted))

    def _look(self, preset: str, dataset: str, settings: Settings | None) -> tuple[Wish, Forecast]:
        """What is asked for, and what it would do as far as it can be seen at once. Raises: ConfigError."""
        if not presets.has(preset):
            raise ConfigError(say("preset.no_such", preset=preset[:80], allowed=some(presets.names())))
        # The preset's own base may not be here: then the form takes another of its family, and so does this.
        base = {"base": preset_choices.filled(self.context, preset).base}
        values = presets.load(preset, base | (settings or {})).model_dump(mode="json")
        data = values["data"]
        wish = Wish(values, dataset, data["heldout"], data["trigger"], {})
        return wish, forecast.look(self.context, wish, self._seen)

    def _config(self, wish: Wish) -> TrainConfig:
        return train_settings.config_of(self.context, dict(wish.values), wish.dataset, wish.heldout, wish.trigger)

    def _ready(self, preset: str, dataset: str, settings: Settings | None) -> tuple[Wish, TrainConfig]:
        """What is asked for, and the settings to start with. Raises: ConfigError with all that stands against it."""
        wish, ahead = self._look(preset, dataset, settings)
        config = self._config(wish)
        refuse(ahead.problems)
        refuse(tuple(forecast.at_start(self.context, wish, config)))
        return wish, config


def _text(config: TrainConfig) -> str:
    return tomli_w.dumps(config.model_dump(mode="json"))


def told(ahead: Forecast, problems: Sequence[Problem]) -> dict[str, Any]:
    """A forecast as it is answered."""
    return {
        "says": ahead.headline, "facts": list(ahead.facts), "problems": [_problem(one) for one in problems],
        "notes": [_problem(one) for one in ahead.notes], "num_pictures_unseen": ahead.num_unseen,
    }  # fmt: skip


def refuse(problems: Sequence[Problem]) -> None:
    """Raises: ConfigError with what stands against a start, if anything does."""
    if problems:
        raise ConfigError(" ".join(problem.text for problem in problems[:10]))


def _problem(problem: Problem) -> dict[str, Any]:
    cure = {"settings": dict(problem.cure.changes), "preset": problem.cure.preset} if problem.cure else None
    return {"text": problem.text, "setting": problem.key, "cure": cure}
