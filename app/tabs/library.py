"""Library: what is here as cards with pictures, in plain words, to be named, noted, rated, thrown away and opened."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.context import get_blocks_context

from app import card_view, cards, item_changes, item_details, item_notes, leftovers, recognising, scripts, shared_cards
from app.again_row import AgainRow
from app.arrival import PRESET, Arrival
from app.arrival_row import ArrivalRow
from app.context import Context, Refresh
from app.item_notes import LONGEST_NOTE, LONGEST_TITLE, MOST_RATING
from app.item_openings import BUTTONS, OPENS, SOURCES
from app.library_items import KINDS, Item, Shelf, wanted
from app.lora_weight import OwnWeight
from app.notices import mended, tell
from app.preset_panel import PresetPanel, browser_of
from app.texts import say, say_num
from app.views import notice_html
from trainer.errors import DataError

TITLE = say("page.library")
ORDER = 50
TRASH = "trash"
PAGE = 48  # cards that are shown at first, and more each time
# One after the other, or an older list could come after a newer list.
_IN_TURN: dict[str, Any] = {"concurrency_id": "library", "concurrency_limit": 1}
_STILL: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", **_IN_TURN}
_NOTHING = f'<div class="cards-empty">{say("library.choose_card")}</div>'
_RATINGS = [(say("word.none"), 0), *[("★" * stars, stars) for stars in range(1, MOST_RATING + 1)]]


class _Tab:
    """The tab's components and what happens when they are used."""

    def __init__(self, context: Context) -> None:
        self.context, self.shelf, self.presets = context, Shelf(context), PresetPanel(context)
        self.arrivals, self.weight, self.again = ArrivalRow(context), OwnWeight(self.shelf), AgainRow(self.shelf)
        # What is chosen stands in boxes of the page, so that a note and the thing it is of are always sent together.
        self.key = gr.Textbox("", visible=False, elem_classes="unkept", elem_id="library-key")
        self.seen = gr.Textbox("", visible=False, elem_classes="unkept")
        self.opened = gr.Textbox("", visible=False, elem_classes="unkept")
        self.source = gr.Textbox("", visible=False, elem_classes="unkept")
        self.num, self.condemned = gr.State(PAGE), gr.State([])  # cards that are shown; what emptying would delete

        # The cards at the left, the chosen thing at the right.
        with gr.Row(equal_height=False, elem_classes="halves"):
            with gr.Column(scale=5, min_width=320):
                self._draw_drop()
                self._draw_cards()
            with gr.Column(scale=3, min_width=300, elem_id="library-panel"):
                self._draw_panel()

        # What events change: the cards with the trash's buttons, and the panel.
        self.list = [self.cards, self.more, self.empty_row, self.sure_row, self.condemned]
        self.view = [
            self.key, self.seen, self.opened, self.panel, self.acts, self.rating, self.note, self.name, self.open,
            self.onward, self.source,
            self.download, self.throw, self.restore, self.raw, self.file, self.name_row, self.weight.slider,
            *self.presets.outputs(), *self.again.outputs(),
        ]  # fmt: skip
        self._connect()

    # Drawing.

    def _draw_drop(self) -> None:
        self.drop = gr.File(
            file_count="multiple", height=120, elem_id="library-drop",
            label=say("library.drop"),
        )  # fmt: skip
        self.arrivals.draw()

    def _draw_cards(self) -> None:
        # What is listed.
        choices = [(label, kind) for kind, label in KINDS.items()] + [(say("word.trash"), TRASH)]
        self.kind = gr.Radio(
            choices, value="loras", label=say("library.kind"), show_label=False, container=False,
            elem_id="library-kind", elem_classes="tabs-like",
        )  # fmt: skip
        with gr.Row():
            self.search = gr.Textbox(
                "", label=say("library.search"), placeholder=say("library.search_example"), max_length=200,
                min_width=150, scale=4, elem_id="library-search",
            )  # fmt: skip
            self.least = gr.Dropdown(
                [(say("library.any"), 0), *[(say("library.or_more", stars=stars), num) for stars, num in _RATINGS[1:]]],
                value=0, label=say("word.rating"), min_width=120, scale=1, interactive=True, elem_id="library-least",
            )  # fmt: skip

        # The cards, and the trash's own buttons below them.
        self.cards = gr.HTML(js_on_load=cards.JS_ON_LOAD, elem_id="library-cards")
        self.more = gr.Button(say("button.show_more"), visible=False, elem_id="library-more")
        with gr.Row(visible=False) as self.empty_row:
            self.empty = gr.Button(say("trash.empty"), size="sm", scale=0, min_width=150, elem_id="empty-trash")
        with gr.Row(visible=False) as self.sure_row:
            self.sure = gr.Button(say("trash.delete"), variant="stop", size="sm", elem_id="empty-trash-sure")
            self.keep = gr.Button(say("trash.keep"), size="sm", elem_id="empty-trash-keep")

    def _draw_panel(self) -> None:
        self.panel = gr.HTML(_NOTHING, elem_id="library-details")
        with gr.Column(visible=False) as self.acts:
            # Where it is used.
            with gr.Row():
                self.open = gr.Button(say("button.open"), variant="primary", min_width=130, elem_id="library-open")
                self.onward = gr.Button(say("library.go_on"), min_width=110, elem_id="library-onward")
            self.again.draw()
            self.presets.draw()

            # What a person says of it.
            self.rating = gr.Radio(
                _RATINGS, value=0, label=say("word.rating"), elem_id="library-rating", elem_classes="stars"
            )
            self.weight.draw()
            self.note = gr.Textbox(
                "", label=say("word.note"), placeholder=say("library.note_example"), lines=2, max_lines=8,
                max_length=LONGEST_NOTE, elem_id="library-note",
            )  # fmt: skip
            with gr.Row() as self.name_row:
                self.name = gr.Textbox(
                    "", label=say("word.name"), max_length=LONGEST_TITLE, scale=3, min_width=150, elem_id="library-name"
                )
                self.rename = gr.Button(
                    say("library.rename"), scale=1, min_width=90, elem_id="library-rename", elem_classes="beside"
                )

            # What is done with its file.
            with gr.Row():
                self.download = gr.DownloadButton(say("button.download"), min_width=110, elem_id="library-download")
                self.throw = gr.Button(say("library.throw"), min_width=110, elem_id="library-throw")
            with gr.Accordion(say("library.file_says"), open=False, visible=False) as self.raw:
                self.file = gr.JSON(show_label=False, elem_id="library-raw", max_height=480)

        # Apart from `acts`: all that can be done with a thing in the trash is to put it back.
        self.restore = gr.Button(say("trash.put_back"), variant="primary", visible=False, elem_id="library-restore")

    def _connect(self) -> None:
        private: dict[str, Any] = {"api_visibility": "private", **_IN_TURN}
        listed = [self.kind, self.search, self.least, self.num, self.key]
        whole = [*self.list, *self.view]
        # Without number and key: another kind begins with its first page and nothing chosen.
        self.kind.input(self.choose_kind, listed[:3], [*whole, self.num], **_STILL)
        # A text box sends `input` for keys that write a letter alone, not for a paste or a deletion (Gradio 6.31).
        gr.on(
            [self.search.change, self.least.input], self.find, listed, self.list, trigger_mode="always_last", **_STILL
        )
        self.more.click(self.show_more, listed, [*self.list, self.num], **_STILL)

        # One thing.
        # Each press is answered, as it also brings the note of the thing before it.
        picked = [self.kind, self.key, self.note, self.seen]
        self.cards.select(self.pick, picked, self.view, trigger_mode="multiple", **_STILL)
        self.note.change(self.write, [self.key, self.note, self.seen], self.seen, trigger_mode="always_last", **_STILL)
        self.weight.connect(self.key, _STILL).success(self.find, listed, self.list, **_STILL)
        self.note.blur(self.find, listed, self.list, **_STILL)
        self.rating.input(self.rate, [*listed, self.rating], self.list, **_STILL)
        self.rename.click(self.rename_one, [*listed, self.name], whole, **private)
        self.name.submit(self.rename_one, [*listed, self.name], whole, **private)
        self.presets.connect(self.key, _STILL)
        self.presets.keep.click(self.keep_preset, listed, whole, **private)
        self.throw.click(self.throw_one, listed, whole, **private)
        self.restore.click(self.restore_one, listed, [*whole, self.kind, self.search, self.least], **private)

        # The trash, and what is dropped.
        self.empty.click(self.condemn, None, [*self.list, self.sure], **_STILL)
        self.keep.click(self.find, listed, self.list, **_STILL)
        self.sure.click(self.delete, [self.condemned, *listed], whole, **private)
        shown = [self.drop, *self.arrivals.outputs(), *whole, self.kind, self.num, self.search, self.least]
        self.drop.upload(self.take, [self.drop, *listed], shown, api_visibility="private")
        self.arrivals.keep.click(self.keep_arrivals, [self.arrivals.waiting, *listed], shown, **private)
        self.arrivals.connect()

    # Cards.

    def _list(self, kind: str, search: str, least: int, num: int, key: str) -> dict[Any, Any]:
        """The cards of a kind that fit the search; `key` is the chosen thing's, after its kind."""
        key = key.partition(" ")[2]
        none = {self.empty_row: gr.update(visible=False), self.sure_row: gr.update(visible=False), self.condemned: []}
        if kind == TRASH:
            # The trash is listed whole: search and rating are for what is on the shelf.
            entries = self.shelf.trash.entries()
            days = [time.strftime("%d %B, %H:%M", time.localtime(entry.when)).lstrip("0") for entry in entries]
            shown = cards.trash_html(entries, days, key) if entries else cards.empty_html(kind, False)
            update = {self.cards: shown, self.more: gr.update(visible=False)}
            return none | update | {self.empty_row: gr.update(visible=bool(entries))}
        items = wanted(self.shelf.every(kind), search or "", least or 0)
        is_searched = bool((search or "").strip() or least)
        shown = cards.html(self.context, items[:num], key) if items else cards.empty_html(kind, is_searched)
        return none | {self.cards: shown, self.more: gr.update(visible=len(items) > num)}

    def _all(self) -> dict[Any, Any]:
        return {self.search: "", self.least: 0}  # so that what has come back or arrived is not hidden

    def _nothing(self) -> dict[Any, Any]:
        return {
            self.key: "", self.seen: "", self.opened: "", self.panel: _NOTHING, self.note: "", self.name: "",
            self.acts: gr.update(visible=False), self.restore: gr.update(visible=False),
        } | self.presets.none()  # fmt: skip

    @mended
    def open_tab(self, kind: str, search: str, least: int, num: int, key: str) -> dict[Any, Any]:
        return self._list(kind, search, least, num, key)

    find = open_tab

    @mended
    def choose_kind(self, kind: str, search: str, least: int) -> dict[Any, Any]:
        return self._list(kind, search, least, PAGE, "") | self._nothing() | {self.num: PAGE}

    @mended
    def show_more(self, kind: str, search: str, least: int, num: int, key: str) -> dict[Any, Any]:
        return self._list(kind, search, least, num + PAGE, key) | {self.num: num + PAGE}

    # One thing.

    @mended
    def pick(
        self, kind: str, before: str, note: str, seen: str, event: gr.EventData, request: gr.Request
    ) -> dict[Any, Any]:
        """The chosen thing; the note of the thing before is written first, as its last letters may still be on their
        way.
        """
        if note != seen:
            self.write(before, note, seen)
        return self._panel(kind, str(getattr(event, "key", ""))[:400], browser_of(request))

    def _panel(self, kind: str, key: str, browser: str = "") -> dict[Any, Any]:
        """Everything about one thing. Raises: DataError if it isn't here."""
        if kind == TRASH:
            entry = self.shelf.trash.entry(key)
            html = notice_html("plain", entry.name, [say("trash.lies_there")])
            return self._nothing() | {
                self.key: f"{kind} {key}",
                self.panel: html,
                self.restore: gr.update(visible=True),
            }
        item = self.shelf.item(kind, key)
        details = item_details.of(self.shelf, item)
        what, label = OPENS[kind]
        is_preset = kind == "presets"
        if is_preset and (card := shared_cards.of_key(key).card):
            what = shared_cards.target(card)
            label = BUTTONS[what]
        shown = card_view.html(self.context, item) if is_preset else cards.panel_html(self.context, item, details)
        return (
            {
                self.key: f"{kind} {item.key}",
                self.seen: item.note.text,
                self.note: item.note.text,
                self.rating: item.note.rating,
                self.name: item.name,
                self.opened: f"{what} {item.key}",
                self.panel: shown,
                self.acts: gr.update(visible=True),
                self.restore: gr.update(visible=False),
                self.open: gr.update(value=label),
                self.onward: gr.update(visible=kind in SOURCES),
                self.source: f"start {kind}/{item.key}" if kind in SOURCES else "",
                self.name_row: gr.update(visible=bool(item.paths)),
                self.throw: gr.update(value=say("library.throw"), interactive=True, visible=bool(item.paths)),
                self.raw: gr.update(visible=details.raw is not None),
                self.file: details.raw,
                self.download: self._download(item),
            }
            | self.weight.updates(item)
            | self.again.updates(item)
            | self.presets.updates(item, browser)
        )

    def _download(self, item: Item) -> Any:
        """The thing's own file, for kinds that are one file."""
        if item.kind not in ("loras", "pictures", "stacks"):
            return gr.update(visible=False)
        public = self.context.published_of(item.paths[:1])
        return gr.update(value=public[0][1], visible=True) if public else gr.update(visible=False)

    @mended
    def write(self, chosen: str, note: str, seen: str) -> str:
        """The note as this page knows it, stored after each letter."""
        item = self._item(chosen) if note != seen else None
        if item is None:
            return seen
        item_notes.change(self.shelf.notes, item.kind, item.key, note, seen)
        return note

    def _item(self, chosen: str) -> Item | None:
        """The chosen thing; None where none is. Raises: DataError if it isn't here any more."""
        kind, _, key = chosen.partition(" ")
        return self.shelf.item(kind, key) if kind in KINDS and key else None

    def _chosen(self, chosen: str) -> Item:
        """The chosen thing. Raises: DataError."""
        item = self._item(chosen)
        if item is None:
            raise DataError(say("library.none_chosen"))
        return item

    @mended
    def rate(self, kind: str, search: str, least: int, num: int, key: str, rating: int) -> dict[Any, Any]:
        item = self._chosen(key)
        item_notes.change(self.shelf.notes, item.kind, item.key, rating=rating or 0)
        return self._list(kind, search, least, num, key)

    @mended
    def rename_one(self, kind: str, search: str, least: int, num: int, key: str, name: str) -> dict[Any, Any]:
        item = self._chosen(key)
        new_key = item_changes.rename(self.shelf, item, name or "")
        return self._list(kind, search, least, num, f"{item.kind} {new_key}") | self._panel(item.kind, new_key)

    @mended
    def keep_preset(self, kind: str, search: str, least: int, num: int, key: str, request: gr.Request) -> Any:
        """The card as a preset, which is then shown in its place."""
        name = shared_cards.keep_preset(self._chosen(key).key)
        tell(say("library.kept_preset", preset=name))
        panel = self._panel("presets", f"{PRESET}{name}", browser_of(request))
        return self._list(kind, search, least, num, panel[self.key]) | panel

    @mended
    def throw_one(self, kind: str, search: str, least: int, num: int, key: str) -> dict[Any, Any]:
        item = self._chosen(key)
        item_changes.throw(self.shelf, item)
        tell(say("trash.thrown", name=item.name))
        return self._list(kind, search, least, num, "") | self._nothing()

    @mended
    def restore_one(self, kind: str, search: str, least: int, num: int, key: str) -> dict[Any, Any]:
        """The thing back in its place, and shown there."""
        kind, key = item_changes.restore(self.shelf, key.partition(" ")[2])
        return self._list(kind, "", 0, PAGE, f"{kind} {key}") | self._panel(kind, key) | {self.kind: kind} | self._all()

    # The trash.

    @mended
    def condemn(self) -> dict[Any, Any]:
        """Asked once more before anything is deleted; what is thrown away meanwhile is not meant."""
        entries = self.shelf.trash.entries()
        num = len(entries)
        label = say_num("trash.delete_things", num)
        return {
            self.condemned: [entry.id for entry in entries],
            self.sure: gr.update(value=label),
            self.sure_row: gr.update(visible=True),
            self.empty_row: gr.update(visible=False),
        }

    @mended
    def delete(self, entry_ids: list[str], *listed: Any) -> dict[Any, Any]:
        num = self.shelf.trash.empty(entry_ids or [])
        tell(say("trash.deleted", num=num))
        return self._list(*listed) | self._nothing()

    # What is dropped.

    @mended
    def take(
        self, given: list[str] | None, kind: str, search: str, least: int, num: int, key: str, request: gr.Request
    ) -> Any:
        """What each dropped file is and where it went; cards and recipes are shown and wait."""
        if not given:
            return gr.skip()
        try:
            arrivals = recognising.take(self.context, [Path(file) for file in given])
        finally:
            leftovers.taken(self.context, given)
        return self._arrived(arrivals, (kind, search, least, num, key), browser_of(request))

    @mended
    def keep_arrivals(
        self, offered: str, kind: str, search: str, least: int, num: int, key: str, request: gr.Request
    ) -> Any:
        """What waited, kept, and the first of it shown."""
        arrivals = recognising.keep(self.context, (offered or "").split())
        return self._arrived(arrivals, (kind, search, least, num, key), browser_of(request))

    def _arrived(self, arrivals: list[Arrival], listed: tuple[Any, ...], browser: str) -> dict[Any, Any]:
        """What is said of arrivals; the shelf shows the first of them that is on it."""
        form = self.presets.form(browser) if any(arrival.offer for arrival in arrivals) else None
        update: dict[Any, Any] = {self.drop: None} | self.arrivals.updates(arrivals, form, BUTTONS)
        if shelf := next((arrival.shelf for arrival in arrivals if arrival.shelf), None):
            kind, key = shelf
            panel = self._panel(kind, key, browser) | {self.kind: kind, self.num: PAGE} | self._all()
            return update | self._list(kind, "", 0, PAGE, f"{kind} {key}") | panel
        return update | self._list(*listed)


def build(context: Context) -> Refresh:
    """Draw the tab."""
    tab = _Tab(context)
    listed = [tab.kind, tab.search, tab.least, tab.num, tab.key]
    get_blocks_context().root_block.load(
        None, js=f"() => {{ {scripts.read('library_drop.js')} }}", api_visibility="private"
    )
    opens = [(tab.open, tab.opened), (tab.arrivals.go, tab.arrivals.opens), (tab.onward, tab.source)]
    opens += tab.again.opens()
    return Refresh(tab.open_tab, listed, tab.list, on_load=False, opens=opens)
