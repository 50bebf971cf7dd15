"""Sets too small to spare a picture: train without each part in turn, then on everything, for as long as was best.

Each fold is a run of its own in `folds/<number>/` of the run's folder, resumed like any other. The step recommended for
the run on all pictures is the one where the folds' losses, each relative to its base's, are lowest on average.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from trainer import file_names, objective, printing
from trainer.config import TrainConfig
from trainer.data.scanning import Dataset
from trainer.errors import ConfigError
from trainer.events import Folded, Validated
from trainer.runs import Run


def split(dataset: Dataset, left_out: list[int]) -> tuple[Dataset, Dataset]:
    """The dataset without these items, and they alone. Regularisation pictures are never left out."""
    chosen = set(left_out)
    kept = [item for index, item in enumerate(dataset.items) if index not in chosen]
    held_out = [dataset.items[index] for index in left_out]
    return replace(dataset, items=kept), replace(dataset, items=held_out, problems=[])


def shuffled(dataset: Dataset, seed: int) -> list[int]:
    """The indexes of all pictures but those of regularisation, in an order of the seed's."""
    own = [index for index, item in enumerate(dataset.items) if not item.regular]
    order = torch.randperm(len(own), generator=objective.generator(seed, "leave out", 0)).tolist()
    return [own[place] for place in order]


def in_both(dataset: Dataset, heldout: Dataset | None) -> str | None:
    """A sentence if pictures are trained on and measured with."""
    own = {item.sha256 for item in dataset.items}
    twice = [item.name for item in (heldout.items if heldout else []) if item.sha256 in own]
    if not twice:
        return None
    return (
        f"{len(twice)} pictures are both trained on and measured with, such as {twice[0]}: the held-out loss will "
        f"say too much good of the adapter."
    )


def leave_out(dataset: Dataset, config: TrainConfig) -> tuple[Dataset, Dataset | None]:
    """The training set and what is held out of it. Raises: ConfigError if too little would be left."""
    wanted, folds = config.validation.leave_out, config.validation.folds
    order = shuffled(dataset, config.seed)
    if wanted >= len(order) or folds > len(order):
        name, value = ("leave_out", wanted) if wanted >= len(order) else ("folds", folds)
        raise ConfigError(f"validation.{name} is {value}; allowed for {len(order)} pictures: less than {len(order)}.")
    return split(dataset, sorted(order[:wanted])) if wanted else (dataset, None)


def results(run: Run) -> list[Folded]:
    """What the finished folds measured."""
    folded = []
    for folder in sorted((run.folder / file_names.FOLDS).glob("[0-9]*"), key=lambda path: int(path.name)):
        measured = [event for event in Run(folder).events() if isinstance(event, Validated)]
        if measured:
            steps, losses = [event.step for event in measured], [event.loss for event in measured]
            folded.append(Folded(int(folder.name), measured[0].num_pictures, steps, losses, measured[0].base_loss))
    return folded


def verdict(folded: list[Folded]) -> tuple[int, str] | None:
    """The recommended step and why, in words; None without folds."""
    if not folded:
        return None
    steps = folded[0].steps
    means = [sum(fold.losses[place] / fold.base_loss for fold in folded) / len(folded) for place in range(len(steps))]
    best = min(range(len(steps)), key=means.__getitem__)
    pictures = sum(fold.num_left_out for fold in folded)
    later_loss = ""
    if best != len(steps) - 1:
        later_loss = f", and {(means[-1] / means[best] - 1) * 100:.1f} % higher at step {steps[-1]}"
    return steps[best], (
        f"over {len(folded)} folds, which measured all {pictures} pictures, each while it was left out, the loss was "
        f"lowest at step {steps[best]}: {printing.beside_base(1 - means[best])}{later_loss}."
    )
