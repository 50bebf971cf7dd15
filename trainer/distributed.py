"""The processes of one training: one as a rule, several under torchrun or accelerate launch.

Each takes its rows of every batch; gradients are summed. The loss of a step is a sum over its pictures divided by their
number, so that summed gradients are those of one process at the same effective batch, up to the order of float
additions. Gradients are a few MB; summing them one by one keeps uneven and empty shares exact, which a wrapper that
averages would not. Checkpoints know nothing of how many processes there were. accelerate starts the processes' group
and sends between them. `accelerate launch --cpu --num_processes N` starts only one process, and `alone` says so; with
`--multi_gpu` it starts them all, on a machine without GPUs too.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.errors import ConfigError


@dataclass(frozen=True)
class World:
    """This process among `size`; `rank` 0 writes and speaks, the others are silent."""

    rank: int = 0
    size: int = 1
    device: str | None = None  # of this process, where there are several

    @property
    def first(self) -> bool:
        return self.rank == 0

    def rows(self, num: int) -> list[int]:
        """Which of a batch's `num` rows are this process's."""
        # Every size-th: shares differ by one row at most, also where a batch is small.
        return list(range(self.rank, num, self.size))

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Every process's gradients added up, in place; a missing gradient counts as zero."""
        # One by one, in the parameters' order, which is the same in every process.
        if self.size == 1:
            return
        for parameter in parameters:
            parameter.grad = self.sum(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor added up over all processes."""
        if self.size == 1:
            return tensor
        from accelerate.utils import reduce

        total: Tensor = reduce(tensor, "sum")
        return total

    def any(self, claim: bool) -> bool:
        """True if it is true in any process."""
        return claim if self.size == 1 else bool(self.sum(torch.tensor(float(claim), device=self.device or "cpu")) > 0)

    def share(self, text: str) -> str:
        """The first process's text, in every process."""
        if self.size == 1:
            return text
        from accelerate.utils import broadcast_object_list

        shared: str = broadcast_object_list([text])[0]
        return shared

    def shard(self, model: nn.Module, kept: Iterable[nn.Parameter]) -> None:
        """Spread the model's weights over the processes, block by block (FSDP2); those in `kept` stay whole in each.

        From then on a forward is something that all processes do together.
        """
        from torch.distributed.fsdp import fully_shard

        # Blocks first, the model last: it takes what no block has.
        whole = set(kept)
        blocks = [block for part in model.children() if isinstance(part, nn.ModuleList) for block in part]
        for module in [*blocks, model]:
            fully_shard(module, ignored_params=whole)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            from accelerate.utils import wait_for_everyone

            wait_for_everyone()


def enter() -> World:
    """The world this process was started in. Raises: ConfigError if the processes don't find each other."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World()
    from accelerate import PartialState

    # accelerate starts the group: with NCCL on GPUs, with Gloo on CPUs.
    state = PartialState(cpu=not torch.cuda.is_available())
    if state.num_processes != int(os.environ["WORLD_SIZE"]):
        raise ConfigError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {state.num_processes} processes found each other; start "
            f"them with torchrun."
        )
    return World(state.process_index, state.num_processes, str(state.device) if state.device.type != "cpu" else "cpu")


def alone() -> str | None:
    """A sentence if a launcher was to start several processes and started one, as `accelerate launch --cpu` does."""
    import psutil

    # Started by accelerate, and not as one of several? Its command line is the parent's.
    if "WORLD_SIZE" in os.environ or "ACCELERATE_MIXED_PRECISION" not in os.environ:
        return None
    try:
        line = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return None

    # How many processes it was to start: the word after the option, or after its equals sign.
    options = ("--num_processes", "--num-processes")
    counts = [following for word, following in zip(line, line[1:], strict=False) if word in options]
    counts += [word.partition("=")[2] for word in line if word.startswith(tuple(f"{name}=" for name in options))]
    if not counts or not counts[0].isdigit() or int(counts[0]) < 2:
        return None
    return (
        f"accelerate launch was asked for {counts[0]} processes and started one; on CPUs use --multi_gpu in place of "
        f"--cpu, or: torchrun --nproc_per_node {counts[0]} -m trainer train ..."
    )
