"""The doors that a file or a text from outside passes, one kind each: a damaged one is made and all its readers try it.

A kind is set up once in a folder of its own and then asked for one case after the other: the calls to be judged, in
their order. What stands before them is not timed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.doors_cards import shared_cards
from tests.doors_data import captions, pictures, zips
from tests.doors_models import bases, headers
from tests.doors_pictures import graphs, infotexts, recipes
from tests.doors_prompts import prompts, settings, stacks
from tests.doors_recipes import recipes_of_others
from tests.doors_runs import batches, events, logs, tables
from tests.doors_setup import Case

KINDS: dict[str, Callable[[Path], Case]] = {
    door.__name__: door
    for door in (
        *(headers, bases),
        *(recipes, infotexts, graphs),
        *(prompts, settings, stacks),
        *(pictures, zips, captions),
        *(events, logs, batches, tables, shared_cards),
        recipes_of_others,
    )
}
