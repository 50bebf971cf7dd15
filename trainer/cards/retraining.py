"""A kept recipe on new pictures: whether the new LoRA is better than the old LoRA, on pictures that neither has seen.

The new one is its run's last step: the step that a run recommends is chosen by its held-out pictures, and would look
better on them than it is. Both are asked the same questions, as a run's own measurements are (`validation`): the same
held-out pictures, captions, noise and timesteps. What is told is how much lower the new one's loss is, with a 95 %
bootstrap interval over pictures.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainer import (
    data,
    events,
    file_names,
    files,
    loading,
    lora_file,
    phases,
    presets,
    report,
    runs,
    session,
    start_weights,
    validation,
)
from trainer.cards import sources, to_compare
from trainer.config import TrainConfig
from trainer.distributed import World
from trainer.errors import ConfigError
from trainer.lora_file import LoraInfo, is_there
from trainer.report import compared

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.cards.sources import Source

Better = Literal["new", "old", "neither"]


@dataclass(frozen=True)
class Verdict:
    """Which of two LoRAs predicts held-out pictures better."""

    better: Better
    sentence: str
    num_pictures: int
    base_loss: float
    old_loss: float
    new_loss: float
    gain: float  # how much lower the new LoRA's loss is than the old LoRA's; 0.1 = 10 %
    gain_low: float  # 95 % bootstrap interval over pictures
    gain_high: float


def with_heldout(config: TrainConfig) -> TrainConfig:
    """The same settings, with a fifth of the pictures held out where nothing is. Raises: UserError."""
    if config.data.heldout or config.validation.leave_out:
        return config
    count = len([item for item in data.scan(config).items if not item.regular])
    wanted = to_compare.num_held_out(count)
    if not wanted:
        raise ConfigError(f"--data has {count} pictures, too few to hold some out; give --heldout DIR to compare on.")
    return presets.changed(config, {"validation.leave_out": wanted, "validation.folds": 0})


def old_lora(source: Source, library: dict[str, LoraInfo]) -> Path | None:
    """The LoRA that a run, a LoRA file or a card stands for; None where it isn't here."""
    if source.kind == "run" and source.path is not None:
        return best_of(runs.Run(source.path))
    if source.kind == "lora":
        return source.path
    made = [lora.sha256 for lora in source.card.card.loras if lora.role == "made"] if source.card else []
    return next((library[sha256].path for sha256 in made if sha256 in library), None)


def best_of(run: runs.Run) -> Path | None:
    """The LoRA file that a run recommends, else its last file; None if it has none."""
    path, _ = run.best(run.events())
    return path if is_there(path) else None


def refuse(config: TrainConfig, old: Path) -> None:
    """Refuse an old LoRA that no adapter of ours can take up, or that is for another family. Raises: UserError."""
    if not is_there(old):
        raise ConfigError(f"the LoRA to compare with, {old.name[:200]}, is not here; name a LoRA file.")
    start_weights.refuse(_fitted(config, old))


def seen_before(source: Source, config: TrainConfig) -> int:
    """How many of the held-out pictures the old run was trained on, where its own pictures are still here."""
    if source.kind != "run" or not isinstance(source.settings, TrainConfig):
        return 0
    folder = Path(source.settings.data.folder)
    return seen_in(folder, config) if folder.is_dir() else 0


def seen_in(folder: Path, config: TrainConfig) -> int:
    """How many of the held-out pictures lie in a folder of the old one's, byte for byte."""
    _, heldout = session.refuse(config)
    own = {files.sha256(path) for path in folder.rglob("*") if path.is_file()}
    return sum(files.sha256(item.path) in own for item in heldout.items) if heldout else 0


# Once it is trained.


def keep(run: runs.Run, old: Path) -> None:
    """Have a run that was only just made be compared with this LoRA. Raises: AdapterError, OSError."""
    of_run = is_run(old.parent)
    seen = seen_before(sources.of(str(old.parent)), run.config()) if of_run else to_compare.seen(old.parent)
    to_compare.keep(old, run.folder / to_compare.FOLDER, seen)


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's."""
    return (folder / file_names.CONFIG).is_file()


def conclude(run: runs.Run) -> dict[str, Any]:
    """What is found of a run's last step beside the LoRA that is kept with it, which is written there and reported.

    Raises: UserError.
    """
    old = to_compare.of_run(run)
    assert old is not None
    config, teller = run.config(), phases.Teller(run, True)
    teller.tell("comparing")
    try:
        # Not the best file: that was chosen by these very pictures, which would favour it.
        verdict = with_best(compare(config, old, run.lora_file, run.cache), run)
        verdict = with_seen(verdict, to_compare.seen(old.parent))
        names = {"old": old.name, "new": run.lora_file.name, "old_sha256": lora_file.inspect(old).sha256}
        answer = dataclasses.asdict(verdict) | names
        files.write(run.folder / compared.FILE, json.dumps(answer, indent=2).encode())
        report.write(run, session.refuse(config, run=run)[0])
    finally:
        teller.over()
    return answer


def compare(config: TrainConfig, old: Path, new: Path, cache: Path) -> Verdict:
    """Old and new on the held-out pictures of these settings; `cache` keeps what was encoded. Raises: UserError."""
    base, before = losses(config, old, cache)
    _, after = losses(config, new, cache)
    gain = float(1 - after.mean() / before.mean())
    low, high = validation.interval(before, after)
    better: Better = "new" if low > 0 else "old" if high < 0 else "neither"
    measured = f"{100 * gain:+.1f} % (95 %: {100 * low:+.1f} to {100 * high:+.1f}) on {len(base)} held-out pictures"
    sentence = {
        "new": f"Take the new one: it predicts better by {measured}.",
        "old": f"Keep the old one: the new one's gain is {measured}.",
        "neither": f"Neither is clearly better: the new one's gain is {measured}. Look at the previews.",
    }[better]
    base_loss, old_loss, new_loss = (float(values.mean()) for values in (base, before, after))
    return Verdict(better, sentence, len(base), base_loss, old_loss, new_loss, gain, low, high)


def with_best(verdict: Verdict, run: runs.Run) -> Verdict:
    """The verdict with a word on the step that the new run recommends, where another step was compared."""
    log = run.events()
    recommended, last = run.best(log)[1], events.last(log, events.Step)
    if recommended is None or last is None or recommended.step >= last.step:
        return verdict
    more = (
        f" Compared was its last step; its best, step {recommended.step}, was chosen by these very pictures, so its "
        f"gain on them would look too large."
    )
    return dataclasses.replace(verdict, sentence=verdict.sentence + more)


def with_seen(verdict: Verdict, seen: int) -> Verdict:
    """The verdict with a word on pictures that the old one was trained on."""
    if not seen:
        return verdict
    more = f" The old one was trained on {seen} of these pictures, which favours it."
    return dataclasses.replace(verdict, sentence=verdict.sentence + more)


def losses(config: TrainConfig, file: Path, cache: Path) -> tuple[Tensor, Tensor]:
    """Mean loss of each held-out picture (N,), of the base and of the base with this LoRA. Raises: UserError."""
    fitted = _fitted(config, file)
    dataset, heldout = session.refuse(fitted)
    with tempfile.TemporaryDirectory() as scratch:
        run = runs.Run(Path(scratch), cache)
        source = start_weights.of_config(fitted)
        model, _, _ = loading.load(fitted, run, dataset, heldout, (None, source), lambda: False, World())
        questions = model.encoded.questions(model.encoded.heldout)
        if questions is None:
            raise ConfigError("there are no held-out pictures to compare on; give --heldout DIR.")
        size = 2 * (model.memory.micro_batch or fitted.batch_size)
        with_lora = validation.losses(questions, model.schedule, model.predict, size)
        with model.base():
            alone = validation.losses(questions, model.schedule, model.predict, size)
    return alone.mean(1), with_lora.mean(1)


def _fitted(config: TrainConfig, file: Path) -> TrainConfig:
    """The settings with an adapter that can take up this LoRA. Raises: UserError."""
    return presets.changed(config, {**start_weights.changes(str(file), config.family), "start.optimizer": False})
