"""Which pictures each step sees, in which wording, cut and mirroring: a pure function of seed and step.

Every entry (a picture in a bucket) is seen once an epoch; a batch has one bucket. A bucket's pictures are dealt out as
evenly as batches allow, so that no step learns from one left-over picture. Regularisation pictures are shown as often
as the others, taking turns where they are more. Nothing here depends on what was drawn before: resuming, `dataset saw`
and several processes all ask the same function.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from trainer import objective
from trainer.config import TrainConfig
from trainer.data import buckets
from trainer.data.buckets import Bucket, Entry
from trainer.data.scanning import Item


@dataclass(frozen=True)
class Sample:
    """One picture of a step, as it is seen there."""

    picture: int  # index into the dataset's items
    bucket: Bucket
    cut: int
    mirrored: bool
    wording: int | None  # index into the picture's wordings; None: trained without caption


class Order:
    """The samples of every batch. `num_wordings` counts those of each item."""

    def __init__(self, config: TrainConfig, entries: list[Entry], items: list[Item], num_wordings: list[int]) -> None:
        self.config, self.entries, self.num_wordings = config, entries, num_wordings
        # The entries of each bucket, own and regularisation pictures apart.
        buckets = sorted({entry.bucket for entry in entries})
        regular = {index for index, entry in enumerate(entries) if items[entry.index].regular}
        self._own = {
            bucket: [index for index, entry in enumerate(entries) if entry.bucket == bucket and index not in regular]
            for bucket in buckets
        }
        self._regular = {
            bucket: [index for index in sorted(regular) if entries[index].bucket == bucket] for bucket in buckets
        }

        # How many regularisation pictures each bucket shows an epoch: as many, in all, as there are others.
        share = (len(entries) - len(regular)) / max(1, len(regular))
        self._turns = {
            bucket: max(1, round(len(indexes) * share)) if indexes else 0 for bucket, indexes in self._regular.items()
        }
        self.num_batches = sum(
            -(-(len(self._own[bucket]) + self._turns[bucket]) // config.batch_size) for bucket in buckets
        )
        self._epoch = lru_cache(maxsize=4)(self._deal)

    def step(self, step: int) -> list[tuple[int, list[Sample]]]:
        """The batches of a step (0-based), each with its number, counted from the run's start."""
        first = step * self.config.accumulation
        return [(number, self.batch(number)) for number in range(first, first + self.config.accumulation)]

    def shapes(self) -> set[tuple[Bucket, int]]:
        """Each bucket with each number of pictures that a batch of it has."""
        return {(self.entries[indexes[0]].bucket, len(indexes)) for indexes in self._epoch(0)}

    def batch(self, number: int) -> list[Sample]:
        """The samples of one batch, all of one bucket."""
        epoch, place = divmod(number, self.num_batches)
        indexes = self._epoch(epoch)[place]
        # All four for every picture, used or not: a setting that reads one leaves the other draws as they were.
        drawn = torch.rand(len(indexes), 4, generator=objective.generator(self.config.seed, "samples", number)).tolist()
        return [self._sample(self.entries[index], *draws) for index, draws in zip(indexes, drawn, strict=True)]

    def _sample(self, entry: Entry, dropped: float, mirrored: float, cut: float, wording: float) -> Sample:
        data = self.config.data
        cuts = buckets.cuts(data.crop)
        return Sample(
            picture=entry.index,
            bucket=entry.bucket,
            cut=cuts[int(cut * len(cuts))],
            mirrored=data.flip and mirrored < 0.5,
            wording=None if dropped < data.caption_dropout else int(wording * self.num_wordings[entry.index]),
        )

    def _deal(self, epoch: int) -> list[list[int]]:
        """The batches of an epoch as indexes of entries."""
        rng = objective.generator(self.config.seed, "order", epoch)
        batches: list[list[int]] = []
        for bucket, own in self._own.items():
            regular, turns = self._regular[bucket], self._turns[bucket]
            # Where there are more regularisation pictures than turns, each epoch goes on where the last ended.
            pool = own + [regular[(epoch * turns + turn) % len(regular)] for turn in range(turns)]
            shuffled = [pool[place] for place in torch.randperm(len(pool), generator=rng).tolist()]
            # Batches as even as can be: no left-over picture makes a batch of its own.
            count = -(-len(pool) // self.config.batch_size)
            edges = [len(pool) * part // count for part in range(count + 1)]
            batches += [shuffled[start:end] for start, end in zip(edges, edges[1:], strict=False)]
        return [batches[place] for place in torch.randperm(len(batches), generator=rng).tolist()]
