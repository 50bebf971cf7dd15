"""What a run's checkpoint holds, and what it is tied to: `checkpoint` writes and reads whatever it is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trainer import against_stack, bases, checkpoint, families, file_names, more_steps, optim
from trainer.config import TrainConfig, digest
from trainer.data import Dataset
from trainer.events import Event, Saved, Warned
from trainer.run_evaluation import Evaluation
from trainer.runs import Run


def identity(config: TrainConfig, dataset: Dataset, heldout: Dataset | None) -> dict[str, Any]:
    """Digests of all that a run is trained from; a checkpoint made from anything else is not gone on with."""
    return {
        "config": digest(more_steps.unextended(config)),
        "dataset": dataset.digest,
        "heldout": heldout.digest if heldout else None,
        "base": base_digest(config),
        "against": against_stack.digest(config.against.adapters),
    }


def base_digest(config: TrainConfig) -> str:
    """sha256 of the weights that training depends on. Raises: ModelError."""
    family = families.registry()[config.family]
    folder = bases.resolve(config.base, family)
    parts = dict.fromkeys([*family.components, *bases.parts(folder, "text_encoder"), "vae"])
    return "".join(bases.digest(folder, part)[:16] for part in parts)


@dataclass
class Saver:
    """Writes the checkpoints of a run."""

    run: Run
    identity: dict[str, Any]
    evaluation: Evaluation

    def save(self, step: int, needed: bool) -> Event:
        """Write the checkpoint of a step; Saved, or Warned if there is no room and none was needed.

        Raises: OSError if it was needed (the run ends with it) and can't be written.
        """
        # What goes in: the adapter, the optimizer, the running mean, the best step.
        run, evaluation, model = self.run, self.evaluation, self.evaluation.model
        tensors, values = optim.state(evaluation.optimizer)
        groups = {"adapter": {**model.trained, **model.constants()}, "optimizer": tensors, **evaluation.tensors()}
        state = {**self.identity, "optimizer": values, **evaluation.state()}

        # All processes hold the same; the first writes.
        try:
            if model.world.first:
                checkpoint.save(run.checkpoints, step, groups, state, model.config.keep_checkpoints)
        except OSError as error:
            if needed:
                raise
            resume_hint = (
                f"{checkpoint.standing(run.checkpoints)}, and the run goes on. Free some room; should it not reach "
                f"its end: {run.again}"
            )
            return Warned(f"the checkpoint of step {step} could not be written ({error.strerror}); {resume_hint}.")
        return Saved(step, f"{file_names.CHECKPOINTS}/{file_names.checkpoint(step)}")
