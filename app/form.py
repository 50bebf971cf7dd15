"""A pydantic model <-> Gradio components, both ways; label, help and bounds come from the field and are written once.

A field's key is its dotted path (`adapter.rank`). Where a group is a union of kinds (adapter methods), each kind's own
fields are keyed `adapter.lora.rank` and shown while that kind is chosen; a new kind needs no edit here.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

import gradio as gr
from gradio.components import Component
from pydantic import BaseModel
from pydantic.fields import FieldInfo

TAG = "method"
_SLIDER_STEPS = 100
_MAX_INT_SLIDER = 64


@dataclass(frozen=True)
class Spec:
    """One setting of the form."""

    path: tuple[str, ...]
    field: FieldInfo
    kind: str | None = None  # of a union's member that owns it
    kinds: tuple[str, ...] = ()  # this is the tag itself

    @property
    def key(self) -> str:
        path = (*self.path[:-1], self.kind, self.path[-1]) if self.kind else self.path
        return ".".join(path)

    @property
    def advanced(self) -> bool:
        extra = self.field.json_schema_extra
        return bool(extra.get("advanced")) if isinstance(extra, dict) else False


def specs(model: type[BaseModel], prefix: tuple[str, ...] = ()) -> list[Spec]:
    """Every setting of a model tree, in the order of its fields."""
    found: list[Spec] = []
    for name, field in model.model_fields.items():
        members = _models(field.annotation)
        path = (*prefix, name)
        if not members:
            found.append(Spec(path, field))
        elif TAG not in members[0].model_fields:
            found += specs(members[0], path)
        else:
            kinds = {str(get_args(member.model_fields[TAG].annotation)[0]): member for member in members}
            found.append(Spec((*path, TAG), members[0].model_fields[TAG], kinds=tuple(kinds)))
            found += [Spec((*path, inner), info, kind=kind) for kind, member in kinds.items() for inner, info in member.model_fields.items() if inner != TAG]
    return found


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType):
        return [model for part in get_args(annotation) for model in _models(part)]
    return []


def _bounds(field: FieldInfo) -> dict[str, Any]:
    """`ge`, `le`, `gt`, `multiple_of`, `max_length` of a field, those it has."""
    names = ("ge", "le", "gt", "multiple_of", "max_length")
    return {name: getattr(bound, name) for bound in field.metadata for name in names if getattr(bound, name, None) is not None}


class Form:
    """The components of a model's settings, drawn where the caller's layout wants them."""

    def __init__(self, model: type[BaseModel], start: BaseModel, skip: frozenset[str], choices: Mapping[str, list[Any]]) -> None:
        """`start` gives the first values, `choices` the allowed values of text settings, `skip` the keys not drawn."""
        self.specs = {spec.key: spec for spec in specs(model) if spec.key not in skip}
        self.choices = choices
        self.start = _flat(start.model_dump(mode="json"))
        self.components: dict[str, Component] = {}

    def draw(self, *keys: str) -> None:
        """Draw these settings here."""
        for key in keys:
            self.components[key] = self._component(self.specs[key])

    def draw_rest(self, advanced: bool) -> None:
        """Draw what is not drawn yet, the everyday settings or the advanced ones."""
        self.draw(*[key for key, spec in self.specs.items() if key not in self.components and spec.advanced == advanced])

    def connect(self) -> None:
        """Show the settings of the kind that is chosen; call once when all are drawn."""
        for key, spec in self.specs.items():
            if len(spec.kinds) > 1:
                owned = [other for other in self.specs.values() if other.kind and other.path[:-1] == spec.path[:-1]]

                def switch(chosen: str, owned: list[Spec] = owned) -> list[Any]:
                    return [gr.update(visible=other.kind == chosen) for other in owned]

                self.components[key].change(
                    switch, self.components[key], [self.components[other.key] for other in owned], show_progress="hidden", api_visibility="private"
                )

    def values(self, found: Mapping[Component, Any]) -> dict[str, Any]:
        """Plain nested values of what the components hold, as `trainer.config.parse` takes them."""
        chosen = {spec.path[:-1]: found[self.components[key]] for key, spec in self.specs.items() if spec.kinds}
        tree: dict[str, Any] = {}
        for key, component in self.components.items():
            spec = self.specs[key]
            if spec.kind and chosen.get(spec.path[:-1]) != spec.kind:
                continue
            here = tree
            for part in spec.path[:-1]:
                here = here.setdefault(part, {})
            here[spec.path[-1]] = _plain(spec, found.get(component))
        return tree

    def fill(self, config: BaseModel) -> dict[Component, Any]:
        """Updates that make the components show `config`."""
        values = _flat(config.model_dump(mode="json"))
        updates: dict[Component, Any] = {}
        for key, component in self.components.items():
            spec = self.specs[key]
            active = spec.kind is None or values.get(".".join((*spec.path[:-1], TAG))) == spec.kind
            value = values.get(".".join(spec.path))
            updates[component] = gr.update(value=_shown(spec, value), visible=True) if active else gr.update(visible=False)
        return updates

    def _component(self, spec: Spec) -> Component:
        field, annotation = spec.field, spec.field.annotation
        default = None if field.is_required() else field.default
        value = _shown(spec, self.start.get(".".join(spec.path), default))
        common: dict[str, Any] = {"label": field.title or spec.path[-1], "info": field.description, "elem_id": f"field-{spec.key.replace('.', '-')}"}
        if spec.kind is not None:
            common["visible"] = self.start.get(".".join((*spec.path[:-1], TAG))) == spec.kind
        choices = list(spec.kinds) or self.choices.get(spec.key) or (list(get_args(annotation)) if get_origin(annotation) is Literal else [])
        if choices:
            return gr.Dropdown(choices, value=value, interactive=True, **common)
        if annotation is bool:
            return gr.Checkbox(bool(value), interactive=True, **common)
        if annotation in (int, float):
            return _number(spec, value, common)
        lines = 3 if get_origin(annotation) is tuple else 1
        return gr.Textbox(
            value, lines=lines, max_lines=max(lines, 6), max_length=_bounds(field).get("max_length") if lines == 1 else None, interactive=True, **common
        )


def _number(spec: Spec, value: Any, common: dict[str, Any]) -> Component:
    """A slider where both bounds are near, else a number; bounds are checked by the model, which says all problems at once."""
    bounds, whole = _bounds(spec.field), spec.field.annotation is int
    low, high = bounds.get("ge"), bounds.get("le")
    if low is not None and high is not None and (high - low <= _MAX_INT_SLIDER if whole else True):
        step = bounds.get("multiple_of", 1) if whole else (high - low) / _SLIDER_STEPS if high - low <= 1 else 0.1
        return gr.Slider(low, high, value=value, step=step, interactive=True, **common)
    return gr.Number(value, precision=0 if whole else None, step=bounds.get("multiple_of", 1) if whole else None, interactive=True, **common)


def _plain(spec: Spec, value: Any) -> Any:
    """A component's value as the model takes it."""
    annotation = spec.field.annotation
    if get_origin(annotation) is tuple:
        return [line.strip() for line in str(value or "").splitlines() if line.strip()]
    if annotation is str:
        return value or ""
    if annotation is int and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _shown(spec: Spec, value: Any) -> Any:
    """A model's value as the component shows it."""
    return "\n".join(map(str, value)) if isinstance(value, (list, tuple)) else value


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
