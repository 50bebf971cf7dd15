"""What a training can go on from, to choose from: saved steps of the runs here, and LoRAs of the library."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from app.context import Context
from app.texts import say
from trainer import file_names, runs
from trainer.config import parsing
from trainer.printing import plain

_MOST_RUNS, _MOST_LORAS = 60, 200


def checkpoints(context: Context) -> dict[str, Path]:
    """Folders of saved steps by RUN/step-000050, of the newest run first, its newest step first."""
    return {
        f"{run.name}/{folder.name}": folder
        for run in runs.every(context.runs)
        for folder in saved(run)
    }  # fmt: skip


def saved(run: runs.Run) -> list[Path]:
    """A run's checkpoints, newest first."""
    return list(file_names.checkpoints(run.checkpoints).values())[::-1]


def label(key: str) -> str:
    """`fox, step 50` of a checkpoint's key."""
    run, step = plain(key.rpartition("/")[0], 80), step_label(key)
    return say("train.step_of_run", run=run, step=step) if step else plain(key, 80)


def step_label(key: str) -> str:
    """`step 50` of a checkpoint's key; "" for what is none."""
    step = file_names.step_of_checkpoint(key.rpartition("/")[2])
    return say("run.step", step=step) if step is not None else ""


def of_source(source: str) -> str:
    """`fox, step 50` or `fox` of a source as settings name it; "" for none."""
    return label(parsing.short_name(source[:4096]).removesuffix(".safetensors")) if source else ""


def offered(context: Context, chosen: str = "") -> list[tuple[str, str]]:
    """(label, value) of each; a LoRA's value is its hash. What is `chosen` and not among them is named too."""
    steps = [(label(key), key) for key in list(checkpoints(context))[:_MOST_RUNS]]
    loras = list(context.known_loras().values())[::-1][:_MOST_LORAS]
    # LoRAs of one name are told apart by their hashes.
    names = Counter(plain(info.name, 80) for info in loras)
    files = []
    for info in loras:
        name = plain(info.name, 80)
        files.append(
            (
                say("train.from_lora", name=name)
                if names[name] == 1
                else say("train.from_one_of", name=name, hash=info.sha256[:8]),
                info.sha256,
            )
        )
    # What is chosen stays named, though it be gone or older than all that is listed.
    choices = [(say("train.from_nothing"), ""), *files, *steps]
    return choices if chosen in dict((value, 0) for _, value in choices) else [*choices, (label(chosen), chosen)]
