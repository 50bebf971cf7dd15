"""Keeps what people set in the tabs, by browser, and brings it back when the page is opened again.

A tab does nothing for it: every field of its that has an `elem_id` is kept, unless it has the class `unkept`. What
comes back is taken as if it were typed: a value that its field would refuse, or that the tab doesn't offer any more,
is left out. Each field is written when it changes, alone, so that two tabs of a browser never undo each other's work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.blocks import Block, BlockContext
from gradio.components import Component
from gradio_client.utils import is_file_obj_with_meta, is_http_url_like, traverse

from app import browser_state, page_values
from app.browser_state import BrowserStates
from app.context import Context, Refresh
from app.notices import LONGEST_TEXT, mended
from app.page_values import PageValues
from app.texts import say

UNKEPT = "unkept"  # the class of a field that is not kept
# Fields that are one choice of the whole page, whichever tab they stand in.
SHARED = {"dataset": "dataset", "train-dataset": "dataset"}
PAGE = "page"
# Tabs that keep only these, as their other fields belong to a picture or a file that is not chosen any more.
_ONLY = {
    "dataset": (
        "dataset", "check-resolution", "captioner", "caption-for", "caption-leave-out", "caption-instruction",
        "caption-bare",
    ),
    "library": (),
}  # fmt: skip
_FIELDS = (gr.Textbox, gr.Number, gr.Slider, gr.Dropdown, gr.Checkbox, gr.Radio, gr.CheckboxGroup)
STILL: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

Offer = Callable[[], list[tuple[str, Any]]]


@dataclass(frozen=True)
class Drawn:
    """A tab as it was drawn."""

    name: str
    tab: gr.Tab | None
    refresh: Refresh | None


class Kept:
    """The fields of one tab that are kept, and what happens when they are used."""

    def __init__(self, states: BrowserStates, drawn: Drawn, offers: Mapping[str, Offer]) -> None:
        """`offers` gives what a field may be chosen from, by `elem_id`, where its tab's refresh doesn't say it."""
        self.states, self.drawn, self.offers = states, drawn, offers
        self.names = _fields_of(drawn)
        # Those that are chosen from what is here now come back with the tab's refresh, which says what that is.
        refreshed = drawn.refresh.outputs if drawn.refresh else ()
        self.listed = [field for field, name in self.names.items() if field in refreshed or name in offers]
        self.known = gr.State(False)  # whether this page was sent what was kept of them

    def field(self, name: str) -> Component | None:
        """The field of that `elem_id`."""
        return next((component for component, known in self.names.items() if known == name), None)

    def connect(self, page: gr.Blocks) -> None:
        """Bring the listed fields back when the page is opened."""
        refresh = self.drawn.refresh
        inputs = {*self.listed, *(refresh.inputs if refresh else ()), self.known}
        outputs = dict.fromkeys([*self.listed, *(refresh.outputs if refresh else ()), self.known])
        if refresh or self.listed:
            if refresh and self.drawn.tab:
                # When the tab is opened.
                inputs_of_opening = {*refresh.inputs, self.known}
                self.drawn.tab.select(self.opened, inputs_of_opening, list(refresh.outputs), **STILL)
            # When the page is opened.
            loaded = page.load(self.restored, inputs, list(outputs), **STILL)
            loaded.then(None, js=page_values.known(self.listed), api_visibility="private")
            for field in self.listed:  # what is chosen before it is there would be undone when it comes
                field.elem_classes = [*(field.elem_classes or []), page_values.COMING]

    # Keeping.

    def keep(self, browser: str, values: Mapping[Component, Any]) -> None:
        """Keep the values of these fields for a browser; those of other tabs are passed over."""
        # A choice that several tabs share is kept once, for the page.
        changes = {self.names[field]: value for field, value in values.items() if field in self.names}
        shared = {SHARED[name]: value for name, value in changes.items() if name in SHARED}
        own = {name: value for name, value in changes.items() if name not in SHARED}
        self.states.change(browser, PAGE, shared)
        self.states.change(browser, self.drawn.name, own)

    # Bringing back.

    def _kept(self, browser: str) -> dict[Component, Any]:
        """The values that were kept of a browser's fields, whatever they are."""
        own, shared = self.states.read(browser, self.drawn.name), self.states.read(browser, PAGE)
        values = {name: shared[SHARED[name]] for name in self.names.values() if SHARED.get(name) in shared}
        values |= {name: value for name, value in own.items() if name not in SHARED}
        return {component: values[name] for component, name in self.names.items() if name in values}

    def first_look(self, browser: str) -> dict[int, dict[str, Any]]:
        """By component: what of it the page is made with for this browser, instead of with what it is drawn with.

        So nothing jumps, and it costs no event: one that may change hundreds of fields keeps a browser busy for seconds
        (Gradio 6.31), whatever it changes.
        """
        kept = {
            component: value
            for component, value in self._kept(browser).items()
            if component not in self.listed and fits(component, value)
        }
        looks: dict[int, dict[str, Any]] = {component._id: {"value": value} for component, value in kept.items()}
        refresh = self.drawn.refresh
        # What the kept values show and hide of a form, which its own events did before the reload.
        for form in refresh.forms if refresh and kept else ():
            values = {part: kept.get(part, getattr(part, "value", None)) for part in form.parts()}
            for part, update in form.change(values, {}).items():
                looks.setdefault(part._id, {})["visible"] = update["visible"]
        return looks

    @mended
    def opened(self, held: dict[Any, Any], request: gr.Request) -> Any:
        """The tab's refresh, when the tab is opened.

        Nothing while the same is on its way with what was kept: who then chose something else would see it undone.
        """
        refresh = self.drawn.refresh
        if refresh is None or (not held[self.known] and self._refreshes(self._kept(_browser(request)))):
            return gr.skip()
        return run(refresh.handler, refresh.inputs, refresh.outputs, held) or gr.skip()

    def _refreshes(self, kept: Mapping[Component, Any]) -> bool:
        """Whether what is brought back comes with the tab's refresh."""
        refresh = self.drawn.refresh
        return refresh is not None and (refresh.on_load or any(component in kept for component in self.listed))

    @mended
    def restored(self, held: dict[Any, Any], request: gr.Request) -> dict[Any, Any]:
        """The tab's refresh with what was kept of the listed fields put in, without what is not here any more."""
        # A value of another kind than its field holds would break the tab's own refresh.
        kept = {part: value for part, value in self._kept(_browser(request)).items() if _is_of_kind(part, value)}
        refresh, updates = self.drawn.refresh, {}
        if refresh and self._refreshes(kept):
            updates = run(refresh.handler, refresh.inputs, refresh.outputs, held | kept)
        for component in self.listed:
            if component in kept:
                # Only what the field still offers: a dataset may be gone by now.
                update = self._offered(component, updates.get(component))
                if fits(component, kept[component], update.get("choices")):
                    updates[component] = {**update, **gr.update(value=kept[component])}
        return {**updates, self.known: True}

    def _offered(self, component: Component, update: Any) -> dict[str, Any]:
        """An update of a field with what it may be chosen from now, if that is not said when the page is made."""
        update, offer = _as_update(update), self.offers.get(self.names[component])
        return {**update, "choices": offer()} if offer and "choices" not in update else update


def follow(page: gr.Blocks, leader: tuple[Kept, str], follower: tuple[Kept, str], event: str) -> None:
    """When the leader's field changes, the follower's is as if a person had chosen the same there."""
    (source, target) = (kept.field(name) for kept, name in (leader, follower))
    if source is None or target is None:
        return
    # What the follower's own listeners do, after its tab's refresh, which brings new choices.
    known, refresh = follower[0].known, follower[0].drawn.refresh
    answers = [fn for fn in page.fns.values() if (target._id, "input") in fn.targets and fn.fn is not None]
    calls = [(fn.fn, fn.inputs, fn.outputs, fn.inputs_as_dict) for fn in answers]
    if refresh:
        calls.insert(0, (refresh.handler, refresh.inputs, refresh.outputs, False))

    @mended
    def answer(held: dict[Any, Any]) -> Any:
        # Nothing before the kept values have come, or this would count as a choice.
        chosen = held[source]
        if not held[known] or chosen is None or chosen == held[target]:
            return gr.skip()
        updates: dict[Any, Any] = {}
        held = held | {target: chosen}
        for handler, inputs, outputs, as_dict in calls:
            for part, update in run(handler, inputs, outputs, held, as_dict).items():
                # What one call says of a part stays, unless a later call says otherwise.
                updates[part] = _as_update(updates.get(part)) | _as_update(update)
        return updates | {target: _as_update(updates.get(target)) | gr.update(value=chosen)}

    inputs = {source, target, known, *(component for _, inputs, _, _ in calls for component in inputs)}
    outputs = dict.fromkeys([target, *(part for _, _, outputs, _ in calls for part in outputs)])
    getattr(source, event)(answer, inputs, list(outputs), **STILL)


def run(
    handler: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any], held: Mapping[Any, Any],
    as_dict: bool = False,
) -> dict[Any, Any]:  # fmt: skip
    """What an event's handler would change, were these the values on the page; states and all else at their start."""
    # Gradio takes an answer by component, in the order of the outputs, or bare for a single output.
    values = {part: held.get(part, getattr(part, "value", None)) for part in inputs}
    result = handler(values) if as_dict else handler(*values.values())
    if isinstance(result, dict) and result.get("__type__") != "update":
        return result
    many = list(result) if len(outputs) > 1 and isinstance(result, list | tuple) else [result]
    return dict(zip(outputs, many, strict=False))


def _browser(request: gr.Request) -> str:
    return browser_state.id_in(request.headers.get("cookie"))


def _fields_of(drawn: Drawn) -> dict[Component, str]:
    """The fields of a tab that are kept, with their `elem_id`."""
    only = _ONLY.get(drawn.name)
    return {
        block: str(block.elem_id)
        for block in _within(drawn.tab)
        if isinstance(block, _FIELDS)
        and block.elem_id
        and getattr(block, "interactive", None) is not False
        and UNKEPT not in (block.elem_classes or [])
        and (only is None or block.elem_id in only)
    }


def _within(block: Block) -> list[Block]:
    children = block.children if isinstance(block, BlockContext) else []
    return [block, *(inner for child in children for inner in _within(child))]


# Values.


def _as_update(update: Any) -> dict[str, Any]:
    """An update as Gradio's own dict, also if it is only a value."""
    if isinstance(update, dict) and update.get("__type__") == "update":
        return update
    same: dict[str, Any] = gr.update() if update is None else gr.update(value=update)
    return same


def _is_of_kind(component: Component, value: Any) -> bool:
    """Whether a value is of the kind that the field holds."""
    if isinstance(component, gr.Textbox):
        return isinstance(value, str) and len(value) <= (component.max_length or LONGEST_TEXT)
    if isinstance(component, gr.Checkbox):
        return isinstance(value, bool)
    if isinstance(component, gr.CheckboxGroup) or (isinstance(component, gr.Dropdown) and component.multiselect):
        return isinstance(value, list)
    if isinstance(component, gr.Slider | gr.Number):
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value is None or isinstance(value, str | int | float)


def fits(component: Component, value: Any, choices: Sequence[Any] | None = None) -> bool:
    """Whether a person could have put this value in; `choices` are what it may be chosen from, if they are new."""
    if not _is_of_kind(component, value):
        return False
    if isinstance(component, gr.Slider | gr.Number):
        low, high = component.minimum, component.maximum
        return (low is None or value >= low) and (high is None or value <= high)
    if isinstance(component, gr.Dropdown) and component.allow_custom_value:
        return True
    if isinstance(component, gr.Dropdown | gr.Radio | gr.CheckboxGroup):
        offered = [
            choice[-1] if isinstance(choice, list | tuple) else choice for choice in choices or component.choices
        ]
        return value is None or all(chosen in offered for chosen in (value if isinstance(value, list) else [value]))
    return True


class Page(gr.Blocks):
    """The page's blocks, made for each browser with what it kept; `browser_state.ASKING` says whose request it is."""

    kept: Mapping[str, Kept] = {}
    tabs: gr.Tabs | None = None
    # Fields whose choices come and go with files that nobody tells the page of.
    offers: Mapping[gr.Dropdown, Offer] = {}
    _drawn_config: Any = None

    @property
    def config(self) -> Any:
        browser = browser_state.ASKING.get()
        looks: dict[int, dict[str, Any]] = {}
        # What may be chosen now.
        for field, offer in self.offers.items():
            field.choices = offer()  # what is sent back is held to these
            looks[field._id] = {"choices": field.choices}
        # What this browser kept, over that.
        for fields in self.kept.values() if browser else ():
            for number, look in fields.first_look(browser).items():
                looks[number] = looks.get(number, {}) | look
            selected = fields.states.read(browser, PAGE).get("tab")
        if browser and self.tabs is not None and selected in self.kept:
            looks[self.tabs._id] = {"selected": selected}

        # The page as it was drawn, with these parts made anew; the drawing itself serves every browser and stays.
        if not looks:
            return self._drawn_config
        parts = [
            {**part, "props": part["props"] | looks[part["id"]]} if part["id"] in looks else part
            for part in self._drawn_config["components"]
        ]
        return {**self._drawn_config, "components": parts}

    @config.setter
    def config(self, config: Any) -> None:
        # Programs are told of all; a browser is sent only what is drawn, which is three quarters of it.
        self._drawn_config = config | {"page": {name: _seen(config, part) for name, part in config["page"].items()}}

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *more: Any, **others: Any) -> Any:
        """Take files only as they were uploaded: what is named by an address, Gradio 6.31's server would fetch."""

        def refuse_address(record: dict[str, Any]) -> dict[str, Any]:
            if is_http_url_like(record["path"]):
                raise gr.Error(say("problems.address_for_file"), print_exception=False)
            return record

        traverse(inputs, refuse_address, is_file_obj_with_meta)
        try:
            return await super().preprocess_data(block_fn, inputs, *more, **others)
        except gr.Error as error:
            # What Gradio refuses by itself is no fault to be printed; of a file it says a list of Python.
            words = (
                say("problems.other_kind_of_file") if error.message.startswith("Invalid file type") else error.message
            )
            raise gr.Error(words, print_exception=False) from None


def _seen(config: Any, part: dict[str, Any]) -> dict[str, Any]:
    """One of the page's parts without the endpoints that only programs call, nor what describes their arguments."""
    arguments = {component["id"] for component in config["components"] if component["type"] == "api"}
    endpoints = {event["id"] for event in config["dependencies"] if not event["targets"]}
    layout = part["layout"]
    drawn = [child for child in layout["children"] if child["id"] not in arguments]
    return part | {
        "layout": layout | {"children": drawn},
        "components": [number for number in part["components"] if number not in arguments],
        "dependencies": [number for number in part["dependencies"] if number not in endpoints],
    }


def connect(page: Page, context: Context, tabs: gr.Tabs, drawn: Sequence[Drawn], offers: Mapping[str, Offer]) -> None:
    """Keep the fields of every tab, the active tab and the shared choices; call once when all is drawn."""
    states = BrowserStates(context.workspace / "browsers")
    kept = {drawn_tab.name: Kept(states, drawn_tab, offers) for drawn_tab in drawn}
    for fields in kept.values():
        fields.connect(page)

    def selecting(name: str) -> Callable[[gr.Request], None]:
        def select(request: gr.Request) -> None:
            states.change(_browser(request), PAGE, {"tab": name})

        return select

    for drawn_tab in drawn:
        if drawn_tab.tab is not None:
            # In turn: Gradio selects the first tab as the page is drawn, and who is quick has chosen another meanwhile.
            select = selecting(drawn_tab.name)
            drawn_tab.tab.select(select, None, None, concurrency_id="tab", concurrency_limit=1, **STILL)
    if "dataset" in kept and "train" in kept:
        here, there = (kept["dataset"], "dataset"), (kept["train"], "train-dataset")
        follow(page, here, there, "change")
        follow(page, there, here, "input")
    page.kept, page.tabs = kept, tabs


def watch(page: Page) -> None:
    """Keep each change of the fields; call once when all events are connected."""
    tabs = page.kept
    # Listed fields come late, so their changes count only once they are there.
    listed = [field for fields in tabs.values() for field in fields.listed]
    fixed = [field for fields in tabs.values() for field in fields.names if field not in listed]

    def keep(values: Mapping[Component, Any], request: gr.Request) -> None:
        for fields in tabs.values():
            fields.keep(_browser(request), values)

    looks = {name: fields.drawn.refresh.edited for name, fields in tabs.items() if fields.drawn.refresh}
    values = PageValues(page, {name: list(fields.names) for name, fields in tabs.items()}, fixed)
    values.draw(keep, listed, {name: look for name, look in looks.items() if look})
