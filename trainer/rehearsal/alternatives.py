"""What another memory setting would bring this run, where `auto` chose by a rule: both ways are timed."""

from __future__ import annotations

import torch

from trainer import loop
from trainer.memory import arranging, compiling, mechanics
from trainer.rehearsal.describing import clock
from trainer.rehearsal.timing import ENOUGH_S, MOST_TIMES, now
from trainer.training_model import TrainingModel

_CLEARLY = 1.05  # times faster, before another way of attention is worth a setting


def attention(model: TrainingModel) -> list[str]:
    """A sentence if the fused kernel is clearly faster here than the rule that `memory.attention = auto` follows."""
    if model.memory.attention != "auto" or model.device != "cpu" or model.dtype == torch.float32:
        return []
    fullest = _fullest(model)
    times: dict[str, list[float]] = {"auto": [], "fused": []}
    # Taking turns, so that a machine that grows busy slows both alike.
    while sum(map(sum, times.values())) < 2 * ENOUGH_S and len(times["auto"]) < MOST_TIMES:
        for way, seconds in times.items():
            model.memory = model.memory.model_copy(update={"attention": way})
            arranging.arrange(model)
            began = now()
            loop.learn(model, fullest)
            seconds.append(now() - began)
    auto, fused = (min(seconds) for seconds in times.values())
    if auto <= _CLEARLY * fused:
        return []
    return [f"memory.attention=fused takes {fused:.3f} s where auto takes {auto:.3f} s a batch here."]


def compiled(model: TrainingModel) -> list[str]:
    """A sentence on what compiled blocks would bring, where `memory.compile = auto` goes by the run's length alone."""
    if model.config.memory.compile != "auto" or not compiling.is_possible(model.memory, model.device):
        return []

    # Both ways, and what is left of the gain once the compiling is paid for.
    passes = arranging.passes(model)
    try:
        took = {way: _passes(model, way) for way in ("off", "blocks")}
    except RuntimeError as error:
        if mechanics.is_shortage(error) or not (failure := compiling.failure(error)):
            raise
        return [f"compiled blocks don't work on this machine ({failure})."]
    (_, eager_s), (compile_s, compiled_s) = took["off"], took["blocks"]
    saved = passes.steps * passes.a_step * (eager_s - compiled_s) - compile_s
    better = "blocks" if saved > 0 else "off"
    chosen = model.memory.compile
    advice = (
        f"memory.compile={better} would be {clock(abs(saved))} faster"
        if better != chosen
        else f"auto chooses {chosen}, {clock(abs(saved))} faster"
    )
    return [
        f"compiled blocks take {compiled_s:.3f} s a batch instead of {eager_s:.3f} s, after {clock(compile_s)} of "
        f"compiling; for this run {advice}."
    ]


def _fullest(model: TrainingModel) -> int:
    """The number of the batch with the most pictures."""
    order = model.encoded.order
    return max(range(order.num_batches), key=lambda number: len(order.batch(number)))


def _passes(model: TrainingModel, way: str) -> tuple[float, float]:
    """Seconds of compiling, and of a pass over the fullest batch once it is compiled."""
    fullest, chosen = _fullest(model), model.memory
    model.memory = chosen.model_copy(update={"compile": way})
    torch.compiler.reset()
    arranging.arrange(model)
    seconds = []
    for _ in range(4):
        began = now()
        loop.learn(model, fullest)
        seconds.append(now() - began)
    model.memory = chosen
    later = min(seconds[1:])  # the first one compiles
    return max(0.0, seconds[0] - later), later
