"""What a pass is: a value that takes a model and returns a smaller one, a copy, with the pass in its log."""

from __future__ import annotations

import copy
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from pyro_mvae.models import VAE
from pyro_mvae.nets.palette import how_palettized
from pyro_mvae.nets.quantized import is_quantized

Model = TypeVar("Model", bound=VAE)


@runtime_checkable
class Pass(Protocol):
    """Model → smaller model. Its `repr` rebuilds it. Some passes look at images as well: uint8, (n, C, H, W)."""

    def __call__(self, model: Model, images: Tensor | None = None, /) -> Model: ...


def copied(model: Model, by: Pass) -> Model:
    """A copy of a model that has the pass in its log, for the pass to change."""
    model = copy.deepcopy(model)
    model.passes = (*model.passes, repr(by))
    return model


def needed(images: Tensor | None, by: Pass) -> Tensor:
    """Images where a pass can't do without; a ValueError where there are none."""
    if images is None or not len(images):
        raise ValueError(f"{by!r} looks at images: call it with the model and some training images")
    return images


def check_float(model: Any, to: str) -> None:
    """Raise a ValueError for a quantised or palettised model where a pass is for one that is not."""
    if is_quantized(model):
        raise ValueError(f"a quantised model can't be {to}: do so first, then quantise")
    if how_palettized(model) is not None:
        raise ValueError(f"a palettised model can't be {to}: do so first, then give it palettes")
