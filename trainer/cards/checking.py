"""`velatura preset check`: whether a card or preset suits your own pictures, and what training so will take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import trainer
from trainer import bases, data, file_names, lora_file, predicted_cost, preset_heads, presets, run_facts
from trainer.card_file import reading
from trainer.cards import describing, suiting, training_like
from trainer.config import TrainConfig
from trainer.console import duration, memory
from trainer.data import cross_validation
from trainer.errors import ConfigError
from trainer.predicted_cost import Prediction
from trainer.printing import plain, printable
from trainer.rehearsal.result import from_json

LONGEST_S = 60  # of a rehearsal


@dataclass(frozen=True)
class Answer:
    """What there is to say before a training."""

    title: str
    dataset: str
    warnings: list[str]
    missing: list[str]
    prediction: Prediction | None


def checked(what: str, folder: str, changes: list[str], rehearse: bool, out: Path, as_json: bool) -> str:
    """The answer in words or JSON. Raises: UserError as a training would."""
    config, card_file = training_like.like(what, folder, None, changes, out)
    answer = answered(config, card_file, what, out, rehearse)
    return json.dumps(asdict(answer), indent=2) if as_json else _described(answer)


def answered(config: TrainConfig, card_file: Path | None, title: str, out: Path, rehearse: bool) -> Answer:
    """Where the user's set is unlike the card's, what is missing, and the prediction: measured, or else the card's."""
    # The pictures, and what they were with the card.
    dataset, heldout = data.scan(config), data.scan_heldout(config)
    dataset, left_out = cross_validation.leave_out(dataset, config)
    own = run_facts.of(dataset, heldout or left_out, config.data)
    opened = reading.read(card_file) if card_file else None
    evidence, head = (opened.card.evidence, opened.card.head) if opened else (None, _head(title))
    warnings = suiting.differences(config, evidence, head, own)
    here = lora_file.library([Path("outputs"), out]) if opened and opened.card.loras else None
    missing = suiting.missing(opened.card, suiting.base_is_here(config), here) if opened else []

    # What it takes.
    prediction = None
    if rehearse and not missing:
        prediction, note = measured(config, out)
        warnings += [note] if note else []
    if prediction is None and opened:
        device = run_facts.device_name(bases.hardware(config.device, "float32")[0])
        prediction = suiting.predicted(config, opened.card, device)
        if prediction is None and opened.card.evidence:
            warnings.append(f"The card's figures are of {plain(opened.card.evidence.device, 80)}; a rehearsal tells "
                            f"what it takes here.")  # fmt: skip
    return Answer(opened.card.title if opened else title, describing.dataset(own), warnings, missing, prediction)


def measured(config: TrainConfig, out: Path, longest_s: float = LONGEST_S) -> tuple[Prediction | None, str]:
    """What a rehearsal in a process of its own measures, ended after a minute; or why there is none.

    What it encoded till then stays in the cache, so that the next goes further. Raises: ConfigError as it would.
    """
    with tempfile.TemporaryDirectory(prefix="velatura-rehearsal-") as temporary:
        # A process of its own can be ended in time, and a process that runs out of memory ends alone.
        presets.save(config, Path(temporary) / file_names.CONFIG)
        command = [sys.executable, "-m", "trainer", "train", str(Path(temporary) / file_names.CONFIG)]
        command += ["--rehearse", "--once", "--out", str(out.absolute())]
        # It finds this package wherever it is run from, and what it leaves goes with the folder.
        path = os.pathsep.join(filter(None, (str(Path(trainer.__file__).parents[1]), os.environ.get("PYTHONPATH"))))
        environment = os.environ | {"PYTHONPATH": path, "TMPDIR": temporary, "TEMP": temporary}
        try:
            done = subprocess.run(
                command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=longest_s
            )
        except subprocess.TimeoutExpired:
            return (
                None,
                f"A rehearsal takes longer than {longest_s:.0f} s here; `velatura train --rehearse` takes its time.",
            )
    if done.returncode == 2:
        raise ConfigError(done.stderr.rpartition("error: ")[2].strip())
    # The answer is the last line; a process that was killed has none.
    try:
        rehearsal = from_json(done.stdout.strip().rpartition("\n")[2])
    except (ValueError, KeyError, TypeError):
        return None, "The rehearsal ended without an answer: most likely memory ran out."
    predicted_cost.remember(config, rehearsal.settings, rehearsal.prediction, out)
    return rehearsal.prediction, ""


def _head(name: str) -> str:
    """What a preset says of itself."""
    return preset_heads.text(name) if presets.has(name) else ""


def _described(answer: Answer) -> str:
    lines = [f"{answer.title}: on {answer.dataset}.", *answer.missing, *answer.warnings]
    if not answer.warnings and not answer.missing:
        lines.append("Nothing speaks against it.")
    if (prediction := answer.prediction) is not None:
        source = "measured here" if prediction.source == "rehearsal" else "by the card, on the same device"
        ends = time.strftime("%H:%M", time.localtime(time.time() + prediction.total_s))
        peak = f", at most {memory(prediction.peak_bytes)} of memory" if prediction.peak_bytes else ""
        total = duration(prediction.total_s)
        lines.append(
            f"A step takes about {prediction.step_s:.3g} s{peak}; the whole run {total}, until {ends} if it begins now "
            f"({source})."
        )
    return "\n".join(printable(plain(line, 2000)) for line in lines)
