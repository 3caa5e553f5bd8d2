from __future__ import annotations

import gc
import sys

import torch
from beartype import BeartypeConf, FrozenDict
from beartype.claw import beartype_package

# While tests run, annotations are checked. In a trace the size of a batch is a symbol and no int, and what goes through `nets`
# is a proxy and no tensor.
traceable = BeartypeConf(
    is_pep484_tower=True,
    hint_overrides=FrozenDict({int: int | torch.SymInt}),
    claw_skip_package_names=("pyro_mvae.nets",),
)
if sys.version_info >= (3, 11):  # before, a function that `contextmanager` decorates can't be told from one that yields
    beartype_package("pyro_mvae", conf=traceable)

import pyro  # noqa: E402
import pytest  # noqa: E402

torch.set_num_threads(1)  # there is a process for each core


@pytest.fixture(autouse=True)
def _fresh_state():
    """No test sees another's parameters or noise."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    yield
    pyro.clear_param_store()


@pytest.fixture(autouse=True, scope="module")
def _no_old_objects():
    """What libraries keep of earlier modules, millions of objects, is not searched for garbage again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def images() -> torch.Tensor:
    """Squares of random size and place on black: something a small VAE learns in seconds; uint8, (256, 1, 16, 16)."""
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(256, 1, 16, 16, dtype=torch.uint8)
    for image in images:
        top, left, side = (int(torch.randint(2, 8, (), generator=generator)) for _ in range(3))
        image[:, top : top + side, left : left + side] = 255
    return images
