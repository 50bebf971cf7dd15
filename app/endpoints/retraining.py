"""Training again for programs: a kept recipe on new pictures, old and new compared, and which of them is better."""

from __future__ import annotations

from typing import Any, Literal

from app import checkpoint_grids, retraining, starting, train_settings
from app.context import Context
from app.endpoints.asking import Name, Settings
from app.endpoints.rows import job_row
from app.endpoints.training import refuse, told
from app.forecast import Wish
from app.opened_pictures import OpenedPictures
from trainer import presets
from trainer.report import compared

Kind = Literal["runs", "loras", "presets"]


class RetrainingEndpoints:
    """What can be asked of training again; every public method is an endpoint.

    What is trained again is named by its kind and its key, as `library` gives it: a run, a LoRA made here, or the kept
    card of a training whose LoRA is here.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self._seen = OpenedPictures()

    def forecast_retrain(
        self, kind: Kind, key: Name, dataset: Name, heldout: Name = "", from_old: bool = False,
        settings: Settings | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """What training again would do, as `forecast` tells it, and what old and new would be compared on."""
        wish = self._wish(f"{kind}/{key}", (dataset, heldout), from_old, settings)
        ahead = retraining.look(self.context, wish, f"{kind}/{key}", self._seen)
        problems = list(ahead.problems)
        if not problems:
            problems = retraining.at_start(self.context, wish, f"{kind}/{key}", self._config(wish))[1]
        return told(ahead, problems)

    def retrain(
        self, kind: Kind, key: Name, dataset: Name, heldout: Name = "", from_old: bool = False, name: Name = "",
        settings: Settings | None = None, grid: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        """Train a kept recipe on another dataset, then compare old and new; the job's row. What would fail is refused.

        Without a held-out set a fifth of the pictures is held out. `settings` by dotted name change the recipe's.
        """
        again = f"{kind}/{key}"
        wish = self._wish(again, (dataset, heldout), from_old, settings)
        refuse(retraining.look(self.context, wish, again, self._seen).problems)
        config, problems = retraining.at_start(self.context, wish, again, self._config(wish))
        refuse(problems)
        card = retraining.settings(self.context, again)[1]
        return job_row(starting.begin(self.context, config, starting.Wanted(name or dataset, card, again, grid)))

    def compared(self, run: Name) -> dict[str, Any]:
        """What was found of a run that was trained again: which is better, in words and figures; null before that.

        `gain` is by how much the new one's loss is lower than the old one's, 0.1 for 10 %, with its 95 % interval.
        """
        folder = checkpoint_grids.run_of(self.context, run).folder
        found = compared.read(folder)
        gain, low, high = found.gains if found else (None, None, None)
        return {
            "better": found.better if found else None, "says": found.sentence if found else "",
            "problem": compared.problem(folder), "gain": gain, "gain_low": low, "gain_high": high,
            "num_pictures": found.num_pictures if found else 0, "losses": list(found.losses.values()) if found else [],
            "old": found.old if found else "", "old_sha256": found.old_sha256 if found else "",
            "new": found.new if found else "",
        }  # fmt: skip

    def _wish(self, again: str, sets: tuple[str, str], from_old: bool, changes: Settings | None) -> Wish:
        """What is asked for. Raises: UserError for what can't be trained again."""
        retraining.of(self.context, again)
        config, card = retraining.settings(self.context, again)
        begun = retraining.changes_of(self.context, again, config.family, from_old)
        values = presets.changed(config, begun | (changes or {})).model_dump(mode="json")
        return Wish(values, *sets, values["data"]["trigger"], {}, card)

    def _config(self, wish: Wish) -> Any:
        return train_settings.config_of(self.context, dict(wish.values), wish.dataset, wish.heldout, wish.trigger)
