"""A pydantic model <-> Gradio components, both ways; label, help and bounds come from the field and are written once.

Where a group is a union of kinds (adapter methods), each kind's own settings are shown while that kind is chosen; a
new kind needs no edit here. A setting that nothing would read as the others stand (its `only_with`) is hidden, and
counts as left at its default until it is back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr
from gradio.components import Component
from pydantic import BaseModel

from app.form_components import as_model_value, as_shown, new_component
from app.form_fields import Spec, specs, values_by_key
from trainer.schema import SET

Values = Mapping[str, Any]  # by key
# Setting -> its value -> what that offers: {"family": {"sdxl": {"prediction": ("epsilon",)}}}.
Facts = Mapping[str, Mapping[Any, Mapping[str, tuple[str, ...]]]]
Held = Mapping[Component, Any]  # what the components on the page hold


class Form:
    """The components of a model's settings, drawn where the caller's layout wants them."""

    def __init__(
        self,
        model: type[BaseModel],
        start: BaseModel,
        skip: frozenset[str],
        choices: Mapping[str, list[Any]],
        facts: Facts | None = None,
        name: str = "field",
    ) -> None:
        """Nothing is drawn yet.

        `start` gives the first values, `skip` the keys that are not drawn, `choices` the allowed values of text
        settings by key; `name` begins the elements' ids.
        """
        self.name = name
        self.specs = {spec.key: spec for spec in specs(model) if spec.key not in skip}
        self.choices, self.facts = choices, facts or {}
        # The path of each union of kinds -> the key of the setting that chooses one.
        self.tags = {spec.path[:-1]: key for key, spec in self.specs.items() if spec.kinds}
        self.start = values_by_key(self.specs, start)
        self.read_at_start = self.read(self.start)
        self.components: dict[str, Component] = {}
        self.groups: list[tuple[gr.Accordion, list[str]]] = []  # folded, with the keys in them

    def by_path(self, config: BaseModel) -> dict[str, Any]:
        """The values of settings by dotted path."""
        values = values_by_key(self.specs, config)
        return {".".join(self.specs[key].path): value for key, value in values.items()}

    # Drawing.

    def draw(self, *keys: str) -> None:
        """Draw these settings here."""
        for key in keys:
            spec, start = self.specs[key], self.start.get(key, self.specs[key].default)
            elem_id = f"{self.name}-{key.replace('.', '-')}"
            visible = self.read_at_start[key]
            self.components[key] = new_component(spec, start, self.choices.get(key), elem_id, visible)

    def draw_rest(self, advanced: bool) -> None:
        """Draw what is not drawn yet, the everyday settings or the advanced settings."""
        self.draw(*self.undrawn(advanced))

    def undrawn(self, advanced: bool) -> list[str]:
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
        # Who decides directly over a setting; then, for each of those, all that hangs on it.
        direct = {
            key: self._controllers(spec) & self.components.keys()
            for key, spec in self.specs.items()
            if key in self.components
        }
        controllers = {controller for keys in direct.values() for controller in keys}
        inputs = {self.components[key] for key in controllers}
        for controller in sorted(controllers):
            self._connect_one(controller, self._dependents(controller, direct), inputs)

    def _controllers(self, spec: Spec) -> set[str]:
        """Keys of the settings that decide directly whether this one is read."""
        keys = {self.tags[spec.path[:-1]]} if spec.kind else set()
        for name in spec.conditions:
            if "." in name:
                keys |= {other.key for other in self._named(name)}
            else:  # a fact, which any setting with facts may offer
                keys |= {key for key in self.facts if key in self.specs}
        return keys

    def _dependents(self, controller: str, direct: Mapping[str, set[str]]) -> list[str]:
        """Settings that a change of this one may show or hide, also through one another."""
        reached: set[str] = set()
        while more := {
            key for key, controllers in direct.items() if key not in reached and controllers & (reached | {controller})
        }:
            reached |= more
        return [key for key in self.components if key in reached]

    def _connect_one(self, controller: str, dependents: list[str], inputs: set[Component]) -> None:
        """Answer a change of this setting by showing and hiding its dependents; of a tag also by its kind's help."""
        spec, control = self.specs[controller], self.components[controller]
        groups = [(group, keys) for group, keys in self.groups if set(keys) & set(dependents)]

        def switch(held: dict[Component, Any]) -> dict[Any, Any]:
            read = self.read(self._model_values(held))
            updates: dict[Any, Any] = {self.components[key]: gr.update(visible=read[key]) for key in dependents}
            updates |= {group: gr.update(visible=any(read[key] for key in keys)) for group, keys in groups}
            return updates | ({control: gr.update(info=spec.kinds.get(held[control], ""))} if spec.kinds else {})

        outputs = [
            *(self.components[key] for key in dependents),
            *(group for group, _ in groups),
            *([control] if spec.kinds else []),
        ]
        # Only what a person does, as `fill` shows and hides by itself; but a text box sent no `input` here (Gradio
        # 6.31, tried). A burst of keystrokes asks for the answer to the last.
        listen: Any = control.change if isinstance(control, gr.Textbox) else control.input
        listen(
            switch, inputs, outputs, show_progress="hidden", api_visibility="private", queue=False,
            trigger_mode="always_last",
        )  # fmt: skip

    # What is read.

    def read(self, values: Values) -> dict[str, bool]:
        """Whether each setting would be read, were these the values; what is missing is at its default."""
        return {key: self._is_read(spec, values) for key, spec in self.specs.items()}

    def read_of(self, held: Held) -> dict[str, bool]:
        """The same for what the components hold."""
        return self.read(self._model_values(held))

    def _is_read(self, spec: Spec, values: Values) -> bool:
        if spec.kind and values.get(self.tags[spec.path[:-1]]) != spec.kind:
            return False
        conditions = spec.conditions
        return not conditions or any(self._holds(name, allowed, values) for name, allowed in conditions.items())

    def _holds(self, name: str, allowed: Any, values: Values) -> bool:
        """Whether a condition is met; a condition on what nobody here knows is not judged."""
        if "." not in name:
            offers = [by_value.get(values.get(key), {}) for key, by_value in self.facts.items()]
            offered = [facts[name] for facts in offers if name in facts]
            return not offered or any(set(facts) & set(allowed) for facts in offered)
        named = self._named(name)
        if not named:
            return True
        spec = next((spec for spec in named if self._is_read(spec, values)), None)
        value = values.get(spec.key, spec.default) if spec else named[0].default
        return bool(value) if allowed == SET else value in allowed

    def _named(self, name: str) -> list[Spec]:
        """The settings of that dotted path, one for each kind that has it."""
        path = tuple(name.split("."))
        return [spec for spec in self.specs.values() if spec.path == path]

    # Values.

    def values(self, held: Held) -> dict[str, Any]:
        """Nested values of the settings that are read, as `trainer.config.parse` takes them."""
        values = self._model_values(held)
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
        values = values_by_key(self.specs, config)
        read = self.read(values)
        updates: dict[Any, Any] = {}
        for key, component in self.components.items():
            spec = self.specs[key]
            if key in values:
                updates[component] = gr.update(value=as_shown(values[key]), visible=read[key])
            else:  # of another kind
                updates[component] = gr.update(visible=False)
            if spec.kinds:
                updates[component] |= {"info": spec.kinds.get(str(values.get(key)), "")}
        return updates | self._group_updates(read)

    def fill_beside(self, held: Held, config: BaseModel) -> dict[Any, Any]:
        """The same, without the updates that change nothing of what is held: a browser takes long for a hundred."""
        before, groups = self.read_of(held), self._group_updates(self.read_of(held))
        shown = {component: key for key, component in self.components.items()}
        changed: dict[Any, Any] = {}
        for part, update in self.fill(config).items():
            key = shown.get(part)
            if key is None:
                is_same = update == groups.get(part)
            else:
                is_same = update["visible"] == before[key] and update.get("value", held.get(part)) == held.get(part)
            if not is_same:
                changed[part] = update
        return changed

    def change(self, held: Held, changes: Mapping[str, Any]) -> dict[Any, Any]:
        """Updates for some settings, by dotted path, beside what the components hold.

        Names that are no settings are passed over.
        """
        # The changes by key. A path that several kinds have is the chosen kind's.
        values = self._model_values(held)
        read = self.read(values)
        changed = {
            key: changes[".".join(spec.path)]
            for key, spec in self.specs.items()
            if ".".join(spec.path) in changes and (read[key] or not spec.kind)
        }

        # What is shown and hidden as they stand then.
        read = self.read(values | changed)
        updates: dict[Any, Any] = {
            component: gr.update(visible=read[key]) for key, component in self.components.items()
        }
        updates |= {
            self.components[key]: gr.update(value=as_shown(value), visible=read[key])
            for key, value in changed.items()
            if key in self.components
        }
        return updates | self._group_updates(read)

    def parts(self) -> list[Any]:
        """Everything that `fill` may change."""
        return [*self.components.values(), *(group for group, _ in self.groups)]

    def values_of(self, held: Held) -> dict[str, Any]:
        """What the components hold, by key, as the model takes it."""
        return self._model_values(held)

    def _group_updates(self, read: Mapping[str, bool]) -> dict[Any, Any]:
        """Each group shown while one of its settings is read."""
        return {group: gr.update(visible=any(read[key] for key in keys)) for group, keys in self.groups}

    def _model_values(self, held: Held) -> dict[str, Any]:
        """By key, as the model takes them."""
        return {
            key: as_model_value(self.specs[key], held[component])
            for key, component in self.components.items()
            if component in held
        }
