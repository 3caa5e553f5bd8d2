"""How long a model would take, from a table of its blocks: each kind of block is measured once on a machine, and kept."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_mvae.atomic import write_text
from pyro_mvae.environment import environment
from pyro_mvae.export.executorch import loaded, lowered
from pyro_mvae.export.interleave import interleaved
from pyro_mvae.latency.timing import latency
from pyro_mvae.models import VAE
from pyro_mvae.nets.fold import CONVOLUTIONS
from pyro_mvae.nets.modes import evaluating
from pyro_mvae.nets.quantized import as_integers, quantized

STEP = 8
"""Blocks are measured for numbers of channels that are multiples of it, of twice it from 32 on, of four times from 64 on."""


LOWERING = 3
"""Of the way that blocks become files and are timed: figures of an earlier one are not used."""


@dataclass(frozen=True)
class Block:
    """A convolution of int8 with its ReLU, and the map that it is given."""

    transposed: bool
    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    groups: int
    height: int
    width: int

    def rounded(self) -> Block:
        """The block of the table that stands for it: as many channels or a few more."""
        if self.groups > 1:
            channels = stepped(self.out_channels)
            return replace(self, in_channels=channels, out_channels=channels, groups=channels)
        return replace(self, in_channels=stepped(self.in_channels), out_channels=stepped(self.out_channels))

    def net(self) -> nn.Module:
        """The block by itself, with some weights."""
        kind = nn.ConvTranspose2d if self.transposed else nn.Conv2d
        conv = kind(
            self.in_channels, self.out_channels, self.kernel, stride=self.stride, padding=self.padding, groups=self.groups
        )
        return quantized(nn.Sequential(conv, nn.ReLU()))


def stepped(channels: int) -> int:
    """The least number of the table that is not less; what is given, below `STEP`.

    Example:
        >>> [stepped(n) for n in (1, 3, 8, 12, 33, 65)]
        [1, 3, 8, 16, 48, 96]
    """
    step = STEP * (1 if channels <= 4 * STEP else 2 if channels <= 8 * STEP else 4)
    return channels if channels < STEP else math.ceil(channels / step) * step


@torch.no_grad()
def blocks(model: VAE) -> list[Block]:
    """The blocks of a model that was not quantised, the encoder's first.

    Example:
        >>> from pyro_mvae.models import MVAE
        >>> len(blocks(MVAE((1, 8, 8), 4, widths=(8,))))
        7
    """
    found: list[Block] = []

    def note(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        kernel, stride, padding = (tuple(values) for values in (layer.kernel_size, layer.stride, layer.padding))
        sizes = (layer.in_channels, layer.out_channels, kernel, stride, padding, layer.groups)
        found.append(Block(layer.transposed, *sizes, *inputs[0].shape[2:]))

    with evaluating(model), ExitStack() as stack:
        for net, example in model.deployable().values():
            for layer in net.modules():
                if isinstance(layer, CONVOLUTIONS):
                    stack.callback(layer.register_forward_hook(note).remove)
            net(example)
    return found


class LatencyTable:
    """Microseconds of blocks on this machine, measured when they are first asked for, and kept in a file.

    Args:
        path: the file, made when it is not there; what another machine, or other versions, measured is not used.

    Example:
        >>> LatencyTable.usual_path().name
        'latency.json'
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path, self.machine = Path(path), {**environment(), "lowering": LOWERING}
        held = json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {}
        self.microseconds: dict[str, float] = held["microseconds"] if held.get("machine") == self.machine else {}

    @staticmethod
    def usual_path() -> Path:
        """Where the table of this machine is kept."""
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyro-mvae" / "latency.json"

    def estimate(self, model: VAE) -> float:
        """Microseconds to encode an image and to decode it, about: the calls of two files, and what each block adds."""
        return self.total(blocks(model), calls=2)

    def total(self, given: Iterable[Block], *, calls: int) -> float:
        call = self.of(Block(False, 1, 1, (1, 1), (1, 1), (0, 0), 1, 1, 1))
        return calls * call + sum(max(self.of(block.rounded()) - call, 0.0) for block in given)

    def of(self, block: Block) -> float:
        """Microseconds of one call of a block, alone in a file."""
        key = json.dumps(astuple(block))
        if key not in self.microseconds:
            self.microseconds[key] = measured(block)
            content = {"machine": self.machine, "unit": "µs, p50, one thread", "microseconds": self.microseconds}
            write_text(self.path, json.dumps(content, indent=1) + "\n")
        return self.microseconds[key]


def measured(block: Block) -> float:
    """Microseconds of a block: its `.pte` is made and run."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        net, x = block.net(), torch.rand(1, block.in_channels, block.height, block.width)
        net.train()(x)
        program = torch.export.export(interleaved(as_integers(net.eval())), (x,), strict=False)
    return latency(loaded(lowered(program))[1], x).p50_us
