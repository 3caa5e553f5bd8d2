"""Convolutions by their definitions, in NumPy."""

import numpy as np


def conv(x, w, *, pads=((0, 0), (0, 0)), strides=(1, 1), dilations=(1, 1), groups=1, bias=None):
    """The definition of a convolution, one output pixel at a time."""
    x = np.pad(x, ((0, 0), (0, 0), *pads)).astype(np.float64)
    extent = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
    height, width = ((n - e) // s + 1 for n, e, s in zip(x.shape[2:], extent, strides, strict=True))
    out = np.zeros((len(x), len(w), height, width))
    for o in range(len(w)):
        first = o // (len(w) // groups) * w.shape[1]
        for r in range(height):
            for c in range(width):
                top, left = r * strides[0], c * strides[1]
                rows = slice(top, top + extent[0], dilations[0])
                columns = slice(left, left + extent[1], dilations[1])
                out[:, o, r, c] = (x[:, first : first + w.shape[1], rows, columns] * w[o]).sum((1, 2, 3))
    return out if bias is None else out + bias[:, None, None]


def conv_transpose(x, w, *, start=(0, 0), size=None, strides=(1, 1), dilations=(1, 1), groups=1):
    """Every input pixel stamps the kernel; the window of `size` from `start` is kept, zero outside the stamps."""
    ends = [(n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(x.shape[2:], strides, w.shape[2:], dilations, strict=True)]
    size = ends if size is None else size
    out = np.zeros((len(x), w.shape[1] * groups, ends[0] + 9, ends[1] + 9))
    per_group = x.shape[1] // groups
    for i in range(x.shape[1]):
        first = i // per_group * w.shape[1]
        for r, c, u, v in np.ndindex(*x.shape[2:], *w.shape[2:]):
            row, column = r * strides[0] + u * dilations[0], c * strides[1] + v * dilations[1]
            out[:, first : first + w.shape[1], row, column] += x[:, i, r, c, None] * w[i, :, u, v]
    return out[:, :, start[0] : start[0] + size[0], start[1] : start[1] + size[1]]
