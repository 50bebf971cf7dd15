"""Low-rank updates of one layer where each picture of a batch has adapters of its own.

All ranks side by side cost every picture the others' ranks too: sixteen stacks of two LoRAs of rank 16 are 512 ranks
on a layer that is 256 wide. Each row computes with its own ranks alone here, gathered once for a batch (as S-LoRA
gathers, arXiv 2311.03285). So no picture meets a number of another's adapter: times 0, an infinity would still be NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_BUCKETS = 4  # of rows of about as many ranks, which a convolution computes together


@dataclass(frozen=True, eq=False)
class Gathered:
    """The ranks of some rows: down (n, r, in[, kh, kw]) and up (n, r, out), in which the rows' weights are."""

    rows: Tensor | None  # (n,), which rows; None for all
    down: Tensor
    up: Tensor

    def add(self, module: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        """The layer's output (n, ..., out), or (n, out, h, w) of a convolution, with the rows' update.

        What the layer gave is nobody else's yet, and is changed in place where that is faster.
        """
        x = x.to(self.down.dtype) if self.rows is None else x[self.rows].to(self.down.dtype)
        if isinstance(module, nn.Conv2d):
            return self._sum(output, self.up.transpose(1, 2), self._convolved(module, x).flatten(2), output.flatten(2))
        inner = torch.bmm(x.reshape(len(x), -1, x.shape[-1]), self.down.transpose(1, 2))
        return self._sum(output, inner, self.up, output.reshape(len(output), -1, output.shape[-1]))

    def _sum(self, output: Tensor, left: Tensor, right: Tensor, flat: Tensor) -> Tensor:
        """The output and the products of two matrices for each of the rows; `flat` is the output as a matrix a row."""
        # Product and sum at once where nothing has to be cast or picked.
        if self.rows is None and output.dtype == left.dtype:
            return torch.baddbmm(flat, left, right).view(output.shape)
        update = torch.bmm(left, right).view(len(left), *output.shape[1:]).to(output.dtype)
        return output + update if self.rows is None else output.index_add_(0, self.rows, update)

    def _convolved(self, module: nn.Conv2d, x: Tensor) -> Tensor:
        """(n, r, h, w): the rows are groups of one convolution."""
        num_rows, ranks = self.down.shape[:2]
        # (1, n C, h, w): to a library that is one convolution, where a loop would be n small convolutions.
        groups, down = x.reshape(1, num_rows * x.shape[1], *x.shape[2:]), self.down.flatten(0, 1)
        inner = nn.functional.conv2d(groups, down, None, module.stride, module.padding, module.dilation, num_rows)
        return inner.view(num_rows, ranks, *inner.shape[2:])


class OwnRanks:
    """A layer's updates side by side, down (R, in[, kh, kw]) and up (out, R[, 1, 1]), to gather rows' own from."""

    def __init__(self, down: Tensor, up: Tensor) -> None:
        self.num_ranks = len(down)
        # Rows of fewer ranks than others are filled up with a rank of zeros.
        self.down = torch.cat([down, torch.zeros_like(down[:1])])
        up = up.flatten(1).T
        self.up = torch.cat([up, torch.zeros_like(up[:1])])  # (R + 1, out)

    def gathered(self, scales: Tensor) -> list[Gathered]:
        """The ranks that each row has, by each rank's scale in each row (n, R); nothing if no row has any."""
        counts = (scales != 0).sum(1)
        most = int(counts.max()) if scales.numel() else 0
        if not most:
            return []
        if math.prod(self.down.shape[2:]) == 1:
            return [self._gathered(scales, None)]
        # What a product of a few more ranks takes is less than to pick rows; a convolution's isn't.
        kinds = -(-_BUCKETS * counts // most)  # ceil(4 counts / most): 1 to 4, and 0 for a row without any
        picked = [(kinds == kind).nonzero().flatten() for kind in kinds.unique().tolist() if kind]
        return [self._gathered(scales[rows], None if len(rows) == len(scales) else rows) for rows in picked]

    def _gathered(self, scales: Tensor, rows: Tensor | None) -> Gathered:
        own = scales != 0
        most = int(own.sum(1).max())
        # A row's own ranks first, in their order.
        index = torch.argsort((~own).to(torch.uint8), dim=1, stable=True)[:, :most]  # (n, r)
        factors, has_rank = scales.gather(1, index), own.gather(1, index)
        device = self.down.device
        index = torch.where(has_rank, index, self.num_ranks).to(device)
        up = self.up[index] * factors[..., None].to(self.up)
        return Gathered(None if rows is None else rows.to(device), self.down[index], up)
