"""What each operation of Core ML's model intermediate language (MIL) computes, in torch.

A function takes its operation's inputs by their MIL names. Numbers arrive as tensors, constants included (a stride is
an int32 tensor); words as `str`; an optional input that is absent is left out. Float16 tensors arrive widened to
float32, and the caller casts every result to the type that the program declares, so no function here looks at types.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Operation = Callable[..., "Tensor | Sequence[Tensor]"]


# Structure ------------------------------------------------------------------------------------------------------------


def _reshape(*, x: Tensor, shape: Tensor) -> Tensor:
    return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(shape.tolist())])


def _transpose(*, x: Tensor, perm: Tensor) -> Tensor:
    return x.permute(perm.tolist())


def _expand_dims(*, x: Tensor, axes: Tensor) -> Tensor:
    rank = x.ndim + axes.numel()
    for axis in sorted(axis % rank for axis in axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def _squeeze(*, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(axes.tolist()))


def _concat(*, values: Sequence[Tensor], axis: Tensor, interleave: Tensor | bool = False) -> Tensor:
    parts, dim = [torch.atleast_1d(value) for value in values], int(axis)
    if not interleave:
        return torch.cat(parts, dim)
    dim %= parts[0].ndim
    return torch.stack(parts, dim + 1).flatten(dim, dim + 1)


def _split(*, x: Tensor, axis: Tensor, num_splits: Tensor | None = None, split_sizes: Tensor | None = None) -> Sequence[Tensor]:
    if split_sizes is not None:
        return x.split(split_sizes.tolist(), int(axis))
    assert num_splits is not None
    return x.chunk(int(num_splits), int(axis))


def _stack(*, values: Sequence[Tensor], axis: Tensor) -> Tensor:
    return torch.stack(list(values), int(axis))


def _slice_by_index(
    *,
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None = None,
    begin_mask: Tensor | None = None,
    end_mask: Tensor | None = None,
    squeeze_mask: Tensor | None = None,
) -> Tensor:
    squeezed = _flags(squeeze_mask, x.ndim)
    first = _masked(begin, _flags(begin_mask, x.ndim))
    last = _masked(end, _flags(end_mask, x.ndim))
    step = [1] * x.ndim if stride is None else stride.tolist()
    for axis, size in enumerate(x.shape):
        picked = range(size)[slice(first[axis], last[axis], step[axis])]
        if squeezed[axis]:
            picked = range(size)[slice(first[axis], None)][:1]
        x = _take(x, axis, picked)  # torch slices take no negative step
    return x.squeeze(tuple(axis for axis, out in enumerate(squeezed) if out)) if any(squeezed) else x


def _flags(mask: Tensor | None, rank: int) -> list[bool]:
    return [False] * rank if mask is None else mask.tolist()


def _masked(bounds: Tensor, mask: list[bool]) -> list[int | None]:
    return [None if ignored else bound for bound, ignored in zip(bounds.tolist(), mask, strict=True)]


def _take(x: Tensor, axis: int, positions: Sequence[int] | np.ndarray) -> Tensor:
    return x.index_select(axis, torch.tensor(list(positions), dtype=torch.int64))


def _slice_by_size(*, x: Tensor, begin: Tensor, size: Tensor) -> Tensor:
    for axis, (start, length) in enumerate(zip(begin.tolist(), size.tolist(), strict=True)):
        start %= x.shape[axis]
        x = x.narrow(axis, start, x.shape[axis] - start if length == -1 else length)
    return x


def _pad(*, x: Tensor, pad: Tensor, mode: str = "constant", constant_val: Tensor | float = 0.0) -> Tensor:
    pairs = pad.reshape(-1, 2).tolist()
    if mode == "constant":
        return F.pad(x, _torch_pads(pairs), value=float(constant_val))
    for axis, pair in enumerate(pairs, start=x.ndim - len(pairs)):
        kind = "edge" if mode == "replicate" else "reflect"
        x = _take(x, axis, np.pad(np.arange(x.shape[axis]), pair, mode=kind))
    return x


def _torch_pads(pairs: Sequence[Sequence[int]]) -> list[int]:
    return [amount for pair in reversed(pairs) for amount in pair]  # torch counts from the last dimension


def _crop(*, x: Tensor, crop_height: Tensor, crop_width: Tensor) -> Tensor:
    return F.pad(x, [-int(amount) for amount in (*crop_width, *crop_height)])


def _tile(*, x: Tensor, reps: Tensor) -> Tensor:
    return x.tile(reps.tolist())


def _gather(
    *,
    x: Tensor,
    indices: Tensor,
    axis: Tensor | int = 0,
    batch_dims: Tensor | int = 0,
    validate_indices: Tensor | bool = False,
) -> Tensor:
    dim = int(axis) % x.ndim
    if batch_dims:
        pairs = zip(x, indices, strict=True)
        return torch.stack([_gather(x=row, indices=i, axis=dim - 1, batch_dims=int(batch_dims) - 1) for row, i in pairs])
    taken = x.index_select(dim, _from_start(indices, x.shape[dim]).flatten())
    return taken.reshape(x.shape[:dim] + indices.shape + x.shape[dim + 1 :])


def _gather_along_axis(*, x: Tensor, indices: Tensor, axis: Tensor | int = 0, validate_indices: Tensor | bool = False) -> Tensor:
    return torch.take_along_dim(x, _from_start(indices, x.shape[int(axis)]), int(axis))


def _from_start(indices: Tensor, size: int) -> Tensor:
    return torch.where(indices < 0, indices + size, indices).long()


def _one_hot(
    *,
    indices: Tensor,
    one_hot_vector_size: Tensor,
    axis: Tensor | int = -1,
    on_value: Tensor | int = 1,
    off_value: Tensor | int = 0,
) -> Tensor:
    hot = indices.unsqueeze(-1) == torch.arange(int(one_hot_vector_size))
    return torch.where(hot, torch.as_tensor(on_value), torch.as_tensor(off_value)).movedim(-1, int(axis))


def _shape(*, x: Tensor) -> Tensor:
    return torch.tensor(x.shape)


def _fill(*, shape: Tensor, value: Tensor) -> Tensor:
    return value.expand(shape.tolist())


def _fill_like(*, ref_tensor: Tensor, value: Tensor) -> Tensor:
    return value.expand(ref_tensor.shape)


def _range_1d(*, start: Tensor, end: Tensor, step: Tensor) -> Tensor:
    return torch.arange(start.item(), end.item(), step.item())


def _reverse(*, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.flip(_axes(x, axes))


def _flatten2d(*, x: Tensor, axis: Tensor | int = 1) -> Tensor:
    return x.reshape(math.prod(x.shape[: int(axis)]), -1)


def _pixel_shuffle(*, x: Tensor, upscale_factor: Tensor) -> Tensor:
    return F.pixel_shuffle(x, int(upscale_factor))


def _pixel_unshuffle(*, x: Tensor, downscale_factor: Tensor) -> Tensor:
    return F.pixel_unshuffle(x, int(downscale_factor))


def _depth_to_space(*, x: Tensor, block_size: Tensor) -> Tensor:
    return F.pixel_shuffle(_blocks_last(x, int(block_size)), int(block_size))


def _space_to_depth(*, x: Tensor, block_size: Tensor) -> Tensor:
    block = int(block_size)
    return F.pixel_unshuffle(x, block).unflatten(1, (-1, block**2)).transpose(1, 2).flatten(1, 2)


def _blocks_last(x: Tensor, block: int) -> Tensor:
    return x.unflatten(1, (block**2, -1)).transpose(1, 2).flatten(1, 2)


STRUCTURE: dict[str, Operation] = {
    "reshape": _reshape,
    "transpose": _transpose,
    "expand_dims": _expand_dims,
    "squeeze": _squeeze,
    "concat": _concat,
    "split": _split,
    "stack": _stack,
    "slice_by_index": _slice_by_index,
    "slice_by_size": _slice_by_size,
    "pad": _pad,
    "crop": _crop,
    "tile": _tile,
    "gather": _gather,
    "gather_along_axis": _gather_along_axis,
    "one_hot": _one_hot,
    "shape": _shape,
    "fill": _fill,
    "fill_like": _fill_like,
    "range_1d": _range_1d,
    "reverse": _reverse,
    "flatten2d": _flatten2d,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "depth_to_space": _depth_to_space,
    "space_to_depth": _space_to_depth,
}


# Elementwise ----------------------------------------------------------------------------------------------------------


def _of_x(function: Callable[[Tensor], Tensor]) -> Operation:
    return lambda *, x: function(x)


def _of_x_and_y(function: Callable[[Tensor, Tensor], Tensor]) -> Operation:
    return lambda *, x, y: function(x, y)


def _leaky_relu(*, x: Tensor, alpha: Tensor) -> Tensor:
    return torch.where(x >= 0, x, alpha * x)


def _prelu(*, x: Tensor, alpha: Tensor) -> Tensor:
    return _leaky_relu(x=x, alpha=_along(alpha, 1, x.ndim))


def _along(vector: Tensor, axis: int, rank: int) -> Tensor:
    sizes = [1] * rank
    sizes[axis] = -1
    return vector.reshape(sizes)


def _gelu(*, x: Tensor, mode: str = "EXACT") -> Tensor:
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


def _select(*, cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(cond.bool(), a, b)


ELEMENTWISE: dict[str, Operation] = {
    **{
        name: _of_x(function)
        for name, function in {
            "identity": lambda x: x,
            "abs": torch.abs,
            "acos": torch.acos,
            "asin": torch.asin,
            "atan": torch.atan,
            "atanh": torch.atanh,
            "ceil": torch.ceil,
            "cos": torch.cos,
            "cosh": torch.cosh,
            "erf": torch.erf,
            "exp": torch.exp,
            "exp2": torch.exp2,
            "floor": torch.floor,
            "logical_not": torch.logical_not,
            "relu": torch.relu,
            "relu6": F.relu6,
            "round": torch.round,
            "sigmoid": torch.sigmoid,
            "sign": torch.sign,
            "silu": F.silu,
            "sin": torch.sin,
            "sinh": torch.sinh,
            "softplus": lambda x: torch.logaddexp(x, torch.zeros(())),  # F.softplus is linear above 20
            "softsign": F.softsign,
            "sqrt": torch.sqrt,
            "square": torch.square,
            "tan": torch.tan,
            "tanh": torch.tanh,
        }.items()
    },
    **{
        name: _of_x_and_y(function)
        for name, function in {
            "add": torch.add,
            "sub": torch.sub,
            "mul": torch.mul,
            "real_div": torch.div,
            "floor_div": torch.floor_divide,
            "mod": torch.remainder,
            "pow": torch.pow,
            "maximum": torch.maximum,
            "minimum": torch.minimum,
            "equal": torch.eq,
            "not_equal": torch.ne,
            "greater": torch.gt,
            "greater_equal": torch.ge,
            "less": torch.lt,
            "less_equal": torch.le,
            "logical_and": torch.logical_and,
            "logical_or": torch.logical_or,
            "logical_xor": torch.logical_xor,
        }.items()
    },
    "cast": lambda *, x, dtype: x,  # the declared type of the result says the rest
    "clamped_relu": lambda *, x, alpha, beta: torch.minimum(_leaky_relu(x=x, alpha=alpha), beta),
    "clip": lambda *, x, alpha, beta: x.clamp(alpha, beta),
    "elu": lambda *, x, alpha: torch.where(x > 0, x, alpha * torch.expm1(x)),
    "gelu": _gelu,
    "inverse": lambda *, x, epsilon: 1 / (x + epsilon),
    "leaky_relu": _leaky_relu,
    "linear_activation": lambda *, x, alpha, beta: alpha * x + beta,
    "log": lambda *, x, epsilon: torch.log(x + epsilon),
    "prelu": _prelu,
    "rsqrt": lambda *, x, epsilon: torch.rsqrt(x + epsilon),
    "scaled_tanh": lambda *, x, alpha, beta: alpha * torch.tanh(beta * x),
    "select": _select,
    "sigmoid_hard": lambda *, x, alpha, beta: (alpha * x + beta).clamp(0, 1),
    "softmax": lambda *, x, axis: torch.softmax(x, int(axis)),
    "threshold": lambda *, x, alpha: torch.maximum(x, alpha),
    "thresholded_relu": lambda *, x, alpha: torch.where(x >= alpha, x, 0),
}


# Convolution, products of matrices, pooling, resizing -----------------------------------------------------------------


def _conv(
    *,
    x: Tensor,
    weight: Tensor,
    pad_type: str,
    pad: Tensor,
    strides: Tensor,
    dilations: Tensor,
    groups: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    step, dilation = strides.tolist(), dilations.tolist()
    pairs = _padding(pad_type, pad, x.shape[2:], _extent(weight, dilation), step)
    function = (F.conv1d, F.conv2d, F.conv3d)[x.ndim - 3]
    return function(F.pad(x, _torch_pads(pairs)), weight, bias, step, 0, dilation, int(groups))


def _extent(weight: Tensor, dilation: Sequence[int]) -> list[int]:
    return [(size - 1) * d + 1 for size, d in zip(weight.shape[2:], dilation, strict=True)]


def _padding(
    pad_type: str, pad: Tensor, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    """Pad before and after each spatial dimension; "same" puts an odd one after, "same_lower" before."""
    if pad_type == "valid":
        return [(0, 0)] * len(sizes)
    if pad_type == "custom":
        return [(before, after) for before, after in pad.reshape(-1, 2).tolist()]
    totals = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(sizes, kernel, strides, strict=True)]
    pairs = [(total // 2, total - total // 2) for total in totals]
    return pairs if pad_type == "same" else [(after, before) for before, after in pairs]


def _conv_transpose(
    *,
    x: Tensor,
    weight: Tensor,
    pad_type: str,
    pad: Tensor,
    strides: Tensor,
    dilations: Tensor,
    groups: Tensor,
    output_shape: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    step, dilation = strides.tolist(), dilations.tolist()
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[x.ndim - 3]
    whole = function(x, weight, None, step, 0, 0, int(groups), dilation)
    cropped = F.pad(whole, _torch_pads(_crops(whole.shape[2:], x.shape[2:], pad_type, pad, step, output_shape)))
    return cropped if bias is None else cropped + _along(bias, 1, x.ndim)


def _crops(
    whole: Sequence[int],
    sizes: Sequence[int],
    pad_type: str,
    pad: Tensor,
    strides: Sequence[int],
    output_shape: Tensor | None,
) -> list[tuple[int, int]]:
    """How far to pad (where negative, crop) each spatial dimension of a whole transposed convolution."""
    pairs = pad.reshape(-1, 2).tolist() if pad_type == "custom" else [(0, 0)] * len(whole)
    target = [n - before - after for n, (before, after) in zip(whole, pairs, strict=True)]
    if pad_type == "same":
        target = [n * s for n, s in zip(sizes, strides, strict=True)]
    if output_shape is not None:
        target = output_shape.tolist()[2:]
    starts = [before for before, _ in pairs]
    if pad_type == "same":
        starts = [max(n - size, 0) // 2 for n, size in zip(whole, target, strict=True)]
    return [(-start, size - n + start) for n, size, start in zip(whole, target, starts, strict=True)]


def _linear(*, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight, bias)


def _matmul(*, x: Tensor, y: Tensor, transpose_x: Tensor | bool = False, transpose_y: Tensor | bool = False) -> Tensor:
    return torch.matmul(x.mT if transpose_x else x, y.mT if transpose_y else y)


def _einsum(*, values: Sequence[Tensor], equation: str) -> Tensor:
    return torch.einsum(equation, *values)


def _attention(*, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask)


def _max_pool(*, x: Tensor, kernel_sizes: Tensor, strides: Tensor, **padding) -> Tensor:
    pairs, overhang = _windows(x, kernel_sizes, strides, **padding)
    function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[x.ndim - 3]
    padded = F.pad(x, _torch_pads(_longer(pairs, overhang)), value=-math.inf)
    return function(padded, kernel_sizes.tolist(), strides.tolist())


def _avg_pool(
    *, x: Tensor, kernel_sizes: Tensor, strides: Tensor, exclude_padding_from_average: Tensor | bool = False, **padding
) -> Tensor:
    pairs, overhang = _windows(x, kernel_sizes, strides, **padding)
    counted = F.pad(torch.ones_like(x), _torch_pads(pairs), value=0.0 if exclude_padding_from_average else 1.0)
    function = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[x.ndim - 3]

    def mean(padded: Tensor) -> Tensor:
        return function(F.pad(padded, _torch_pads([(0, n) for n in overhang])), kernel_sizes.tolist(), strides.tolist())

    return mean(F.pad(x, _torch_pads(pairs))) / mean(counted)


def _windows(
    x: Tensor, kernel_sizes: Tensor, strides: Tensor, *, pad_type: str, pad: Tensor, ceil_mode: Tensor | bool = False
) -> tuple[list[tuple[int, int]], list[int]]:
    """The pads of a pooling, and how far its last windows reach beyond them, which only `ceil_mode` allows."""
    kernel, step = kernel_sizes.tolist(), strides.tolist()
    pairs = _padding(pad_type, pad, x.shape[2:], kernel, step)
    if not ceil_mode:
        return pairs, [0] * len(pairs)
    return pairs, [
        max((_ceil_windows(n, pair, k, s) - 1) * s + k - n - sum(pair), 0)
        for n, pair, k, s in zip(x.shape[2:], pairs, kernel, step, strict=True)
    ]


def _ceil_windows(size: int, pair: tuple[int, int], kernel: int, stride: int) -> int:
    count = -((kernel - size - sum(pair)) // stride) + 1
    return count - 1 if (count - 1) * stride >= size + pair[0] else count


def _longer(pairs: Sequence[tuple[int, int]], overhang: Sequence[int]) -> list[tuple[int, int]]:
    return [(before, after + extra) for (before, after), extra in zip(pairs, overhang, strict=True)]


def _upsample_nearest(*, x: Tensor, scale_factor_height: Tensor, scale_factor_width: Tensor) -> Tensor:
    return _nearest(x, *_scaled(x, scale_factor_height, scale_factor_width))


def _resize_nearest(*, x: Tensor, target_size_height: Tensor, target_size_width: Tensor) -> Tensor:
    return _nearest(x, int(target_size_height), int(target_size_width))


def _upsample_bilinear(
    *,
    x: Tensor,
    scale_factor_height: Tensor,
    scale_factor_width: Tensor,
    align_corners: Tensor | bool = True,
    half_pixel_centers: Tensor | bool | None = None,
) -> Tensor:
    centred = not align_corners if half_pixel_centers is None else half_pixel_centers
    sampling = "STRICT_ALIGN_CORNERS" if align_corners else "UNALIGN_CORNERS" if centred else "DEFAULT"
    return _bilinear(x, *_scaled(x, scale_factor_height, scale_factor_width), sampling)


def _resize_bilinear(
    *, x: Tensor, target_size_height: Tensor, target_size_width: Tensor, sampling_mode: str = "DEFAULT"
) -> Tensor:
    return _bilinear(x, int(target_size_height), int(target_size_width), sampling_mode)


def _scaled(x: Tensor, height: Tensor, width: Tensor) -> tuple[int, int]:
    return math.floor(x.shape[-2] * height.item()), math.floor(x.shape[-1] * width.item())


def _nearest(x: Tensor, height: int, width: int) -> Tensor:
    for axis, target in ((-2, height), (-1, width)):
        size = x.shape[axis]
        x = _take(x, axis, [i * size // target for i in range(target)])
    return x


def _bilinear(x: Tensor, height: int, width: int, sampling: str) -> Tensor:
    for axis, target in ((-2, height), (-1, width)):
        size = x.shape[axis]
        grid = _grid(size, target, sampling)
        low = grid.long()
        high = (low + 1).clamp(max=size - 1)
        weight = _along((grid - low).to(x.dtype), axis, x.ndim)
        x = torch.lerp(x.index_select(axis, low), x.index_select(axis, high), weight)
    return x


def _grid(size: int, target: int, sampling: str) -> Tensor:
    """Where, in pixels of the input, each pixel of the output is sampled."""
    ratio, inner, offset = size / target, (size - 1) / max(target - 1, 1), max(size - 1, 1) / target
    start, step = {
        "STRICT_ALIGN_CORNERS": (0.0, inner),
        "ALIGN_CORNERS": ((size - 1) / 2 if target == 1 else 0.0, inner),
        "DEFAULT": (0.0, ratio),
        "OFFSET_CORNERS": (offset / 2, offset),
        "UNALIGN_CORNERS": (ratio / 2 - 0.5, ratio),
    }[sampling]
    return (start + step * torch.arange(target, dtype=torch.float64)).clamp(0, size - 1)


CONVOLUTION: dict[str, Operation] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "linear": _linear,
    "matmul": _matmul,
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "upsample_nearest_neighbor": _upsample_nearest,
    "upsample_bilinear": _upsample_bilinear,
    "resize_nearest_neighbor": _resize_nearest,
    "resize_bilinear": _resize_bilinear,
}


# Reduction and normalisation ------------------------------------------------------------------------------------------


def _over_axes(function: Callable[..., Tensor]) -> Operation:
    def operation(*, x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | bool = False) -> Tensor:
        return function(x, _axes(x, axes), keepdim=bool(keep_dims))

    return operation


def _axes(x: Tensor, axes: Tensor | None) -> list[int]:
    return list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in axes.tolist()]


def _mean(x: Tensor, axes: list[int], *, keepdim: bool) -> Tensor:
    return (x if x.is_floating_point() else x.double()).mean(axes, keepdim=keepdim)


def _product(x: Tensor, axes: list[int], *, keepdim: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keepdim)
    return x


def _arg(function: Callable[..., Tensor]) -> Operation:
    def operation(*, x: Tensor, axis: Tensor | int = -1, keep_dims: Tensor | bool = False, output_dtype: str = "int32") -> Tensor:
        return function(x, int(axis), keepdim=bool(keep_dims))

    return operation


def _cumsum(*, x: Tensor, axis: Tensor, exclusive: Tensor | bool = False, reverse: Tensor | bool = False) -> Tensor:
    flipped = x.flip(int(axis)) if reverse else x
    total = flipped.cumsum(int(axis))
    total = total - flipped if exclusive else total
    return total.flip(int(axis)) if reverse else total


def _batch_norm(
    *,
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    epsilon: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
) -> Tensor:
    return F.batch_norm(x, mean, variance, gamma, beta, eps=float(epsilon))


def _instance_norm(*, x: Tensor, epsilon: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None) -> Tensor:
    return _affine(_standardised(x, list(range(2, x.ndim)), epsilon), gamma, beta, [1])


def _layer_norm(
    *, x: Tensor, epsilon: Tensor, axes: Tensor | None = None, gamma: Tensor | None = None, beta: Tensor | None = None
) -> Tensor:
    normalised = _axes(x, axes)
    return _affine(_standardised(x, normalised, epsilon), gamma, beta, sorted(normalised))


def _l2_norm(*, x: Tensor, epsilon: Tensor) -> Tensor:
    return x / (x.square().sum((-3, -2, -1), keepdim=True) + epsilon).sqrt()


def _standardised(x: Tensor, axes: list[int], epsilon: Tensor) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True) + epsilon).sqrt()


def _affine(x: Tensor, gamma: Tensor | None, beta: Tensor | None, axes: list[int]) -> Tensor:
    sizes = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
    x = x if gamma is None else x * gamma.reshape(sizes)
    return x if beta is None else x + beta.reshape(sizes)


REDUCTION: dict[str, Operation] = {
    **{
        name: _over_axes(function)
        for name, function in {
            "reduce_sum": torch.sum,
            "reduce_mean": _mean,
            "reduce_max": torch.amax,
            "reduce_min": torch.amin,
            "reduce_prod": _product,
            "reduce_l1_norm": lambda x, axes, keepdim: x.abs().sum(axes, keepdim=keepdim),
            "reduce_l2_norm": lambda x, axes, keepdim: x.square().sum(axes, keepdim=keepdim).sqrt(),
            "reduce_sum_square": lambda x, axes, keepdim: x.square().sum(axes, keepdim=keepdim),
            "reduce_log_sum": lambda x, axes, keepdim: x.sum(axes, keepdim=keepdim).log(),
            "reduce_log_sum_exp": torch.logsumexp,
        }.items()
    },
    "reduce_argmax": _arg(torch.argmax),
    "reduce_argmin": _arg(torch.argmin),
    "cumsum": _cumsum,
    "batch_norm": _batch_norm,
    "instance_norm": _instance_norm,
    "layer_norm": _layer_norm,
    "l2_norm": _l2_norm,
}


# Quantisation ---------------------------------------------------------------------------------------------------------


def _quantize(
    *,
    input: Tensor,
    scale: Tensor,
    output_dtype: str,
    zero_point: Tensor | None = None,
    axis: Tensor | None = None,
) -> Tensor:
    limits = torch.iinfo(getattr(torch, output_dtype))
    levels = torch.round(input / _per_channel(scale, axis, input.ndim))  # a tie goes to the even level
    return (levels + _zero(zero_point, axis, input.ndim)).clamp(limits.min, limits.max)


def _dequantize(*, input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: Tensor | None = None) -> Tensor:
    return (input.float() - _zero(zero_point, axis, input.ndim)) * _per_channel(scale, axis, input.ndim)


def _per_channel(values: Tensor, axis: Tensor | None, rank: int) -> Tensor:
    return values if axis is None else _along(values, int(axis), rank)


def _zero(zero_point: Tensor | None, axis: Tensor | None, rank: int) -> Tensor:
    return torch.zeros(()) if zero_point is None else _per_channel(zero_point.float(), axis, rank)


QUANTISATION: dict[str, Operation] = {"quantize": _quantize, "dequantize": _dequantize}


OPERATIONS: dict[str, Operation] = {**STRUCTURE, **ELEMENTWISE, **CONVOLUTION, **REDUCTION, **QUANTISATION}
"""MIL's name of an operation → its function: everything the evaluator runs."""

CONSTANTS = frozenset(
    {
        "const",
        "constexpr_affine_dequantize",
        "constexpr_blockwise_shift_scale",
        "constexpr_cast",
        "constexpr_lut_to_dense",
        "constexpr_lut_to_sparse",
        "constexpr_sparse_blockwise_shift_scale",
        "constexpr_sparse_to_dense",
    }
)
"""Operations without inputs that vary: their values are worked out once, on loading."""
