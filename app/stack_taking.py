"""What the desk takes from a recent picture: all of it, or its seed, its prompt or its settings alone.

Choosing a picture opens its whole stack. What lay on the desk before is kept for the page, so that a part alone can be
put into it. Once the desk was changed by hand that is what a part is put into: nobody's work is taken away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from app import cards, scripts, stack_desk
from app.context import Context
from app.form import Form
from app.form_components import as_shown
from app.notices import mended, warn
from app.recipes import read_recipe, recent, text_of
from app.render_requests import Desk
from app.stack_live import drawn_from
from app.stack_pictures import Stage
from app.stack_rows import LoraRows
from app.texts import say
from trainer.config import StackConfig, parse
from trainer.errors import AdapterError, DataError, UserError

Update = dict[Any, Any]
Held = Mapping[Any, Any]

ALL, BEFORE = "all", "before"
# What is taken alone, and the settings that it is.
PARTS = {
    "seed": ("seed",),
    "prompt": ("prompt", "negative_prompt"),
    "settings": (
        "width_px", "height_px", "steps", "sampler", "guidance_scale", "guidance_rescale", "true_guidance_scale",
    ),
}  # fmt: skip
_BUTTONS = (
    (ALL, say("taking.all"), say("taking.all_help")), ("seed", say("taking.seed"), say("taking.part_help")),
    ("prompt", say("taking.prompt"), say("taking.prompt_help")),
    ("settings", say("taking.settings"), say("taking.settings_help")),
    (BEFORE, say("taking.before"), say("taking.before_help")),
)  # fmt: skip
_SAID = {
    ALL: "", "seed": say("taking.has_seed"), "prompt": say("taking.has_prompt"),
    "settings": say("taking.has_settings"), BEFORE: say("taking.is_before"),
}  # fmt: skip
_TEMPLATE = (
    f'<div class="taking" role="group" hidden><span class="taking-picture"></span>'
    f'<span class="taking-of">{say("taking.take")}</span>'
    + "".join(
        f'<button type="button" data-take="{what}" title="{help}">{words}</button>' for what, words, help in _BUTTONS
    )
    + '<span class="taking-said" role="status"></span></div>'
)


@dataclass(frozen=True, eq=False)
class Before:
    """What the form held, by component, and the picture that was shown."""

    values: dict[Any, Any]
    shown: Path | None


@dataclass(frozen=True, eq=False)
class Chosen:
    """The recent picture that was chosen last."""

    picture: str  # its file's name
    before: Before
    made: dict[str, Any] | None  # what the desk's picture is drawn from since; None if that is nothing of this picture


class Taking:
    """The row of buttons below the recent pictures."""

    def __init__(
        self, context: Context, form: Form, rows: LoraRows, stage: Stage,
        stacked: Callable[[Update], StackConfig], opened: Callable[[Desk, Path], Update],
    ) -> None:  # fmt: skip
        """`stacked` gives the stack that the page holds, `opened` what shows a picture with its stack in the form."""
        self.context, self.form, self.rows, self.stage = context, form, rows, stage
        self.stacked, self.opened = stacked, opened

    def draw(self) -> None:
        """Draw the row here; it is seen once a picture is chosen."""
        self.chosen = gr.State(None)
        self.html = gr.HTML(
            {}, html_template=_TEMPLATE, js_on_load=scripts.read("stack_taking.js"), elem_id="taking", padding=False
        )

    def connect(self, restored: list[Any], shown: list[Any]) -> Any:
        """Answer the recent pictures and the buttons; the event of those.

        `restored` is what a stack in the form may change, `shown` what a picture may.
        """
        still: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        inputs = {*self._parts(), self.stage.files, self.chosen}
        changed = [*restored, *shown, self.chosen, self.html]
        self.stage.gallery.select(self.choose, inputs, changed, **still)
        # What is opened from elsewhere takes the desk's place, and nothing of it is of the picture any more.
        self.stage.opened.change(lambda: (None, {}), None, [self.chosen, self.html], **still)
        return self.html.take(self.take, inputs, changed, **still)

    def _parts(self) -> list[Any]:
        """All that lies on the desk."""
        return [*self.form.components.values(), *self.rows.inputs(), self.rows.num_shown]

    @mended
    def choose(self, held: Update, request: gr.Request, event: gr.SelectData) -> Any:
        """A recent picture with its whole stack."""
        names, index = held[self.stage.files], event.index if isinstance(event.index, int) else -1
        # Pressed is a place in the list as it was sent; the folder may hold other pictures by now.
        path = self._recent(names[index] if 0 <= index < len(names) else None)
        if path is None:
            return gr.skip()
        desk = stack_desk.of(self.context, request)
        if self.stage.is_sheet(path):
            desk.cancel()
            return self.stage.show_sheet(desk, path) | {self.chosen: None, self.html: {}}
        # Of several that are looked at one after the other, what lay there before the first.
        chosen = held[self.chosen]
        before = chosen.before if self._is_as_made(held, chosen) else self._now(held, desk)
        try:
            update = self.opened(desk, path)
        except AdapterError as error:  # a LoRA of it is gone: the rest can be taken
            warn(str(error))
            return self._with(path, Chosen(path.name, before, self._made(held)), "", {})
        made = drawn_from(desk.stack) if desk.stack else None
        return self._with(path, Chosen(path.name, before, made), ALL, update)

    @mended
    def take(self, held: Update, request: gr.Request, event: gr.EventData) -> Any:
        """What a button says, of the picture that was chosen last. Raises: DataError if it isn't here any more."""
        what, chosen = str(getattr(event, "what", ""))[:20], held[self.chosen]
        path = self._recent(chosen.picture) if isinstance(chosen, Chosen) else None
        if path is None or what not in _SAID:
            raise DataError(say("taking.gone"))
        desk, is_as_made = stack_desk.of(self.context, request), self._is_as_made(held, chosen)
        before = chosen.before if is_as_made else self._now(held, desk)
        if what == ALL:
            update = self.opened(desk, path)
            made = drawn_from(desk.stack) if desk.stack else None
        elif what == BEFORE:
            # Where the desk was changed since, what it is now is had back by the same button.
            update, made = self._put_back(held, chosen.before.values, {})[0], None
            update |= self._shown_again(desk, chosen.before.shown)
        else:
            update, made = self._put_back(held, before.values, _of_picture(path, PARTS[what]))
        return self._with(path, Chosen(path.name, before, made), what, update)

    def _with(self, path: Path, chosen: Chosen, what: str, update: Update) -> Update:
        """The update with the row as it stands then."""
        seed = self.stage.index.picture(path).seed
        shown = {
            "of": say("taking.of", seed=seed), "picture": cards.picture(self.context, path, path.name), "what": what,
            "said": _SAID.get(what, ""),
        }  # fmt: skip
        return {**update, self.chosen: chosen, self.html: shown}

    def _recent(self, name: object) -> Path | None:
        """The recent picture of that name."""
        return next((path for path in recent(self.context) if path.name == name), None)

    # The desk.

    def _now(self, held: Held, desk: Desk) -> Before:
        return Before({part: held[part] for part in self._parts()}, desk.shown)

    def _made(self, held: Held) -> dict[str, Any] | None:
        """What a picture of the desk is drawn from; None if it can't be drawn."""
        try:
            return drawn_from(self.stacked(dict(held)))
        except UserError:
            return None

    def _is_as_made(self, held: Held, chosen: object) -> bool:
        """Whether the desk is still what the last choice made of it."""
        return isinstance(chosen, Chosen) and chosen.made is not None and self._made(held) == chosen.made

    def _put_back(
        self, held: Held, values: dict[Any, Any], changes: dict[str, Any]
    ) -> tuple[Update, dict[str, Any] | None]:
        """Updates for these values with some settings changed, and what a picture of them is drawn from."""
        there, shown = {**held, **values}, self.form.change(held, {})
        # Only what becomes another value: somebody may be typing in the rest.
        update: Update = {part: gr.update(value=value) for part, value in values.items() if held[part] != value}
        for part, change in self.form.change(there, changes).items():
            if change != shown.get(part):
                update[part] = {**update.get(part, {}), **change}
        update |= self.rows.reveal(values[self.rows.num_shown], *(values[choice] for choice in self.rows.choices))
        there |= {self.form.components[key]: as_shown(value) for key, value in changes.items()}
        return update, self._made(there)

    def _shown_again(self, desk: Desk, picture: Path | None) -> Update:
        """The picture that was shown before, or none."""
        desk.cancel()
        if picture is None or not picture.is_file():
            return self.stage.show_nothing(desk)
        try:
            return self.stage.show(desk, picture, text_of(picture), read_recipe(self.context, picture))
        except UserError:  # its LoRAs are gone
            return self.stage.show_nothing(desk)


def _of_picture(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """These settings of a picture of ours, whether its LoRAs are here or not. Raises: DataError, ConfigError."""
    from trainer.render import picture_metadata  # loads torch

    stack = parse(StackConfig, picture_metadata.read(path).recipe or {}, say("where.picture_recipe"))
    return {key: getattr(stack, key) for key in keys}
