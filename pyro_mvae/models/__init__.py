"""The models: generative stories and their guides."""

import difflib

from pyro_mvae.models.beta_vae import BetaVAE
from pyro_mvae.models.gmvae import GMVAE
from pyro_mvae.models.info_vae import InfoVAE
from pyro_mvae.models.mvae import MVAE
from pyro_mvae.models.s_vae import SVAE
from pyro_mvae.models.vade import VaDE
from pyro_mvae.models.vae import VAE
from pyro_mvae.models.vae_gan import VAEGAN
from pyro_mvae.models.vq_vae import VQVAE

__all__ = ["GMVAE", "MVAE", "SVAE", "VAE", "VAEGAN", "VQVAE", "BetaVAE", "InfoVAE", "VaDE"]


def model_class(name: str) -> type[VAE]:
    """The model of a name as the command line writes it.

    Raises:
        ValueError: for any other name; it gives the nearest.

    Example:
        >>> model_class("mvae").__name__
        'MVAE'
    """
    known = {kind.lower(): kind for kind in __all__}
    if name not in known:
        close = difflib.get_close_matches(name.lower(), known, n=1)
        hint = f": did you mean {close[0]!r}?" if close else "."
        raise ValueError(f"unknown model {name!r}{hint} Known: {', '.join(sorted(known))}")
    return globals()[known[name]]
