"""What a developer is shown of a model in Xcode: what it was trained on, and how likely its files find other images."""

from __future__ import annotations

from pyro_mvae.data import Data
from pyro_mvae.data.progress import Track, untracked
from pyro_mvae.evaluate.likelihood import NLL, negative_log_likelihood
from pyro_mvae.export.capture import as_exported
from pyro_mvae.models import VAE


def origin(data: Data, nll: NLL) -> dict[str, str]:
    """What a model was trained on, and its likelihood of images that it was not trained on."""
    trained = f"{data.name}, {len(data.train):,} images of {' × '.join(map(str, data.shape))}"
    return {"training_data": trained, "nll": f"{nll.nats:.2f} nats an image, {nll.protocol}, {nll.num_images:,} test images"}


def exported_nll(
    model: VAE, data: Data, *, precision: str, num_samples: int = 50, seed: int = 0, progress: Track = untracked
) -> NLL:
    """−log p(x) of test images by a model as files of a precision will compute it: what rounding costs is in it.

    Args:
        precision: as `export_coreml`.
        num_samples: importance samples an image.

    Raises:
        ValueError: for a precision that the model can't have, and as `negative_log_likelihood`.

    Example:
        >>> from pyro_mvae import load_data
        >>> model, digits = VAE((1, 28, 28)), load_data("digits")
        >>> exported_nll(model, digits, precision="int4", num_samples=1).num_images
        2000
    """
    rounded = as_exported(model, precision)
    how = {"num_samples": num_samples, "binarization": data.binarization, "seed": seed}
    return negative_log_likelihood(rounded, data.test.images, **how, progress=progress)
