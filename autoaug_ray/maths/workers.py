"""Several processes that share the work of every batch, and the sums that they make together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class Workers:
    """This process among those of one training, which have a process group of torch.distributed.

    All of them hold the same weights, draw the same batches and the same noise, and add up what
    they find, so that they stay the same; each passes its share of a batch through the classifier.
    """

    rank: int = 0
    size: int = 1

    def share(self, parts: Sequence[T]) -> list[T]:
        """The parts of a batch that fall to this process."""
        return list(parts[self.rank :: self.size])

    def total(self, tensors: list[Tensor]) -> list[Tensor]:
        """The sum of each tensor over the processes, without a graph; shapes and dtypes stay."""
        if self.size == 1:
            return tensors
        flat = torch.cat([t.detach().flatten() for t in tensors])
        dist.all_reduce(flat)
        parts = flat.split([t.numel() for t in tensors])
        return [p.view(t.shape).to(t.dtype) for p, t in zip(parts, tensors, strict=True)]


ALONE = Workers()
