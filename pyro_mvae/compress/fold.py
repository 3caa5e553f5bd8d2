"""Folding: what computes nothing of its own is merged into what is beside it, and what computes nothing at all is removed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, fx, nn

from pyro_mvae.compress.passes import Model, check_float, copied
from pyro_mvae.compress.prune import convolutions, output_layers
from pyro_mvae.likelihoods import Weights, last_layer
from pyro_mvae.nets.fold import CONVOLUTIONS, call_modules, fold_batch_norm


@dataclass(frozen=True)
class FoldAndFuse:
    """Fold batch normalisation into the convolution before it, and remove the channels that are 0 for every image.

    Exact: in evaluation mode the model computes what it did, to float32 rounding. A channel is 0 for every image where its
    weights are 0, or all it looks at is, and its bias is not above 0, a ReLU after it; training with `PruneGroups` makes some.

    Raises:
        ValueError: for a quantised model, which is folded already.

    Example:
        >>> from pyro_mvae.models import MVAE
        >>> model = FoldAndFuse()(MVAE((1, 28, 28)))
        >>> any(isinstance(layer, nn.BatchNorm2d) for layer in model.decoder.modules())
        False
    """

    def __call__(self, model: Model, images: Tensor | None = None, /) -> Model:
        check_float(model, "folded")
        model = copied(model, self)
        model.encoder, model.decoder = fold_batch_norm(model.encoder), fold_batch_norm(model.decoder)
        for net, example in model.deployable().values():
            kept = remove_dead(net, example)
            if net is model.decoder and isinstance(model.theta, Weights):
                model.theta.keep_inputs(kept[last_layer(net)[0]])
        return model


def remove_dead(net: nn.Module, example: Tensor) -> dict[str, list[int]]:
    """Remove the channels of a folded net that are always 0, in place; the input channels that each layer kept."""
    layers = convolutions(net)
    inputs: dict[Any, list[int]] = {layer: list(range(layer.in_channels)) for layer in layers.values()}
    always = dead_channels(net)
    graph = tp.DependencyGraph().build_dependency(net, torch.cat([example, example]))
    for name in layers:
        layer, indices = layers[name], always.get(name, [])
        if layer.groups > 1 or not indices:
            continue
        indices = indices[1:] if len(indices) == layer.out_channels else indices  # a layer is not left without channels
        group = graph.get_pruning_group(layer, tp.prune_conv_out_channels, indices)
        for dependency, gone in group:
            target = dependency.target.module
            if target in inputs and graph.is_in_channel_pruning_fn(dependency.handler):
                inputs[target] = [place for i, place in enumerate(inputs[target]) if i not in set(gone)]
        group.prune()
    return {name: inputs[layer] for name, layer in layers.items()}


def dead_channels(net: nn.Module) -> dict[str, list[int]]:
    """Of each inner layer the channels that are 0 for every input, after the depthwise layers that follow it."""
    modules, outputs, found = dict(net.named_modules()), output_layers(net), {}
    for node in call_modules(net):
        name, layer = str(node.target), modules[str(node.target)]
        if not isinstance(layer, CONVOLUTIONS) or layer.groups > 1 or name in outputs:
            continue
        dead, last = torch.ones(layer.out_channels, dtype=torch.bool), node
        for each in chain(node, modules):
            conv: Any = modules[str(each.target)]
            axis = 1 if conv.transposed and conv.groups == 1 else 0
            silent = conv.weight.detach().transpose(0, axis).flatten(1).abs().amax(1) == 0
            bias = torch.zeros_like(dead, dtype=torch.float32) if conv.bias is None else conv.bias.detach()
            dead = (silent | dead if each is not node else silent) & (bias <= 0)
            last = each
            if not rectified(each, modules):
                dead = torch.zeros_like(dead)
        assert last is not None
        found[name] = dead.nonzero()[:, 0].tolist()
    return found


def chain(node: fx.Node, modules: dict[str, nn.Module]) -> list[fx.Node]:
    """A convolution, and the depthwise ones that its channels go through next."""
    links = [node]
    while following := [user for user in after_activation(links[-1], modules) if is_depthwise(user, modules)]:
        links.append(following[0])
    return links


def after_activation(node: fx.Node, modules: dict[str, nn.Module]) -> list[fx.Node]:
    """What uses a node's value, activations and what is left of a normalisation passed over."""
    users = list(node.users)
    while len(users) == 1 and is_a(users[0], modules, (nn.ReLU, nn.Identity)):
        users = list(users[0].users)
    return users


def rectified(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a ReLU comes right after a layer, and nothing else."""
    users = list(node.users)
    while len(users) == 1 and is_a(users[0], modules, (nn.Identity,)):
        users = list(users[0].users)
    return len(users) == 1 and is_a(users[0], modules, (nn.ReLU,))


def is_depthwise(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    return is_a(node, modules, CONVOLUTIONS) and getattr(modules[str(node.target)], "groups", 1) > 1


def is_a(node: fx.Node, modules: dict[str, nn.Module], kinds: tuple[type, ...]) -> bool:
    return node.op == "call_module" and isinstance(modules[str(node.target)], kinds)
