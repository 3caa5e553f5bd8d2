"""How unlike what it was trained on a model finds a picture."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_mvae.data import shown
from pyro_mvae.evaluate.measurement import Measurement
from pyro_mvae.models import VAE
from pyro_mvae.nets.modes import evaluating
from pyro_mvae.numbers import count


@torch.no_grad()
def anomaly_scores(model: VAE, images: Tensor, *, binarization: str = "none", seed: int = 0, chunk: int = 500) -> Tensor:
    """−log p(x|z), z the mean of q(z|x), in nats: high for what the model can't say. No noise, so that a phone's is the same.

    Args:
        images: uint8, (n, C, H, W).
        binarization, seed: as `negative_log_likelihood`.

    Returns: a score an image, (n,).

    Raises:
        ValueError: for no images, some of another shape or not uint8, or an unknown binarization.

    Example:
        >>> images = (torch.rand(4, 1, 8, 8) * 255).byte()
        >>> anomaly_scores(VAE((1, 8, 8), 4), images).shape
        torch.Size([4])
    """
    model.check_bytes(images)
    count(chunk, "chunk")
    device, xs = next(model.parameters()).device, shown(images, binarization=binarization, seed=seed)
    with evaluating(model):
        parts = [-model.conditional(model.encode(x)).log_prob(x) for x in (some.to(device) for some in xs.split(chunk))]
    return torch.cat(parts)


def anomaly_auc(model: VAE, normal: Tensor, anomalous: Tensor, *, binarization: str = "none", seed: int = 0) -> Measurement:
    """The area under the ROC curve of `anomaly_scores`: how often an anomaly scores higher than a normal image; ½ by chance.

    Args:
        normal, anomalous: images that the model did not see, uint8, (n, C, H, W).

    Raises:
        ValueError: as `anomaly_scores`.

    Source: Hanley and McNeil, The Meaning and Use of the Area under a ROC Curve, 1982.

    Example:
        >>> images = (torch.rand(4, 1, 8, 8) * 255).byte()
        >>> anomaly_auc(VAE((1, 8, 8), 4), images, images).value
        0.5
    """
    from sklearn.metrics import roc_auc_score  # slow to import

    scores = [anomaly_scores(model, images, binarization=binarization, seed=seed) for images in (normal, anomalous)]
    told = torch.cat([torch.zeros(len(normal)), torch.ones(len(anomalous))])
    area = float(roc_auc_score(told.numpy(), torch.cat(scores).double().cpu().numpy()))
    protocol = f"−log p(x|mean of q(z|x)), binarisation {binarization}; {len(normal)} normal images, {len(anomalous)} others"
    return Measurement("anomaly AUC", area, "", protocol, len(told), seeds=(seed,))
