"""Whole networks in the evaluator, against torch: floats, integers, compressed weights."""

import functools
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pyro_mvae.export._quiet import quiet
from pyro_mvae.export.mil import MilProgram
from tests.export.mil_programs import FLOAT16, FLOAT32, ct, export, run, save, without

LAYERS = {
    "conv": lambda c: (nn.Conv2d(c, 6, 3, padding=1), 6),
    "strided": lambda c: (nn.Conv2d(c, 8, 3, stride=2, padding=1), 8),
    "depthwise": lambda c: (nn.Conv2d(c, c, 3, padding=1, groups=c), c),
    "same": lambda c: (nn.Conv2d(c, 4, (5, 3), dilation=(1, 2), padding="same"), 4),
    "deconv": lambda c: (nn.ConvTranspose2d(c, 4, 4, stride=2, padding=1), 4),
    "deconv, output padding": lambda c: (nn.ConvTranspose2d(c, 4, 3, stride=2, padding=1, output_padding=1), 4),
    "shuffle": lambda c: (nn.Sequential(nn.Conv2d(c, 12, 1), nn.PixelShuffle(2)), 3),
    "batch norm": lambda c: (nn.BatchNorm2d(c), c),
    "group norm": lambda c: (nn.GroupNorm(1, c), c),
    "upsample": lambda c: (nn.Upsample(scale_factor=2), c),
    "bilinear": lambda c: (nn.Upsample(scale_factor=2, mode="bilinear"), c),
    "average": lambda c: (nn.AvgPool2d(2, ceil_mode=True), c),
    "maximum": lambda c: (nn.MaxPool2d(3, stride=1, padding=1), c),
    **{
        name: (lambda c, make=make: (make(), c))
        for name, make in {
            "relu": nn.ReLU,
            "relu6": nn.ReLU6,
            "leaky relu": nn.LeakyReLU,
            "elu": nn.ELU,
            "silu": nn.SiLU,
            "gelu": nn.GELU,
            "hard swish": nn.Hardswish,
            "softplus": nn.Softplus,
            "sigmoid": nn.Sigmoid,
            "tanh": nn.Tanh,
        }.items()
    },
}


def network(names):
    layers, channels = [], 2
    for name in names:
        layer, channels = LAYERS[name](channels)
        layers.append(layer)
    net = nn.Sequential(*layers, nn.Conv2d(channels, 2, 1), nn.Flatten(), nn.LazyLinear(5))
    net(torch.zeros(2, 2, 8, 8))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return net.eval()


SHUFFLED = random.Random(0).sample(sorted(LAYERS), len(LAYERS))
NETWORKS = [SHUFFLED[i : i + 7] for i in range(0, len(SHUFFLED), 7)]


@pytest.mark.parametrize("number", range(len(NETWORKS)))
def test_random_networks_equal_torch(number, tmp_path):
    """Every layer is in one of them."""
    names, target = NETWORKS[number], 16 + number % 3
    torch.manual_seed(0)
    net, x = network(names), torch.randn(2, 2, 8, 8)
    program, target = export(net, x), ct.target[f"iOS{target}"]
    expected = net(x).detach().numpy()
    exact = run(save(program, tmp_path / "f32.mlpackage", target=target), x)
    np.testing.assert_allclose(exact, expected, rtol=1e-5, atol=1e-5)
    rounded = run(save(program, tmp_path / "f16.mlpackage", target=target, precision=FLOAT16), x)
    np.testing.assert_allclose(rounded, expected, rtol=1e-2, atol=1e-2)
    assert (rounded != exact).any()


class Quantised(nn.Module):
    """A decoder in int8 weights, per channel, and int8 activations, as the export of a quantised network writes it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("up", torch.randint(-127, 128, (4, 3, 4, 4), dtype=torch.int8))
        self.register_buffer("out", torch.randint(-127, 128, (2, 3, 3, 3), dtype=torch.int8))
        self.register_buffer("up_scale", torch.rand(3) * 0.01 + 0.001)
        self.register_buffer("out_scale", torch.rand(2) * 0.01 + 0.001)

    def forward(self, z):
        q = torch.ops.quantized_decomposed
        up = q.dequantize_per_channel(self.up, self.up_scale, torch.zeros(3, dtype=torch.int64), 1, -127, 127, torch.int8)
        out = q.dequantize_per_channel(self.out, self.out_scale, torch.zeros(2, dtype=torch.int64), 0, -127, 127, torch.int8)
        h = torch.relu(nn.functional.conv_transpose2d(rounded(z, 0.02, 5).reshape(-1, 4, 2, 2), up, stride=2, padding=1))
        return torch.sigmoid(nn.functional.conv2d(rounded(h, 0.03, -128), out, padding=1))


def rounded(x, scale, zero_point):
    q, how = torch.ops.quantized_decomposed, (scale, zero_point, -128, 127, torch.int8)
    return q.dequantize_per_tensor(q.quantize_per_tensor(x, *how), *how)


@pytest.mark.parametrize("target", ["iOS17", "iOS18"])
def test_integer_weights_and_activations_equal_torch(tmp_path, target):
    torch.manual_seed(0)
    net, z = Quantised(), torch.randn(3, 16)
    passes = without("common::int_op_canonicalization")
    path = save(export(net, z), tmp_path / "w8a8.mlpackage", passes=passes, target=ct.target[target])
    loaded = MilProgram.load(path)
    kinds = [step.kind for step in loaded._steps]
    assert kinds.count("quantize") == kinds.count("dequantize") == 2
    assert {"constexpr_affine_dequantize", "constexpr_blockwise_shift_scale"} & operations(path)
    np.testing.assert_allclose(run(path, z), net(z).numpy(), rtol=1e-5, atol=1e-5)


def operations(path):
    (function,) = ct.utils.load_spec(str(path)).mlProgram.functions.values()
    (block,) = function.block_specializations.values()
    return {operation.type for operation in block.operations}


@functools.cache
def converted(target, precision):
    """A convolution, and the package (not saved yet) that it converts to."""
    torch.manual_seed(0)
    net = nn.Conv2d(4, 8, 4)
    with quiet():
        return net, ct.convert(
            export(net, torch.zeros(1, 4, 6, 6)),
            source="pytorch",
            minimum_deployment_target=ct.target[target],
            compute_precision=precision,
            skip_model_load=True,
        )


def compression(function, config, *, after=None, **options):
    """A function from a package to one with its weights compressed, perhaps `after` another compression."""

    def compress(model):
        optimize, joint = ct.optimize.coreml, {} if after is None else {"joint_compression": True}
        with quiet():
            how = optimize.OptimizationConfig(getattr(optimize, config)(weight_threshold=0, **options))
            return getattr(optimize, function)(after(model) if after else model, how, **joint)

    return compress


QUANTISE = ("linear_quantize_weights", "OpLinearQuantizerConfig")
PALETTISE = ("palettize_weights", "OpPalettizerConfig")
PER_TENSOR = {"mode": "linear_symmetric", "granularity": "per_tensor"}
IN_BLOCKS = {"mode": "linear_symmetric", "granularity": "per_block", "block_size": 4}
int8 = compression(*QUANTISE, mode="linear_symmetric")
int4_in_blocks = compression(*QUANTISE, dtype="int4", **IN_BLOCKS)
palette = compression(*PALETTISE, mode="uniform", nbits=4)
pruned = compression("prune_weights", "OpMagnitudePrunerConfig", target_sparsity=0.5)
int8_palette = compression(*QUANTISE, after=palette, **PER_TENSOR)
pruned_int8 = compression(*QUANTISE, after=pruned, **PER_TENSOR)
pruned_palette = compression(*PALETTISE, after=pruned, mode="uniform", nbits=4)


# How many levels lie between a weight's extremes; a pruned weight may be off by the median.
COMPRESSIONS = [
    ("iOS16", int8, 254, {"constexpr_affine_dequantize"}),
    ("iOS16", palette, 15, {"constexpr_lut_to_dense"}),
    ("iOS16", pruned, None, {"constexpr_sparse_to_dense"}),
    ("iOS18", int8, 254, {"constexpr_blockwise_shift_scale"}),
    ("iOS18", palette, 15, {"constexpr_lut_to_dense"}),
    ("iOS18", int4_in_blocks, 14, {"constexpr_blockwise_shift_scale"}),
    ("iOS18", int8_palette, 14, {"constexpr_blockwise_shift_scale", "constexpr_lut_to_dense"}),
    ("iOS18", pruned_int8, None, {"constexpr_sparse_blockwise_shift_scale", "constexpr_sparse_to_dense"}),
    ("iOS18", pruned_palette, None, {"constexpr_lut_to_sparse", "constexpr_sparse_to_dense"}),
]


@pytest.mark.parametrize(("target", "compress", "levels", "kinds"), COMPRESSIONS)
def test_compressed_weights_are_as_near_as_their_levels(tmp_path, target, compress, levels, kinds):
    """A weight is off by half a step at most, so an output by half a step times the sum of its inputs."""
    net, model = converted(target, FLOAT32)
    compress(model).save(str(tmp_path / "small.mlpackage"))
    assert kinds <= operations(tmp_path / "small.mlpackage")
    x = torch.randn(1, 4, 6, 6)
    error = np.abs(run(tmp_path / "small.mlpackage", x) - net(x).detach().numpy())
    weight = net.weight.detach().abs()
    off = weight.max() / levels if levels else weight.median() + weight.max() / 14
    assert (error <= off.item() * F.conv2d(x.abs(), torch.ones(1, 4, 4, 4)).numpy() + 1e-5).all()
    assert error.max() > 1e-4


def test_compressed_weights_in_float16(tmp_path):
    net, model = converted("iOS17", FLOAT16)
    int8(model).save(str(tmp_path / "small.mlpackage"))
    x = torch.randn(1, 4, 6, 6)
    error = np.abs(run(tmp_path / "small.mlpackage", x) - net(x).detach().numpy())
    assert 1e-4 < error.max() < 2e-2
