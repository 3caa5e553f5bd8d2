"""A KL that counts for more or less, under any of Pyro's bounds."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch.distributions import kl_divergence

from pyro_mvae import Objective, kl_weighted
from pyro_mvae.inference.surrogate import differentiable_loss
from tests.catalog import MODELS

PAIRS = {
    "Trace_ELBO": Trace_ELBO(num_particles=20_000, vectorize_particles=True, max_plate_nesting=1),
    "TraceMeanField_ELBO": TraceMeanField_ELBO(num_particles=20_000, vectorize_particles=True, max_plate_nesting=1),
    "TraceEnum_ELBO": TraceEnum_ELBO(num_particles=20_000, vectorize_particles=True, max_plate_nesting=1),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0, 4.0])
def test_a_weighted_kl_is_that_of_the_closed_form(name, weight):
    """Loss and gradients against E_q[−log p(x|z)] + β KL in closed form, for a Normal and an enumerated Bernoulli.

    Each within 5 standard errors at least, which are below 0.01 here; without the weight in the guide they are off by over 0.1.
    """
    x = torch.tensor([0.3, -1.0, 2.0])

    discrete = name != "TraceMeanField_ELBO"

    def model():
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            k = pyro.sample("k", dist.Bernoulli(0.5)) if discrete else 0.0
            pyro.sample("x", dist.Normal(z + k, 1.0), obs=x)

    def guide():
        loc = pyro.param("loc", torch.tensor([0.1, -0.4, 0.7]))
        probs = pyro.param("probs", torch.tensor([0.2, 0.6, 0.7]))
        how = {"enumerate": "parallel"} if name == "TraceEnum_ELBO" else {}
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(loc, 0.5))
            if discrete:
                pyro.sample("k", dist.Bernoulli(probs), infer=how)

    pair = kl_weighted(model, guide, weight=weight)
    loss = differentiable_loss(PAIRS[name], *pair)
    store = pyro.get_param_store()
    loc, p = store._params["loc"], store._params["probs"] * discrete
    kl = kl_divergence(dist.Normal(loc, 0.5), dist.Normal(0.0, 1.0))
    if discrete:
        kl = kl + kl_divergence(dist.Bernoulli(p), dist.Bernoulli(torch.tensor(0.5)))
    distortion = 0.5 * (x**2 - 2 * x * (loc + p) + loc**2 + 0.25 + 2 * loc * p + p) + 0.5 * math.log(2 * math.pi)
    expected = (distortion + weight * kl).sum()
    torch.testing.assert_close(loss, expected, atol=0.06, rtol=0)
    parameters = [store._params["loc"], *([store._params["probs"]] if discrete else [])]
    for a, b in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(a, b, atol=0.12, rtol=0)


def test_a_weighted_kl_may_be_for_some_sites_and_not_for_what_is_observed():
    def model():
        pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))

    def guide():
        loc = pyro.param("loc", torch.tensor(1.0))
        pyro.sample("a", dist.Normal(loc, 1.0))
        pyro.sample("b", dist.Normal(2 * loc, 1.0))

    loss = TraceMeanField_ELBO().differentiable_loss(*kl_weighted(model, guide, weight=0.0, sites=["b"]))
    torch.testing.assert_close(loss, torch.tensor(0.5 + 0.5 + 0.5 * math.log(2 * math.pi)))
    with pytest.raises(ValueError, match="weight is -1"):
        kl_weighted(model, guide, weight=-1.0)


def test_the_weight_of_the_objective_is_that_of_the_handler():
    vae, x = MODELS["VAE"]((1, 16, 16)), torch.rand(4, 1, 16, 16).round()
    for weight in (0.0, 0.3):
        torch.manual_seed(0)
        ours = Objective(vae, kl_weight=weight)(x)["loss"]
        torch.manual_seed(0)
        theirs = TraceMeanField_ELBO().differentiable_loss(*kl_weighted(vae.model, vae.guide, weight=weight), x) / 4
        torch.testing.assert_close(ours, theirs)
