"""The settings of a pydantic model, one by one, as a form needs them: key, kind, default, bounds, when they are read.

A setting's key is its dotted path (`adapter.rank`). Where a group is a union of kinds (adapter methods), each kind's
own fields are keyed `adapter.lora.rank`.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

TAG = "method"  # the field that says which kind of a union it is


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
    def value_type(self) -> Any:
        """The setting's type; where it may also be None, the other type."""
        annotation = self.info.annotation
        filled = [part for part in get_args(annotation) if part is not type(None)]
        return filled[0] if get_origin(annotation) in (Union, types.UnionType) and len(filled) == 1 else annotation

    @property
    def may_be_empty(self) -> bool:
        return type(None) in get_args(self.info.annotation)

    @property
    def bounds(self) -> dict[str, Any]:
        """`ge`, `le`, `gt`, `multiple_of`, `max_length`, those the setting has."""
        names = ("ge", "le", "gt", "multiple_of", "max_length")
        values = ((name, getattr(bound, name, None)) for bound in self.info.metadata for name in names)
        return {name: value for name, value in values if value is not None}

    @property
    def _extra(self) -> dict[str, Any]:
        return self.info.json_schema_extra if isinstance(self.info.json_schema_extra, dict) else {}


def specs(model: type[BaseModel], prefix: tuple[str, ...] = ()) -> list[Spec]:
    """Every setting of a model tree, in the order of its fields."""
    settings: list[Spec] = []
    for name, info in model.model_fields.items():
        members = _models(info.annotation)
        path = (*prefix, name)
        if not members:
            settings.append(Spec(path, info))
        elif TAG not in members[0].model_fields:
            settings += specs(members[0], path)
        else:
            # A union of kinds: the tag that chooses one, then each kind's own settings.
            kinds = {str(get_args(member.model_fields[TAG].annotation)[0]): member for member in members}
            helps = {kind: str(member.model_fields[TAG].description or "") for kind, member in kinds.items()}
            settings.append(Spec((*path, TAG), members[0].model_fields[TAG], kinds=helps))
            settings += [
                Spec((*path, inner), inner_info, kind=kind)
                for kind, member in kinds.items()
                for inner, inner_info in member.model_fields.items()
                if inner != TAG
            ]
    return settings


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models in an annotation: itself, or the members of a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType):
        return [model for part in get_args(annotation) for model in _models(part)]
    return []


def values_by_key(settings: Mapping[str, Spec], config: BaseModel) -> dict[str, Any]:
    """A config's values by key; other kinds' settings are not among them."""
    flat = _flat(config.model_dump(mode="json"))
    values = {}
    for key, spec in settings.items():
        path = ".".join(spec.path)
        if path in flat and (spec.kind is None or flat.get(".".join((*spec.path[:-1], TAG))) == spec.kind):
            values[key] = flat[path]
    return values


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a.b": 1}` of `{"a": {"b": 1}}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
