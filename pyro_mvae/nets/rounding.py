"""Layers whose weights and activations are small integers: in training, and as every runtime reads them.

One description serves all: a `QuantizedConv` computes its per-channel weight scales from its weights, an `ActivationQuantizer`
keeps the range it saw. In training they round with a straight-through gradient; `IntegerConv` and `IntegerActivation` are what
they become in a file.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
import torch.nn.functional as F
from torch import Tensor, nn

LOWEST, HIGHEST = -128, 127
FINEST = 2.0**-15
"""The smallest scale of an activation, and of a weight beside a bias of 1: so that a bias is 2³⁰ steps of both at most."""

PIXELS = (0.0, 1.0)
CLIPPED = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Shares of a range of activations that are tried."""
CUT = (*CLIPPED, 0.2, 0.15, 0.1)
"""Shares of a channel's largest weight that are tried."""
LOGIT_LIMIT = 10.0
"""Beyond it a pixel changes by less than 5e-5; the fewer logits 256 levels span, the less one level changes a pixel."""


class ActivationQuantizer(nn.Module):
    """Rounds an activation to 256 levels between the smallest and largest value seen: q = clamp(round(x / scale) + zero_point).

    In training mode the range is an exponential moving average of each batch's extremes, until `learn` makes parameters of its
    ends (Esser et al., Learned Step Size Quantization, 2020). It always contains 0, so that zero padding stays exact. The
    gradient passes straight through inside the range and is 0 outside it.

    Args:
        momentum: weight of a new batch in the moving range.
        bounds: a range known beforehand, which is then never moved (pixels in [0, 1]).
        limit: what the range never goes beyond, on either side of 0.

    Example:
        >>> quantizer = ActivationQuantizer(bounds=(0.0, 1.0)).eval()
        >>> quantizer(torch.tensor([0.0, 0.4999, 2.0]))
        tensor([0.0000, 0.4980, 1.0000])
    """

    low: Tensor
    high: Tensor

    def __init__(self, *, momentum: float = 0.05, bounds: tuple[float, float] | None = None, limit: float = torch.inf):
        super().__init__()
        self.momentum, self.limit = momentum, limit
        self.moving = bounds is None
        low, high = bounds or (torch.inf, -torch.inf)
        self.register_buffer("low", torch.tensor(low))
        self.register_buffer("high", torch.tensor(high))

    @torch.no_grad()
    def clip(self, seen: Tensor) -> None:
        """Narrow the range to where what was seen loses least by rounding, in mean squares: few large values may be cut."""
        if not self.moving:
            return
        low, high = self.low.clone(), self.high.clone()
        losses = {}
        for share in CLIPPED:
            self.low.copy_(share * low)
            self.high.copy_(share * high)
            losses[share] = float((self(seen) - seen).square().mean())
        best = min(losses, key=lambda share: losses[share])
        self.low.copy_(best * low)
        self.high.copy_(best * high)

    def learn(self) -> None:
        """Make parameters of the ends of the range, where it is not known beforehand."""
        if self.moving:
            low, high = self.low, self.high
            del self.low, self.high
            self.low, self.high, self.moving = nn.Parameter(low), nn.Parameter(high), False

    def qparams(self) -> tuple[Tensor, Tensor]:
        """The scale, and the zero point as a float with an integral value."""
        low, high = self.low.clamp(-self.limit, 0.0), self.high.clamp(0.0, self.limit)
        scale = ((high - low) / (HIGHEST - LOWEST)).clamp(min=FINEST)
        steps = low / scale
        whole = steps + (torch.round(steps) - steps).detach()  # so that what is clipped has the gradient of an end of the range
        return scale, (LOWEST - whole).clamp(LOWEST, HIGHEST)

    def kept(self, x: Tensor) -> Tensor:
        """What is within the range, not rounded."""
        return x.clamp(self.low.clamp(min=-self.limit), self.high.clamp(max=self.limit))

    def observe(self, x: Tensor) -> None:
        low, high = x.amin().clamp(-self.limit, 0.0), x.amax().clamp(0.0, self.limit)
        new = torch.isinf(self.low)
        self.low.copy_(torch.where(new, low, torch.lerp(self.low, low, self.momentum)))
        self.high.copy_(torch.where(new, high, torch.lerp(self.high, high, self.momentum)))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.moving:
            self.observe(x.detach())
        scale, zero_point = self.qparams()
        steps = (x / scale).clamp(LOWEST - zero_point, HIGHEST - zero_point)
        return (steps + (torch.round(steps) - steps).detach()) * scale


class QuantizedConv(nn.Module):
    """A convolution, plain or transposed, whose weights are rounded to integers with one scale per output channel.

    The gradient passes straight through the rounding (17): w_q = w + stop_gradient(round(w / s) s − w), s = max|w| / (2ᵇ⁻¹ − 1)
    in float16, or 2⁻¹⁵ of the bias where that is more: runtimes keep a bias as 32 bits, in steps of s times the input's scale.

    Args:
        conv: the layer it takes the place of; its parameters are kept, not copied.
        bits: b, from 2 to 8.

    Raises:
        ValueError: for a grouped transposed convolution, whose channels no runtime quantises alike, or bits that can't be.
    """

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d, *, bits: int = 8):
        super().__init__()
        if not 2 <= bits <= 8:
            raise ValueError(f"weights can't have {bits} bits: expected 2 to 8")
        self.bits, self.highest = bits, 2 ** (bits - 1) - 1
        if conv.transposed and conv.groups > 1:
            raise ValueError(f"{conv} can't be quantised: it is transposed and grouped; use groups=1")
        self.conv = conv

    @property
    def axis(self) -> int:
        return 1 if self.conv.transposed else 0

    def largest(self) -> Tensor:
        """The largest weight of each output channel, without its sign."""
        return self.conv.weight.detach().abs().amax([d for d in range(4) if d != self.axis])

    def scales(self) -> Tensor:
        """One scale per output channel, where weights are next to nothing no finer than its bias needs."""
        scales = self.largest() / self.highest
        if self.conv.bias is not None:
            scales = torch.maximum(scales, FINEST * self.conv.bias.detach().abs())
        return in_float16(scales)

    def by_channel(self, values: Tensor) -> Tensor:
        """One value per output channel, in a shape that weights can be multiplied by."""
        return values.unflatten(0, [-1 if d == self.axis else 1 for d in range(4)])

    @torch.no_grad()
    def cut(self, x: Tensor, kept: Callable[[Tensor], Tensor]) -> None:
        """Cut the largest weights of each channel where what is kept of it, given `x`, loses least by rounding, in mean squares.

        Steps are as long as the largest weight of a channel makes them, and often what it says is beyond a range anyway.
        """
        weight, largest = self.conv.weight.detach().clone(), self.largest()
        exact = kept(convolve(self.conv, x, weight))
        losses = []
        for share in CUT:
            self.conv.weight.copy_(within(weight, self.by_channel(share * largest)))
            losses.append((kept(self(x)) - exact).square().mean((0, 2, 3)))
        best = torch.tensor(CUT, device=x.device)[torch.stack(losses).argmin(0)]
        self.conv.weight.copy_(within(weight, self.by_channel(best * largest)))

    def integers(self) -> Tensor:
        steps = torch.round(self.conv.weight.detach() / self.by_channel(self.scales()))
        return steps.clamp(-self.highest, self.highest).to(torch.int8)

    def rounded_weight(self) -> Tensor:
        weight, scales = self.conv.weight, self.by_channel(self.scales())
        return weight + (torch.round(weight / scales).clamp(-self.highest, self.highest) * scales - weight).detach()

    def stored(self) -> IntegerConv:
        """With its integers instead of the weights that they are rounded from."""
        return IntegerConv(self.conv, self.integers(), self.scales())

    def forward(self, x: Tensor) -> Tensor:
        return convolve(self.conv, x, self.rounded_weight())


def within(x: Tensor, bound: Tensor) -> Tensor:
    """x, no further from 0 than a bound."""
    return torch.minimum(torch.maximum(x, -bound), bound)


def in_float16(scales: Tensor) -> Tensor:
    """Scales of weights, rounded to positive numbers that float16 has too, which Core ML keeps them in.

    Example:
        >>> in_float16(torch.tensor([0.1, 0.0])).tolist()
        [0.0999755859375, 5.960464477539063e-08]
    """
    return scales.half().to(scales.dtype).clamp(min=2.0**-24)


def convolve(conv: nn.Conv2d | nn.ConvTranspose2d, x: Tensor, weight: Tensor) -> Tensor:
    """What `conv` computes, with another weight."""
    function = F.conv_transpose2d if conv.transposed else F.conv2d
    return function(x, weight, conv.bias, conv.stride, conv.padding, groups=conv.groups)  # pyright: ignore[reportArgumentType]


class IntegerConv(nn.Module):
    """A convolution whose weights are stored as integers, a scale for each output channel or one for all: what is exported."""

    integers: Tensor
    scales: Tensor
    zero_points: Tensor

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d, integers: Tensor, scales: Tensor):
        super().__init__()
        self.conv = copy.deepcopy(conv)
        self.axis = 1 if conv.transposed else 0
        self.register_buffer("integers", integers)
        self.register_buffer("scales", scales)
        self.register_buffer("zero_points", torch.zeros(len(scales), dtype=torch.int64))
        self.scale = float(scales) if len(scales) < conv.out_channels else None
        self.conv.weight = None  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, x: Tensor) -> Tensor:
        ops, limits = torch.ops.quantized_decomposed, (-HIGHEST, HIGHEST, torch.int8)
        if self.scale is not None:
            weight = ops.dequantize_per_tensor.default(self.integers, self.scale, 0, *limits)
        else:
            weight = ops.dequantize_per_channel.default(self.integers, self.scales, self.zero_points, self.axis, *limits)
        return convolve(self.conv, x, weight)


class IntegerActivation(nn.Module):
    """An `ActivationQuantizer` as one quantise and one dequantise operation."""

    def __init__(self, quantizer: ActivationQuantizer):
        super().__init__()
        scale, zero_point = quantizer.qparams()
        self.scale, self.zero_point = float(scale), int(zero_point)

    def forward(self, x: Tensor) -> Tensor:
        arguments = (self.scale, self.zero_point, LOWEST, HIGHEST, torch.int8)
        q = torch.ops.quantized_decomposed.quantize_per_tensor.default(x, *arguments)
        return torch.ops.quantized_decomposed.dequantize_per_tensor.default(q, *arguments)
