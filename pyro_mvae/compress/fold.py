"""Folding: what computes nothing of its own is merged into what is beside it, and what computes nothing at all is removed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, fx, nn

from pyro_mvae.compress.passes import Model, check_float, copied
from pyro_mvae.compress.prune import OUTPUTS, keep_theta, layers_of, output_layers, removed
from pyro_mvae.inference.penalties import channel_axis
from pyro_mvae.nets.fold import CONVOLUTIONS, call_modules, fold_batch_norm


@dataclass(frozen=True)
class FoldAndFuse:
    """Fold batch normalisation into the convolution before it, and remove the channels that are 0 for every image.

    Exact: in evaluation mode the model computes what it did, to float32 rounding. A channel is 0 for every image where its
    weights are 0, or all it looks at is, and its bias is not above 0, a ReLU after it. It is removed where nothing but
    convolutions look at it. What training with `PruneGroups` made small, `PruneChannels(importance="group_l1")` removes.

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
            keep_theta(model, net, remove_dead(net, example))
        return model


def remove_dead(net: nn.Module, example: Tensor) -> dict[str, list[int]]:
    """Remove the channels of a folded net that are always 0, in place; the input channels that each layer kept."""
    layers, always = layers_of(net), dead_channels(net)
    with torch.enable_grad():  # the graph of dependencies is that of gradients
        graph = tp.DependencyGraph().build_dependency(net, torch.cat([example, example]))

    def groups() -> Iterator[Any]:
        for name, indices in always.items():
            # a layer is not left without channels
            some = indices[1:] if len(indices) == layers[name].out_channels else indices
            if some and not tied(group := graph.get_pruning_group(layers[name], tp.prune_conv_out_channels, some)):
                yield group

    return removed(groups(), graph, layers)


def tied(group: Any) -> bool:
    """Whether channels of a second full convolution would go as well, as where two maps are added: they need not be 0."""
    full = [d.target.module for d, _ in group if d.handler in OUTPUTS and getattr(d.target.module, "groups", 1) == 1]
    return len(set(full)) > 1


def dead_channels(net: nn.Module) -> dict[str, list[int]]:
    """Of each inner layer the channels that are 0 for every input, after the depthwise layers that follow it."""
    modules, outputs, found = dict(net.named_modules()), output_layers(net), {}
    for node in call_modules(net):
        name, layer = str(node.target), modules[str(node.target)]
        if not isinstance(layer, CONVOLUTIONS) or layer.groups > 1 or name in outputs:
            continue
        dead, links = torch.zeros(layer.out_channels, dtype=torch.bool), chain(node, modules)
        if not all(is_full(user, modules) for user in after_activation(links[-1], modules)):
            continue
        for each in links:
            conv: Any = modules[str(each.target)]
            silent = conv.weight.detach().transpose(0, channel_axis(conv)).flatten(1).abs().amax(1) == 0
            bias = torch.zeros(len(dead)) if conv.bias is None else conv.bias.detach()
            dead = (silent | dead) & (bias <= 0) & rectified(each, modules)
        found[name] = dead.nonzero()[:, 0].tolist()
    return found


def chain(node: fx.Node, modules: dict[str, nn.Module]) -> list[fx.Node]:
    """A convolution, and the depthwise ones that its channels go through next."""
    links = [node]
    while len(following := after_activation(links[-1], modules)) == 1 and is_depthwise(following[0], modules):
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
    """Whether each channel is made of one, and of each one is."""
    layer: Any = modules[str(node.target)] if is_a(node, modules, CONVOLUTIONS) else None
    return layer is not None and 1 < layer.groups == layer.in_channels == layer.out_channels


def is_full(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether each channel is a weighted sum of all, to which one that is 0 adds nothing."""
    return is_a(node, modules, CONVOLUTIONS) and getattr(modules[str(node.target)], "groups", 1) == 1


def is_a(node: fx.Node, modules: dict[str, nn.Module], kinds: tuple[type, ...]) -> bool:
    return node.op == "call_module" and isinstance(modules[str(node.target)], kinds)
