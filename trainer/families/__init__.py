"""Model families, one a file: the module's name is the family's, its names are the facts and functions of
`contract.Family`.

`prediction` is a tuple because one architecture comes with several (SD 2.x is v, SD 1.x epsilon): the scheduler's
config of the base at hand decides. A family sees `schema` and torch, never the loop, the config or another family.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from trainer import contracts
from trainer.families.contract import Family


@cache
def registry() -> dict[str, Family]:
    """Every family by name; a new file in this folder is a new family."""
    return contracts.gather(Family, __name__, __path__)


def known(name: str) -> str:
    """The name if there is such a family. Raises: ValueError, which names those there are."""
    if name not in registry():
        raise ValueError(f"family is {name[:80]!r}; allowed: {', '.join(registry())}.")
    return name


def of(pipe: Any) -> Family:
    """The family of a pipeline."""
    return next(family for family in registry().values() if family.pipeline == type(pipe).__name__)
