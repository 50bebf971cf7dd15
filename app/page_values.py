"""What the fields of the page hold, gathered in the browser and sent as one value with the events that ask for many.

Gradio 6.31's page gives every component that an event reads a new state at each stage of every later event, and goes
through every listener for every component when it is opened: events that read a hundred fields, and a listener for each
of them, keep a browser busy. So there is none. A touch of the page has the fields of its tab gathered by an event that
never leaves the browser; what is new goes to the server in one request (`kept_fields`) and, if the tab asks for it,
has it look again. An event that reads many fields reads one hidden component, into which a script puts them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import gradio as gr
from gradio.components import Component

from app import scripts
from app.context import Refresh
from app.texts import say

Keep = Callable[[Mapping[Component, Any], gr.Request], None]

COMING = "coming"  # the class of a field until what was kept of it is there
_MANY = 12  # fields that an event may read one by one
_SCRIPT = """
const names = NAMES, tabs = props.tabs, groups = props.groups, looks = props.looks;
const kept = new Set(props.kept), later = new Set(props.later), known = window.velaturaKnown ??= new Set();
const drawn = new Map(window.gradio_config.components.map(part => [part.id, part.props.value ?? null]));
const held = new Map(), waiting = new Map(), asked = new Map(), same = (one, other) =>
  JSON.stringify(one) === JSON.stringify(other);
const open = new Set(), edited = new Set();  // tabs: touched, and with changes that were not looked at
let sending = false, touched = 0, timer = null;

const send = async () => {
  if (sending) return;
  sending = true;
  while (waiting.size) {
    const changes = Object.fromEntries(waiting);
    waiting.clear();
    try {
      await server.keep(changes);
    } catch {
      for (const [id, lost] of Object.entries(changes)) if (!waiting.has(Number(id))) waiting.set(Number(id), lost);
      await new Promise(done => setTimeout(done, 2000));
    }
  }
  sending = false;
};

// The fields of a tab as they are now.
const gather = tab => {
  if (!asked.has(tab)) {
    let done;
    asked.set(tab, {promise: new Promise(resolve => { done = resolve; }), done});
    trigger('gather_' + tab);
    // No answer comes when the connection was lost.
    setTimeout(() => { if (asked.get(tab)?.done === done && asked.delete(tab)) done(); }, 3000);
  }
  return asked.get(tab).promise;
};
window.velaturaGathered = (tab, values) => {
  tabs[tab].forEach((id, place) => {
    const now = values[place], before = held.has(id) ? held.get(id) : drawn.get(id);
    held.set(id, now);
    if (same(now, before ?? null)) return;
    if (tab in looks) edited.add(tab);
    if (kept.has(id) && (!later.has(id) || known.has(id))) waiting.set(id, now);
  });
  send();
  const answer = asked.get(tab);
  asked.delete(tab);
  answer?.done();
};

// An event that reads many fields.
window.velaturaPack = async (number, rest) => {
  await new Promise(done => setTimeout(done));  // a change that is on its way arrives first
  const ids = groups[number], within = Object.keys(tabs).filter(tab => tabs[tab].some(id => ids.includes(id)));
  await Promise.all(within.map(gather));
  for (const tab of within) if (looks[tab] === number) edited.delete(tab);  // this event is the look, or says as much
  return [Object.fromEntries(ids.map(id => [id, (held.has(id) ? held : drawn).get(id) ?? null])), ...rest];
};

// A touch: at once, and for a while after, as what it starts may fill fields.
const seen = () => Object.keys(tabs).filter(tab => document.getElementById('tab-' + tab)?.offsetParent);
const look = async () => {
  timer = null;
  const now = new Set([...open, ...seen()]);
  open.clear();
  for (const tab of now) {
    await gather(tab);
    if (edited.delete(tab)) trigger('edited_' + tab);
  }
  if (element.isConnected && !timer && Date.now() - touched < 8000) timer = setTimeout(look, 1000);
};
const touch = event => {
  touched = Date.now();
  for (const tab of seen()) open.add(tab);  // the touch may be what opens another one
  clearTimeout(timer);
  timer = null;
  // A field that is left is done with, and the page may be closed next.
  if (event.type === 'change') look(); else timer = setTimeout(look, 120);
};
// Fields that wait for what was kept of them (`known`) do so no longer than this, should no answer come.
setTimeout(() => document.documentElement.classList.add('waits-no-more'), 10000);
for (const kind of ['input', 'change', 'pointerup', 'keyup', 'paste', 'drop'])
  document.addEventListener(kind, touch, {capture: true, passive: true});
"""
# A press may come before the script above, which is loaded like any other part of the page.
_PACKED = """async (_, ...rest) => {
  while (!window.velaturaPack) await new Promise(done => setTimeout(done, 20));
  return window.velaturaPack(GROUP, rest);
}"""


def known(fields: Iterable[Component]) -> str:
    """A script by which changes of these fields count from now on: before, they were empty for want of choices.

    From then on they can be used, too (`styles/frame.css`).
    """
    numbers, ids = [field._id for field in fields], ", ".join(f"#{field.elem_id}.{COMING}" for field in fields)
    return f"""() => {{
      for (const id of {numbers}) (window.velaturaKnown ??= new Set()).add(id);
      const rule = '{ids} {{ pointer-events: auto; }}';
      document.head.append(Object.assign(document.createElement('style'), {{textContent: rule}}));
    }}"""


class PageValues:
    """Made last, when all events are connected."""

    def __init__(
        self, page: gr.Blocks, fields: Mapping[str, Collection[Component]], fixed: Iterable[Component]
    ) -> None:
        """`fields` are those of each tab; of them `fixed`, whose choices never change, may be sent as one."""
        self._fields = {field._id: field for field in fixed}
        self._tabs = {tab: list(dict.fromkeys(inside)) for tab, inside in fields.items() if inside}
        self._groups: dict[tuple[int, ...], int] = {}
        self._page, self._packed = page, gr.JSON(visible=False)
        for event in page.fns.values():
            self._group(event.inputs)

    def draw(self, keep: Keep, later: Iterable[Component], looks: Mapping[str, Refresh]) -> None:
        """Pass changes on to `keep`, those of `later` once they are `known`, and look when a tab's field is changed."""
        every = {str(field._id): field for inside in self._tabs.values() for field in inside}

        def keep_known(changes: Any, request: gr.Request) -> None:
            if isinstance(changes, dict):
                keep({every[key]: value for key, value in changes.items() if key in every}, request)

        keep_known.__name__ = "keep"  # as the script calls it
        of_looks = {tab: self._groups.get(self._group(look.inputs), -1) for tab, look in looks.items()}
        # Gradio knows an event of ours by its name's standing in the script, in quotes.
        names = [*(f"gather_{tab}" for tab in self._tabs), *(f"edited_{tab}" for tab in looks)]
        values = gr.HTML(
            js_on_load=scripts.ANSWERED + _SCRIPT.replace("NAMES", str(names)), server_functions=[keep_known],
            visible="hidden",
            tabs={tab: [field._id for field in inside] for tab, inside in self._tabs.items()},
            groups=[list(group) for group in self._groups], kept=[int(key) for key in every],
            later=[field._id for field in later], looks=of_looks,
        )  # fmt: skip
        for tab, inside in self._tabs.items():
            script = f"(...values) => {{ window.velaturaGathered('{tab}', values); return [] }}"
            getattr(values, f"gather_{tab}")(None, inside, None, js=script, api_visibility="private")
        for tab, look in looks.items():
            getattr(values, f"edited_{tab}")(
                look.handler, set(look.inputs), list(look.outputs), queue=False, trigger_mode="always_last",
                show_progress="hidden", api_visibility="private",
            )  # fmt: skip

        # Every event that reads many fields, rewritten to read them as one.
        for event in self._page.fns.values():
            self._pack(event)

    def _group(self, inputs: Iterable[Component]) -> tuple[int, ...]:
        """The fields among an event's inputs that are sent as one; none if they are few."""
        numbers = tuple(sorted(part._id for part in inputs if part._id in self._fields))
        if len(numbers) < _MANY:
            return ()
        self._groups.setdefault(numbers, len(self._groups))
        return numbers

    def _pack(self, event: Any) -> None:
        """Have an event read one component instead of many."""
        numbers = self._group(event.inputs)
        # An event with a script of its own is left alone, as there is room for one script.
        if not numbers or not event.inputs_as_dict or event.js:
            return
        group = self._groups[numbers]
        rest = [part for part in event.inputs if part._id not in numbers]
        event.inputs = [self._packed, *rest]
        event.js = _PACKED.replace("GROUP", str(group))
        event.fn = self._unpacking(event.fn, numbers)

    def _unpacking(self, handler: Callable[..., Any], numbers: tuple[int, ...]) -> Callable[..., Any]:
        """The handler, given the fields' values by component as if each had been read."""

        def opened(held: dict[Any, Any]) -> dict[Any, Any]:
            packed = held.get(self._packed)
            # A page from before the server was started anew numbers its fields otherwise.
            if not isinstance(packed, dict) or any(str(number) not in packed for number in numbers):
                raise gr.Error(say("problems.old_page"), print_exception=False)
            values = {self._fields[number]: self._fields[number].preprocess(packed[str(number)]) for number in numbers}
            return {part: value for part, value in held.items() if part is not self._packed} | values

        # What answers in turns must stay a generator, by which Gradio knows it.
        if inspect.isgeneratorfunction(handler):

            @functools.wraps(handler)
            def each(held: dict[Any, Any], *more: Any) -> Any:
                yield from handler(opened(held), *more)

            return each

        @functools.wraps(handler)
        def whole(held: dict[Any, Any], *more: Any) -> Any:
            return handler(opened(held), *more)

        return whole
