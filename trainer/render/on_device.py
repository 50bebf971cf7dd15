"""Adapters where the base computes: a GPU keeps those last used, whether they are folded or run beside the base.

It is the tier above the shelf's main memory: what is let go here is still there, and what is pinned there stays here
too. On a CPU the shelf's own tensors serve.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

from trainer import last_used
from trainer.deltas import Delta
from trainer.render import packing
from trainer.render.packing import Pack, Packed

if TYPE_CHECKING:
    from trainer.deltas import Update
    from trainer.render.adapter_content import Adapter

_SHARE = 16  # of a GPU's memory


class OnDevice:
    """What is kept on one device, by adapter and component."""

    def __init__(self, device: torch.device, is_pinned: Callable[[str], bool] = lambda key: False) -> None:
        """`is_pinned` says of an adapter's key whether it always stays."""
        self.device, self.is_pinned = device, is_pinned
        self.is_apart = device.type != "cpu"
        is_cuda = device.type == "cuda"
        most_bytes = torch.cuda.get_device_properties(device).total_memory // _SHARE if is_cuda else 1 << 30
        self._kept = last_used.kept(most_bytes, _num_bytes)
        self._pinned: dict[tuple[str, str], tuple[Pack, ...]] = {}

    @property
    def num_bytes(self) -> int:
        """Of what is kept here now."""
        return int(self._kept.currsize) + sum(map(_num_bytes, self._pinned.values())) if self.is_apart else 0

    def packs(self, key: str, component: str, packed: Packed) -> tuple[Pack, ...]:
        """An adapter's packs for a component, on a device that is apart; on a CPU they are there already."""
        name = (key, component)
        here: tuple[Pack, ...] | None = self._pinned.get(name) or self._kept.get(name)
        if here is None:
            here = tuple(pack.to(self.device) for pack in packed.packs)
            kept = self._pinned if self.is_pinned(key) else self._kept
            kept[name] = here
        return here

    def updates(self, adapter: Adapter) -> Mapping[str, Update]:
        """An adapter's updates by path; the low-rank updates, which have packs, on the device."""
        if not self.is_apart:
            return adapter.updates
        updates = dict(adapter.updates)
        for component, packed in adapter.components.items():
            for pack in self.packs(adapter.key, component, packed):
                low = {path: update for path in pack.paths if isinstance(update := adapter.updates[path], Delta)}
                updates |= packing.views(low, pack)
        return updates


def _num_bytes(packs: tuple[Pack, ...]) -> int:
    return sum(pack.num_bytes for pack in packs)
