"""A search of half a second."""

from pyro_mvae.search import Budget

SECONDS = {"mobile": 0.05, "conv": 0.1, "mlp": 0.04}
"""Of an epoch, as the tests have it, by the kind of nets."""


def quick(data, out, **more):
    """What a search of half a second is given."""
    return {"data": data, "budget": Budget(kb=45), "minutes": 0.01, "nll_samples": 2, "latent_dims": (4,), "out": out, **more}
