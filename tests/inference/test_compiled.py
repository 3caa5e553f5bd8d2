"""A pair in one graph: Pyro's loss and gradients, whatever the pair and the size of the batch."""

from __future__ import annotations

import copy
import logging
import random

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO

from pyro_mvae import compile_elbo
from pyro_mvae.inference.tracing import Untraceable
from tests.catalog import unchecked
from tests.inference.pairs import PAIRS, convolutional, enumerated_in_the_guide, nets, score_function

CASES = [(make, elbo) for make, elbos in PAIRS.items() for elbo in elbos]
NAMES = [f"{make.__name__}-{type(elbo).__name__}-{elbo.num_particles}" for make, elbo in CASES]


def batch_of(n: int, example: torch.Tensor) -> torch.Tensor:
    if not example.is_floating_point():
        return torch.randperm(50)[:n]
    return (
        example[:1] + torch.randn(n, *[1] * (example.ndim - 1)) if example.ndim < 4 else torch.rand(n, *example.shape[1:]).round()
    )


def pyros_loss_and_gradients(elbo, model, guide, x, parameters):
    for value in parameters.values():
        value.grad = None
    loss = elbo.loss_and_grads(model, guide, x)
    return loss, [torch.zeros_like(value) if value.grad is None else value.grad for value in parameters.values()]


def assert_equals_pyro(loss, elbo, model, guide, x):
    """The loss to 1e-5 of itself, each gradient to 1e-5 of the largest."""
    torch.manual_seed(3)
    ours = loss(x)
    gradients = torch.autograd.grad(ours, list(loss.parameters.values()), materialize_grads=True)
    torch.manual_seed(3)
    theirs, expected = pyros_loss_and_gradients(elbo, model, guide, x, loss.parameters)
    assert float(ours.detach()) == pytest.approx(float(theirs), rel=1e-5, abs=1e-6)
    largest = max(float(gradient.abs().max()) for gradient in expected)
    for name, a, b in zip(loss.parameters, gradients, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * largest, msg=lambda text, name=name: f"{name}: {text}")
    assert largest > 0


@pytest.mark.parametrize(("make", "elbo"), CASES, ids=NAMES)
def test_the_graph_equals_pyro(make, elbo):
    model, guide, (example,) = make()
    loss = compile_elbo(model, guide, elbo=elbo, example=(example,), backend="eager")
    for n in (3, 9) if make is convolutional else (1, 3, 9):  # batch normalisation itself refuses to train on one
        assert_equals_pyro(loss, elbo, model, guide, batch_of(n, example))


@pytest.mark.parametrize("make", [nets, score_function, enumerated_in_the_guide, convolutional])
def test_compiled_code_equals_pyro(make):
    model, guide, (example,) = make()
    elbo = PAIRS[make][0]
    loss = compile_elbo(model, guide, elbo=elbo, example=(example,))
    for n in (3, 9):
        assert_equals_pyro(loss, elbo, model, guide, batch_of(n, example))


def test_compiling_changes_nothing_but_the_parameter_store():
    model, guide, example = convolutional()
    buffers = copy.deepcopy(dict(model.__self__.named_buffers()))
    parameters = copy.deepcopy(dict(model.__self__.named_parameters()))
    state = torch.get_rng_state()
    loss = compile_elbo(model, guide, example=example, backend="eager")
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, buffers[name]) for name, value in model.__self__.named_buffers())
    assert all(torch.equal(value, parameters[name]) for name, value in model.__self__.named_parameters())
    assert set(loss.parameters) == set(pyro.get_param_store().keys())


def test_batch_normalisation_sees_each_batch():
    model, guide, (x,) = convolutional()
    loss = compile_elbo(model, guide, example=(x,), backend="eager")
    before = copy.deepcopy(dict(model.__self__.named_buffers()))
    loss(x)
    assert all(not torch.equal(value, before[name]) for name, value in model.__self__.named_buffers())


def test_a_hundred_steps_are_those_of_svi():
    """The same parameters from the same noise, with the optimiser working on what the graph reads."""
    model, guide, (x,) = nets()
    loss = compile_elbo(model, guide, elbo=TraceMeanField_ELBO(), example=(x,), backend="eager")
    start = {name: value.detach().clone() for name, value in loss.parameters.items()}
    optimizer = torch.optim.Adam(loss.parameters.values(), lr=1e-2)
    torch.manual_seed(0)
    for _ in range(100):
        optimizer.zero_grad()
        loss(x).backward()
        optimizer.step()
    ours = {name: value.detach().clone() for name, value in loss.parameters.items()}
    with torch.no_grad():
        for name, value in loss.parameters.items():
            value.copy_(start[name])
            value.grad = None
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), TraceMeanField_ELBO())
    torch.manual_seed(0)
    for _ in range(100):
        svi.step(x)
    for name, value in loss.parameters.items():
        assert not torch.equal(value, start[name])
        torch.testing.assert_close(value.detach(), ours[name], rtol=1e-4, atol=1e-5)


def test_noise_is_new_at_each_call_and_follows_the_seed():
    model, guide, (x,) = nets()
    loss = compile_elbo(model, guide, example=(x,), backend="eager")
    torch.manual_seed(1)
    first, second = loss(x), loss(x)
    torch.manual_seed(1)
    assert first != second
    assert loss(x) == first


def branching(x):
    """What a model may not do."""
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(torch.zeros(x.shape[0]), 1.0))
        loc = z if x.sum() > 0 else -z
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def numbered(x):
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(torch.zeros(x.shape[0]), 1.0))
        pyro.sample("x", dist.Normal(z * float(x.sum()), 1.0), obs=x)


def rolling_dice(x):
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(torch.zeros(x.shape[0]), 1.0))
        pyro.sample("x", dist.Normal(z + random.random(), 1.0), obs=x)


def sized(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def prior(x):
    with pyro.plate("data", x.shape[0]):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def mean_field(x):
    with pyro.plate("data", x.shape[0]):
        pyro.sample("z", dist.Normal(pyro.param("a", torch.tensor(0.5)) * x, 1.0))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (branching, r"loc = z if x.sum\(\) > 0 else -z, after site 'z'"),
        (numbered, r"float\(x.sum\(\)\)"),
        (sized, r"len\(x\).*write .shape\[0\]"),
        (rolling_dice, "uses chance or state from outside of torch"),
    ],
)
def test_what_cannot_be_traced_is_named(model, message):
    with pytest.raises(Untraceable, match=message) as error:
        compile_elbo(model, mean_field, example=(torch.randn(5),))
    assert "fallback=True" in str(error.value)


def test_what_cannot_be_traced_can_be_left_to_pyro(caplog):
    x = torch.randn(5)
    with caplog.at_level(logging.WARNING, logger="pyro_mvae"):
        loss = compile_elbo(branching, mean_field, example=(x,), fallback=True)
    assert len(caplog.records) == 1
    assert "left to Pyro" in caplog.text
    assert_equals_pyro(loss, Trace_ELBO(), branching, mean_field, x)
    assert_equals_pyro(loss, Trace_ELBO(), branching, mean_field, -x)


def test_arguments_unlike_the_example_are_refused():
    model, guide, (x,) = nets()
    loss = compile_elbo(model, guide, example=(x,), backend="eager")
    with pytest.raises(ValueError, match=r"torch.float32 of shape \(n, 2\), got torch.float32 of shape \(5, 3\)"):
        loss(torch.randn(5, 3))
    with pytest.raises(ValueError, match=r"got torch\.float64"):
        loss(x.double())
    for given in ((x, x), ()):
        with pytest.raises(ValueError, match=r"like those of the example, torch.float32 of shape \(n, 2\), got"):
            loss(*given)
    with pytest.raises(ValueError, match="got a ndarray"):
        loss(x.numpy())
    with pytest.raises(ValueError, match="1 or more"):
        loss(x[:0])


class Tripled(torch.autograd.Function):
    """Its gradient is not that of what it computes."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 3 * gradient


def observed(x, loc):
    with pyro.plate("data", x.shape[0]):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def without_gradient(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with torch.no_grad():
        constant = 2 * z
    observed(x, z + constant)


def tripled(x):
    observed(x, Tripled.apply(pyro.sample("z", dist.Normal(0.0, 1.0))))


def half_detached(x):
    a = pyro.param("a", torch.tensor(0.5))
    with torch.no_grad():
        b = a * a + 0.1
    pyro.sample("z", dist.Normal(a * b, 1.0))


def global_normal(x):
    pyro.sample("z", dist.Normal(pyro.param("a", torch.tensor(0.5)), 1.0))


@pytest.mark.parametrize(("model", "guide"), [(without_gradient, global_normal), (without_gradient, half_detached)])
def test_what_has_no_gradient_for_pyro_has_none_in_the_graph(model, guide):
    x = torch.randn(7)
    loss = compile_elbo(model, guide, example=(x,), backend="eager")
    for n in (1, 3, 60):
        assert_equals_pyro(loss, Trace_ELBO(), model, guide, torch.randn(n))


def test_a_gradient_that_a_graph_cannot_keep_is_found():
    with pytest.raises(Untraceable, match=r"gradient of 'a' is not Pyro's.*autograd\.Function"):
        compile_elbo(tripled, global_normal, example=(torch.randn(7),), backend="eager")


def large_batches_differ(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    observed(x, 2 * z if x.shape[0] > 50 else z)


def lone_data_differ(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    observed(x, 2 * z if x.shape[0] == 1 else z)


@pytest.mark.parametrize(("model", "other"), [(large_batches_differ, 51), (large_batches_differ, 400), (lone_data_differ, 1)])
def test_a_size_of_batch_that_takes_another_way_is_refused(model, other):
    loss = compile_elbo(model, global_normal, example=(torch.randn(7),), backend="eager")
    for n in (2, 50):
        assert_equals_pyro(loss, Trace_ELBO(), model, global_normal, torch.randn(n))
    with pytest.raises(ValueError, match=f"a batch of {other} can't be computed by this graph.*the size of the batch decides"):
        loss(torch.randn(other))


def test_a_size_too_large_to_be_tried_is_refused():
    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        observed(x, 2 * z if x.shape[0] > 3000 else z)

    loss = compile_elbo(model, global_normal, example=(torch.randn(7),), backend="eager")
    assert_equals_pyro(loss, Trace_ELBO(), model, global_normal, torch.randn(3000))
    with pytest.raises(ValueError, match="a batch of 3001 can't be computed by this graph: it is far from the example's"):
        loss(torch.randn(3001))
    larger = compile_elbo(model, global_normal, example=(torch.randn(4000),), backend="eager")
    assert_equals_pyro(larger, Trace_ELBO(), model, global_normal, torch.randn(3001))
    with pytest.raises(ValueError, match="a batch of 9 can't be computed"):
        larger(torch.randn(9))


def test_a_batch_of_one_is_refused_where_pyro_refuses_it():
    model, guide, (x,) = convolutional()
    loss = compile_elbo(model, guide, example=(x,), backend="eager")
    with pytest.raises(ValueError, match="a batch of 1 can't be computed by this graph: Pyro refuses it"):
        loss(x[:1])
    assert_equals_pyro(loss, Trace_ELBO(), model, guide, x.repeat(9, 1, 1, 1))


def test_a_pair_that_turns_the_size_of_a_batch_into_a_number_has_a_graph_for_that_size():
    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        observed(x, z + torch.linspace(0, 1, int(x.shape[0])))

    loss = compile_elbo(model, global_normal, example=(torch.randn(7),), backend="eager")
    assert_equals_pyro(loss, Trace_ELBO(), model, global_normal, torch.randn(7))
    with pytest.raises(ValueError, match="a batch of 9 can't be computed by this graph"):
        loss(torch.randn(9))


def drawn_with_scale(x):
    """Pyro's usual idiom for minibatches: the size of all data, and that of the batch."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 1000, subsample_size=x.shape[0]):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


PADDING = {
    "pad": lambda x: F.pad(x, (1, 2)),
    "unfold": lambda x: F.unfold(x[:, None, None], (1, 3), padding=(0, 1)).flatten(1),
    "fold": lambda x: F.fold(torch.stack([x, x], 1), (1, 4), (1, 2), padding=(0, 1), dilation=(1, 2)).flatten(1),
    "conv1d": lambda x: F.conv1d(x[:, None], torch.ones(1, 1, 3), padding="same").flatten(1),
}


@pytest.mark.parametrize("padded", PADDING.values(), ids=PADDING)
def test_pairs_that_pad_have_a_graph_for_batches_of_any_size(padded):
    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("x", dist.Normal(z * padded(x), 1.0).to_event(1), obs=padded(x))

    loss = compile_elbo(model, global_normal, example=(torch.randn(7, 4),), backend="eager")
    for n in (3, 9, 60):
        assert_equals_pyro(loss, Trace_ELBO(), model, global_normal, torch.randn(n, 4))


def drawn_from_the_batch(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", x.shape[0], subsample_size=3) as chosen:
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[chosen])


def in_a_loop(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    for i in pyro.plate("groups", 3):
        pyro.sample(f"y{i}", dist.Normal(z * i, 1.0), obs=torch.tensor(float(i)))
    observed(x, z)


@pytest.mark.parametrize("model", [drawn_with_scale, drawn_from_the_batch, in_a_loop])
def test_plates_as_pyro_users_write_them(model):
    loss = compile_elbo(model, global_normal, example=(torch.randn(7),), backend="eager")
    for n in (3, 9, 60):
        assert_equals_pyro(loss, Trace_ELBO(), model, global_normal, torch.randn(n))


def test_settings_and_constants_are_part_of_the_graph():
    def model(x, settings):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(x.shape[0]), 1.0))
            pyro.sample("x", dist.Normal(z, settings["scale"]), obs=x)

    def guide(x, settings):
        mean_field(x)

    loss = compile_elbo(model, guide, example=(torch.randn(5), {"scale": 2.0}), backend="eager")
    assert loss(torch.randn(7), {"scale": 2.0}).requires_grad
    with pytest.raises(ValueError, match=r"was 2.0 when the pair was traced and is 3.0 now"):
        loss(torch.randn(7), {"scale": 3.0})


def test_mistakes_are_explained():
    model, guide, (x,) = nets()
    with pytest.raises(ValueError, match="backend is 'jit'"):
        compile_elbo(model, guide, example=(x,), backend="jit")
    for arguments, message in [
        ({"example": x}, r"example is torch.float32 of shape \(.*expected a tuple"),
        ({"example": (x,), "elbo": Trace_ELBO}, "elbo is a ABCMeta, expected one of Pyro's bounds, made"),
    ]:
        with pytest.raises(ValueError, match=message):
            unchecked(compile_elbo)(model, guide, **arguments)
    with pytest.raises(ValueError, match="expected a model and a guide that can be called, got a NoneType"):
        unchecked(compile_elbo)(None, guide, example=(x,))
    with pytest.raises(ValueError, match="no parameters"):
        compile_elbo(branching, prior, example=(x[:, 0],))
    with pytest.raises(ValueError, match="no tensor with a batch dimension"):
        compile_elbo(lambda: model(x), lambda: guide(x), example=())
