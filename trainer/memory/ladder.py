"""What a run's memory settings may be, and which come next when memory runs out.

The ladder's rungs go from what changes nothing but the time to what costs a little quality: smaller micro-batches at
the same effective batch, activations computed twice, encoders off the GPU, the denoiser's blocks fetched layer by
layer, and a quantised base. The step that ran out is taken again; nothing of it had been learned. What the ladder
changed is saved with the next checkpoint, and each of its forms can be made from the base on disk alone, so that a
resumed run goes on alike. Compiled blocks that fail are given up in the same way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from trainer import bases, methods, system
from trainer.config import MemoryConfig, TrainConfig
from trainer.memory import compiling, mechanics
from trainer.memory.arranging import arrange
from trainer.memory.originals import Files
from trainer.memory.quantising import has_nf4, quantise

if TYPE_CHECKING:
    from trainer.training_model import TrainingModel


# What may be set.


def check(config: TrainConfig) -> list[str]:
    """A sentence for each memory setting that this machine, or the method, can't use."""
    settings, device = config.memory, bases.hardware(config.device, "float32")[0]
    problems = []

    # Batches and what waits on the CPU.
    if settings.micro_batch > config.batch_size:
        problems.append(
            f"memory.micro_batch is {settings.micro_batch}; allowed: at most batch_size ({config.batch_size}), or 0 "
            f"for the whole batch."
        )
    if settings.offload != "none" and not can_offload(device):
        problems.append(
            f"memory.offload is {settings.offload!r}, but the run is on {device}, where there is nothing to move off; "
            f"allowed there: none."
        )
    if settings.offload_activations and not can_offload(device):
        problems.append(
            f"memory.offload_activations is on, but the run is on {device}, where there is nothing to move off; leave "
            f"it off."
        )

    # Compiled blocks, fetched blocks, fewer bits.
    problems += compiling.check(settings, device) + compiling.against_recording(config)
    if settings.offload == "blocks" and (reasons := _against_fetching(config, settings.quantise)):
        problems.append(
            f"memory.offload is 'blocks', which doesn't go with {', '.join(reasons)}; allowed with it: none, encoders."
        )
    if settings.quantise != "none" and not _can_quantise(config):
        start = methods.registry()[config.adapter.method].start(config.adapter)
        method = config.adapter.method if start == "default" else f"{config.adapter.method}, started by {start}"
        problems.append(
            f"memory.quantise is {settings.quantise!r}, but adapter.method {method} works on the base's own weights; "
            f"allowed with it: none. On a quantised base: {methods.on_quantised()}."
        )
    if settings.quantise == "nf4" and not has_nf4():
        problems.append(
            "memory.quantise is 'nf4', which needs bitsandbytes; install it with: pip install 'velatura[gpu]'."
        )
    if settings.quantise in ("nf4", "fp8") and device == "mps":
        problems.append(
            f"memory.quantise is {settings.quantise!r}, which Apple's GPUs don't compute; allowed there: none, int8."
        )
    return problems


def can_offload(device: str) -> bool:
    """True on a kind of device that has memory of its own beside the CPU's."""
    return device == "cuda"


def _can_quantise(config: TrainConfig) -> bool:
    method = methods.registry()[config.adapter.method]
    return method.start(config.adapter) in method.starts_on_quantised


def _against_fetching(config: TrainConfig, kind: str) -> list[str]:
    """The settings that need the base's weights, or a text encoder that learns, to stay on the GPU."""
    method = methods.registry()[config.adapter.method]
    start, starts = method.start(config.adapter), method.starts_on_fetched
    reasons = {
        f"adapter.method = {method.name}": not starts,
        f"adapter.init = {start}": bool(starts) and start not in starts,
        "adapter.text_encoder": getattr(config.adapter, "text_encoder", False),
        "inversion.token": bool(config.inversion.token),
        "memory.quantise = nf4": kind == "nf4",  # whose scales stay where they are
    }
    return [name for name, holds in reasons.items() if holds]


# The ladder.


def next_rung(now: MemoryConfig, config: TrainConfig, num_rows: int, device: str) -> tuple[MemoryConfig, str] | None:
    """The settings one rung up and what they change in words, or None at the top.

    `num_rows` is the most pictures one process has at once.
    """
    size = now.micro_batch or num_rows
    # int8 is made of the weights as they lie here; nf4 after it of the files', which lack the stack of `against`.
    kinds = ["none", "int8", *(["nf4"] if has_nf4() and not config.against.adapters else [])]
    on_gpu = device.startswith("cuda")
    can_narrow = _can_quantise(config) and now.offload != "blocks" and now.quantise in kinds[:-1]

    # The first that is not taken yet, in the order of what it costs.
    if size > 1:
        update: dict[str, Any] = {"micro_batch": size // 2}
        words = f"pictures at once: {size // 2} instead of {size}, at the same effective batch"
    elif not now.gradient_checkpointing:
        update, words = {"gradient_checkpointing": True}, "gradient checkpointing is on"
    elif on_gpu and now.offload == "none":
        update, words = {"offload": "encoders"}, "text encoder and autoencoder wait on the CPU"
    elif on_gpu and now.offload == "encoders" and not _against_fetching(config, now.quantise):
        update = {"offload": "blocks"}
        words = "the denoiser's blocks wait on the CPU and are fetched ahead of their use"
    elif on_gpu and not now.offload_activations:
        update, words = {"offload_activations": True}, "what is kept for backward waits on the CPU"
    elif can_narrow:
        kind = kinds[kinds.index(now.quantise) + 1]
        update = {"quantise": kind}
        words = f"the base's linear layers are kept in {8 if kind == 'int8' else 4} bits ({kind})"
    else:
        return None
    return _with_compiling(now.model_copy(update=update), words, device)


def loading_rung(now: MemoryConfig, config: TrainConfig, device: str) -> tuple[MemoryConfig, str] | None:
    """The settings under which loading the base takes less memory, and what they change in words; None at the top."""
    if not can_offload(device) or now.offload == "blocks" or _against_fetching(config, now.quantise):
        return None
    words = "the base waits on the CPU, and its blocks are fetched ahead of their use"
    return _with_compiling(now.model_copy(update={"offload": "blocks"}), words, device)


def _with_compiling(settings: MemoryConfig, words: str, device: str) -> tuple[MemoryConfig, str]:
    """A rung's settings and words, with compiled blocks as they go with it."""
    possible = compiling.possible(settings, device.partition(":")[0])
    if possible.compile != settings.compile:
        words += f", and memory.compile is {possible.compile}, since {settings.compile} doesn't go with it"
    return possible, words


class Change(NamedTuple):
    """What a rung changed."""

    words: str
    settings: list[str]  # such as `memory.offload=blocks`


def change(before: MemoryConfig, after: MemoryConfig, words: str) -> Change:
    """What differs between two memory settings, as it is written on a command line, and in words."""
    values = after.model_dump()
    differing = {name: value for name, value in values.items() if value != getattr(before, name)}
    return Change(words, [f"memory.{name}={str(value).lower()}" for name, value in differing.items()])


def climb(model: TrainingModel) -> Change | None:
    """What was changed by taking the next rung; None if there is none left.

    Called while the error is handled, it lets go of what that holds.
    """
    mechanics.let_go()
    rung = next_rung(model.memory, model.config, -(-model.config.batch_size // model.world.size), model.device)
    if rung is None:
        return None
    before, (model.memory, words) = model.memory, rung
    model.ahead = {}  # parts in the old micro-batches, which take memory too
    if model.memory.quantise != before.quantise:
        files = Files(model.folder / model.component)
        quantise(model.denoiser, model.memory.quantise, lambda path: files.weight(path).to(model.dtype))
    arrange(model)
    system.give_back_freed()
    return change(before, model.memory, words)


def without_compiling(model: TrainingModel, error: BaseException) -> str | None:
    """A sentence where blocks that the run itself chose to compile failed, and no longer are; None if the error is
    another.

    Called while the error is handled, it lets go of what that holds.
    """
    failure = compiling.failure(error)
    if not failure or model.config.memory.compile != "auto" or model.memory.compile == "off":
        return None
    mechanics.let_go()
    model.memory = model.memory.model_copy(update={"compile": "off"})
    arrange(model)
    return (
        f"compiled blocks don't work on this machine ({failure}), so steps are computed without them, and take longer; "
        f"memory.compile=off says so from the start."
    )


def exhausted(when: str, error: BaseException) -> str:
    """What to say where memory ran out and there is no setting left to change."""
    first = str(error).strip().split("\n")[0] or type(error).__name__
    return (
        f"memory ran out {when}, and no memory setting is left that would help: {first} Close other programs, lower "
        "resolution_px or adapter.rank, or take a smaller base. What was saved before stays."
    )


def over_budget(model: TrainingModel) -> str | None:
    """A sentence if this process has held more than the budget.

    A GPU is held to it by its allocator; elsewhere only the rehearsal can choose. Changing settings by what was
    measured in mid-run would make the adapter depend on the machine's mood.
    """
    budget = model.memory.budget_gib
    if not budget or model.device.startswith("cuda") or (held := mechanics.peak_bytes()) <= budget * mechanics.GIB:
        return None
    return (
        f"{held / mechanics.GIB:.2f} GiB were held, more than memory.budget_gib ({budget:g}); --rehearse finds "
        f"settings that fit."
    )
