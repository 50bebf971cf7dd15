"""Every endpoint by name, and how they are offered to programs: the one place where they are registered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from app.context import Context
from app.endpoints.asking import typed
from app.endpoints.batch import BatchEndpoints
from app.endpoints.dataset import DatasetEndpoints
from app.endpoints.jobs import JobEndpoints
from app.endpoints.library import LibraryEndpoints
from app.endpoints.presets import PresetEndpoints
from app.endpoints.retraining import RetrainingEndpoints
from app.endpoints.runs import RunEndpoints
from app.endpoints.stack import StackEndpoints
from app.endpoints.training import TrainingEndpoints
from app.library_items import Shelf
from app.notices import mended_for_programs

_AT_ONCE = 4  # of all of them together


def every(context: Context) -> dict[str, Callable[..., Any]]:
    """The endpoints of a server by name, in the order of the tabs."""
    shelf = Shelf(context)
    groups = [
        DatasetEndpoints(context), TrainingEndpoints(context), RetrainingEndpoints(context), JobEndpoints(context),
        RunEndpoints(context), StackEndpoints(context), BatchEndpoints(shelf), LibraryEndpoints(shelf),
        PresetEndpoints(context),
    ]  # fmt: skip
    # `vars` keeps the order in which a class's methods are written.
    return {
        name: getattr(group, name)
        for group in groups
        for name, method in vars(type(group)).items()
        if callable(method) and not name.startswith("_")
    }


def connect(context: Context) -> None:
    """Offer them; call once, within the page."""
    for name, endpoint in every(context).items():
        # A wrong argument is told of like any other error, so the check of types lies within.
        gr.api(
            mended_for_programs(typed(endpoint)), api_name=name, concurrency_id="endpoints", concurrency_limit=_AT_ONCE
        )
