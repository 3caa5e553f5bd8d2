"""The models: generative stories and their guides."""

import difflib

from pyro_mvae.models.mvae import MVAE
from pyro_mvae.models.vae import VAE

__all__ = ["MVAE", "VAE"]


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
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"unknown model {name!r}; {hint}Known: {', '.join(sorted(known))}")
    return globals()[known[name]]
