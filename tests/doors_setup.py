"""What every door needs: a folder of its own and a page's workspace."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.test_naming import small
from trainer.config import StackConfig

Call = Callable[[], Any]
Case = Callable[[random.Random], list[Call]]
PRESETS = Path(__file__).parents[1] / "presets"


def context(room: Path) -> Any:
    """A page's workspace with one LoRA, `cat`, whose jobs are never begun."""
    from app.context import Context
    from app.jobs import JobRunner

    class Nothing:
        def command(self, job: Any) -> list[str]:
            return ["/nowhere/at/all"]

        def finished(self, job: Any) -> bool:
            return False

        def saved_step(self, job: Any) -> int:
            return 0

    small(room / "loras" / "cat.safetensors", seed=1)
    page = Context(room, JobRunner(room, Nothing(), room / "runs"))
    page.find_loras()
    return page


STACK_KEYS = [
    *StackConfig.model_fields,
    *("file", "name", "sha256", "weight", "text_weight", "blocks", "schedule", "region", "enabled", "trigger"),
]


def fresh(folder: Path) -> Path:
    """The folder, empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
