"""Random graphs of operations in the evaluator, against what coremltools itself infers of the same graph of constants."""

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyro_mvae.export.mil import MilProgram
from tests.export.mil_programs import NO_PASSES, ct, mb, mil, save

SHAPE = (2, 3, 4)
OPERATIONS = {
    "abs": lambda x, y: mb.abs(x=x),
    "add": lambda x, y: mb.add(x=x, y=y),
    "ceil": lambda x, y: mb.ceil(x=x),
    "clip": lambda x, y: mb.clip(x=x, alpha=-0.5, beta=0.7),
    "concat": lambda x, y: mb.slice_by_size(x=mb.concat(values=[x, y], axis=1), begin=[0, 2, 0], size=[2, 3, 4]),
    "cos": lambda x, y: mb.cos(x=x),
    "exp": lambda x, y: mb.exp(x=mb.tanh(x=x)),
    "expand": lambda x, y: mb.squeeze(x=mb.add(x=mb.expand_dims(x=x, axes=[1]), y=mb.expand_dims(x=y, axes=[1])), axes=[1]),
    "floor": lambda x, y: mb.floor(x=x),
    "gather": lambda x, y: mb.gather(x=x, indices=np.int32([2, 0, 1]), axis=1),
    "log": lambda x, y: mb.log(x=mb.add(x=mb.abs(x=x), y=np.float32(0.5))),
    "matmul": lambda x, y: mb.matmul(x=mb.matmul(x=mb.tanh(x=x), y=mb.tanh(x=y), transpose_y=True), y=mb.tanh(x=y)),
    "maximum": lambda x, y: mb.maximum(x=x, y=y),
    "minimum": lambda x, y: mb.minimum(x=x, y=y),
    "mul": lambda x, y: mb.mul(x=mb.tanh(x=x), y=y),
    "real_div": lambda x, y: mb.real_div(x=x, y=mb.add(x=mb.abs(x=y), y=np.float32(1))),
    "reduce_max": lambda x, y: mb.sub(x=x, y=mb.reduce_max(x=y, axes=[2], keep_dims=True)),
    "reduce_mean": lambda x, y: mb.sub(x=x, y=mb.reduce_mean(x=y, axes=[0, 2], keep_dims=True)),
    "reduce_min": lambda x, y: mb.sub(x=x, y=mb.reduce_min(x=y, axes=[1], keep_dims=True)),
    "reduce_sum": lambda x, y: mb.add(x=x, y=mb.reduce_sum(x=y, axes=[1], keep_dims=True)),
    "relu": lambda x, y: mb.relu(x=x),
    "reshape": lambda x, y: mb.reshape(
        x=mb.mul(x=mb.reshape(x=x, shape=(4, 6)), y=mb.reshape(x=mb.tanh(x=y), shape=(4, 6))), shape=SHAPE
    ),
    "select": lambda x, y: mb.select(cond=mb.greater(x=x, y=y), a=x, b=mb.sub(x=np.float32(0), y=y)),
    "sigmoid": lambda x, y: mb.sigmoid(x=x),
    "sin": lambda x, y: mb.sin(x=x),
    "softmax": lambda x, y: mb.softmax(x=x, axis=1),
    "sqrt": lambda x, y: mb.sqrt(x=mb.abs(x=x)),
    "square": lambda x, y: mb.square(x=mb.tanh(x=x)),
    "sub": lambda x, y: mb.sub(x=x, y=y),
    "tanh": lambda x, y: mb.tanh(x=x),
    "transpose": lambda x, y: mb.reshape(x=mb.transpose(x=x, perm=[2, 0, 1]), shape=SHAPE),
}


@st.composite
def graphs(draw):
    """Steps of a graph: each an operation, and which two of the values before it goes on with."""
    number = draw(st.integers(4, 14))
    return [
        (draw(st.sampled_from(sorted(OPERATIONS))), draw(st.integers(0, n + 1)), draw(st.integers(0, n + 1)))
        for n in range(number)
    ]


def grown(values, steps):
    """The values of a graph, inputs first."""
    values = list(values)
    for name, first, second in steps:
        values.append(OPERATIONS[name](values[first], values[second]))
    return values


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=graphs(), seed=st.integers(0, 9))
def test_random_graphs_equal_what_coremltools_infers(tmp_path, steps, seed):
    """Every value of the graph, however often it is used; those of constants are inferred as the graph is built."""
    arrays = 2 * np.random.default_rng(seed).standard_normal((2, *SHAPE)).astype(np.float32)
    expected = []

    def build(x, y):
        expected.extend(value.val for value in grown([mb.const(val=array) for array in arrays], steps)[2:])
        return tuple(mb.identity(x=value, name=f"value_{n}") for n, value in enumerate(grown([x, y], steps)[2:]))

    path = save(mil([SHAPE, SHAPE], build), tmp_path / "graph.mlpackage", passes=ct.PassPipeline(NO_PASSES, "x"))
    program = MilProgram.load(path)
    found = program(dict(zip(program.inputs, arrays, strict=True)))
    for n, (name, value) in enumerate(zip((name for name, *_ in steps), expected, strict=True)):
        np.testing.assert_allclose(found[f"value_{n}"], value, rtol=1e-5, atol=1e-5, err_msg=f"step {n}, {name}")
