"""Pruning: channels of the nets that matter least, and dimensions of the code that say nothing, are taken away."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, fx, nn

from pyro_mvae.compress.passes import Model, check_float, copied, needed
from pyro_mvae.data.batches import scaled
from pyro_mvae.data.images import spread
from pyro_mvae.inference.objective import Objective
from pyro_mvae.inference.penalties import channel_axis
from pyro_mvae.models import VAE
from pyro_mvae.models.vae import ACTIVE
from pyro_mvae.nets.fold import CONVOLUTIONS, LayerTracer, call_modules
from pyro_mvae.nets.modes import evaluating
from pyro_mvae.numbers import count
from pyro_mvae.theta import Weights, last_layer

SCOPES = ("layer", "global")
LAYERS = (*CONVOLUTIONS, nn.Linear)
"""What has channels; a linear layer's are its features."""
MOST = 0.9
"""The share of a layer's channels that a global ratio may take: the nets stay whole."""
MISSED = 0.05
"""The share of a net's channels by which a global ratio may be missed."""
SEEN = 256
"""How many images gradients are averaged over."""
SHUFFLES = ("pixel_shuffle", "pixel_unshuffle", "channel_shuffle")
"""Functions that make maps of channels."""


def group_norms(group: Any) -> Tensor:
    """Σ_g √n_g ‖w_g‖₂ of what makes a channel: its share of the penalty `PruneGroups`, (15)."""
    norms = []
    for dependency, indices in group:
        layer = dependency.target.module
        if isinstance(layer, LAYERS) and dependency.handler in OUTPUTS:
            groups = layer.weight.detach().transpose(0, channel_axis(layer)).flatten(1)[indices]
            norms.append(groups.shape[1] ** 0.5 * groups.norm(dim=1))
    return torch.stack(norms).sum(0)


OUTPUTS = (tp.prune_conv_out_channels, tp.prune_depthwise_conv_out_channels, tp.prune_linear_out_channels)
IMPORTANCES: dict[str, Callable[[], Any]] = {
    "magnitude": lambda: tp.importance.GroupMagnitudeImportance(p=2),
    "taylor": tp.importance.GroupTaylorImportance,
    "bn_scale": tp.importance.BNScaleImportance,
    "group_l1": lambda: group_norms,
}


@dataclass(frozen=True)
class PruneChannels:
    """Remove the channels that matter least, together with all that depends on them.

    The outputs of each net keep their channels. Train on afterwards: pruning costs likelihood that training gives back. What each
    layer has left, `channels` tells.

    Args:
        ratio: share of channels to remove, from 0 up to 1; or that of single layers, by the names that `channels` gives them:
            layers tied to those lose as many, all others none.
        round_to: what the number of channels kept is a multiple of. It goes before the ratio: of few channels more are kept, or
            fewer, than the ratio says, and one multiple at least; all of a layer that has no more than that.
        importance: "magnitude", the L2 norm over everything a channel touches; "taylor", how much the loss on images changes
            without it, to first order; "bn_scale", the scale of its batch normalisation; "group_l1", see `group_norms`.
        scope: "layer", every layer loses the same share; "global", the channels of each net are ranked together, as many go as
            come nearest to the ratio when each layer is rounded, and a layer loses 90 % at most.

    Raises:
        ValueError: for settings that can't be, a quantised model, an importance that the model can't have, a layer that there is
            not, a layer that can't lose its channels, by name, or a global ratio that is missed by more than 5 % of a net's.

    Example:
        >>> from pyro_mvae.models import MVAE
        >>> small = PruneChannels(ratio=0.5)(MVAE((1, 28, 28)))
        >>> small.passes
        ("PruneChannels(ratio=0.5, round_to=4, importance='magnitude', scope='layer')",)
        >>> [channels(PruneChannels({"decoder.body.0.0": 0.25})(MVAE((1, 28, 28))))[f"decoder.body.{i}.0"] for i in (0, 1)]
        [48, 32]
    """

    ratio: float | Mapping[str, float] = 0.5
    round_to: int = 4
    importance: str = "magnitude"
    scope: str = "layer"

    def __post_init__(self) -> None:
        ratios = self.ratio if isinstance(self.ratio, Mapping) else {"": self.ratio}
        for name, ratio in ratios.items():
            if not 0 <= ratio < 1:
                of = f" of {name!r}" if name else ""
                raise ValueError(f"ratio{of} is {ratio}, expected from 0 up to, but not including, 1")
        if ratios is self.ratio and (not ratios or self.scope == "global"):
            raise ValueError(f"ratio is {ratios}, expected that of one layer or more, and the scope 'layer'")
        if self.scope == "global" and max(ratios.values()) > MOST:
            raise ValueError(f"ratio is {self.ratio}, expected {MOST:g} at most with the scope 'global': nets are to stay whole")
        count(self.round_to, "round_to")
        for name, known in {"importance": tuple(IMPORTANCES), "scope": SCOPES}.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of: {', '.join(known)}")

    def __call__(self, model: Model, images: Tensor | None = None, /) -> Model:
        check_float(model, "pruned")
        model = copied(model, self)
        if self.importance == "taylor":
            differentiate(model, needed(images, self))
        for by, (net, example) in zip(of_parts(self, model), model.deployable().values(), strict=True):
            keep_theta(model, net, prune(net, example, by))
        model.zero_grad(set_to_none=True)
        return model


@dataclass(frozen=True)
class PruneLatents:
    """Remove dimensions of the code that vary little between images, or codes that a VQ-VAE hardly uses.

    The variance over images of the posterior mean, and of a VQ-VAE's code the share of places that it stands at, is what a
    dimension is ranked by.

    Args:
        keep: how many are kept; when None, those that are active: a variance, or a share, above `threshold`, and one at least.
        threshold: see `keep`.

    Raises:
        ValueError: without images, for a quantised model, nets of one's own, or more to keep than there are.

    Source: Burda, Grosse and Salakhutdinov, 2016, for active units.

    Example:
        >>> from pyro_mvae.models import VAE
        >>> images = (torch.rand(8, 1, 8, 8) * 255).byte()
        >>> PruneLatents(keep=3)(VAE((1, 8, 8), 8), images).latent_dim
        3
    """

    keep: int | None = None
    threshold: float = ACTIVE

    def __post_init__(self) -> None:
        if self.keep is not None:
            count(self.keep, "keep")
        if not self.threshold >= 0:
            raise ValueError(f"threshold is {self.threshold}, expected 0 or more")

    def __call__(self, model: Model, images: Tensor | None = None, /) -> Model:
        check_float(model, "pruned")
        model = copied(model, self)
        if len(seen := needed(images, self)) < 2:
            raise ValueError("there is one image, and what varies between images is kept: give 2 or more")
        activity = model.latent_activity(seen)
        left = num_active(activity, self.threshold) if self.keep is None else self.keep
        if left > len(activity):
            raise ValueError(f"keep is {left}, expected {len(activity)} at most, which is what there is")
        model.keep_latents(sorted(activity.topk(left).indices.tolist()))
        return model


def channels(model: VAE) -> dict[str, int]:
    """The number of channels that each convolution, and each linear layer, of a model's nets gives.

    Example:
        >>> from pyro_mvae.models import MVAE
        >>> model = MVAE((1, 28, 28))
        >>> before, after = channels(model), channels(PruneChannels(ratio=0.5)(model))
        >>> before["decoder.body.0.0"], after["decoder.body.0.0"]
        (64, 32)
    """
    return {
        f"{part}.{name}": width(layer) for part, (net, _) in model.deployable().items() for name, layer in layers_of(net).items()
    }


def inner_channels(model: VAE) -> dict[str, int]:
    """`channels`, without the layers that give a net's outputs, which keep theirs."""
    outputs = {f"{part}.{name}" for part, (net, _) in model.deployable().items() for name in output_layers(net)}
    return {name: n for name, n in channels(model).items() if name not in outputs}


def of_parts(by: PruneChannels, model: VAE) -> list[PruneChannels]:
    """How each part of a model is pruned, its layers by their names in it."""
    if not isinstance(by.ratio, Mapping):
        return [by] * len(model.deployable())
    inner = inner_channels(model)
    if unknown := [name for name in by.ratio if name not in inner]:
        raise ValueError(
            f"there is no layer {unknown[0]!r} whose channels can be removed, expected one of: {', '.join(sorted(inner))}"
        )
    ratios = {part: {name: r for name, r in by.ratio.items() if name.startswith(f"{part}.")} for part in model.deployable()}
    return [
        replace(by, ratio={name.removeprefix(f"{part}."): r for name, r in some.items()} or 0.0) for part, some in ratios.items()
    ]


def layers_of(net: nn.Module) -> dict[str, Any]:
    return {name: layer for name, layer in net.named_modules() if isinstance(layer, LAYERS)}


def width(layer: Any) -> int:
    """The channels that a layer gives."""
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def differentiate(model: VAE, images: Tensor) -> None:
    """Give each parameter the gradient of the loss on images, in evaluation mode."""
    with torch.random.fork_rng(devices=[]), evaluating(model):
        torch.manual_seed(0)
        Objective(model)(scaled(spread(images, SEEN).to(next(model.parameters()).device)))["loss"].backward()


def prune(net: nn.Module, example: Tensor, by: PruneChannels) -> dict[str, list[int]]:
    """Prune one net in place and check, layer by layer, that what was asked for was done; the input channels each layer kept."""
    layers, outputs, shapes = layers_of(net), output_layers(net), output_shapes(net, example)
    check_shuffles(net)
    if by.importance == "bn_scale":
        check_normalised(net, outputs)
    with evaluating(net), torch.enable_grad():  # the graph of dependencies is that of gradients
        targets = targets_of(net, example, layers, outputs, by)
        # a hair above the share itself: torch-pruning rounds the number of channels kept down
        shares = {layer: max(1 - (targets[name] + 0.01) / width(layer), 0.0) for name, layer in layers.items()}
        pruner = tp.pruner.BasePruner(
            net,
            torch.cat([example, example]),
            importance=IMPORTANCES[by.importance](),
            pruning_ratio_dict=shares,  # pyright: ignore[reportArgumentType]
            ignored_layers=[layers[name] for name in outputs],
        )
        kept = removed(pruner.step(interactive=True) or (), pruner.DG, layers)
    check_layers({name: width(layer) for name, layer in layers.items()}, targets)
    if output_shapes(net, example) != shapes:
        raise ValueError("the pruned net does not compute any more: its channels are tied to its input's, which can't be pruned")
    return kept


def removed(groups: Iterable[Any], graph: Any, layers: Mapping[str, Any]) -> dict[str, list[int]]:
    """Remove groups of channels, one after another; the input channels that each layer kept."""
    inputs = {
        layer: list(range(layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels)) for layer in layers.values()
    }
    for group in groups:
        for dependency, indices in group:
            layer = dependency.target.module
            if layer in inputs and graph.is_in_channel_pruning_fn(dependency.handler):
                gone = set(indices)
                inputs[layer] = [channel for place, channel in enumerate(inputs[layer]) if place not in gone]
        group.prune()
    return {name: inputs[layer] for name, layer in layers.items()}


def keep_theta(model: VAE, net: nn.Module, kept: Mapping[str, list[int]]) -> None:
    """Let Bayesian weights follow the input channels that their layer kept, where `net` is the decoder."""
    if net is model.decoder and isinstance(model.theta, Weights):
        model.theta.keep_inputs(kept[last_layer(net)[0]])


def num_active(activity: Tensor, threshold: float = ACTIVE) -> int:
    """How many dimensions of the code, or codes, are active; one at least.

    Example:
        >>> num_active(torch.tensor([0.5, 0.0, 2.0]))
        2
    """
    return max(int((activity > threshold).sum()), 1)


def targets_of(
    net: nn.Module, example: Tensor, layers: Mapping[str, Any], outputs: set[str], by: PruneChannels
) -> dict[str, int]:
    """The channels each layer of a net is to keep."""
    widths = {name: width(layer) for name, layer in layers.items()}
    if by.scope == "layer" and not isinstance(by.ratio, Mapping):
        kept = {name: kept_channels(before, ratio=by.ratio, round_to=by.round_to) for name, before in widths.items()}
        return {name: before if name in outputs else kept[name] for name, before in widths.items()}
    groups = tied(net, example, layers, outputs)
    return {**widths, **(named(groups, widths, by) if by.scope == "layer" else ranked(groups, by))}


def tied(net: nn.Module, example: Tensor, layers: Mapping[str, Any], outputs: set[str]) -> list[tuple[Any, set[str]]]:
    """Groups of channels that go together, with the layers that give them."""
    graph = tp.DependencyGraph().build_dependency(net, torch.cat([example, example]))
    names, ignored = {layer: name for name, layer in layers.items()}, [layers[name] for name in outputs]
    return [
        (group, {names[d.target.module] for d, _ in group if d.handler in OUTPUTS and d.target.module in names})
        for group in graph.get_all_groups(ignored_layers=ignored, root_module_types=list(LAYERS))
    ]


def named(groups: Sequence[tuple[Any, set[str]]], widths: Mapping[str, int], by: PruneChannels) -> dict[str, int]:
    """The channels that layers keep whose ratio is given, and those that are tied to them."""
    assert isinstance(by.ratio, Mapping)
    targets: dict[str, int] = {}
    for _, members in groups:
        ratios = {name: by.ratio[name] for name in sorted(members) if name in by.ratio}
        if len(set(ratios.values())) > 1:
            raise ValueError(
                f"the channels of {' and '.join(map(repr, ratios))} go together, expected one ratio for them: {ratios}"
            )
        for ratio in ratios.values():
            targets |= {name: kept_channels(widths[name], ratio=ratio, round_to=by.round_to) for name in members}
    return targets


def ranked(groups: Sequence[tuple[Any, set[str]]], by: PruneChannels) -> dict[str, int]:
    """The channels each layer is to keep where those of all that matter least go; layers tied to each other keep as many."""
    assert not isinstance(by.ratio, Mapping)
    scores = [IMPORTANCES[by.importance]()(group) for group, _ in groups]
    lowest = [some.sort().values[: int(MOST * len(some))] for some in scores]
    limits = torch.cat([torch.tensor([-torch.inf]), *lowest]).unique().tolist()

    def left(limit: float) -> list[int]:
        gone = [int((low <= limit).sum()) / len(some) for some, low in zip(scores, lowest, strict=True)]
        return [kept_channels(len(some), ratio=share, round_to=by.round_to) for some, share in zip(scores, gone, strict=True)]

    total = sum(map(len, scores))
    wanted = (1 - by.ratio) * total
    place = bisect_left(limits, -wanted, key=lambda limit: -sum(left(limit)))  # fewer are left the higher the limit is
    kept = min((left(limit) for limit in limits[max(place - 1, 0) : place + 1]), key=lambda each: abs(sum(each) - wanted))
    if abs(sum(kept) - wanted) > max(MISSED * total, by.round_to / 2):
        raise ValueError(
            f"{total - sum(kept)} of {total} channels can go, where ratio {by.ratio} asks for {by.ratio * total:.0f}: each layer "
            f"keeps a multiple of {by.round_to}, and {1 - MOST:.0%} of its channels at least: choose a smaller round_to or ratio"
        )
    return {name: n for n, (_, members) in zip(kept, groups, strict=True) for name in members}


def check_shuffles(net: nn.Module) -> None:
    """Raise a ValueError for maps that are made of channels: which channels belong together there, nothing keeps track of."""
    found = [
        f"layer {name!r} is a {type(layer).__name__}"
        for name, layer in net.named_modules()
        if isinstance(layer, nn.PixelShuffle | nn.PixelUnshuffle | nn.ChannelShuffle)
    ]
    calls = [node for node in LayerTracer().trace(net).nodes if node.op in ("call_function", "call_method")]
    found += [f"there is a {name}" for node in calls if (name := getattr(node.target, "__name__", str(node.target))) in SHUFFLES]
    if found:
        raise ValueError(f"{found[0]}, which channels can't be pruned around: upsample otherwise")


def check_normalised(net: nn.Module, outputs: set[str]) -> None:
    """Raise a ValueError that names a layer whose channels no batch normalisation scales."""
    modules = dict(net.named_modules())
    for node in call_modules(net):
        name, users = str(node.target), [str(user.target) for user in node.users]
        if not isinstance(modules[name], CONVOLUTIONS) or name in outputs:
            continue
        if not any(isinstance(modules.get(user), nn.BatchNorm2d) for user in users):
            raise ValueError(f"importance is 'bn_scale', and layer {name!r} has no batch normalisation: choose 'magnitude'")


def check_layers(after: Mapping[str, int], targets: Mapping[str, int]) -> None:
    """Raise a ValueError that names the first layer that has not the channels it was to have: none is skipped in silence."""
    for name, left in after.items():
        if left != targets[name]:
            raise ValueError(
                f"layer {name!r} kept {left} channels, {targets[name]} were asked for: "
                "its shape is tied to a part of the net that can't be pruned"
            )


@torch.no_grad()
def output_shapes(net: nn.Module, example: Tensor) -> list[torch.Size] | None:
    """Shapes of a net's outputs in evaluation mode; None when it can't compute."""
    try:
        with evaluating(net):
            outputs = net(example)
    except RuntimeError:
        return None
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
    layers = {node for node in call_modules(net) if isinstance(modules[str(node.target)], LAYERS)}
    return {str(node.target) for node in layers if not feeds(node, layers)}


def feeds(node: fx.Node, layers: set[fx.Node]) -> bool:
    """Whether what `node` computes reaches one of `layers`."""
    return any(user in layers or feeds(user, layers) for user in node.users)
