"""Pyro pairs that are not ours, one for each thing that a user may write; each with the bounds that suit it."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO, config_enumerate
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.distributions import constraints

from pyro_mvae import VAE

VECTORIZED = {"vectorize_particles": True, "max_plate_nesting": 1}


def nets():
    """Modules, constrained parameters and a deterministic site."""
    decoder, encoder = nn.Linear(3, 2), nn.Linear(2, 3)

    def model(x):
        pyro.module("decoder", decoder)
        scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(x.shape[0], 3), 1.0).to_event(1))
            loc = pyro.deterministic("loc", decoder(z))
            pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        width = pyro.param("width", torch.ones(3), constraint=constraints.positive)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(encoder(x), width).to_event(1))

    return model, guide, (torch.randn(5, 2),)


def handlers():
    """A part of each pair scaled, masked and blocked; another site conditioned."""
    model, guide, example = nets()

    def changed(pair):
        def call(x):
            with poutine.scale(scale=0.25), poutine.mask(mask=x[:, 0] > 0):
                pair(x)

        return call

    def extended(x):
        changed(model)(x)
        pyro.sample("w", dist.Normal(pyro.param("w_loc", torch.tensor(0.0)), 1.0))
        poutine.block(lambda: pyro.sample("unseen", dist.Normal(0.0, 1.0)))()

    return poutine.condition(extended, {"w": torch.tensor(0.3)}), changed(guide), example


class Regression(PyroModule):
    """Parameters with constraints that belong to modules."""

    def __init__(self):
        super().__init__()
        self.linear = PyroModule[nn.Linear](2, 1)
        self.scale = PyroParam(torch.tensor(1.0), constraint=constraints.positive)

    def forward(self, x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(self.linear(x).squeeze(-1), self.scale))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])


def modules():
    guide = Regression()
    return Regression(), poutine.block(guide, hide=["x"]), (torch.randn(5, 2),)


def score_function():
    """A discrete latent variable that is sampled, before a continuous one."""

    def model(x):
        with pyro.plate("data", x.shape[0]):
            b = pyro.sample("b", dist.Bernoulli(0.3))
            z = pyro.sample("z", dist.Normal(b, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        slope, shift = pyro.param("slope", torch.tensor(0.2)), pyro.param("shift", torch.tensor(0.1))
        with pyro.plate("data", x.shape[0]):
            b = pyro.sample("b", dist.Bernoulli(logits=slope * x))
            pyro.sample("z", dist.Normal(shift * x + b, 1.0))

    return model, guide, (torch.randn(5),)


def enumerated_in_the_guide():
    """The GMVAE's shape: a class that is summed over, and a code given the class."""
    to_class, to_z, decoder, prior = nn.Linear(4, 3), nn.Linear(7, 2), nn.Linear(2, 4), nn.Linear(3, 2)

    def model(x):
        pyro.module("decoder", decoder)
        pyro.module("prior", prior)
        with pyro.plate("data", x.shape[0]):
            y = pyro.sample("y", dist.OneHotCategorical(torch.ones(3) / 3))
            z = pyro.sample("z", dist.Normal(prior(y), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    @config_enumerate
    def guide(x):
        pyro.module("to_class", to_class)
        pyro.module("to_z", to_z)
        with pyro.plate("data", x.shape[0]):
            y = pyro.sample("y", dist.OneHotCategorical(logits=to_class(x)))
            shape = torch.broadcast_shapes(x.shape[:-1], y.shape[:-1])
            both = torch.cat([x.expand(*shape, 4), y.expand(*shape, 3)], -1)
            pyro.sample("z", dist.Normal(to_z(both), 1.0).to_event(1))

    return model, guide, (torch.randn(6, 4),)


def enumerated_in_the_model():
    """A mixture whose components are summed out."""

    def model(x):
        weights = pyro.param("weights", torch.ones(4) / 4, constraint=constraints.simplex)
        locs = pyro.param("locs", lambda: torch.randn(4))
        with pyro.plate("data", x.shape[0]):
            y = pyro.sample("y", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(locs[y], 1.0), obs=x)

    return model, lambda x: None, (torch.randn(5),)


def subsampled():
    """Plates of which a part is seen, drawn by the plate itself and given from outside."""
    everything = torch.randn(50)

    def model(indices):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("given", 50, subsample=indices) as chosen:
            pyro.sample("x", dist.Normal(loc, 1.0), obs=everything[chosen])
        with pyro.plate("drawn", 50, subsample_size=6) as chosen:
            pyro.sample("y", dist.Normal(loc, 1.0), obs=everything[chosen])

    def guide(indices):
        scale = pyro.param("loc_scale", torch.tensor(0.5), constraint=constraints.positive)
        pyro.sample("loc", dist.Normal(pyro.param("loc_loc", torch.tensor(0.3)), scale))

    return model, guide, (torch.arange(7),)


def correlated():
    """A posterior with a full covariance for each datum."""
    decoder, encoder = nn.Linear(3, 2), nn.Linear(2, 3)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.MultivariateNormal(torch.zeros(x.shape[0], 3), torch.eye(3)))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        tril = pyro.param("tril", 0.3 * torch.randn(3, 3)).tril(-1) + torch.eye(3)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.MultivariateNormal(encoder(x), scale_tril=encoder(x).exp()[..., None] * tril))

    return model, guide, (torch.randn(5, 2),)


def gradients_by_implicit_differentiation():
    """Sites whose samples torch differentiates through their distribution function."""

    def model(x):
        shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3)))
        odds = pyro.sample("odds", dist.Beta(2.0, 3.0))
        with pyro.plate("data", x.shape[0]):
            precision = pyro.sample("precision", dist.Gamma(2.0, 1.0))
            pyro.sample("x", dist.Normal(shares[..., 0] + odds, precision.rsqrt()), obs=x)

    def guide(x):
        concentrations = pyro.param("concentrations", torch.tensor([1.5, 2.0, 3.0]), constraint=constraints.positive)
        pyro.sample("shares", dist.Dirichlet(concentrations))
        pyro.sample("odds", dist.Beta(concentrations[0], concentrations[1]))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("precision", dist.Gamma(concentrations[2] + x.square(), concentrations[1]))

    return model, guide, (torch.randn(5),)


def convolutional():
    """Batch normalisation, whose buffers each step writes to."""
    vae = VAE((1, 8, 8), 4, widths=(4,), hidden=8)
    return vae.model, vae.guide, (torch.rand(5, 1, 8, 8).round(),)


PAIRS = {
    nets: [
        Trace_ELBO(),
        TraceMeanField_ELBO(),
        Trace_ELBO(num_particles=3),
        Trace_ELBO(num_particles=3, **VECTORIZED),
        RenyiELBO(alpha=0.0, num_particles=4),
        RenyiELBO(alpha=0.5, num_particles=4, **VECTORIZED),
        TraceGraph_ELBO(),
    ],
    handlers: [Trace_ELBO(), TraceMeanField_ELBO()],
    modules: [Trace_ELBO(), TraceMeanField_ELBO()],
    score_function: [Trace_ELBO(), Trace_ELBO(num_particles=2)],
    enumerated_in_the_guide: [
        TraceEnum_ELBO(max_plate_nesting=1),
        TraceEnum_ELBO(num_particles=2, max_plate_nesting=1),
        TraceEnum_ELBO(num_particles=2, **VECTORIZED),
    ],
    enumerated_in_the_model: [TraceEnum_ELBO()],
    subsampled: [Trace_ELBO(), TraceMeanField_ELBO()],
    correlated: [Trace_ELBO(), TraceMeanField_ELBO()],
    gradients_by_implicit_differentiation: [Trace_ELBO(), TraceMeanField_ELBO(), Trace_ELBO(num_particles=2, **VECTORIZED)],
    convolutional: [Trace_ELBO(), TraceMeanField_ELBO()],
}
