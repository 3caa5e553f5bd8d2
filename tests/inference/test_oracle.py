"""The bound, the compiled loss and the NLL estimator against closed forms."""

import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from pyro_mvae.evaluate.likelihood import log_evidence
from pyro_mvae.inference import Objective, compile_objective
from tests.linear_gaussian import LinearGaussian, data


def standard_errors_off(values: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((values.mean(0) - expected).abs() / (values.std(0) / len(values) ** 0.5)).max())


def losses(graph, x, n):
    return torch.stack([graph(x)["loss"].detach() for _ in range(n)])


def test_the_oracle_agrees_with_itself():
    pair = LinearGaussian(exact=True)
    torch.testing.assert_close(pair.elbo(data()), pair.log_evidence(data()))
    assert (LinearGaussian().elbo(data()) < LinearGaussian().log_evidence(data())).all()


def test_compiled_loss_is_the_negative_elbo():
    """5 standard errors: fails once in 1.7 million runs; with the KL counted twice it is hundreds off."""
    pair, x = LinearGaussian(), data()
    graph = compile_objective(Objective(pair), x)
    drawn, exact = losses(graph, x, 2000), -pair.elbo(x).mean().detach()
    assert standard_errors_off(drawn[:, None], exact) < 5
    kl = graph(x)["kl"].detach()
    assert standard_errors_off((drawn + kl)[:, None], exact) > 20


def test_compiled_gradients_are_those_of_the_elbo():
    """All 30 gradients within 5 standard errors: fails once in 50,000 runs."""
    pair, x = LinearGaussian(), data()
    graph = compile_objective(Objective(pair), x)
    parameters = list(pair.parameters())
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(-pair.elbo(x).mean(), parameters)])
    drawn = torch.stack(
        [torch.cat([g.flatten() for g in torch.autograd.grad(graph(x)["loss"], parameters)]) for _ in range(2000)]
    )
    assert standard_errors_off(drawn + 0 * exact, exact) < 5
    assert standard_errors_off(drawn, 1.2 * exact) > 5


@pytest.mark.parametrize("n", [1, 3, 8])
def test_compiled_loss_is_pyros_own(n):
    pair, x = LinearGaussian(), data(n)
    graph = compile_objective(Objective(pair), x)
    torch.manual_seed(3)
    ours = graph(x)["loss"]
    torch.manual_seed(3)
    theirs = TraceMeanField_ELBO().differentiable_loss(pair.model, pair.guide, x) / n
    torch.testing.assert_close(ours, theirs)
    parameters = list(pair.parameters())
    for a, b in zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters), strict=True):
        torch.testing.assert_close(a, b)


def test_pyros_sampled_bound_has_the_same_mean():
    pair, x = LinearGaussian(), data()
    elbo = Trace_ELBO()
    drawn = torch.tensor([elbo.loss(pair.model, pair.guide, x) / len(x) for _ in range(500)])
    assert standard_errors_off(drawn[:, None], -pair.elbo(x).mean().detach()) < 5


def test_one_sample_is_enough_with_the_exact_posterior():
    pair = LinearGaussian(exact=True)
    torch.testing.assert_close(log_evidence(pair, data(), 1), pair.log_evidence(data()))


def test_importance_sampling_approaches_the_evidence_from_below():
    pair, x = LinearGaussian(exact=True), data()
    pair.log_s.data += 0.3
    few = torch.stack([log_evidence(pair, x, 2).mean() for _ in range(500)]).detach()
    exact = pair.log_evidence(x).mean().detach()
    assert few.mean() < exact
    torch.testing.assert_close(log_evidence(pair, x, 50_000).mean().detach(), exact, atol=5e-3, rtol=0)


def test_noise_is_new_at_each_call_and_follows_the_seed():
    graph = compile_objective(Objective(LinearGaussian()), data())
    torch.manual_seed(1)
    first, second = graph(data())["loss"], graph(data())["loss"]
    torch.manual_seed(1)
    assert first != second
    assert graph(data())["loss"] == first


def test_tracing_moves_no_state():
    before = torch.get_rng_state()
    compile_objective(Objective(LinearGaussian()), data())
    assert torch.equal(before, torch.get_rng_state())
