"""Each operation of the evaluator, against numpy, and its types."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from pyro_mvae.export._quiet import import_quietly, quiet
from pyro_mvae.export.mil import MilProgram
from pyro_mvae.export.mil_ops import OPERATIONS
from tests.export.definitions import conv, conv_transpose
from tests.export.mil_programs import FLOAT16, NO_PASSES, ct, mb, mil, run, save


@dataclass
class Values:
    """The operands of every case, as numpy arrays or as variables of a MIL program."""

    x: Any  # float32 (2, 4, 6, 6)
    y: Any
    p: Any  # like x, from 0.1 to 0.9
    i: Any  # int32 (2, 3, 4), from -5 to 5
    j: Any  # like i, from 1 to 4


def operands():
    rng = np.random.default_rng(0)
    x, y = (2 * rng.standard_normal((2, 2, 4, 6, 6))).astype(np.float32)
    x.flat[:4] = [0.5, 1.5, -2.5, 0.0]
    y.flat[:4] = [0.5, 1.0, -2.0, 0.0]
    p = rng.uniform(0.1, 0.9, x.shape).astype(np.float32)
    i, j = rng.integers(-5, 6, (2, 3, 4)), rng.integers(1, 5, (2, 3, 4))
    return Values(x, y, p, i.astype(np.int32), j.astype(np.int32))


RNG = np.random.default_rng(1)
W = RNG.standard_normal((6, 4, 3, 2)).astype(np.float32)
W_GROUPED = RNG.standard_normal((6, 2, 3, 2)).astype(np.float32)
W_UP = RNG.standard_normal((4, 3, 3, 2)).astype(np.float32)
BIAS = RNG.standard_normal(6).astype(np.float32)
C = RNG.uniform(0.5, 2, (4, 4)).astype(np.float32)
PADS = [1, 0, 2, 1]
Q = {"scale": np.float32(0.05), "zero_point": np.int8(-3)}
QC = {"scale": np.float32([0.02, 0.05, 0.1, 0.5]), "zero_point": np.uint8([0, 3, 128, 255]), "axis": 1}


def pool(x, function, *, kernel, strides, pads=((0, 0), (0, 0)), ceil=False):
    """`function` over the part of each window that lies on `x` (its pads NaN, its overhang cut)."""
    x = np.pad(x, ((0, 0), (0, 0), *pads), constant_values=np.nan)
    up = math.ceil if ceil else math.floor
    sizes = [up((n - k) / s) + 1 for n, k, s in zip(x.shape[2:], kernel, strides, strict=True)]
    out = np.empty((*x.shape[:2], *sizes))
    for r, c in np.ndindex(*sizes):
        top, left = r * strides[0], c * strides[1]
        out[:, :, r, c] = function(x[:, :, top : top + kernel[0], left : left + kernel[1]], (2, 3))
    return out


def standardise(x, axes, epsilon):
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + epsilon)


def channels(values):
    return np.asarray(values)[:, None, None]


def shuffle(x, f, order):
    n, c, h, w = x.shape
    split = (n, f, f, c // f**2, h, w) if order == "blocks first" else (n, c // f**2, f, f, h, w)
    perm = (0, 3, 4, 1, 5, 2) if order == "blocks first" else (0, 1, 4, 2, 5, 3)
    return x.reshape(split).transpose(perm).reshape(n, c // f**2, h * f, w * f)


def unshuffle(x, f, order):
    n, c, h, w = x.shape
    perm = (0, 3, 5, 1, 2, 4) if order == "blocks first" else (0, 1, 3, 5, 2, 4)
    return x.reshape(n, c, h // f, f, w // f, f).transpose(perm).reshape(n, c * f**2, h // f, w // f)


def bilinear(x, grid):
    """Both spatial dimensions sampled at `grid`."""
    for axis in (2, 3):
        x = np.apply_along_axis(lambda row: np.interp(grid, np.arange(len(row)), row), axis, x)
    return x


def of_x(*names):
    return {name: (lambda v, name=name: getattr(mb, name)(x=v.x)) for name in names}


def of_p(*names):
    return {name: (lambda v, name=name: getattr(mb, name)(x=v.p)) for name in names}


def of_both(*names, **how):
    return {name: (lambda v, name=name: getattr(mb, name)(x=v.x, y=v.y)) for name in names}


def of_ints(*names):
    return {name + "/int": (lambda v, name=name: getattr(mb, name)(x=v.i, y=v.j)) for name in names}


def reductions(*names, of="x"):
    def case(name, **options):
        return lambda v: getattr(mb, name)(x=getattr(v, of), **options)

    kept = {name: case(name, axes=[1, -1], keep_dims=True) for name in names}
    return {**kept, **{name + "/dropped": case(name, axes=[-1, 0], keep_dims=False) for name in names}}


def logical(name):
    return lambda v: getattr(mb, name)(x=mb.greater(x=v.x, y=0.0), y=mb.greater(x=v.y, y=0.0))


# A case is built twice: on variables, to be evaluated; on constants, whose value coremltools itself infers in numpy.
INFERRED: dict[str, Callable[[Values], Any]] = {
    **of_x("abs", "atan", "ceil", "cos", "cosh", "erf", "exp", "exp2", "floor", "gelu", "identity", "relu"),
    **of_x("relu6", "round", "sigmoid", "sign", "sin", "sinh", "softplus", "softsign", "square", "tanh"),
    **of_p("acos", "asin", "atanh", "inverse", "log", "rsqrt", "sqrt", "tan"),
    **of_both("add", "sub", "mul", "maximum", "minimum", "equal", "not_equal", "greater", "greater_equal"),
    **of_both("less", "less_equal", "floor_div", "mod", "real_div"),
    **of_ints("add", "sub", "mul", "maximum", "minimum", "equal", "less", "floor_div", "mod"),
    **reductions("reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod", "reduce_l1_norm"),
    **reductions("reduce_l2_norm", "reduce_sum_square", "reduce_log_sum_exp"),
    **reductions("reduce_log_sum", of="p"),
    "logical_and": logical("logical_and"),
    "logical_or": logical("logical_or"),
    "logical_xor": logical("logical_xor"),
    "logical_not": lambda v: mb.logical_not(x=mb.greater(x=v.x, y=0.0)),
    "add/broadcast": lambda v: mb.add(x=v.x, y=np.float32([1, 2, 3, 4, 5, 6])),
    "pow": lambda v: mb.pow(x=v.p, y=v.y),
    "clamped_relu": lambda v: mb.clamped_relu(x=v.x, alpha=0.2, beta=1.0),
    "clip": lambda v: mb.clip(x=v.x, alpha=-0.5, beta=1.5),
    "elu": lambda v: mb.elu(x=v.x, alpha=0.7),
    "gelu/tanh": lambda v: mb.gelu(x=v.x, mode="TANH_APPROXIMATION"),
    "gelu/sigmoid": lambda v: mb.gelu(x=v.x, mode="SIGMOID_APPROXIMATION"),
    "leaky_relu": lambda v: mb.leaky_relu(x=v.x, alpha=0.1),
    "linear_activation": lambda v: mb.linear_activation(x=v.x, alpha=3.0, beta=-1.0),
    "prelu": lambda v: mb.prelu(x=v.x, alpha=np.float32([0.1, 0.2, 0.3, 0.4])),
    "scaled_tanh": lambda v: mb.scaled_tanh(x=v.x, alpha=1.7, beta=0.6),
    "sigmoid_hard": lambda v: mb.sigmoid_hard(x=v.x, alpha=0.2, beta=0.5),
    "softmax": lambda v: mb.softmax(x=v.x, axis=1),
    "threshold": lambda v: mb.threshold(x=v.x, alpha=0.3),
    "thresholded_relu": lambda v: mb.thresholded_relu(x=v.x, alpha=0.3),
    "select": lambda v: mb.select(cond=mb.greater(x=v.x, y=v.y), a=v.x, b=v.p),
    "cast/int32": lambda v: mb.cast(x=v.x, dtype="int32"),
    "cast/int8": lambda v: mb.cast(x=v.x, dtype="int8"),
    "cast/uint8": lambda v: mb.cast(x=mb.abs(x=v.x), dtype="uint8"),
    "cast/int16": lambda v: mb.cast(x=v.x, dtype="int16"),
    "cast/uint16": lambda v: mb.cast(x=v.j, dtype="uint16"),
    "cast/bool": lambda v: mb.cast(x=v.i, dtype="bool"),
    "cast/fp16": lambda v: mb.cast(x=v.x, dtype="fp16"),
    "reshape": lambda v: mb.reshape(x=v.x, shape=[0, 2, -1, 3]),
    "transpose": lambda v: mb.transpose(x=v.x, perm=[0, -1, 1, 2]),
    "expand_dims": lambda v: mb.expand_dims(x=v.i, axes=[-1, 1]),
    "squeeze": lambda v: mb.squeeze(x=mb.expand_dims(x=v.i, axes=[0, 3]), axes=[-2, 0]),
    "squeeze/all": lambda v: mb.squeeze(x=mb.expand_dims(x=v.i, axes=[0, 3])),
    "concat": lambda v: mb.concat(values=[v.x, v.y], axis=-1),
    "split": lambda v: mb.split(x=v.x, split_sizes=[1, 3], axis=1)[1],
    "split/even": lambda v: mb.split(x=v.x, num_splits=3, axis=-1)[1],
    "stack": lambda v: mb.stack(values=[v.i, v.j], axis=-1),
    "slice_by_index": lambda v: mb.slice_by_index(
        x=v.x, begin=[0, -3, 5, 1], end=[2, 9, -7, 3], stride=[1, 2, -2, 1], begin_mask=[True, False, False, False]
    ),
    "slice_by_index/squeeze": lambda v: mb.slice_by_index(
        x=v.x, begin=[1, 0, -2, 0], end=[0, 3, 0, 0], squeeze_mask=[True, False, True, False], end_mask=[False] * 3 + [True]
    ),
    "slice_by_size": lambda v: mb.slice_by_size(x=v.x, begin=[0, 1, -3, 0], size=[2, -1, 2, 6]),
    "pad": lambda v: mb.pad(x=v.x, pad=PADS, mode="constant", constant_val=1.5),
    "pad/reflect": lambda v: mb.pad(x=v.x, pad=PADS, mode="reflect"),
    "pad/replicate": lambda v: mb.pad(x=v.x, pad=[1, 1, 0, 2, 3, 0], mode="replicate"),
    "tile": lambda v: mb.tile(x=v.i, reps=[1, 2, 3]),
    "gather": lambda v: mb.gather(x=v.x, indices=np.int32([[3, 0], [1, 1]]), axis=1),
    "gather/one": lambda v: mb.gather(x=v.x, indices=np.int32(2), axis=-1),
    "gather/batch": lambda v: mb.gather(x=v.i, indices=np.int32([[2, 0], [1, 1]]), axis=1, batch_dims=1),
    "gather_along_axis": lambda v: mb.gather_along_axis(x=v.i, indices=np.int32([[[0, 2, 1, 1]]] * 2), axis=1),
    "fill_like": lambda v: mb.fill_like(ref_tensor=v.i, value=2.5),
    "reverse": lambda v: mb.reverse(x=v.x, axes=[1, -1]),
    "flatten2d": lambda v: mb.flatten2d(x=v.x, axis=2),
    "linear": lambda v: mb.linear(x=v.x, weight=W[:3, 0].reshape(3, 6), bias=BIAS[:3]),
    "matmul": lambda v: mb.matmul(x=v.x, y=v.y),
    "matmul/transposed": lambda v: mb.matmul(
        x=mb.slice_by_size(x=v.x, begin=[0] * 4, size=[2, 4, 3, 6]), y=v.y, transpose_x=False, transpose_y=True
    ),
    "matmul/transposed x": lambda v: mb.matmul(x=v.x, y=v.y, transpose_x=True, transpose_y=False),
    "reduce_argmax": lambda v: mb.reduce_argmax(x=v.x, axis=1, keep_dims=True),
    "reduce_argmin": lambda v: mb.reduce_argmin(x=v.x, axis=-1, keep_dims=False),
    "cumsum": lambda v: mb.cumsum(x=v.x, axis=1),
    "layer_norm": lambda v: mb.layer_norm(x=v.x, axes=[1, 3], gamma=W[:4, 0, 0, :1] * BIAS, beta=W[:4, 0, 1, :1] + BIAS),
    "l2_norm": lambda v: mb.l2_norm(x=v.x, epsilon=1e-2),
    "quantize": lambda v: mb.quantize(input=v.x, output_dtype="int8", **Q),
    "quantize/tie": lambda v: mb.quantize(input=v.x, output_dtype="int8", scale=np.float32(1)),
    "quantize/channels": lambda v: mb.quantize(input=v.x, output_dtype="uint8", **QC),
}

# coremltools infers no value for these.
DEFINED: dict[str, tuple[Callable[[Values], Any], Callable[[Values], np.ndarray]]] = {
    "silu": (lambda v: mb.silu(x=v.x), lambda v: v.x / (1 + np.exp(-v.x))),
    "cumsum/reverse": (
        lambda v: mb.cumsum(x=v.i, axis=1, exclusive=True, reverse=True),
        lambda v: np.stack([v.i[:, 1] + v.i[:, 2], v.i[:, 2], 0 * v.i[:, 2]], 1),
    ),
    "concat/interleave": (  # the inferred value forgets to interleave
        lambda v: mb.concat(values=[v.i, v.j], axis=-2, interleave=True),
        lambda v: np.stack([v.i, v.j], 2).reshape(2, 6, 4),
    ),
    "one_hot": (
        lambda v: mb.one_hot(indices=v.j, one_hot_vector_size=5, axis=1, on_value=7, off_value=-1),
        lambda v: np.where(np.eye(5)[v.j] == 1, 7, -1).transpose(0, 3, 1, 2),
    ),
    "shape": (lambda v: mb.shape(x=v.x), lambda v: np.array([2, 4, 6, 6])),
    "fill": (lambda v: mb.fill(shape=mb.shape(x=v.i), value=2.5), lambda v: np.full((2, 3, 4), 2.5)),
    "range_1d": (
        lambda v: mb.range_1d(start=2, end=mb.reduce_max(x=v.j, axes=[0, 1, 2], keep_dims=False), step=1),
        lambda v: np.arange(2, v.j.max()),
    ),
    "reshape/computed": (
        lambda v: mb.reshape(x=v.x, shape=mb.concat(values=[mb.gather(x=mb.shape(x=v.i), indices=2, axis=0), -1], axis=0)),
        lambda v: v.x.reshape(4, -1),
    ),
    "pixel_shuffle": (lambda v: mb.pixel_shuffle(x=v.x, upscale_factor=2), lambda v: shuffle(v.x, 2, "channels first")),
    "pixel_unshuffle": (
        lambda v: mb.pixel_unshuffle(x=v.x, downscale_factor=np.uint32(3)),
        lambda v: unshuffle(v.x, 3, "channels first"),
    ),
    "depth_to_space": (lambda v: mb.depth_to_space(x=v.x, block_size=2), lambda v: shuffle(v.x, 2, "blocks first")),
    "space_to_depth": (lambda v: mb.space_to_depth(x=v.x, block_size=3), lambda v: unshuffle(v.x, 3, "blocks first")),
    "conv": (
        lambda v: mb.conv(x=v.x, weight=W, bias=BIAS, pad_type="custom", pad=PADS, strides=[2, 1]),
        lambda v: conv(v.x, W, bias=BIAS, pads=((1, 0), (2, 1)), strides=(2, 1)),
    ),
    "conv/valid": (
        lambda v: mb.conv(x=v.x, weight=W_GROUPED, pad_type="valid", dilations=[1, 3], groups=2),
        lambda v: conv(v.x, W_GROUPED, dilations=(1, 3), groups=2),
    ),
    "conv/same": (  # an odd pad goes to the end
        lambda v: mb.conv(x=v.x, weight=W, pad_type="same", strides=[2, 1]),
        lambda v: conv(v.x, W, pads=((0, 1), (0, 1)), strides=(2, 1)),
    ),
    "conv/same_lower": (
        lambda v: mb.conv(x=v.x, weight=W, pad_type="same_lower", strides=[2, 1]),
        lambda v: conv(v.x, W, pads=((1, 0), (1, 0)), strides=(2, 1)),
    ),
    "conv/1d": (
        lambda v: mb.conv(x=mb.reshape(x=v.x, shape=[2, 4, 36]), weight=W[:, :, :, 0], pad_type="valid", strides=[2]),
        lambda v: conv(v.x.reshape(2, 4, 36, 1), W[:, :, :, :1], strides=(2, 1))[..., 0],
    ),
    "conv/depthwise": (
        lambda v: mb.conv(x=v.x, weight=W[:4, :1], pad_type="valid", groups=4),
        lambda v: conv(v.x, W[:4, :1], groups=4),
    ),
    "conv_transpose": (
        lambda v: mb.conv_transpose(x=v.x, weight=W_UP, strides=[2, 3], pad_type="custom", pad=PADS, bias=BIAS[:3]),
        lambda v: conv_transpose(v.x, W_UP, strides=(2, 3), start=(1, 2), size=(12, 14)) + channels(BIAS[:3]),
    ),
    "conv_transpose/valid": (
        lambda v: mb.conv_transpose(x=v.x, weight=W_UP, pad_type="valid", dilations=[2, 1], groups=2),
        lambda v: conv_transpose(v.x, W_UP, dilations=(2, 1), groups=2),
    ),
    "conv_transpose/same": (
        lambda v: mb.conv_transpose(x=v.x, weight=W_UP, pad_type="same", strides=[1, 3]),
        lambda v: conv_transpose(v.x, W_UP, strides=(1, 3), start=(1, 0), size=(6, 18)),
    ),
    "conv_transpose/output_shape": (  # as torch's output_padding: beyond the stamps there is only the bias
        lambda v: mb.conv_transpose(
            x=v.x, weight=W_UP, bias=BIAS[:3], pad_type="custom", pad=PADS, strides=[2, 3], output_shape=[2, 3, 13, 17]
        ),
        lambda v: conv_transpose(v.x, W_UP, strides=(2, 3), start=(1, 2), size=(13, 17)) + channels(BIAS[:3]),
    ),
    "crop": (
        lambda v: mb.crop(x=v.x, crop_height=[1, 0], crop_width=[2, 3]),
        lambda v: v.x[:, :, 1:, 2:3],
    ),
    "einsum": (
        lambda v: mb.einsum(values=(v.x, mb.transpose(x=v.y, perm=[0, 3, 2, 1])), equation="nchw,nwhr->nchr"),
        lambda v: np.einsum("nchw,nrhw->nchr", v.x, v.y),
    ),
    "batch_norm": (
        lambda v: mb.batch_norm(x=v.x, mean=C[0], variance=C[1], gamma=C[2], beta=C[3], epsilon=1e-2),
        lambda v: (v.x - channels(C[0])) / np.sqrt(channels(C[1]) + 1e-2) * channels(C[2]) + channels(C[3]),
    ),
    "instance_norm": (
        lambda v: mb.instance_norm(x=v.x, gamma=C[2], beta=C[3], epsilon=1e-2),
        lambda v: standardise(v.x, (2, 3), 1e-2) * channels(C[2]) + channels(C[3]),
    ),
    "max_pool": (
        lambda v: mb.max_pool(x=v.x, kernel_sizes=[3, 2], strides=[2, 1], pad_type="custom", pad=[1, 0, 1, 1]),
        lambda v: pool(v.x, np.nanmax, kernel=(3, 2), strides=(2, 1), pads=((1, 0), (1, 1))),
    ),
    "max_pool/same": (
        lambda v: mb.max_pool(x=v.x, kernel_sizes=[2, 3], strides=[1, 2], pad_type="same"),
        lambda v: pool(v.x, np.nanmax, kernel=(2, 3), strides=(1, 2), pads=((0, 1), (0, 1))),
    ),
    "max_pool/ceil": (
        lambda v: mb.max_pool(x=v.x, kernel_sizes=[3, 3], strides=[2, 2], pad_type="valid", ceil_mode=True),
        lambda v: pool(v.x, np.nanmax, kernel=(3, 3), strides=(2, 2), ceil=True),
    ),
    "avg_pool": (
        lambda v: mb.avg_pool(x=v.x, kernel_sizes=[3, 2], strides=[2, 1], pad_type="custom", pad=[1, 0, 1, 1]),
        lambda v: pool(v.x, np.nansum, kernel=(3, 2), strides=(2, 1), pads=((1, 0), (1, 1))) / 6,
    ),
    "avg_pool/exclude": (
        lambda v: mb.avg_pool(
            x=v.x,
            kernel_sizes=[3, 3],
            strides=[2, 2],
            pad_type="custom",
            pad=[1, 1, 1, 1],
            exclude_padding_from_average=True,
        ),
        lambda v: pool(v.x, np.nanmean, kernel=(3, 3), strides=(2, 2), pads=((1, 1), (1, 1))),
    ),
    "avg_pool/ceil": (
        lambda v: mb.avg_pool(x=v.x, kernel_sizes=[3, 3], strides=[2, 2], pad_type="valid", ceil_mode=True),
        lambda v: pool(v.x, np.nanmean, kernel=(3, 3), strides=(2, 2), ceil=True),
    ),
    "avg_pool/ceil, padded": (  # a third window would start beyond the pad: it is none
        lambda v: mb.avg_pool(x=v.x, kernel_sizes=[2, 2], strides=[5, 5], pad_type="custom", pad=[1] * 4, ceil_mode=True),
        lambda v: pool(v.x, np.nansum, kernel=(2, 2), strides=(5, 5), pads=((1, 1), (1, 1))) / 4,
    ),
    "upsample_nearest_neighbor": (
        lambda v: mb.upsample_nearest_neighbor(x=v.x, scale_factor_height=2, scale_factor_width=3),
        lambda v: v.x.repeat(2, 2).repeat(3, 3),
    ),
    "resize_nearest_neighbor": (
        lambda v: mb.resize_nearest_neighbor(x=v.x, target_size_height=9, target_size_width=4),
        lambda v: v.x[:, :, [0, 0, 1, 2, 2, 3, 4, 4, 5]][..., [0, 1, 3, 4]],
    ),
    "upsample_bilinear": (
        lambda v: mb.upsample_bilinear(x=v.x, scale_factor_height=2, scale_factor_width=2, align_corners=True),
        lambda v: bilinear(v.x, np.linspace(0, 5, 12)),
    ),
    "upsample_bilinear/centres": (
        lambda v: mb.upsample_bilinear(x=v.x, scale_factor_height=2, scale_factor_width=2, align_corners=False),
        lambda v: bilinear(v.x, np.arange(12) / 2 - 0.25),
    ),
    "resize_bilinear": (
        lambda v: mb.resize_bilinear(x=v.x, target_size_height=9, target_size_width=9),
        lambda v: bilinear(v.x, np.arange(9) * 6 / 9),
    ),
    "resize_bilinear/offset": (
        lambda v: mb.resize_bilinear(x=v.x, target_size_height=10, target_size_width=10, sampling_mode="OFFSET_CORNERS"),
        lambda v: bilinear(v.x, 0.25 + np.arange(10) / 2),
    ),
    "dequantize": (
        lambda v: mb.dequantize(input=mb.cast(x=v.x, dtype="int8"), **Q),
        lambda v: (np.trunc(v.x) + 3) * 0.05,
    ),
    "dequantize/channels": (
        lambda v: mb.dequantize(input=mb.cast(x=mb.abs(x=v.x), dtype="uint8"), **QC),
        lambda v: (np.trunc(abs(v.x)) - channels(QC["zero_point"].astype(float))) * channels(QC["scale"]),
    ),
}

ELSEWHERE = {"scaled_dot_product_attention"}  # iOS18
CASES = [*INFERRED, *DEFINED]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Case → (evaluated, expected), all cases in one package."""
    numbers, expected = operands(), {}

    def build(x, y, p, i, j):
        live, outputs = Values(x, y, p, i, j), []
        for n, case in enumerate(CASES):
            if case in INFERRED:
                # a copy each: coremltools infers thresholded_relu in place
                constants = Values(**{name: mb.const(val=array.copy()) for name, array in vars(numbers).items()})
                expected[case] = INFERRED[case](constants).val
            else:
                expected[case] = DEFINED[case][1](numbers)
            var = (INFERRED.get(case) or DEFINED[case][0])(live)
            outputs.append(mb.cast(x=var, dtype="fp32", name=f"case_{n}"))
        return tuple(outputs)

    kinds = import_quietly("coremltools.converters.mil.mil.types")
    specs = [
        mb.TensorSpec(array.shape, dtype=kinds.fp32 if array.dtype == np.float32 else kinds.int32)
        for array in vars(numbers).values()
    ]
    with quiet(), np.errstate(all="ignore"):
        program = mb.program(input_specs=specs, opset_version=ct.target.iOS17)(build)
        path = save(program, tmp_path_factory.mktemp("mil") / "cases.mlpackage", passes=ct.PassPipeline(NO_PASSES, "x"))
    loaded = MilProgram.load(path)
    result = loaded(vars(numbers))
    kinds_run = {step.kind for step in loaded._steps}
    return kinds_run, {case: (result[f"case_{n}"], expected[case]) for n, case in enumerate(CASES)}


@pytest.mark.parametrize("case", CASES)
def test_operation_equals_numpy(evaluated, case):
    kinds, values = evaluated
    value, expected = values[case]
    assert expected is not None
    assert case.split("/")[0] in kinds
    np.testing.assert_allclose(value, np.asarray(expected, np.float32), rtol=2e-5, atol=2e-5)


def test_every_operation_has_a_case():
    assert {case.split("/")[0] for case in CASES} | ELSEWHERE == set(OPERATIONS)


def test_attention_equals_numpy(tmp_path):
    def build(x, y):
        return mb.scaled_dot_product_attention(query=x, key=y, value=mb.mul(x=y, y=2.0))

    path = save(
        mil([(1, 2, 3, 4), (1, 2, 5, 4)], build, target=ct.target.iOS18), tmp_path / "a.mlpackage", target=ct.target.iOS18
    )
    x, y = RNG.standard_normal((1, 2, 3, 4)), RNG.standard_normal((1, 2, 5, 4))
    weights = np.exp(x @ y.swapaxes(-1, -2) / 2)
    expected = weights / weights.sum(-1, keepdims=True) @ (2 * y)
    np.testing.assert_allclose(run(path, x, y), expected, rtol=1e-5, atol=1e-5)


def test_float16_rounds_after_each_operation(tmp_path):
    half = import_quietly("coremltools.converters.mil.mil.types").fp16

    @mb.program(input_specs=[mb.TensorSpec((1, 500), dtype=half)], opset_version=ct.target.iOS17)
    def program(x):
        return mb.mul(x=mb.add(x=mb.mul(x=x, y=np.float16(1.1)), y=np.float16(0.3)), y=x)

    x = np.linspace(-3, 300, 500, dtype=np.float16)[None]
    value = run(save(program, tmp_path / "half.mlpackage"), x)
    with np.errstate(over="ignore"):
        expected = (x * np.float16(1.1) + np.float16(0.3)) * x
    assert value.dtype == np.float16
    assert np.isinf(value).any()
    np.testing.assert_array_equal(value, expected)


def test_float16_intermediate_overflows_although_the_output_would_not(tmp_path):
    program = mil([(1, 2)], lambda x: mb.mul(x=mb.exp(x=x), y=np.float32(1e-3)))
    x = np.array([[1.0, 12.0]], np.float32)
    wide = run(save(copy.deepcopy(program), tmp_path / "wide.mlpackage"), x)
    narrow = run(save(program, tmp_path / "narrow.mlpackage", precision=FLOAT16), x)
    np.testing.assert_allclose(wide, np.exp(x) * 1e-3, rtol=1e-5)
    np.testing.assert_allclose(narrow, [[np.exp(1.0) * 1e-3, np.inf]], rtol=1e-3)
