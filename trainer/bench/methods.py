"""`velatura bench methods`: what each adapter method learns of the sample style in the same number of steps.

On Imprimatura, trained on `outline-style/train` and measured on `outline-style/heldout`: the held-out gain at the last
step and at the best measured one. Learning rates differ because methods do; they are first guesses that nobody has
tuned.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trainer import session
from trainer.bench.training import PLAIN
from trainer.events import Finished, Started, Step, Validated

EXAMPLES = Path(__file__).parents[2] / "app" / "examples" / "outline-style"
VARIANTS: dict[str, list[str]] = {
    "lora": [],
    "lora, attention-ff": ["adapter.targets=attention-ff", "learning_rate=7e-4"],
    "lora, all with convs": ["adapter.targets=all", "learning_rate=3e-4"],
    "lora, rsLoRA": ["adapter.rank_stabilised=true", "adapter.alpha=3"],
    "lora, LoRA+ ratio 4": ["optimizer.loraplus_ratio=4", "learning_rate=5e-4"],
    "lora, gaussian": ["adapter.init=gaussian"],
    "lora, PiSSA": ["adapter.init=pissa", "learning_rate=3e-4"],
    "lora, OLoRA": ["adapter.init=olora", "learning_rate=2e-4"],
    "lora, EVA": ["adapter.init=eva", "learning_rate=7e-4"],
    "lora, and the text encoder": ["adapter.text_encoder=true", "optimizer.block_rates=['text_encoder=0.3']"],
    "dora": ["adapter.method=dora"],
    "loha": ["adapter.method=loha", "adapter.rank=4", "adapter.alpha=4", "learning_rate=2e-3"],
    "lokr": ["adapter.method=lokr", "learning_rate=2e-3"],
    "oft": ["adapter.method=oft", "learning_rate=1e-3"],
}


@dataclass(frozen=True)
class Learned:
    """One variant's run."""

    name: str
    num_trainable: int
    seconds_per_step: float
    gain: float  # at the last step
    gain_low: float
    gain_high: float
    best_gain: float
    best_step: int


def run(names: list[str], steps: int) -> Iterator[Learned]:
    """Each variant trained for `steps` steps, measured six times on the way."""
    for name in names:
        with tempfile.TemporaryDirectory(prefix="velatura-bench-") as scratch:
            yield _learn(name, steps, Path(scratch))


def _learn(name: str, steps: int, scratch: Path) -> Learned:
    overrides = [
        f"max_steps={steps}",
        f"validate_every_steps={max(1, steps // 6)}",
        "preview_every_steps=0",
        f"checkpoint_every_steps={steps}",
        *VARIANTS[name],
    ]
    config = session.preset_config(PLAIN, str(EXAMPLES / "train"), str(EXAMPLES / "heldout"), overrides)
    _, stream = session.start(config, scratch, "x", None)
    happened = list(stream)
    assert isinstance(happened[-1], Finished)
    measured = [event for event in happened if isinstance(event, Validated)]
    seconds = sorted(event.seconds for event in happened if isinstance(event, Step))
    last, best = measured[-1], max(measured, key=lambda event: event.gain)
    trainable = next(event.num_trainable for event in happened if isinstance(event, Started))
    return Learned(
        name, trainable, seconds[len(seconds) // 2], last.gain, last.gain_low, last.gain_high, best.gain, best.step
    )


def describe(rows: list[Learned]) -> str:
    """The table, in Markdown."""
    lines = [
        "| method | parameters | s/step | held-out gain at the last step (95 %) | best | at step |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        interval = f"{row.gain * 100:.1f} % ({row.gain_low * 100:.1f} to {row.gain_high * 100:.1f})"
        lines.append(
            f"| {row.name} | {row.num_trainable:,} | {row.seconds_per_step:.2f} | {interval} | "
            f"{row.best_gain * 100:.1f} % | {row.best_step} |"
        )
    return "\n".join(lines)
