"""Passes: values that take a model and return a smaller one, a copy with the pass in its log."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch_pruning as tp
from torch import Tensor, fx, nn

from pyro_mvae.likelihoods import Weights, last_layer
from pyro_mvae.models import VAE
from pyro_mvae.nets.fold import CONVOLUTIONS, call_modules
from pyro_mvae.nets.quantized import is_quantized, quantized_pair

Model = TypeVar("Model", bound=VAE)


@dataclass(frozen=True)
class PruneChannels:
    """Remove the channels whose weights are smallest, together with all that depends on them.

    Importance is the L2 norm over everything a channel touches; every layer loses the same share, to a multiple of `round_to`.
    The outputs of each net keep their channels. Train on afterwards: pruning costs likelihood that training gives back.

    Args:
        ratio: share of channels to remove, from 0 up to 1.
        round_to: what the number of channels kept is a multiple of.

    Raises:
        ValueError: for a ratio that can't be, a quantised model, or a layer that could not be pruned as asked.

    Example:
        >>> from pyro_mvae.models import MVAE
        >>> small = PruneChannels(ratio=0.5)(MVAE((1, 28, 28)))
        >>> small.passes
        ('PruneChannels(ratio=0.5, round_to=4)',)
    """

    ratio: float = 0.5
    round_to: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise ValueError(f"ratio is {self.ratio}, expected from 0 up to, but not including, 1")
        if self.round_to < 1:
            raise ValueError(f"round_to is {self.round_to}, expected 1 or more")

    def __call__(self, model: Model) -> Model:
        if is_quantized(model):
            raise ValueError("a quantised model can't be pruned: prune first, then quantise")
        model = copy.deepcopy(model)
        for net, example in model.deployable().values():
            kept = prune(net, example, ratio=self.ratio, round_to=self.round_to)
            if net is model.decoder and isinstance(model.theta, Weights):
                model.theta.keep_inputs(kept[last_layer(net)[0]])
        model.passes = (*model.passes, repr(self))
        return model


@dataclass(frozen=True)
class Quantize:
    """Weights and activations of 8 bits, rounded in training as they will be on the phone.

    Batch normalisation is folded first. Train on afterwards: that sets the ranges, and weights learn to live with the rounding.

    Raises:
        ValueError: for a model that is quantised already, or a layer that can't be.

    Example:
        >>> from pyro_mvae.models import MVAE
        >>> Quantize()(MVAE((1, 28, 28))).passes
        ('Quantize()',)
    """

    def __call__(self, model: Model) -> Model:
        model = copy.deepcopy(model)
        model.encoder, model.decoder = quantized_pair(model.encoder, model.decoder)
        model.passes = (*model.passes, repr(self))
        return model


def prune(net: nn.Module, example: Tensor, *, ratio: float, round_to: int) -> dict[str, list[int]]:
    """Prune one net in place and check, layer by layer, that what was asked for was done; the input channels each layer kept."""
    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, CONVOLUTIONS)}
    outputs = output_layers(net)
    targets = {
        name: layer.out_channels if name in outputs else kept_channels(layer.out_channels, ratio=ratio, round_to=round_to)
        for name, layer in layers.items()
    }
    was_training = net.training
    shapes = output_shapes(net, example)
    # a hair above the share itself: torch-pruning rounds the number of channels kept down
    ratios = {layers[name]: 1 - (kept + 0.01) / layers[name].out_channels for name, kept in targets.items()}
    inputs = {name: set(range(layer.in_channels)) for name, layer in layers.items()}
    names = {layer: name for name, layer in layers.items()}
    pruner = tp.pruner.BasePruner(
        net.eval(),
        torch.cat([example, example]),
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio_dict={layer: max(share, 0.0) for layer, share in ratios.items()},
        ignored_layers=[layers[name] for name in outputs],
    )
    for group in pruner.step(interactive=True) or ():
        for dependency, indices in group:
            layer = dependency.target.module
            if layer in names and pruner.DG.is_in_channel_pruning_fn(dependency.handler):
                inputs[names[layer]] -= set(indices)
        group.prune()
    net.train(was_training)
    for name, layer in layers.items():
        if layer.out_channels != targets[name]:
            raise ValueError(
                f"layer {name!r} kept {layer.out_channels} channels, a ratio of {ratio:g} asks for {targets[name]}: "
                "its shape is tied to a part of the net that can't be pruned"
            )

    if output_shapes(net, example) != shapes:
        raise ValueError("the pruned net does not compute any more: its channels are tied to its input's, which can't be pruned")
    return {name: sorted(kept) for name, kept in inputs.items()}


@torch.no_grad()
def output_shapes(net: nn.Module, example: Tensor) -> list[torch.Size] | None:
    """Shapes of a net's outputs in evaluation mode; None when it can't compute."""
    was_training = net.training
    try:
        outputs = net.eval()(example)
    except RuntimeError:
        return None
    finally:
        net.train(was_training)
    return [output.shape for output in (outputs if isinstance(outputs, tuple) else (outputs,))]


def kept_channels(channels: int, *, ratio: float, round_to: int) -> int:
    """The multiple of `round_to` nearest to what a ratio leaves, at least one and never more than there are.

    Example:
        >>> [kept_channels(n, ratio=0.3, round_to=4) for n in (3, 16, 24, 64)]
        [3, 12, 16, 44]
    """
    return min(max(round(channels * (1 - ratio) / round_to), 1) * round_to, channels)


def output_layers(net: nn.Module) -> set[str]:
    """Names of the layers whose channels are the net's outputs."""
    modules = dict(net.named_modules())
    layers = {node for node in call_modules(net) if isinstance(modules[str(node.target)], CONVOLUTIONS)}
    return {str(node.target) for node in layers if not feeds(node, layers)}


def feeds(node: fx.Node, layers: set[fx.Node]) -> bool:
    """Whether what `node` computes reaches one of `layers`."""
    return any(user in layers or feeds(user, layers) for user in node.users)
