"""Quantising: weights and activations of a few bits, after training or with training going on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyro_mvae.compress.passes import Model, copied, needed
from pyro_mvae.data.batches import scaled
from pyro_mvae.data.images import spread
from pyro_mvae.models import VAE
from pyro_mvae.nets.equalize import equalize
from pyro_mvae.nets.fold import fold_batch_norm
from pyro_mvae.nets.modes import evaluating
from pyro_mvae.nets.palette import how_palettized
from pyro_mvae.nets.quantized import is_quantized, learn_ranges, quantized_pair, roundings
from pyro_mvae.nets.rounding import ActivationQuantizer
from pyro_mvae.numbers import count
from pyro_mvae.theta import Weights, last_layer

RANGES = ("moving", "learned")
CALIBRATED, SAMPLED, WEIGHED = 512, 4096, 256
"""How many images ranges are taken from, how many values of each batch of them, and on how many images weights are cut."""


@dataclass(frozen=True)
class Quantize:
    """Weights of a few bits with a scale for each channel, and activations of 8, rounded in training as on the phone, (17).

    Batch normalisation is folded first. With images channels are made equally large where that is free, the ranges of the
    activations are those of images, the largest weights of a channel are cut where that loses least, and the model is ready:
    quantised after training. Train on in either case: weights learn to live with the rounding, as the bound is that of the
    quantised nets.

    Args:
        weight_bits: from 2 to 8; Core ML packages for iOS 18 hold half a byte for 4 or fewer, all other files a whole one.
        ranges: of activations, in training: "moving" averages of what is seen, or "learned" with the rest, from those of images.

    Raises:
        ValueError: for a model that is quantised already, a layer that can't be, settings that can't be, or "learned" without
            images.

    Example:
        >>> from pyro_mvae.models import MVAE
        >>> Quantize(weight_bits=4)(MVAE((1, 28, 28))).passes
        ("Quantize(weight_bits=4, ranges='moving')",)
    """

    weight_bits: int = 8
    ranges: str = "moving"

    def __post_init__(self) -> None:
        count(self.weight_bits, "weight_bits", 2)
        if self.weight_bits > 8:
            raise ValueError(f"weight_bits is {self.weight_bits}, expected 2 to 8")
        if self.ranges not in RANGES:
            raise ValueError(f"ranges is {self.ranges!r}, expected one of: {', '.join(RANGES)}")

    def __call__(self, model: Model, images: Tensor | None = None, /) -> Model:
        if self.ranges == "learned" or images is not None:
            images = needed(images, self)
        if how_palettized(model) is not None:
            raise ValueError("a palettised model can't be quantised: choose one of the two")
        if is_quantized(model):
            raise ValueError("the model is quantised already")
        model = copied(model, self)
        if images is not None:
            equalize_channels(model, images, bits=self.weight_bits)
        model.encoder, model.decoder = quantized_pair(model.encoder, model.decoder, bits=self.weight_bits)
        if images is not None:
            calibrate(model, images)
        if self.ranges == "learned":
            learn_ranges(model)
        return model


def codes(model: VAE, x: Tensor) -> Tensor:
    """Codes of images, and as many that are drawn from the prior: what a decoder is given."""
    return torch.cat([model.posterior(x).sample(), model.prior(len(x)).sample()])


@torch.no_grad()
def equalize_channels(model: VAE, images: Tensor, *, bits: int) -> None:
    """Fold a model's nets and `equalize` them, in place: on images, on their codes, and on codes drawn from the prior.

    Weights of fewer bits than activations are made no more unequal. Bayesian ones, which are drawn, stay as they are.
    """
    model.encoder, model.decoder = fold_batch_norm(model.encoder), fold_batch_norm(model.decoder)
    bayesian = last_layer(model.decoder)[1] if isinstance(model.theta, Weights) else None
    x = scaled(spread(images, CALIBRATED).to(next(model.parameters()).device))
    with torch.random.fork_rng(devices=[]), evaluating(model):
        torch.manual_seed(0)
        equalize(model.encoder, lambda: model.encoder(x), depthwise_only=bits < 8)
        z = codes(model, x)
        equalize(model.decoder, lambda: model.decoder(z), depthwise_only=bits < 8, but=bayesian)


@torch.no_grad()
def calibrate(model: VAE, images: Tensor, *, chunk: int = 64) -> None:
    """Set the ranges of a quantised model's activations: on images, on their codes, and on codes drawn from the prior.

    Each range begins as a moving average of the extremes, and is then narrowed to what loses least by rounding; after that
    weights are cut, on what the ranges keep.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    quantizers = [module for module in model.modules() if isinstance(module, ActivationQuantizer)]
    seen: dict[nn.Module, list[Tensor]] = {quantizer: [] for quantizer in quantizers}

    def look(quantizer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        values = inputs[0].flatten()
        seen[quantizer].append(values[torch.randint(len(values), (SAMPLED,), device=values.device)])

    handles = [quantizer.register_forward_hook(look) for quantizer in quantizers]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for part in spread(images, CALIBRATED).split(chunk):
            x = scaled(part.to(device))
            model.encoder.train()
            z = codes(model, x)
            model.encoder.eval()
            model.decoder.train()
            model.decoder(z)
            model.decoder.eval()
    for handle in handles:
        handle.remove()
    for quantizer, values in seen.items():
        if values:
            quantizer.clip(torch.cat(values))  # pyright: ignore[reportCallIssue]
    cut_weights(model, scaled(spread(images, WEIGHED).to(device)))
    model.train(was_training)


@torch.no_grad()
def cut_weights(model: VAE, x: Tensor) -> None:
    """Cut the largest weights of a quantised model where that loses least: on images, their codes, and codes of the prior."""
    roundings_of = {**roundings(model.encoder), **roundings(model.decoder)}
    given: dict[nn.Module, Tensor] = {}
    handles = [layer.register_forward_pre_hook(lambda layer, inputs: given.update({layer: inputs[0]})) for layer in roundings_of]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.decoder(codes(model, x))
    for handle in handles:
        handle.remove()
    for layer, rounding in roundings_of.items():
        layer.cut(given[layer], rounding.kept)
