"""`velatura bench families`: what each family's tiny model takes to be trained, written, stacked and drawn, in a process of its own.

The models are random and as small as the architecture allows: what is compared is the wiring of a family from one change to the next, not
what its real bases take.
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

from trainer.errors import RunError

STEPS, SIZE_PX = 20, 64


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
        done = subprocess.run([sys.executable, "-m", "trainer", "bench", "one-family", name], capture_output=True, text=True, timeout=1800)
        if done.returncode:
            raise RunError(f"measuring {name} ended with status {done.returncode}: {done.stderr[-400:]}")
        yield Taken(**json.loads(done.stdout.splitlines()[-1]))


def one(name: str) -> Taken:
    """One family measured in this process."""
    from trainer import bases, families, presets, session
    from trainer.bench import PLAIN
    from trainer.config import AdapterChoice, StackConfig
    from trainer.events import Finished, Step, Validated
    from trainer.memory import mechanics
    from trainer.render.engine import Engine

    bases.quiet_libraries()
    with tempfile.TemporaryDirectory(prefix="velatura-bench-") as scratch:
        base, folder = families.registry()[name].tiny(Path(scratch) / "base"), _pictures(Path(scratch) / "dots")
        settings = {
            "family": name, "base": str(base), "data.folder": str(folder), "data.heldout": str(folder), "resolution_px": SIZE_PX, "max_steps": STEPS,
            "batch_size": 2, "learning_rate": 0.02, "adapter.targets": "all", "adapter.rank": 16, "adapter.alpha": 16.0, "preview_every_steps": 0,
            "validate_every_steps": STEPS, "checkpoint_every_steps": STEPS, "preview.guidance_rescale": 0.0, "dtype": "float32", "device": "cpu",
        }  # fmt: skip
        made, stream = session.start(presets.load(PLAIN, settings), Path(scratch), "x", None)
        said = list(stream)
        assert isinstance(said[-1], Finished)
        (measured,) = [event for event in said if isinstance(event, Validated)]
        seconds = sorted(event.seconds for event in said if isinstance(event, Step))
        engine = Engine(str(base), name, device="cpu", dtype="float32")
        adapters = (AdapterChoice(file=str(made.lora_file), weight=0.7), AdapterChoice(file=str(made.lora_file), weight=-0.3, blocks=("curve=falling",)))
        stack = StackConfig(family=name, base=str(base), prompt="a dot", steps=2, width_px=SIZE_PX, height_px=SIZE_PX, adapters=adapters)
        engine.render(stack)
        began = time.monotonic()
        engine.render(stack.model_copy(update={"seed": 2}))
        taken = time.monotonic() - began
        return Taken(
            name, seconds[len(seconds) // 2], measured.loss / measured.base_loss, made.lora_file.stat().st_size, taken, mechanics.peak_bytes() / 2**20
        )  # fmt: skip


def _pictures(folder: Path) -> Path:
    """Two pictures of a dot, with captions."""
    from PIL import Image, ImageDraw

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
        taken = f"{row.seconds_per_step:.3f} | {row.loss_left:.0%} | {row.file_bytes / 1024:.0f} KiB | {row.picture_s:.2f} s | {row.peak_mib:.0f} MiB"
        lines.append(f"| {row.name} | {taken} |")
    return "\n".join(lines)
