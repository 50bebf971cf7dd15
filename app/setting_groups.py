"""The folded groups of advanced settings on the Train tab."""

from __future__ import annotations

from app.form import Form
from app.texts import say

# Folded groups of advanced settings in the order of the work; a group that is not named here comes last.
_GROUPS = {
    "captions": say("word.captions"), "data": say("settings.data"), "objective": say("settings.objective"),
    "optimizer": say("settings.optimizer"), "adapter": say("settings.adapter"),
    "inversion": say("settings.new_word"), "against": say("settings.against"), "validation": say("settings.validation"),
    "preview": say("run.previews"), "memory": say("settings.memory"), "run": say("kind.run"),
}  # fmt: skip
_BELONGS = {"validate_every_steps": "validation", "accumulation": "optimizer"}  # settings of no group; others: "run"


def grouped(form: Form, keys: list[str]) -> dict[str, list[str]]:
    """These settings by the title of their group, in the order of the page."""
    groups: dict[str, list[str]] = {title: [] for title in _GROUPS.values()}
    for key in keys:
        path = form.specs[key].path
        group = path[0] if len(path) > 1 else _BELONGS.get(key, "run")
        groups.setdefault(_GROUPS.get(group, group.capitalize()), []).append(key)
    return {title: inside for title, inside in groups.items() if inside}
