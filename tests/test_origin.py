"""The likelihood that a package says it has is that of the net in it."""

import pytest
import torch

from pyro_mvae import MVAE, load_data, negative_log_likelihood
from pyro_mvae.compress import Quantize
from pyro_mvae.nets.blockwise import blockwise
from pyro_mvae.origin import exported_nll
from pyro_mvae.search.student import calibrated
from pyro_mvae.train import data_for

HOW = {"num_samples": 2, "seed": 3}


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MVAE((1, 28, 28), 4)


def nll(model, data):
    return negative_log_likelihood(model, data.test.images, binarization=data.binarization, **HOW).nats


def test_floats_are_the_model(model, digits):
    assert exported_nll(model, digits, precision="float16", **HOW).nats == pytest.approx(nll(model, digits), rel=1e-5)


def test_weights_of_four_bits_cost_what_they_cost(model, digits):
    found = exported_nll(model, digits, precision="int4", **HOW).nats
    assert found != pytest.approx(nll(model, digits), rel=1e-5)
    model.encoder, model.decoder = blockwise(model.encoder), blockwise(model.decoder)  # nothing to fold: not trained
    assert found == pytest.approx(nll(model, digits), rel=1e-5)


def test_integers_are_not_their_weights_as_floats(model, digits):
    quantized = calibrated(Quantize()(model))
    integers, floats = (exported_nll(quantized, digits, precision=each, **HOW).nats for each in ("int8", "float16"))
    assert 1e-6 < abs(integers / floats - 1) < 0.01


def test_weights_drawn_are_those_of_the_file(digits):
    torch.manual_seed(0)
    drawn = MVAE((1, 28, 28), 4, theta="weights")
    found = exported_nll(drawn, digits, precision="float16", **HOW).nats
    drawn.theta = None
    assert found == pytest.approx(nll(drawn, digits), rel=1e-5)


def test_a_precision_that_it_can_not_have(model, digits):
    with pytest.raises(ValueError, match="not quantised"):
        exported_nll(model, digits, precision="int8")


def test_pixels_are_as_the_likelihood_wants_them(model):
    assert data_for(model, "digits").binarization == "dynamic"
    assert data_for(MVAE((1, 28, 28), 4, likelihood="logistic"), "digits").binarization == "none"
