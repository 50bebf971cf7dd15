"""Presets and cards for programs: what they hold, what one would change, and how they come and go."""

from __future__ import annotations

from typing import Any, Literal

from app import shared_cards
from app.context import Context
from app.endpoints.asking import Name
from app.endpoints.rows import fetched_at
from app.texts import say
from trainer.cards import comparing, places
from trainer.cards.making import Wishes
from trainer.config import TrainConfig
from trainer.errors import ConfigError
from trainer.printing import plain

Words = Name


class PresetEndpoints:
    """What can be asked of presets and cards; every public method is an endpoint.

    A preset is named by its name, a kept card by its key in the library, the settings of a run by run:NAME.
    """

    def __init__(self, context: Context) -> None:
        self.context = context

    def preset(self, preset: Name) -> dict[str, Any]:
        """The settings of a preset, a kept card of a training, or a run, without the places of this machine."""
        return places.without(self._settings(preset), with_names=True).model_dump(mode="json")

    def compare_presets(self, first: Name, second: Name) -> list[dict[str, Any]]:
        """The settings in which two differ: setting, its name for people, and the values of both."""
        # Where things lie on this machine is no difference between settings.
        pair = [places.without(self._settings(key), with_names=True) for key in (first, second)]
        return [
            {"setting": one.key, "title": one.title, "first": one.before, "second": one.after}
            for one in comparing.differences(*pair)
        ]

    def export_card(
        self,
        kind: Literal["presets", "runs", "loras", "stacks"],
        key: Name,
        author: Words = "",
        licence: Words = "",
        note: str = "",
        with_samples: bool = False,
    ) -> dict[str, Any]:
        """The settings of a preset, run, LoRA or saved stack as one file to share: its address, and what was left out.

        With samples, a run's previews go with it. `drop_files` takes such a file in.
        """
        wishes = Wishes(author=author, licence=licence, note=note, with_samples=with_samples)
        path, notes = shared_cards.shared(self.context, kind, key, wishes)
        return {"address": fetched_at(path), "notes": notes}

    def keep_card(self, key: Name) -> str:
        """A kept card as a preset of your own; its name."""
        return shared_cards.keep_preset(key)

    def _settings(self, key: str) -> TrainConfig:
        """The settings behind a key. Raises: ConfigError for what has none."""
        settings = shared_cards.named(self.context, key)
        if settings is None:
            raise ConfigError(say("api.no_settings", key=plain(key, 80)))
        return settings
