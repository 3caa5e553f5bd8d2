"""Several processes on one run: each computes its share of every batch, the gradients are summed.

Start them with `torchrun --nproc_per_node 2 -m pyro_mvae train …`. The gradients come out of one graph, all at once, so that one
sum over one flat tensor is all there is to exchange; torch's `DistributedDataParallel`, which hooks into autograd to send
gradients while others are still being computed, has nothing to hook into here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as distributed
from torch import Tensor, nn


class ProcessLost(RuntimeError):
    """Another process of the run ended or can't be reached."""


@dataclass(frozen=True)
class Parallel:
    """This process among those of a run; by default it is alone.

    Example:
        >>> Parallel(rank=1, size=2).share(torch.arange(5))
        tensor([3, 4])
        >>> [len(Parallel(rank, 4).share(torch.arange(5))) for rank in range(4)]
        [3, 2, 0, 0]
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Parallel:
        """As `torch.distributed` has been told."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    def share(self, x: Tensor) -> Tensor:
        """This process's part of a batch: of two data or more, as batch normalisation needs, or empty."""
        sharing = min(self.size, max(len(x) // 2, 1))
        return x.tensor_split(sharing)[self.rank] if self.rank < sharing else x[:0]

    def sum_gradients(self, gradients: list[Tensor], *, weight: float) -> None:
        """Replace gradients of means over the shares by those of the mean over the batch, in place.

        Args:
            weight: this share's size as a part of the batch's.

        Raises:
            ProcessLost: when another process is gone.
        """
        if self.size == 1:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients]).mul_(weight)
        self.sum_up(flat)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view(gradient.shape))

    def summed(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scalars by name, summed over the processes."""
        if self.size == 1:
            return dict(values)
        stacked = torch.stack(list(values.values())).double()
        self.sum_up(stacked)
        return dict(zip(values, stacked, strict=True))

    def average_buffers(self, module: nn.Module) -> None:
        """Give every process the mean of all running statistics, which each has of its own shares."""
        buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
        if self.size > 1 and buffers:
            self.sum_gradients(buffers, weight=1 / self.size)

    def sum_up(self, flat: Tensor) -> None:
        try:
            distributed.all_reduce(flat)
        except RuntimeError as error:
            raise ProcessLost(f"process {self.rank} of {self.size} lost another one: {str(error).splitlines()[0]}") from error


@contextmanager
def joined(device: str = "cpu") -> Iterator[Parallel]:
    """Join the processes that `torchrun` started; nothing happens where it did not start this one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Parallel()
        return
    distributed.init_process_group("nccl" if torch.device(device).type == "cuda" else "gloo")
    try:
        yield Parallel.current()
    finally:
        distributed.destroy_process_group()
