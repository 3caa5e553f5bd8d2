"""Whether what is generated for a label is what it should be: an independent classifier reads it."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_mvae.data import Split
from pyro_mvae.data.batches import require_tensor, scaled
from pyro_mvae.data.progress import Track, untracked
from pyro_mvae.evaluate.latents import assigned, labels_of, matched
from pyro_mvae.evaluate.measurement import Measurement
from pyro_mvae.models import VAE
from pyro_mvae.models.vae import codes
from pyro_mvae.nets.modes import evaluating
from pyro_mvae.numbers import above, count

JUDGE = "judge accuracy"


class Classifier(nn.Module):
    """Images → logits of their labels, by three convolutions.

    Shapes: (n, C, H, W) in [0, 1] → (n, num_classes).

    Example:
        >>> Classifier((1, 28, 28), 10)(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int):
        super().__init__()
        channels, layers = image_shape[0], []
        for width in (16, 32, 64):
            layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.LazyLinear(num_classes))
        self.body.eval()(torch.zeros(1, *image_shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def train_classifier(
    images: Tensor,
    labels: Tensor,
    *,
    steps: int | None = None,
    batch_size: int = 100,
    lr: float = 3e-3,
    seed: int = 0,
    progress: Track = untracked,
    description: str = "Judge",
) -> Classifier:
    """A classifier of images, uint8 or in [0, 1], by Adam with one cycle of the learning rate; the same for a seed.

    Args:
        steps: when None, those of 15 epochs, from 150 to 600.

    Raises:
        ValueError: when there is not one label, from 0 on, for each image.
    """
    require_tensor(images)
    if not isinstance(labels, Tensor) or not len(labels) or labels.shape != images.shape[:1] or labels.min() < 0:
        given = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(f"expected {len(images)} labels, from 0 on, one for each image, got {given}")
    if labels.dtype.is_floating_point or labels.dtype == torch.bool:
        raise ValueError(f"labels are {labels.dtype}, expected whole numbers: labels.long()")
    count(batch_size, "batch_size")
    above(lr, "lr")
    if steps is None:
        steps = min(max(15 * len(images) // batch_size, 150), 600)
    count(steps, "steps")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        shape = (images.shape[1], images.shape[2], images.shape[3])
        net = Classifier(shape, int(labels.max()) + 1).train().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        optimizer = torch.optim.Adam(net.parameters(), lr, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
        for _ in progress(range(steps), description, steps):
            chosen = torch.randint(len(images), (batch_size,))
            x = in_unit(images[chosen]).to(memory_format=torch.channels_last)
            loss = F.cross_entropy(net(x), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def in_unit(images: Tensor) -> Tensor:
    """Images of 256 levels, or pictures in [0, 1] as they are."""
    return scaled(images) if images.dtype == torch.uint8 else images


@torch.no_grad()
def accuracy(classifier: Classifier, images: Tensor, labels: Tensor, *, chunk: int = 1000) -> float:
    """The share of images, in %, that a classifier reads as their labels."""
    read = torch.cat([classifier(in_unit(x)).argmax(-1) for x in images.split(chunk)])
    return 100 * float((read == labels).float().mean())


@torch.no_grad()
def generated(model: VAE, train: Split, *, num_images: int = 10_000, seed: int = 0) -> tuple[Tensor, Tensor, str]:
    """Pictures in [0, 1] made for each label in turn, the labels, and how.

    A model with clusters draws from the cluster that the Hungarian map gives to the label on training images. Any other draws
    codes like those of the label's training images, see `draw_like` of the model.

    Raises:
        ValueError: when a model has fewer clusters than there are labels, or there is one image of a label to draw codes like.
    """
    labels = labels_of(train)
    wanted = np.unique(labels)
    each = -(-num_images // len(wanted))
    with torch.random.fork_rng(devices=[]), evaluating(model):
        torch.manual_seed(seed)
        if model.num_clusters is not None:
            found = matched(assigned(model, train.images), labels, num_clusters=model.num_clusters)
            clusters = {label: cluster for cluster, label in found.items()}
            if len(clusters) < len(wanted):
                raise ValueError(
                    f"the model has clusters for {len(clusters)} of {len(wanted)} labels: give it a larger num_clusters"
                )
            pictures = [model.generate(each, cluster=clusters[int(label)]) for label in wanted]  # pyright: ignore[reportCallIssue]
            how = "drawn from the model's own cluster that the Hungarian map on training images gives to the label"
        else:
            z = codes(model, train.images)
            of_label = [z[torch.as_tensor(labels == label)] for label in wanted]
            pictures = [model.decode(model.draw_like(some, each)) for some in of_label]
            how = f"decoded from codes drawn like those of the label's training images, {model.likeness}"
    return torch.cat(pictures).cpu(), torch.as_tensor(wanted).repeat_interleave(each), how


def generation_accuracy(
    model: VAE,
    train: Split,
    test: Split,
    judge: Classifier,
    *,
    num_images: int = 10_000,
    seed: int = 0,
) -> tuple[Measurement, Measurement, Measurement]:
    """The share of pictures made for a label that the judge reads as it; and CAS, of real test images that a classifier trained
    on those pictures reads right, as the judge was on real ones: what it reads of them is as far as this can go. A model that has
    collapsed may reach 100 % in the first, never in the second.

    The third is the judge's own accuracy on test images, which is in both protocols too. Each label has as many pictures:
    `num_images` or a few more.

    Raises:
        ValueError: without labels or pictures, or as `generated`.

    Source: Ravuri and Vinyals, Classification Accuracy Score for Conditional Generative Models, 2019.
    """
    wanted = torch.as_tensor(labels_of(test))
    count(num_images, "num_images")
    pictures, labels, how = generated(model, train, num_images=num_images, seed=seed)
    real = accuracy(judge, test.images, wanted)
    read = Measurement(
        "generation accuracy",
        accuracy(judge, pictures, labels),
        "%",
        f"{how}; the judge reads {real:.2f} % of the test images right",
        len(pictures),
        split="generated",
        seeds=(seed,),
    )
    student = train_classifier(pictures, labels, seed=seed, description="Classifier of what was generated")
    cas = Measurement(
        "CAS",
        accuracy(student, test.images, wanted),
        "%",
        f"the judge's like, trained on {len(pictures)} pictures {how}; the judge reads {real:.2f} %",
        len(test.images),
        seeds=(seed,),
    )
    return read, cas, Measurement(JUDGE, real, "%", "the classifier that reads what was generated", len(test.images))
