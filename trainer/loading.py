"""The model of a run, ready for its first step, with memory settings changed where memory runs out on the way."""

from __future__ import annotations

from collections.abc import Callable

from trainer import attaching, bases, phases
from trainer.checkpoint import Checkpoint
from trainer.config import MemoryConfig, TrainConfig
from trainer.data import Dataset
from trainer.distributed import World
from trainer.errors import RunError
from trainer.memory import ladder, mechanics
from trainer.runs import Run
from trainer.start_weights import Source
from trainer.training_model import TrainingModel


def load(
    config: TrainConfig,
    run: Run,
    dataset: Dataset,
    heldout: Dataset | None,
    begins: tuple[Checkpoint | None, Source | None],
    stop: Callable[[], bool],
    world: World,
) -> tuple[TrainingModel, tuple[int, int], list[ladder.Change]]:
    """The base with all pictures and captions encoded and the adapter on it.

    It begins as a checkpoint has it, or with a source's weights, or with neither as an adapter that does nothing.
    Beside it: how many entries there are and how many were encoded now, and what was changed where memory ran out.
    Raises: UserError, RunError if memory runs out and no setting is left to change.
    """

    def attempt(settings: MemoryConfig) -> tuple[TrainingModel, tuple[int, int]]:
        # A function of its own: what it holds of a failed attempt is freed before the next one.
        teller.tell("loading")
        model = TrainingModel.open(config, world, settings)
        cached = model.prepare(run.cache, dataset, heldout, stop, teller.encoding)
        teller.tell("adapting")
        attaching.attach(model, *begins)
        return model, cached

    teller = phases.Teller(run, world.first)

    # A resumed run begins with the settings it had come to.
    saved = begins[0]
    settings = MemoryConfig.model_validate(saved.state["memory"]) if saved else config.memory
    changes: list[ladder.Change] = []
    while True:
        try:
            loaded = attempt(settings)
            teller.over()
            return *loaded, changes
        except (RuntimeError, MemoryError) as error:
            # One of several processes can't change its settings alone: the others would wait for it forever.
            if not mechanics.is_shortage(error) or world.size > 1:
                raise
            rung = ladder.loading_rung(settings, config, bases.hardware(config.device, "float32")[0])
            if rung is None:
                raise RunError(ladder.exhausted("while the base was loaded", error)) from error
            mechanics.let_go()
        before, (settings, words) = settings, rung
        changes.append(ladder.change(before, settings, words))
