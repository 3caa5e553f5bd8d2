"""Bayesian likelihoods, against conjugate closed forms."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from scipy import stats
from torch import nn

from pyro_mvae import MVAE, VAE, Objective, PruneChannels, Quantize, fit, load_model, negative_log_likelihood, save_model
from pyro_mvae.inference import compile_gradients
from pyro_mvae.likelihoods import LIKELIHOODS
from pyro_mvae.theta import PRECISE, RELUCTANCE, THETAS, Precision, Weights

BAYESIAN = [(name, theta) for name in LIKELIHOODS for theta in THETAS if theta == "weights" or name in PRECISE]


def vae_with(likelihood, theta, *, kind=MVAE, shape=(3, 16, 16)):
    torch.manual_seed(0)
    return kind(shape, 4, widths=(8, 12), hidden=16, likelihood=likelihood, theta=theta)


@pytest.mark.parametrize(("name", "theta"), BAYESIAN)
def test_a_bayesian_likelihood_trains_saves_and_predicts(name, theta, images, tmp_path):
    vae, colour = vae_with(name, theta), images[:64].repeat(1, 3, 1, 1)
    before = {key: parameter.detach().clone() for key, parameter in vae.named_parameters()}
    history = fit(vae, colour, epochs=2, batch_size=32)
    row = history.iloc[-1]
    assert row["loss"] == pytest.approx(row["likelihood"] + row["kl"] + row["theta_kl"], rel=1e-5)
    assert row["theta_kl"] > 0
    assert row["theta_kl_weight"] == 1
    save_model(tmp_path / "vae.safetensors", vae)
    again = load_model(tmp_path / "vae.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(vae.state_dict().values(), again.state_dict().values(), strict=True))
    mean, sd = vae.predictive(colour[:3].float() / 255, num_samples=4)
    assert mean.shape == sd.shape == (3, 3, 16, 16)
    assert (sd > 0).all()
    assert ((mean >= 0) & (mean <= 1)).all()
    assert math.isfinite(negative_log_likelihood(vae, colour[:8], num_samples=3).nats)
    still = {key for key, parameter in vae.named_parameters() if torch.equal(parameter, before[key])}
    assert still == (set() if theta == "weights" or name == "bernoulli" else {"likelihood.log_scale"})  # τ takes its place


@pytest.mark.parametrize("theta", THETAS)
def test_plain_pyro_trains_theta_too(theta):
    vae, x = vae_with("gaussian", theta), torch.rand(4, 3, 16, 16)
    before = {name: value.detach().clone() for name, value in vae.named_parameters()}
    SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step(x)
    skipped = {"likelihood.log_scale"} if theta != "weights" else set()  # its place is taken by the precision
    assert {name for name, value in vae.named_parameters() if torch.equal(value, before[name])} == skipped


@pytest.mark.parametrize("theta", THETAS)
def test_the_graph_of_a_bayesian_likelihood_is_pyros_bound(theta):
    """Loss and every gradient, for a batch that was not traced with."""
    vae, x = vae_with("gaussian", theta), torch.rand(5, 3, 16, 16)
    step = compile_gradients(Objective(vae), x[:2])
    torch.manual_seed(3)
    terms, gradients = step(x)
    torch.manual_seed(3)
    theirs = TraceMeanField_ELBO().differentiable_loss(vae.model, vae.guide, x) / 5
    torch.testing.assert_close(terms["loss"], theirs.detach(), rtol=1e-5, atol=0)
    for a, b in zip(gradients, torch.autograd.grad(theirs, list(vae.parameters()), materialize_grads=True), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()) + 1e-6)


@pytest.mark.parametrize("theta", THETAS)
def test_the_bound_without_the_kl_of_theta_is_equation_7(theta):
    vae, x = vae_with("logistic", theta), torch.rand(4, 3, 16, 16)
    for weight in (0.0, 1.0):
        terms, _ = compile_gradients(Objective(vae, theta_kl_weight=weight), x)(x)
        torch.testing.assert_close(terms["loss"], terms["likelihood"] + terms["kl"] + weight * terms["theta_kl"])


class NormalGamma(nn.Module):
    """x ~ N(μ, 1/τ) in D pixels, τ ~ Gamma(a, b): the posterior is Gamma(a + D/2, b + ½ Σ(x − μ)²), the evidence Student's t.

    `sure` multiplies the concentration of the guide: 1 is exact.
    """

    a, b, mu, dim = 2.0, 0.5, 0.3, 6

    def __init__(self, *, sure: float = 1.0):
        super().__init__()
        self.sure = sure
        self.unused = nn.Parameter(torch.zeros(()))

    def model(self, x):
        with pyro.plate("data", x.shape[0]):
            tau = pyro.sample("theta", dist.Gamma(self.a, self.b).expand([x.shape[0], 1]).to_event(1))
            loc = self.mu + 0 * self.unused
            pyro.sample("x", dist.Normal(loc, tau.rsqrt().expand(-1, self.dim)).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("theta", self.posterior(x))

    def posterior(self, x):
        a, b = self.a + self.dim / 2, self.b + 0.5 * (x - self.mu).square().sum(1, keepdim=True)
        return dist.Gamma(torch.full_like(b, self.sure * a), self.sure * b).to_event(1)

    def log_evidence(self, x):
        shape = torch.eye(self.dim).numpy() * self.b / self.a
        law = stats.multivariate_t(loc=[self.mu] * self.dim, shape=shape, df=2 * self.a)
        return torch.as_tensor(law.logpdf(x.numpy()), dtype=torch.float32)

    def draw(self, n):
        tau = dist.Gamma(self.a, self.b).sample((n, 1))
        return tau, self.mu + torch.randn(n, self.dim) * tau.rsqrt()


def test_with_the_exact_posterior_the_bound_is_the_evidence():
    """−E_q[log p(x|θ′)] + KL = −log p(x) whatever the noise is on average: 5 standard errors; over-confident it is below."""
    _, x = NormalGamma().draw(16)
    exact = -NormalGamma().log_evidence(x).mean()
    bounds = {}
    for sure in (1.0, 4.0):
        graph = compile_gradients(Objective(NormalGamma(sure=sure)), x)
        drawn = torch.stack([graph(x)[0]["loss"] for _ in range(1500)])
        bounds[sure] = (drawn.mean() - exact) / (drawn.std() / 1500**0.5)
    assert abs(bounds[1.0]) < 5
    assert bounds[4.0] > 20


def ranks(pair, *, num_data=2000, num_draws=15):
    """Where the true θ′ stands among draws of the guide's, 0 to `num_draws`."""
    tau, x = pair.draw(num_data)
    return (pair.posterior(x).sample((num_draws,)) < tau).sum(0).flatten()


def test_ranks_are_uniform_for_a_calibrated_guide_and_not_for_a_sure_one():
    """χ² over 16 ranks: p below 1e-4 once in 10,000 seeds for the exact guide; below 1e-20 for one four times too sure."""
    p = {sure: stats.chisquare(torch.bincount(ranks(NormalGamma(sure=sure)), minlength=16).numpy()).pvalue for sure in (1.0, 4.0)}
    assert p[1.0] > 1e-4
    assert p[4.0] < 1e-20


@pytest.mark.parametrize("family", ["gamma", "log_normal"])
def test_an_amortised_guide_learns_the_posterior_of_the_precision(family):
    """A small net on the sufficient statistic comes within 0.02 nats of the evidence with a Gamma, 0.05 with a LogNormal."""
    oracle, precision = NormalGamma(), Precision(1, family)

    class Learning(NormalGamma):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 2))

        def posterior(self, x):
            statistic = torch.log(self.b + 0.5 * (x - self.mu).square().sum(1, keepdim=True))
            loc, log_spread = self.encoder(statistic).chunk(2, dim=1)
            return precision.posterior((loc - math.log(100.0)) / RELUCTANCE, 10 * log_spread.exp())

    pair = Learning()
    graph = compile_gradients(Objective(pair), oracle.draw(4)[1])
    optimizer = torch.optim.Adam(pair.parameters(), 1e-2)
    for _ in range(800):
        _, gradients = graph(oracle.draw(256)[1])
        for parameter, gradient in zip(pair.parameters(), gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    x = oracle.draw(2000)[1]
    gap = sum(graph(x)[0]["loss"] for _ in range(20)) / 20 + oracle.log_evidence(x).mean()
    assert -0.01 < gap < {"gamma": 0.02, "log_normal": 0.05}[family]


def test_marginally_a_gaussian_with_random_precision_is_students_t():
    """Kolmogorov–Smirnov: p below 1e-4 once in 10,000 seeds; a normal of the same variance has less than 1e-6."""
    precision = Precision(1, "gamma")
    with torch.no_grad():
        precision.log_mean.fill_(0.0)
        precision.log_spread.fill_(-0.5 * math.log(1.5))
    tau = precision.prior(20_000).sample()[:, 0]
    x = torch.randn(20_000) * tau.rsqrt()
    assert stats.kstest(x.numpy(), stats.t(df=5).cdf).pvalue > 1e-4
    assert stats.kstest(x.numpy(), stats.norm(scale=(5 / 3) ** 0.5).cdf).pvalue < 1e-6


def test_weights_are_drawn_for_each_image():
    """A convolution with W + Σ θ′ᵣ uᵣ ⊗ vᵣ, made image by image."""
    for last in (nn.Conv2d(5, 3, 3, padding=1), nn.ConvTranspose2d(5, 3, 4, stride=2, padding=1)):
        decoder = nn.Sequential(nn.Conv2d(2, 5, 1), last)
        weights, z, theta = Weights(decoder, 2), torch.randn(4, 2, 6, 6), torch.randn(4, 2)
        got = weights.decode(decoder, z, theta)
        for i in range(4):
            single = nn.Sequential(decoder[0], type(last)(5, 3, last.kernel_size, stride=last.stride, padding=last.padding))
            up, down = weights.up.weight[:, :, 0, 0] * theta[i], weights.down.weight
            equation = "or,irhw->iohw" if isinstance(last, nn.ConvTranspose2d) else "or,rihw->oihw"
            single[1].weight.data = last.weight + torch.einsum(equation, up, down)
            single[1].bias.data = last.bias
            torch.testing.assert_close(got[i : i + 1], single(z[i : i + 1]), atol=1e-5, rtol=1e-4)


def test_weights_are_drawn_in_a_quantised_decoder_too():
    """What the float decoder computes, but for rounding: θ′ must not be lost where the layer is replaced."""
    vae = vae_with("bernoulli", "weights")
    quantized = Quantize()(vae).train()
    z, theta = torch.randn(64, vae.latent_dim), 30 * torch.randn(64, vae.theta.size)
    for _ in range(50):
        quantized.theta.decode(quantized.decoder, z, theta)
    vae, quantized = vae.eval(), quantized.eval()
    plain, expected = vae.decoder(z), vae.theta.decode(vae.decoder, z, theta)
    error = (quantized.theta.decode(quantized.decoder, z, theta) - expected).square().mean().sqrt()
    assert error < 0.2 * (expected - plain).square().mean().sqrt()
    assert torch.equal(quantized.theta.decode(quantized.decoder, z, torch.zeros_like(theta)), quantized.decoder(z))


def test_mistakes_are_explained():
    for wrong, message in [
        ({"likelihood": "poisson"}, "likelihood is 'poisson', expected one of: bernoulli"),
        ({"theta": "beta"}, "theta is 'beta', expected one of: gamma"),
        ({"theta": "gamma"}, "'bernoulli' has no precision to be random: choose gaussian or logistic"),
        ({"theta": "weights", "theta_rank": 0}, "theta_rank is 0"),
        ({"theta": "weights", "decoder": nn.Identity()}, "whose last layer is"),
    ]:
        with pytest.raises(ValueError, match=message):
            VAE((1, 16, 16), 4, **wrong)


@pytest.mark.parametrize("theta", ["gamma", "weights"])
@pytest.mark.parametrize("net", ["conv", "mobile", "mlp"])
def test_a_bayesian_likelihood_survives_pruning(theta, net, images, tmp_path):
    vae = VAE((1, 16, 16), 4, net=net, widths=(8, 12), hidden=16, likelihood="logistic", theta=theta)
    pruned = PruneChannels(ratio=0.5)(vae)
    fit(pruned, images[:64], epochs=1)
    save_model(tmp_path / "pruned.safetensors", pruned)
    loaded, z, values = load_model(tmp_path / "pruned.safetensors"), torch.randn(2, 4), torch.ones(2, vae.theta.size)
    x = images[:2].float() / 255
    assert torch.equal(*(each.eval().conditional(z, values).log_prob(x) for each in (loaded, pruned)))


def test_bayesian_weights_keep_the_channels_that_their_layer_keeps():
    vae, gone, kept = vae_with("bernoulli", "weights"), torch.tensor([1, 3, 4, 6]), torch.tensor([0, 2, 5, 7])
    last, before = vae.decoder.body[-1], vae.decoder.body[-2]
    for tensor in (last.weight, before[0].weight.transpose(0, 1)):
        tensor.data[gone] *= 1e-4
    pruned = PruneChannels(ratio=0.5)(vae)
    assert torch.equal(pruned.decoder.body[-1].weight, last.weight[kept])
    assert torch.equal(pruned.theta.down.weight, vae.theta.down.weight[kept])
    assert pruned.theta.down.in_channels == 4
