"""What another memory setting would bring this run, where `auto` chooses: both ways are timed."""

from __future__ import annotations

import torch

from trainer import loop
from trainer.memory import arranging, compile_times, compiling, ladder, mechanics
from trainer.memory.compile_times import Times
from trainer.rehearsal.timing import ENOUGH_S, MOST_TIMES, now, step
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


def weigh_compiling(model: TrainingModel, optimizer: torch.optim.Optimizer) -> list[str]:
    """Let `memory.compile = auto` choose by what was measured: here and now, where it never was on this machine.

    What is measured is kept for the run itself. A sentence if blocks don't compile here.
    """
    if model.config.memory.compile != "auto" or not compiling.is_possible(model.memory, model.device):
        return []
    if _known(model).saved_s(1) is not None:  # what `auto` went by already
        return []
    chosen, key = model.memory, arranging.times_key(model)
    try:
        model.memory = chosen.model_copy(update={"compile": "off"})
        _, eager_s = _each_shape(model, optimizer)
        model.memory = chosen.model_copy(update={"compile": "blocks"})
        torch.compiler.reset()
        compile_s, compiled_s = _each_shape(model, optimizer)
        compile_times.keep(key, Times(eager_s, compiled_s, compile_s))
        model.memory = chosen.model_copy(update={"compile": "auto"})
        arranging.arrange(model)
        return []
    except RuntimeError as error:
        sentence = None if mechanics.is_shortage(error) else ladder.without_compiling(model, error)
        if sentence is None:
            raise
    optimizer.zero_grad(set_to_none=True)
    return [sentence]


def compiling_s(model: TrainingModel) -> float:
    """Seconds that the run will take to compile, as they were measured; 0 where it doesn't, or they never were."""
    return (_known(model).compile_s or 0.0) if model.memory.compile == "blocks" else 0.0


def _known(model: TrainingModel) -> Times:
    """What is known of this model's passes; nothing where blocks can't be compiled, or bring nothing."""
    if not compiling.is_possible(model.memory, model.device):
        return Times()
    return compile_times.known(arranging.times_key(model))


def _fullest(model: TrainingModel) -> int:
    """The number of the batch with the most pictures."""
    order = model.encoded.order
    return max(range(order.num_batches), key=lambda number: len(order.batch(number)))


def _each_shape(model: TrainingModel, optimizer: torch.optim.Optimizer) -> tuple[float, float]:
    """Seconds by which each shape's first step took longer than its later ones, all together; and seconds of a pass
    with its share of the update, mean over an epoch.
    """
    arranging.arrange(model)
    order, passes = model.encoded.order, arranging.passes(model)
    batches: dict[object, list[int]] = {}
    for number in range(order.num_batches):
        samples = order.batch(number)
        batches.setdefault((samples[0].bucket, len(samples)), []).append(number)
    first_s, batch_s, updates_s = 0.0, 0.0, []
    for numbers in batches.values():
        learned = []
        # A shape's first step, and three later steps, of which the fastest was disturbed least.
        for _ in range(4):
            learn_s, update_s = step(model, optimizer, numbers[0])
            learned.append(learn_s)
            updates_s.append(update_s)
        later_s = min(learned[1:])
        first_s += max(0.0, learned[0] - later_s)
        batch_s += later_s * len(numbers) / order.num_batches
    micro = passes.a_step // model.accumulation
    return first_s, batch_s / micro + min(updates_s) / passes.a_step
