"""Low-rank updates of one layer where each picture of a batch has adapters of its own.

All ranks side by side cost every picture the others' ranks too: sixteen stacks of two LoRAs of rank 16 are 512 ranks
on a layer that is 256 wide. Each row computes with its own ranks alone here, gathered once for a batch (as S-LoRA
gathers, arXiv 2311.03285). So no picture meets a number of another's adapter: times 0, an infinity would still be NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Gathered:
    """The ranks of each of n rows: down (n, r, in[, kh, kw]) and up (n, r, out), in which the rows' weights are."""

    down: Tensor
    up: Tensor

    def added(self, module: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        """The layer's output with each row's update: (n, ..., out), or (n, out, h, w) of a convolution."""
        if isinstance(module, nn.Conv2d):
            return self._added_to_convolution(module, x, output)
        num_rows = len(x)
        inner = torch.bmm(x.reshape(num_rows, -1, x.shape[-1]).to(self.down.dtype), self.down.transpose(1, 2))
        flat = output.reshape(num_rows, -1, output.shape[-1])
        if flat.dtype == self.up.dtype:
            return torch.baddbmm(flat, inner, self.up).view(output.shape)
        return (flat + torch.bmm(inner, self.up).to(output.dtype)).view(output.shape)

    def _added_to_convolution(self, module: nn.Conv2d, x: Tensor, output: Tensor) -> Tensor:
        """The rows are groups of one convolution."""
        num_rows, ranks = self.down.shape[:2]
        groups = x.to(self.down.dtype).reshape(1, num_rows * x.shape[1], *x.shape[2:])
        down = self.down.flatten(0, 1)
        inner = nn.functional.conv2d(groups, down, None, module.stride, module.padding, module.dilation, num_rows)
        lifted = torch.bmm(self.up.transpose(1, 2), inner.view(num_rows, ranks, -1))
        return output + lifted.view(output.shape).to(output.dtype)


class OwnRanks:
    """A layer's updates side by side, down (R, in[, kh, kw]) and up (out, R[, 1, 1]), to gather rows' own from."""

    def __init__(self, down: Tensor, up: Tensor) -> None:
        self.num_ranks = len(down)
        # Rows of fewer ranks than others are filled up with a rank of zeros.
        self.down = torch.cat([down, torch.zeros_like(down[:1])])
        up = up.flatten(1).T
        self.up = torch.cat([up, torch.zeros_like(up[:1])])  # (R + 1, out)

    def gathered(self, scales: Tensor) -> Gathered | None:
        """The ranks that each row has, by each rank's scale in each row (n, R); None if no row has any."""
        own = scales != 0
        most = int(own.sum(1).max()) if own.numel() else 0
        if not most:
            return None
        # A row's own ranks first, in their order.
        index = torch.argsort((~own).to(torch.uint8), dim=1, stable=True)[:, :most]  # (n, r)
        factors, has_rank = scales.gather(1, index), own.gather(1, index)
        index = torch.where(has_rank, index, self.num_ranks).to(self.down.device)
        return Gathered(self.down[index], self.up[index] * factors[..., None].to(self.up))
