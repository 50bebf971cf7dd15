"""A pydantic model <-> Gradio components, both ways; label, help and bounds come from the field and are written once.

A field's key is its dotted path (`adapter.rank`). Where a group is a union of kinds (adapter methods), each kind's own
fields are keyed `adapter.lora.rank` and shown while that kind is chosen; a new kind needs no edit here. A setting that
nothing would read as the others stand (its `only_with`) is hidden, and counts as left at its default until it is back.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Union, get_args, get_origin

import gradio as gr
from gradio.components import Component
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from trainer.schema import SET

TAG = "method"
_SLIDER_STEPS = 100
_MAX_INT_SLIDER = 64


@dataclass(frozen=True)
class Spec:
    """One setting of the form."""

    path: tuple[str, ...]
    info: FieldInfo
    kind: str | None = None  # of a union's member that owns it
    kinds: Mapping[str, str] = field(default_factory=dict)  # this is the tag itself: the kinds, each with its help

    @property
    def key(self) -> str:
        path = (*self.path[:-1], self.kind, self.path[-1]) if self.kind else self.path
        return ".".join(path)

    @property
    def advanced(self) -> bool:
        return bool(self._extra.get("advanced"))

    @property
    def conditions(self) -> dict[str, Any]:
        """Settings or facts -> values of which one must be there for this setting to be read; empty: always."""
        return dict(self._extra.get("only_with") or {})

    @property
    def default(self) -> Any:
        return None if self.info.is_required() else self.info.default

    @property
    def _extra(self) -> dict[str, Any]:
        return self.info.json_schema_extra if isinstance(self.info.json_schema_extra, dict) else {}


def specs(model: type[BaseModel], prefix: tuple[str, ...] = ()) -> list[Spec]:
    """Every setting of a model tree, in the order of its fields."""
    found: list[Spec] = []
    for name, info in model.model_fields.items():
        members = _models(info.annotation)
        path = (*prefix, name)
        if not members:
            found.append(Spec(path, info))
        elif TAG not in members[0].model_fields:
            found += specs(members[0], path)
        else:
            kinds = {str(get_args(member.model_fields[TAG].annotation)[0]): member for member in members}
            helps = {kind: str(member.model_fields[TAG].description or "") for kind, member in kinds.items()}
            found.append(Spec((*path, TAG), members[0].model_fields[TAG], kinds=helps))
            found += [Spec((*path, inner), one, kind=kind) for kind, member in kinds.items() for inner, one in member.model_fields.items() if inner != TAG]
    return found


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType):
        return [model for part in get_args(annotation) for model in _models(part)]
    return []


def _bounds(info: FieldInfo) -> dict[str, Any]:
    """`ge`, `le`, `gt`, `multiple_of`, `max_length` of a field, those it has."""
    names = ("ge", "le", "gt", "multiple_of", "max_length")
    return {name: getattr(bound, name) for bound in info.metadata for name in names if getattr(bound, name, None) is not None}


Values = Mapping[str, Any]  # by key
Facts = Mapping[str, Mapping[Any, Mapping[str, tuple[str, ...]]]]  # setting -> its value -> what it offers: {"prediction": ("epsilon",)}


class Form:
    """The components of a model's settings, drawn where the caller's layout wants them."""

    def __init__(
        self, model: type[BaseModel], start: BaseModel, skip: frozenset[str], choices: Mapping[str, list[Any]], facts: Facts | None = None, name: str = "field"
    ) -> None:
        """`start` gives the first values, `choices` the allowed values of text settings, `skip` the keys not drawn, `name` starts the elements' ids."""
        self.name = name
        self.specs = {spec.key: spec for spec in specs(model) if spec.key not in skip}
        self.choices, self.facts = choices, facts or {}
        self.tags = {spec.path[:-1]: key for key, spec in self.specs.items() if spec.kinds}
        self.start = self._by_key(start)
        self.read_at_start = self.read(self.start)
        self.components: dict[str, Component] = {}
        self.groups: list[tuple[gr.Accordion, list[str]]] = []

    # Drawing.

    def draw(self, *keys: str) -> None:
        """Draw these settings here."""
        for key in keys:
            self.components[key] = self._component(self.specs[key])

    def draw_rest(self, advanced: bool) -> None:
        """Draw what is not drawn yet, the everyday settings or the advanced ones."""
        self.draw(*self.left(advanced))

    def left(self, advanced: bool) -> list[str]:
        """Settings not drawn yet."""
        return [key for key, spec in self.specs.items() if key not in self.components and spec.advanced == advanced]

    def draw_group(self, title: str, keys: list[str]) -> None:
        """A folded group of these settings, gone while none of them is read."""
        visible = any(self.read_at_start[key] for key in keys)
        with gr.Accordion(title, open=False, visible=visible, elem_classes="fields") as group:
            self.draw(*keys)
        self.groups.append((group, keys))

    def connect(self) -> None:
        """Show and hide settings as those change that they depend on; call once when all are drawn."""
        direct = {key: self._controllers(spec) & self.components.keys() for key, spec in self.specs.items() if key in self.components}
        controllers = {other for found in direct.values() for other in found}
        inputs = {self.components[key] for key in controllers}
        for controller in sorted(controllers):
            dependents = self._dependents(controller, direct)
            self._connect_one(controller, dependents, inputs)

    def _controllers(self, spec: Spec) -> set[str]:
        """Keys of the settings that decide directly whether this one is read."""
        found = {self.tags[spec.path[:-1]]} if spec.kind else set()
        for name in spec.conditions:
            found |= {other.key for other in self._named(name)} if "." in name else {key for key in self.facts if key in self.specs}
        return found

    def _dependents(self, controller: str, direct: Mapping[str, set[str]]) -> list[str]:
        """Settings that a change of this one may show or hide, also through one another."""
        found: set[str] = set()
        while more := {key for key, controllers in direct.items() if key not in found and controllers & (found | {controller})}:
            found |= more
        return [key for key in self.components if key in found]

    def _connect_one(self, controller: str, dependents: list[str], inputs: set[Component]) -> None:
        spec, component = self.specs[controller], self.components[controller]
        groups = [(group, keys) for group, keys in self.groups if set(keys) & set(dependents)]

        def switch(found: dict[Component, Any]) -> dict[Any, Any]:
            read = self.read(self._plain_values(found))
            updates: dict[Any, Any] = {self.components[key]: gr.update(visible=read[key]) for key in dependents}
            updates |= {group: gr.update(visible=any(read[key] for key in keys)) for group, keys in groups}
            return updates | ({component: gr.update(info=spec.kinds.get(found[component], ""))} if spec.kinds else {})

        outputs = [*(self.components[key] for key in dependents), *(group for group, _ in groups), *([component] if spec.kinds else [])]
        listen: Any = component.change if isinstance(component, gr.Textbox) else component.input
        # Only what a person does, as `fill` shows and hides by itself; but a text box sent no `input` here (Gradio 6.31, tried).
        # A burst of keystrokes asks for the last one's answer.
        listen(switch, inputs, outputs, show_progress="hidden", api_visibility="private", queue=False, trigger_mode="always_last")

    # What is read.

    def read(self, values: Values) -> dict[str, bool]:
        """Whether each setting would be read, were these the values; what is missing is at its default."""
        return {key: self._is_read(spec, values) for key, spec in self.specs.items()}

    def _is_read(self, spec: Spec, values: Values) -> bool:
        if spec.kind and values.get(self.tags[spec.path[:-1]]) != spec.kind:
            return False
        conditions = spec.conditions
        return not conditions or any(self._holds(name, allowed, values) for name, allowed in conditions.items())

    def _holds(self, name: str, allowed: Any, values: Values) -> bool:
        """Whether a condition is met; one on a fact or setting that nobody here knows is not judged."""
        if "." not in name:
            known = [offers[name] for key, by_value in self.facts.items() if name in (offers := by_value.get(values.get(key), {}))]
            return not known or any(set(one) & set(allowed) for one in known)
        named = self._named(name)
        if not named:
            return True
        spec = next((one for one in named if self._is_read(one, values)), None)
        value = values.get(spec.key, spec.default) if spec else named[0].default
        return bool(value) if allowed == SET else value in allowed

    def _named(self, name: str) -> list[Spec]:
        """The settings of that dotted path, one for each kind that has it."""
        path = tuple(name.split("."))
        return [spec for spec in self.specs.values() if spec.path == path]

    # Values.

    def values(self, found: Mapping[Component, Any]) -> dict[str, Any]:
        """Plain nested values of what the components hold, as `trainer.config.parse` takes them; none that is not read."""
        values = self._plain_values(found)
        read = self.read(values)
        tree: dict[str, Any] = {}
        for key in self.components:
            if not read[key]:
                continue
            here, path = tree, self.specs[key].path
            for part in path[:-1]:
                here = here.setdefault(part, {})
            here[path[-1]] = values.get(key)
        return tree

    def fill(self, config: BaseModel) -> dict[Any, Any]:
        """Updates that make the components show `config`."""
        values = self._by_key(config)
        read = self.read(values)
        updates: dict[Any, Any] = {}
        for key, component in self.components.items():
            spec = self.specs[key]
            updates[component] = gr.update(value=_shown(values[key]), visible=read[key]) if key in values else gr.update(visible=False)
            if spec.kinds:
                updates[component] |= {"info": spec.kinds.get(str(values.get(key)), "")}
        return updates | {group: gr.update(visible=any(read[key] for key in keys)) for group, keys in self.groups}

    def change(self, found: Mapping[Component, Any], changes: Mapping[str, Any]) -> dict[Any, Any]:
        """Updates for some settings, by dotted path, beside what the components hold; names that are no settings are passed over."""
        values = self._plain_values(found)
        read = self.read(values)
        keys = {key: changes[".".join(spec.path)] for key, spec in self.specs.items() if ".".join(spec.path) in changes and (read[key] or not spec.kind)}
        read = self.read(values | keys)
        updates: dict[Any, Any] = {component: gr.update(visible=read[key]) for key, component in self.components.items()}
        updates |= {self.components[key]: gr.update(value=_shown(value), visible=read[key]) for key, value in keys.items() if key in self.components}
        return updates | {group: gr.update(visible=any(read[key] for key in inside)) for group, inside in self.groups}

    def parts(self) -> list[Any]:
        """Everything that `fill` may change."""
        return [*self.components.values(), *(group for group, _ in self.groups)]

    def _plain_values(self, found: Mapping[Component, Any]) -> dict[str, Any]:
        return {key: _plain(self.specs[key], found[component]) for key, component in self.components.items() if component in found}

    def _by_key(self, config: BaseModel) -> dict[str, Any]:
        """A config's values by key; other kinds' settings are not among them."""
        flat = _flat(config.model_dump(mode="json"))
        found = {}
        for key, spec in self.specs.items():
            path = ".".join(spec.path)
            if path in flat and (spec.kind is None or flat.get(".".join((*spec.path[:-1], TAG))) == spec.kind):
                found[key] = flat[path]
        return found

    def _component(self, spec: Spec) -> Component:
        info, annotation = spec.info, _kind(spec)
        value = _shown(self.start.get(spec.key, spec.default))
        common: dict[str, Any] = {"label": info.title or spec.path[-1], "info": info.description, "elem_id": f"{self.name}-{spec.key.replace('.', '-')}"}
        common |= {"info": spec.kinds.get(str(value), "")} if spec.kinds else {}
        common["visible"] = self.read_at_start[spec.key]
        choices = self.choices.get(spec.key) or list(spec.kinds) or (list(get_args(annotation)) if get_origin(annotation) is Literal else [])
        if choices:
            return gr.Dropdown(choices, value=value, interactive=True, **common)
        if annotation is bool:
            return gr.Checkbox(bool(value), interactive=True, **common)
        if annotation in (int, float) and not _may_be_empty(spec):  # gr.Number shows an empty value as 0 (Gradio 6.31)
            return _number(spec, value, common)
        lines = 2 if get_origin(annotation) is tuple else 1
        limit = _bounds(info).get("max_length") if lines == 1 else None
        classes = "wide" if lines > 1 else None
        return gr.Textbox(
            "" if value is None else str(value), lines=lines, max_lines=max(lines, 6), max_length=limit, interactive=True, elem_classes=classes, **common
        )


def _number(spec: Spec, value: Any, common: dict[str, Any]) -> Component:
    """A slider for an everyday setting whose bounds are near, else a number; bounds are checked by the model, all at once."""
    bounds, whole = _bounds(spec.info), _kind(spec) is int
    low, high = bounds.get("ge"), bounds.get("le")
    if not spec.advanced and low is not None and high is not None and (high - low <= _MAX_INT_SLIDER if whole else True):
        step = bounds.get("multiple_of", 1) if whole else (high - low) / _SLIDER_STEPS if high - low <= 1 else 0.1
        return gr.Slider(low, high, value=value, step=step, interactive=True, **common)
    return gr.Number(value, precision=0 if whole else None, step=bounds.get("multiple_of", 1) if whole else None, interactive=True, **common)


def _may_be_empty(spec: Spec) -> bool:
    return type(None) in get_args(spec.info.annotation)


def _kind(spec: Spec) -> Any:
    """A setting's type; of one that may be empty the other."""
    found = [part for part in get_args(spec.info.annotation) if part is not type(None)]
    return found[0] if get_origin(spec.info.annotation) in (Union, types.UnionType) and len(found) == 1 else spec.info.annotation


def _plain(spec: Spec, value: Any) -> Any:
    """A component's value as the model takes it."""
    annotation = _kind(spec)
    if _may_be_empty(spec):
        return str(value).strip() or None if value is not None else None
    if get_origin(annotation) is tuple:
        return [line.strip() for line in str(value or "").splitlines() if line.strip()]
    if annotation is str:
        return value or ""
    if annotation is int and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _shown(value: Any) -> Any:
    """A model's value as the component shows it."""
    return "\n".join(map(str, value)) if isinstance(value, (list, tuple)) else value


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
