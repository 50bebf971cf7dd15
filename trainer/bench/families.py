"""`velatura bench families`: what each family's tiny model takes to be trained, written, stacked and drawn.

The models are random and as small as the architecture allows: what is compared is the wiring of a family from one
change to the next, not what its real bases take. Each is measured in a process of its own.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw

from trainer import bases, families, presets, session
from trainer.bench.training import PLAIN
from trainer.config import AdapterChoice, StackConfig
from trainer.errors import RunError
from trainer.events import Event, Finished, Step, Validated
from trainer.memory import mechanics
from trainer.render.engine import Engine
from trainer.runs import Run

STEPS, SIZE_PX = 20, 64
_PATIENCE_S = 1800  # for one family


@dataclasses.dataclass(frozen=True)
class Taken:
    """One family's figures; `loss_left` is the share of the two pictures' loss that twenty steps leave."""

    name: str
    seconds_per_step: float
    loss_left: float
    file_bytes: int
    picture_s: float  # two LoRAs stacked, two steps, the base warm
    peak_mib: float


def run(names: list[str]) -> Iterator[Taken]:
    """Each family measured by a process of its own. Raises: RunError with what it said if it ended badly."""
    for name in names:
        command = [sys.executable, "-m", "trainer", "bench", "one-family", name]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S)
        if done.returncode:
            raise RunError(f"measuring {name} ended with status {done.returncode}: {done.stderr[-400:]}")
        yield Taken(**json.loads(done.stdout.splitlines()[-1]))


def measure(name: str) -> Taken:
    """One family measured in this process."""
    bases.quiet_libraries()
    with tempfile.TemporaryDirectory(prefix="velatura-bench-") as scratch:
        base, folder = families.registry()[name].tiny(Path(scratch) / "base"), _pictures(Path(scratch) / "dots")
        run, events = _train(name, base, folder, Path(scratch))
        (validated,) = [event for event in events if isinstance(event, Validated)]
        step_s = sorted(event.seconds for event in events if isinstance(event, Step))
        return Taken(
            name,
            seconds_per_step=step_s[len(step_s) // 2],
            loss_left=validated.loss / validated.base_loss,
            file_bytes=run.lora_file.stat().st_size,
            picture_s=_draw(name, base, run),
            peak_mib=mechanics.peak_bytes() / 2**20,
        )


def _train(name: str, base: Path, pictures: Path, scratch: Path) -> tuple[Run, list[Event]]:
    """A short run on a family's base, measured on its own pictures at the end, and its events."""
    settings = {
        "family": name,
        "base": str(base),
        "data.folder": str(pictures),
        "data.heldout": str(pictures),
        "resolution_px": SIZE_PX,
        "max_steps": STEPS,
        "batch_size": 2,
        "learning_rate": 0.02,
        "adapter.targets": "all",
        "adapter.rank": 16,
        "adapter.alpha": 16.0,
        "preview_every_steps": 0,
        "validate_every_steps": STEPS,
        "checkpoint_every_steps": STEPS,
        "preview.guidance_rescale": 0.0,
        "dtype": "float32",
        "device": "cpu",
    }
    run, stream = session.start(presets.load(PLAIN, settings), scratch, "x", None)
    events = list(stream)
    assert isinstance(events[-1], Finished)
    return run, events


def _draw(name: str, base: Path, run: Run) -> float:
    """Seconds of a picture of the run's LoRA twice over, once as it is and once on a curve over its blocks."""
    file = str(run.lora_file)
    stack = StackConfig(
        family=name,
        base=str(base),
        prompt="a dot",
        steps=2,
        width_px=SIZE_PX,
        height_px=SIZE_PX,
        adapters=(
            AdapterChoice(file=file, weight=0.7),
            AdapterChoice(file=file, weight=-0.3, blocks=("curve=falling",)),
        ),
    )
    engine = Engine(str(base), name, device="cpu", dtype="float32")
    engine.render(stack)  # reads the files and folds them
    began = time.monotonic()
    engine.render(stack.model_copy(update={"seed": 2}))
    return time.monotonic() - began


def _pictures(folder: Path) -> Path:
    """Two pictures of a dot, with captions."""
    folder.mkdir()
    for number, colour in enumerate(("red", "green")):
        image = Image.new("RGB", (SIZE_PX, SIZE_PX), "white")
        ImageDraw.Draw(image).ellipse((5, 5, 50, 40 + 10 * number), fill=colour)
        image.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a {colour} dot", encoding="utf-8")
    return folder


def describe(rows: list[Taken]) -> str:
    """The table, in Markdown."""
    lines = ["| family | s/step | loss left | file | picture | peak memory |", "|---|---|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {row.name} | {row.seconds_per_step:.3f} | {row.loss_left:.0%} | {row.file_bytes / 1024:.0f} KiB | "
            f"{row.picture_s:.2f} s | {row.peak_mib:.0f} MiB |"
        )
    return "\n".join(lines)
