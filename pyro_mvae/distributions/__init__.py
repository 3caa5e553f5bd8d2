"""Distributions that Pyro lacks: those of directions."""

from pyro_mvae.distributions.power_spherical import PowerSpherical
from pyro_mvae.distributions.sphere import SphereUniform
from pyro_mvae.distributions.von_mises_fisher import VonMisesFisher

__all__ = ["PowerSpherical", "SphereUniform", "VonMisesFisher"]
