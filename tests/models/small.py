"""Small models and what they are given, for tests against closed forms."""

from __future__ import annotations

import torch

from pyro_mvae import Objective

SHAPE = (1, 8, 8)
SMALL = {"widths": (4,), "hidden": 8}


def x_for(n=6):
    return torch.randint(0, 2, (n, *SHAPE), generator=torch.Generator().manual_seed(2)).float()


def terms(vae, x, **weights):
    torch.manual_seed(0)
    return {name: float(term.detach()) for name, term in Objective(vae, **weights)(x).items()}
