import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pyro_mvae import Miniaturization, Objective
from pyro_mvae.inference import penalties
from pyro_mvae.likelihoods import BernoulliLikelihood, LogisticLikelihood
from tests.catalog import MODELS, PENALTIES


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 3), st.booleans())
@settings(max_examples=15, deadline=None)
def test_gradients_against_finite_differences(ins, outs, kernel, transposed):
    torch.manual_seed(ins + 10 * outs)
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    net = kind(ins, outs, kernel, dtype=torch.float64)

    def penalised(weight):
        net.__dict__["_parameters"]["weight"] = weight
        return penalties.l1(penalties.weights(net))

    weight = torch.where(net.weight.abs() < 0.01, 0.1, net.weight).detach().requires_grad_()
    assert torch.autograd.gradcheck(penalised, (weight,))


def test_quantization_error_is_the_distance_and_its_gradient_the_sign():
    layer = nn.Conv2d(1, 2, 2, bias=False)
    layer.weight.data = torch.tensor([[[[7.0, 2.4], [-3.6, 0.0]]], [[[0.7, 0.33], [0.1, -0.2]]]])
    error = penalties.quantization_error(layer, bits=4)
    error.backward()
    torch.testing.assert_close(error, torch.tensor(0.4 + 0.4 + 0.03))
    expected = torch.tensor([[[[0.0, 1.0], [1.0, 0.0]]], [[[0.0, 1.0], [0.0, 0.0]]]])
    significant = expected != 0
    torch.testing.assert_close(layer.weight.grad[significant], expected[significant])


def test_divergence_in_closed_form_and_estimated_agree():
    """5 standard errors."""
    eta, other = torch.randn(1, 1, 8, 8), torch.randn(1, 1, 8, 8)
    bernoulli = BernoulliLikelihood()
    closed = penalties.divergence(bernoulli(eta), bernoulli(other))
    p = eta.sigmoid()
    by_hand = (p * (p.log() - other.sigmoid().log()) + (1 - p) * ((1 - p).log() - (1 - other.sigmoid()).log())).sum()
    torch.testing.assert_close(closed, by_hand[None])
    logistic = LogisticLikelihood(1)
    exact = sum(
        (
            logistic(eta).base_dist.log_prob(x).exp()
            * (logistic(eta).base_dist.log_prob(x) - logistic(other).base_dist.log_prob(x))
        ).sum()
        for x in torch.arange(256) / 255
    )
    drawn = torch.stack([penalties.divergence(logistic(eta), logistic(other)).squeeze() for _ in range(800)])
    assert (drawn.mean() - exact).abs() < 5 * drawn.std() / 800**0.5


@pytest.mark.parametrize("name", PENALTIES)
def test_every_penalty_is_a_finite_number_of_at_least_nothing(name):
    net = MODELS["MVAE"]((1, 16, 16))
    value = PENALTIES[name](net, torch.randn(5, 4))
    assert value.ndim == 0
    assert value.isfinite()
    assert value >= 0


def test_the_objective_is_the_sum_of_its_terms_and_each_weight_counts():
    vae, teacher, x = MODELS["MVAE"]((1, 16, 16)), MODELS["VAE"]((1, 16, 16)), torch.rand(4, 1, 16, 16).round()
    full = Miniaturization(prune=1e-3, quantize=1e-2, distill=0.5, sparse=0.1, teacher=teacher)
    terms = Objective(vae, full)(x)
    assert set(terms) == {"loss", "likelihood", "kl", "prune", "quantize", "distill", "sparse"}
    torch.testing.assert_close(terms["loss"], sum(value for name, value in terms.items() if name != "loss"))
    torch.testing.assert_close(terms["prune"], 1e-3 * penalties.l1(penalties.weights(vae)))


def test_only_the_student_is_given_a_gradient():
    vae, teacher, x = MODELS["MVAE"]((1, 16, 16)), MODELS["VAE"]((1, 16, 16)), torch.rand(4, 1, 16, 16).round()
    Objective(vae, Miniaturization(distill=1.0, teacher=teacher))(x)["loss"].backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in vae.parameters())


def test_a_perfect_student_has_no_divergence():
    teacher = MODELS["VAE"]((1, 16, 16)).eval()
    terms = Objective(teacher, Miniaturization(distill=1.0, teacher=teacher))(torch.rand(4, 1, 16, 16).round())
    torch.testing.assert_close(terms["distill"], torch.tensor(0.0), atol=1e-4, rtol=0)


@pytest.mark.parametrize("mistake", [{"prune": -1.0}, {"distill": 1.0}])
def test_mistakes_are_explained(mistake):
    with pytest.raises(ValueError, match=next(iter(mistake))):
        Miniaturization(**mistake)
