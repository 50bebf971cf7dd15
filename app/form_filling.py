"""What the Train form becomes when it is filled: by a preset, a run, a saved step, a LoRA, or by training again.

Updates by component; what each of them is of stands beside the form and goes with the start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from app import branch_form, preset_choices, retraining, shared_cards, start_choices
from app.context import Context
from app.form import Form
from app.notices import mended
from app.retrain_box import RetrainBox
from trainer.config import TrainConfig

Held = Mapping[Any, Any]
Updates = dict[Any, Any]


@dataclass(frozen=True, eq=False)
class FormFilling:
    """The form and what stands beside it."""

    context: Context
    form: Form
    dataset: gr.Dropdown
    heldout: gr.Dropdown
    trigger: gr.Textbox
    card: gr.Textbox  # what the form was filled from, as `shared_cards.source_of` gives it
    filled: gr.State  # and with, by dotted path
    box: RetrainBox

    @property
    def source(self) -> Any:
        """What the training goes on from."""
        return self.form.components["start.source"]

    def parts(self) -> list[Any]:
        """What a filling may change, but for the datasets."""
        return [*self.form.parts(), self.trigger, self.filled, self.card, self.box.key]

    def with_config(self, held: Held, config: TrainConfig, card: str = "") -> Updates:
        """The whole form as these settings say, which are those of a card if its digest is given."""
        own = {self.trigger: config.data.trigger, self.filled: self.form.by_path(config), self.card: card}
        return {**self.form.fill_beside(held, config), **own, self.box.key: ""}

    def with_preset(self, held: Held, name: str) -> Updates:
        """The form as a preset says. Raises: UserError."""
        return self.with_config(held, preset_choices.filled(self.context, name), shared_cards.source_of(name))

    def with_run(self, held: Held, config: TrainConfig) -> Updates:
        """The form with a run's settings, and its datasets where they are still here."""
        sets = {self.dataset: config.data.folder, self.heldout: config.data.heldout}
        here = {part: branch_form.dataset_of(self.context, folder) for part, folder in sets.items()}
        return self.with_config(held, config) | {part: name for part, name in here.items() if name}

    def from_step(self, held: Held, key: str, with_optimizer: bool) -> Updates:
        """The form with the settings of the run that saved this step, to go on from it. Raises: UserError."""
        config = branch_form.of_run(self.context, key, with_optimizer)
        return self.with_run(held, config) | self._goes_on(key)

    def from_lora(self, held: Held, sha256: str) -> Updates:
        """The form to go on from a LoRA of the library. Raises: UserError."""
        return self._changed(held, branch_form.of_lora(self.context, sha256, self.form.values(held)["family"]))

    # Training again.

    def connect_box(self, chosen: list[Any], look: dict[str, Any], still: dict[str, Any]) -> None:
        """Answer the box of what is trained again; then what would happen is said."""
        read = {*self.form.components.values(), self.trigger, self.box.key}
        self.box.key.input(self.take_again, read, chosen, **still).then(**look)
        begin: dict[str, Any] = {"fn": self.begin_as_wished, "inputs": {*read, self.box.from_old}}
        self.box.from_old.input(outputs=self.form.parts(), **begin, **still).then(**look)
        self.box.leave.click(lambda: "", None, self.box.key, **still).then(**look)

    @mended
    def take_again(self, held: dict[Any, Any]) -> Updates:
        key = str(held[self.box.key] or "")
        return self.again(held, key) if key else {}

    @mended
    def begin_as_wished(self, held: dict[Any, Any]) -> Updates:
        return self.begin_with_old(held, held[self.box.from_old] is True)

    def again(self, held: Held, key: str) -> Updates:
        """The form with the recipe of what is trained again, and no pictures chosen yet. Raises: UserError."""
        retraining.of(self.context, key)  # nothing is filled for what can't be compared with
        config, card = retraining.settings(self.context, key)
        sets = {self.dataset: gr.update(value=None), self.heldout: gr.update(value="")}
        return self.with_config(held, config, card) | {self.box.key: key} | sets

    def begin_with_old(self, held: Held, wanted: bool) -> Updates:
        """The form to begin with the old LoRA of what is trained again, or anew. Raises: UserError."""
        key = str(held.get(self.box.key) or "")
        changes = retraining.changes_of(self.context, key, self.form.values(held)["family"], wanted)
        return self._changed(held, changes) | self._goes_on(changes["start.source"])

    def _changed(self, held: Held, changes: Mapping[str, Any]) -> Updates:
        """The form with these settings, of which the method decides which others there are."""
        if method := changes.get("adapter.method"):
            held = {**held, self.form.components["adapter.method"]: method}
        return self.form.change(held, changes)

    def _goes_on(self, key: str) -> Updates:
        return {self.source: gr.update(choices=start_choices.offered(self.context, key), value=key)}
