"""Random nets of convolutions and integers, in float32 and float16, against the definitions of their layers."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyro_mvae.export._quiet import import_quietly
from pyro_mvae.export.mil import MilProgram
from tests.export.definitions import conv, conv_transpose
from tests.export.mil_programs import NO_PASSES, ct, mb, save

types: Any = import_quietly("coremltools.converters.mil.mil").types
SHAPE = (1, 4, 6, 7)
DTYPES = {"float32": types.fp32, "float16": types.fp16}


@dataclass
class InMil:
    """Layers as operations of a MIL program."""

    dtype: str

    def conv(self, x, w, bias, *, pads, strides, dilations, groups):
        more = {"pad_type": "custom", "pad": [n for pair in pads for n in pair], "dilations": dilations, "groups": groups}
        return mb.conv(x=x, weight=self.number(w), bias=self.number(bias), strides=strides, **more)

    def conv_transpose(self, x, w, bias, *, strides, size):
        output = [1, w.shape[1], *size]
        return mb.conv_transpose(x=x, weight=self.number(w), bias=self.number(bias), strides=strides, output_shape=output)

    def rounded(self, x, scale, zero_point):
        axis = {"axis": 1} if scale.ndim else {}
        how = {"scale": self.number(scale), "zero_point": zero_point, **axis}
        return mb.dequantize(input=mb.quantize(input=x, output_dtype="int8", **how), **how)

    def relu(self, x):
        return mb.relu(x=x)

    def add(self, x, y):
        return mb.add(x=x, y=y)

    def number(self, value):
        return value.astype(self.dtype)


@dataclass
class ByDefinition:
    """Layers in float64, whose results, and weights, are rounded to a type."""

    dtype: str

    def conv(self, x, w, bias, **how):
        return self.held(conv(x, self.held(w), bias=self.held(bias), **how))

    def conv_transpose(self, x, w, bias, *, strides, size):
        return self.held(conv_transpose(x, self.held(w), strides=strides, size=size) + self.held(bias)[:, None, None])

    def rounded(self, x, scale, zero_point):
        scale, zero = (each.reshape(-1, 1, 1).astype(np.float64) for each in (self.held(scale), np.asarray(zero_point)))
        levels = np.clip(np.round(x / scale) + zero, -128, 127)
        return self.held((levels - zero) * scale)

    def relu(self, x):
        return np.maximum(x, 0)

    def add(self, x, y):
        return self.held(x + y)

    def held(self, value):
        return np.asarray(value).astype(self.dtype).astype(np.float64)


def convolution(layers, x, y, rng):
    kernel, dilations, groups = rng.integers(1, 4, 2), rng.integers(1, 3, 2), int(rng.choice([1, 2, 4]))
    w, bias = weights(rng, (4, 4 // groups, *kernel)), rng.standard_normal(4)
    extra = (kernel - 1) * dilations
    pads = [(int(n // 2), int(n - n // 2)) for n in extra]
    return layers.conv(x, w, bias, pads=pads, strides=[1, 1], dilations=dilations.tolist(), groups=groups)


def halved_and_doubled(layers, x, y, rng):
    w, bias = weights(rng, (6, 4, 3, 3)), rng.standard_normal(6)
    small = layers.relu(layers.conv(x, w, bias, pads=[(1, 1), (1, 1)], strides=[2, 2], dilations=[1, 1], groups=1))
    w, bias = weights(rng, (6, 4, 2, 2)), rng.standard_normal(4)
    return layers.conv_transpose(small, w, bias, strides=[2, 2], size=[6, 7])


def rounded(layers, x, y, rng):
    count = () if rng.random() < 0.5 else (4,)
    scale, zero_point = rng.uniform(0.01, 0.2, count), np.asarray(rng.integers(-100, 100, count), np.int8)
    return layers.rounded(x, np.asarray(scale), zero_point if count else np.int8(zero_point))


def added(layers, x, y, rng):
    return layers.relu(layers.add(x, y))


LAYERS = {each.__name__: each for each in (convolution, halved_and_doubled, rounded, added)}


def weights(rng, shape):
    return rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))


def grown(layers, x, steps):
    """The values of a net, its input first; the numbers of a step follow from its place."""
    values = [x]
    for n, (name, first, second) in enumerate(steps):
        values.append(LAYERS[name](layers, values[first], values[second], np.random.default_rng(n)))
    return values[1:]


def evaluated(steps, x, path, dtype):
    """What the evaluator computes of each step of a net, saved as a package."""

    @mb.program(input_specs=[mb.TensorSpec(SHAPE, dtype=DTYPES[dtype])], opset_version=ct.target.iOS17)
    def program(x):
        values = grown(InMil(dtype), x, steps)
        return tuple(mb.identity(x=value, name=f"value_{n}") for n, value in enumerate(values))

    loaded = MilProgram.load(save(program, path, passes=ct.PassPipeline(NO_PASSES, "x")))
    (name,) = loaded.inputs
    found = loaded({name: x.astype(dtype)})
    return [found[f"value_{n}"].astype(np.float64) for n in range(len(steps))]


def share_that_differs(found, expected, dtype):
    """The share of numbers that are further apart than two neighbours in a type, or in float32 a few of them."""
    least = {"float32": 2**-18, "float16": 2**-10}[dtype]
    return float((np.abs(found - expected) > least * np.maximum(np.abs(expected), 0.1)).mean())


@st.composite
def nets(draw):
    """Steps of a net: each a layer, and which two of the values before it goes on with."""
    number = draw(st.integers(3, 9))
    return [(draw(st.sampled_from(sorted(LAYERS))), draw(st.integers(0, n)), draw(st.integers(0, n))) for n in range(number)]


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=nets(), seed=st.integers(0, 9))
def test_random_nets_are_their_definitions(dtype, tmp_path, steps, seed):
    """But for what lies at the middle of two numbers that can be held, or of two levels, which may go either way."""
    x = np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float16)
    expected = grown(ByDefinition(dtype), x.astype(np.float64), steps)
    for n, found in enumerate(evaluated(steps, x, tmp_path / "net.mlpackage", dtype)):
        assert share_that_differs(found, expected[n], dtype) < 0.02, f"step {n}, {steps[n]}"


def test_what_is_not_rounded_to_float16_is_told_from_what_is(tmp_path):
    steps = [("convolution", n, n) for n in range(3)] + [("rounded", 3, 3), ("halved_and_doubled", 4, 4)]
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float16)
    found = evaluated(steps, x, tmp_path / "net.mlpackage", "float16")[-1]
    shares = {
        dtype: share_that_differs(found, grown(ByDefinition(dtype), x.astype(np.float64), steps)[-1], "float16")
        for dtype in DTYPES
    }
    assert shares["float16"] < 0.02 < 0.1 < shares["float32"], shares
