"""What the tests of a search share: small data, costs and paces that take no time to measure."""

import sys

import pytest

from pyro_mvae.data import Data, Split
from pyro_mvae.evaluate.cost import num_macs
from pyro_mvae.search import Cost, pace
from pyro_mvae.search.plans import Shape
from pyro_mvae.search.student import estimated_bytes
from tests.search.quick import SECONDS


@pytest.fixture
def data(images):
    return Data("squares", train=Split(images[:192]), test=Split(images[192:]), binarization="none")


@pytest.fixture
def cheap(monkeypatch):
    """Costs as they are estimated, and fewer shapes; whose costs were asked for."""
    asked = []

    def cost(model):
        asked.append(model)
        return Cost(estimated_bytes(model) / 1000, num_macs(model), 10.0)

    monkeypatch.setattr(sys.modules["pyro_mvae.search.layout"], "cost_of", cost)
    plans = sys.modules["pyro_mvae.search.plans"]
    monkeypatch.setattr(plans, "TAPERS", {"mobile": (1.0,), "conv": (1.0,)})
    monkeypatch.setattr(plans, "MLP", ((1, 1.0),))
    return asked


@pytest.fixture
def paced(monkeypatch):
    """Epochs that take as long as is said, so that every run has the same students, and few of them."""
    monkeypatch.setattr(pace, "seconds_an_epoch", lambda plan, *_, **__: SECONDS[plan.net] / 4)
    plans = sys.modules["pyro_mvae.search.plans"]
    for name, few in {"SHARES": (1.0,), "CONV_DEPTHS": (2,), "CONV_HIDDEN": ((1, 1.0),)}.items():
        monkeypatch.setattr(plans, name, few)


@pytest.fixture
def dense(monkeypatch):
    """Students of fully connected nets alone, the quickest to begin with."""
    plans = sys.modules["pyro_mvae.search.plans"]
    monkeypatch.setattr(plans, "shapes", lambda teacher: [Shape("mlp", (16,) * layers, 16) for layers in range(4)])
