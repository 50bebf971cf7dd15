"""What the files in a run's folder are called: its LoRA, those of its best and its saved steps, checkpoints, previews.

A LoRA that is passed on keeps its name, so it carries the run's: `fox.safetensors` is the last step's,
`steps/fox-step-000050.safetensors` an earlier one's.
"""

from __future__ import annotations

import re
from pathlib import Path

CONFIG, EVENTS, REPORT = "config.toml", "events.jsonl", "report.html"
CHECKPOINTS, PREVIEWS, FOLDS = "checkpoints", "samples", "folds"
BEST = "best.safetensors"  # the best step's LoRA, beside the last one's
STEPS = "steps"  # the folder of the saved steps' LoRAs
_LORA_STEP = re.compile(r"-step-0*(\d{1,9})$")
_CHECKPOINT = re.compile(r"step-(\d{6,9})")


def lora(run: Path) -> Path:
    """The LoRA of a run's last step; `run` is the run's folder."""
    return run / f"{run.name}.safetensors"


def lora_at(run: Path, step: int) -> Path:
    """The LoRA of a saved step."""
    return run / STEPS / f"{lora_name(run.name, step)}.safetensors"


def lora_name(run: str, step: int) -> str:
    """What a stack calls the LoRA of a saved step."""
    return f"{run}-{checkpoint(step)}"


def loras_by_step(run: Path) -> dict[int, Path]:
    """The LoRAs of a run's saved steps that are here, by step, the first one's first."""
    files = {file: step_of_lora(file.stem) for file in (run / STEPS).glob("*-step-*.safetensors")}
    return dict(sorted((step, file) for file, step in files.items() if step is not None))


def step_of_lora(name: str) -> int | None:
    """The step that a LoRA's name ends with; None for a LoRA that isn't of a saved step."""
    found = _LORA_STEP.search(name)
    return int(found[1]) if found else None


def checkpoint(step: int) -> str:
    """The folder of a saved step, below `checkpoints/`."""
    return f"step-{step:06d}"


def step_of_checkpoint(folder: str) -> int | None:
    """The step of a checkpoint's folder, by its name; None for another folder, and another spelling of a step."""
    found = _CHECKPOINT.fullmatch(folder)
    return int(found[1]) if found and checkpoint(int(found[1])) == folder else None


def checkpoints(parent: Path) -> dict[int, Path]:
    """The folders of saved steps in a run's `checkpoints`, oldest first, whatever is in them, by step."""
    folders = {folder: step_of_checkpoint(folder.name) for folder in parent.glob("step-*")}
    return dict(sorted((step, folder) for folder, step in folders.items() if step is not None))


def preview(step: int, number: int) -> str:
    """The picture of the preview prompt of that number, from 1, within the run's folder."""
    return f"{PREVIEWS}/{checkpoint(step)}-{number}.png"


def is_earlier(lora: Path) -> bool:
    """True for a run's best and for a file of one of its steps, which may have the content of its last."""
    return lora.name == BEST or lora.parent.name == STEPS
