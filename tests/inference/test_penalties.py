import math

import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pyro_mvae import Objective, fit, penalties
from pyro_mvae.compress import Palettize
from pyro_mvae.inference import compile_gradients
from pyro_mvae.inference.bound import own_weights
from pyro_mvae.inference.objective import importance_traces
from pyro_mvae.likelihoods import LIKELIHOODS, BernoulliLikelihood, LogisticLikelihood, make_likelihood
from pyro_mvae.models import vae as vae_module
from pyro_mvae.nets.palette import with_weights
from tests.catalog import MODELS, PENALTIES, REGULARIZERS
from tests.linear_gaussian import LinearGaussian, data


@given(st.sampled_from(["l1", "group_l1"]), st.integers(1, 3), st.integers(1, 5), st.integers(1, 3), st.booleans())
@settings(max_examples=30, deadline=None)
def test_gradients_against_finite_differences(name, ins, outs, kernel, transposed):
    torch.manual_seed(ins + 10 * outs)
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    net = kind(ins, outs, kernel, dtype=torch.float64)

    def penalised(weight):
        net.__dict__["_parameters"]["weight"] = weight
        return REGULARIZERS[name](net, torch.zeros(1, 4))

    weight = torch.where(net.weight.abs() < 0.01, 0.1, net.weight).detach().requires_grad_()
    assert torch.autograd.gradcheck(penalised, (weight,))


@given(st.integers(2, 8), st.integers(1, 4), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_the_gradient_of_rounding_is_that_of_the_distance_to_a_fixed_point(bits, outs, ins):
    """Finite differences with w_q held where it is: what stopping its gradient means."""
    torch.manual_seed(bits + 10 * outs + 100 * ins)
    net = nn.Linear(ins, outs, bias=False, dtype=torch.float64)
    penalties.quantization_error(net, bits=bits).backward()
    w, levels, step = net.weight.detach(), 2 ** (bits - 1) - 1, 1e-6
    scale = w.abs().amax(1, keepdim=True) / levels
    fixed = torch.round(w / scale) * scale
    rises = ((w + step - fixed).abs() - (w - step - fixed).abs()) / (2 * step)
    apart = (w - fixed).abs() > 2 * step
    torch.testing.assert_close(net.weight.grad[apart], rises[apart], rtol=1e-4, atol=1e-6)


@given(st.integers(1, 4), st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_gradients_of_divergence_and_sparsity_against_finite_differences(n, d):
    torch.manual_seed(n + 10 * d)
    loc, log_scale, z = torch.randn(3, n, d, dtype=torch.float64, requires_grad=True).unbind()

    def distilled(loc, log_scale):
        teacher = dist.Normal(torch.ones(n, d, dtype=torch.float64), 0.5).to_event(1)
        return penalties.divergence(teacher, dist.Normal(loc, log_scale.exp()).to_event(1))

    assert torch.autograd.gradcheck(distilled, (loc.detach().requires_grad_(), log_scale.detach().requires_grad_()))
    away = torch.where(z.abs() < 0.01, 0.1, z).detach().requires_grad_()
    assert torch.autograd.gradcheck(penalties.sparsity, (away,))


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


@pytest.mark.parametrize("name", REGULARIZERS)
def test_every_regularizer_is_a_finite_number_of_at_least_nothing(name):
    net = MODELS["MVAE"]((1, 16, 16))
    value = REGULARIZERS[name](net, torch.randn(5, 4))
    assert value.ndim == 0
    assert value.isfinite()
    assert value >= 0


def all_of(teacher):
    return [make(teacher) for make in PENALTIES.values()]


def test_the_objective_is_the_weighted_sum_of_its_terms():
    vae, teacher, x = MODELS["MVAE"]((1, 16, 16)), MODELS["VAE"]((1, 16, 16)), torch.rand(4, 1, 16, 16).round()
    objective = Objective(vae, all_of(teacher), kl_weight=0.25)
    terms = objective(x)
    names = ["likelihood", "kl", "prune", "prune_groups", "round", "distill", "match_features", "sparse", "tighten", "invariant"]
    assert list(terms) == ["loss", *names]
    weighted = [
        terms[name] * weight for name, weight in zip(names, [1, 0.25, 1e-3, 1e-3, 1e-2, 0.5, 0.5, 0.1, 1.0, 2.0], strict=True)
    ]
    torch.testing.assert_close(terms["loss"], sum(weighted))
    torch.testing.assert_close(terms["prune"], penalties.l1(penalties.weights(vae)))


def test_weights_can_be_changed_after_tracing():
    vae, teacher, x = MODELS["MVAE"]((1, 16, 16)), MODELS["VAE"]((1, 16, 16)), torch.rand(4, 1, 16, 16).round()
    objective = Objective(vae, all_of(teacher), kl_weight=0.0)
    graph = compile_gradients(objective, x)
    for weight in (0.0, 2.0):
        for value in objective.weights.values():
            value.fill_(weight)
        terms, _ = graph(x)
        others = sum(value for name, value in terms.items() if name not in ("loss", "likelihood"))
        torch.testing.assert_close(terms["loss"], terms["likelihood"] + weight * others)


def test_the_traced_penalties_have_the_gradients_of_the_eager_ones():
    vae, teacher, x = MODELS["MVAE"]((1, 16, 16)), MODELS["VAE"]((1, 16, 16)), torch.rand(4, 1, 16, 16).round()
    objective = Objective(vae, all_of(teacher))
    torch.manual_seed(1)
    expected = torch.autograd.grad(objective(x)["loss"], list(vae.parameters()))
    torch.manual_seed(1)
    for a, b in zip(compile_gradients(objective, x)(x)[1], expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()) + 1e-7)


def test_only_the_student_is_given_a_gradient():
    vae, teacher, x = MODELS["MVAE"]((1, 16, 16)), MODELS["VAE"]((1, 16, 16)), torch.rand(4, 1, 16, 16).round()
    Objective(vae, [penalties.Distill(1.0, teacher)])(x)["loss"].backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in vae.parameters())


@pytest.mark.parametrize("name", sorted(LIKELIHOODS.keys() - {"logistic"}))
def test_a_sure_student_is_not_paid_for_being_surer(name):
    """Pictures that are nearly black and white; of the logistic likelihood the divergence is drawn, and may be negative."""
    likelihood = make_likelihood(name, 1)
    teacher = torch.linspace(-20, 20, 64).reshape(1, 1, 8, 8)
    student = (2 * teacher).requires_grad_()
    divergence = penalties.divergence(likelihood(teacher), likelihood(student)).sum()
    (slope,) = torch.autograd.grad(divergence, student)
    assert divergence >= 0
    assert (slope * teacher >= -1e-6).all(), "what goes down by this gradient comes nearer"


def test_a_perfect_student_has_no_divergence():
    teacher = MODELS["VAE"]((1, 16, 16)).eval()
    terms = Objective(teacher, [penalties.Distill(1.0, teacher)])(torch.rand(4, 1, 16, 16).round())
    torch.testing.assert_close(terms["distill"], torch.tensor(0.0), atol=1e-4, rtol=0)


def test_the_group_penalty_empties_whole_channels():
    """What plain L1 leaves scattered, the group form leaves in rows."""
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    y = x[:, :2] @ torch.randn(2, 1)
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(500):
        optimizer.zero_grad()
        ((net(x) - y).square().mean() + 3e-3 * penalties.group_l1(net[0])).backward()
        optimizer.step()
    norms = net[0].weight.detach().norm(dim=1)
    assert 4 <= int((norms < 0.01 * norms.max()).sum()) < 16


def test_mutual_information_of_small_cases_by_hand():
    """Of two classes read alike with probability 1 − e: log 2 − h(e); nothing of a constant."""
    sure = torch.eye(2).repeat(50, 1)
    for wrong in (0.0, 0.1, 0.5):
        other = torch.where(sure > 0, 1 - wrong, wrong)
        entropy = sum(-p * math.log(p) for p in (wrong, 1 - wrong) if p)
        assert float(penalties.mutual_information(sure, other)) == pytest.approx(math.log(2) - entropy, abs=1e-5)
    constant = torch.tensor([[1.0, 0.0]]).expand(100, 2)
    assert float(penalties.mutual_information(constant, constant)) == pytest.approx(0.0, abs=1e-5)


def test_pictures_are_moved_each_in_its_own_way_and_stay_where_they_are_without_extent():
    torch.manual_seed(0)
    x = torch.rand(1, 3, 12, 12).expand(6, -1, -1, -1)
    still = penalties.moved(x, rotation=0.0, shift=0.0, scale=0.0)
    torch.testing.assert_close(still, x, atol=1e-5, rtol=0)
    changed = penalties.moved(x)
    assert all(float((changed[i] - changed[j]).abs().max()) > 0.05 for i in range(6) for j in range(i))
    quarter = torch.stack([penalties.moved(x[:1], rotation=math.pi / 2, shift=0.0, scale=0.0)[0] for _ in range(200)])
    turned = torch.rot90(x[0], 1, (1, 2))
    assert float((quarter - turned).abs().mean((1, 2, 3)).min()) < float((quarter - turned).abs().mean((1, 2, 3)).median()) / 3


@pytest.mark.parametrize("every", [1, 2])
def test_clusters_are_drawn_to_what_moving_leaves_alone(every):
    """Bars that lie and bars that stand: with the penalty a cluster says more of where the moved bar will be found."""
    images = torch.zeros(256, 1, 16, 16, dtype=torch.uint8)
    for i in range(256):
        images[i, 0, 4 + i % 7 : 6 + i % 7, 3:13] = 255
    images[:128] = images[:128].transpose(2, 3).clone()
    left = []
    for weight in (0.0, 100.0):
        torch.manual_seed(0)
        vae = MODELS["MVAE"]((1, 16, 16))
        history = fit(vae, images, epochs=80, batch_size=64, penalties=[penalties.Invariant(weight, every=every)])
        left.append(history["invariant"].iloc[-1])
    assert left[1] < 0.7 * left[0]


@pytest.mark.parametrize("num_samples", [2, 7])
def test_nothing_is_left_to_tighten_where_the_posterior_is_exact(num_samples):
    """Every weight is p(x) then; where the posterior is wider than that, something is."""
    exact, wide = LinearGaussian(exact=True), LinearGaussian(exact=True)
    wide.log_s.data += 0.5
    left = [Penalised(model, penalties.Tighten(1.0, num_samples=num_samples))(data()).item() for model in (exact, wide)]
    assert left[0] == pytest.approx(0.0, abs=1e-9)
    assert left[1] < -0.01


def test_the_tightened_bound_goes_to_the_evidence():
    """With 20,000 codes R is ELBO − log p(x), both in closed form; within 5 standard errors of the sampled ELBO, 0.002 each."""
    model = LinearGaussian(exact=True)
    model.log_s.data += 0.3
    torch.manual_seed(0)
    found = Penalised(model, penalties.Tighten(1.0, num_samples=20_000))(data()).item()
    expected = (model.elbo(data()) - model.log_evidence(data())).mean().item()
    assert found == pytest.approx(expected, abs=0.01)
    assert expected < -0.05


def test_tightening_has_the_gradients_of_what_it_is():
    """Finite differences in θ and φ alike, the noise held: draws take gradients along."""
    model = LinearGaussian()

    def tightened(W, A, log_s):
        torch.manual_seed(0)
        state = {"W": W, "A": A, "log_s": log_s}
        term = penalties.Tighten(1.0, num_samples=3)
        return torch.func.functional_call(
            Penalised(model, term), {f"model.{name}": value for name, value in state.items()}, data(3)
        )

    assert torch.autograd.gradcheck(tightened, [each.detach().requires_grad_() for each in (model.W, model.A, model.log_s)])


def test_where_lambda_is_1_nothing_is_left_but_the_tightened_bound():
    """Of an exact posterior that is log p(x), whatever the noise."""
    model = LinearGaussian(exact=True)
    objective = Objective(model, [penalties.Tighten(1.0, num_samples=3)])
    evidence = model.log_evidence(data()).mean()
    for seed in range(3):
        torch.manual_seed(seed)
        torch.testing.assert_close(objective(data())["loss"], -evidence)
    with torch.no_grad():
        model.log_s += 0.5
    assert (objective(data())["loss"] + evidence).abs().item() > 1e-3


@pytest.mark.parametrize("name", ["VAE", "SVAE", "VaDE", "MVAE"])
def test_the_weights_of_what_a_pair_drew_are_those_of_what_it_proposes(name, monkeypatch):
    """log p(x, z, θ′) − log q(z, θ′|x) at the same draws."""
    vae, x = MODELS[name]((1, 16, 16)).eval(), torch.rand(4, 1, 16, 16).round()
    model, guide = (dict(trace.nodes) for trace in importance_traces(vae.model, vae.guide, x))
    latents = [guide[name]["value"][None] for name in ("z", "theta") if name in guide]
    drawn = iter(latents)
    monkeypatch.setattr(vae_module, "draws", lambda *_: next(drawn))
    _, weights = vae.propose(x, 1)
    expected = weights[0] + vae.conditional(*(each[0] for each in latents)).log_prob(x)
    torch.testing.assert_close(own_weights(model, guide, 4), expected)


def test_a_pair_that_enumerates_has_no_weights_of_its_own():
    vae, x = MODELS["GMVAE"]((1, 16, 16)), torch.rand(4, 1, 16, 16).round()
    assert own_weights(*(dict(trace.nodes) for trace in importance_traces(vae.model, vae.guide, x)), 4) is None
    assert Objective(vae, [penalties.Tighten(1.0, num_samples=3)])(x)["tighten"].isfinite()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_tightening_encodes_once_and_decodes_each_code_once(precision):
    vae, x = MODELS["VAE"]((1, 16, 16)), torch.rand(4, 1, 16, 16).round()
    seen = []
    for net in (vae.encoder, vae.decoder):
        net.register_forward_hook(lambda net, inputs, _: seen.append((type(net).__name__, len(inputs[0]))))
    encode = vae.encoder.body.register_forward_hook(lambda *_: seen.append("encoded"))
    Objective(vae, [penalties.Tighten(1.0, num_samples=5)], precision=precision)(x)["loss"].backward()
    encode.remove()
    assert seen.count("encoded") == 1
    assert sum(size for name, size in (each for each in seen if each != "encoded") if "Decoder" in name) == 5 * 4
    assert "forward" not in vars(vae.encoder)


class Penalised(nn.Module):
    """A penalty of a model, as a function of the model's parameters."""

    def __init__(self, model, penalty):
        super().__init__()
        self.model, self.penalty = model, penalty

    def forward(self, x):
        return self.penalty(self.model, x, {}, {})


def test_one_picture_of_so_many_is_moved(monkeypatch):
    """The clusters of the first two pictures are held against those of the same pictures, moved."""
    vae, x = MODELS["MVAE"]((1, 16, 16)).eval(), torch.rand(5, 1, 16, 16)
    monkeypatch.setattr(penalties, "moved", lambda x: x)
    sites = {"z": {"fn": torch.distributions.Normal(vae.encode(x), 1.0)}}
    found = penalties.Invariant(1.0, every=2)(vae, x, {}, sites)
    expected = vae.clusters(x[:2])
    assert torch.allclose(found, math.log(3) - penalties.mutual_information(expected, expected), atol=1e-5)


def test_moved_pictures_leave_no_trace_in_the_running_statistics():
    vae, x = MODELS["MVAE"]((1, 16, 16)).train(), torch.rand(4, 1, 16, 16).round()
    other = MODELS["MVAE"]((1, 16, 16)).train()
    other.load_state_dict(vae.state_dict())
    for model, some in ((vae, [penalties.Invariant(1.0)]), (other, [])):
        torch.manual_seed(0)
        Objective(model, some)(x)
    for (name, mine), theirs in zip(vae.named_buffers(), other.buffers(), strict=True):
        assert name.endswith("num_batches_tracked") or torch.equal(mine, theirs)


def test_a_penalty_of_ones_own(images):
    class Bright:
        name, weight = "bright", 0.5

        def __call__(self, vae, x, model_sites, guide_sites):
            return model_sites["z"]["value"].square().sum(-1).mean()

    history = fit(MODELS["MVAE"]((1, 16, 16)), images[:64], epochs=1, penalties=[Bright()])
    row = history.iloc[0]
    assert row["loss"] == pytest.approx(row["likelihood"] + row["kl"] + 0.5 * row["bright"], rel=1e-5)
    assert row["bright_weight"] == 0.5


def test_mistakes_are_explained():
    vae = MODELS["MVAE"]((1, 16, 16))
    with pytest.raises(ValueError, match="weight of prune is -1"):
        Objective(vae, [penalties.Prune(-1.0)])
    with pytest.raises(ValueError, match="names that differ"):
        Objective(vae, [penalties.Round(1.0), penalties.Round(1.0, bits=4)])
    with pytest.raises(ValueError, match="bits is 1"):
        penalties.Round(1.0, bits=1)
    with pytest.raises(ValueError, match="num_samples is 1"):
        penalties.Tighten(1.0, num_samples=1)
    with pytest.raises(ValueError, match="VQVAE draws no codes"):
        Objective(MODELS["VQVAE"]((1, 16, 16)), [penalties.Tighten(1.0)])(torch.rand(2, 1, 16, 16))
    with pytest.raises(ValueError, match="every is 0"):
        penalties.Invariant(1.0, every=0)
    with pytest.raises(ValueError, match="VAE has no clusters"):
        Objective(MODELS["VAE"]((1, 16, 16)), [penalties.Invariant(1.0)])(torch.rand(2, 1, 16, 16))


def test_the_divergence_of_sure_pixels_is_finite_and_torchs_elsewhere():
    """A float32 probability is 1 from a logit of 17 on, where torch's divergence is infinite."""
    p, q = (
        torch.distributions.Independent(torch.distributions.Bernoulli(logits=3 * torch.randn(4, 1, 2, 3)), 3) for _ in range(2)
    )
    torch.testing.assert_close(penalties.divergence(p, q), torch.distributions.kl_divergence(p, q))
    sure = torch.distributions.Bernoulli(logits=torch.tensor([30.0, -120.0]))
    unsure = torch.distributions.Bernoulli(logits=torch.tensor([0.0, 0.0]))
    torch.testing.assert_close(penalties.divergence(unsure, sure), torch.tensor([15.0, 60.0]) - math.log(2))


def test_moving_half_of_a_batch_is_fitted(images):
    """The last batch has two pictures, and normalising by a batch takes two: none is left out."""
    history = fit(MODELS["MVAE"]((1, 16, 16)), images[:10], epochs=1, batch_size=4, penalties=[penalties.Invariant(1.0, every=2)])
    assert history["invariant"].iloc[0] > 0


@pytest.mark.parametrize("name", ["Prune", "PruneGroups", "Round"])
def test_weights_of_palettes_are_penalised_as_their_values_are(name, images):
    penalty = PENALTIES[name](None)
    model = Palettize(bits=2)(MODELS["VAE"]((1, 16, 16)))
    x = images[:1].float() / 255
    value = penalty(model, x, {}, {})
    plain = nn.ModuleList([with_weights(model.encoder), with_weights(model.decoder)])
    torch.testing.assert_close(value, penalty(plain, x, {}, {}))
    before = model.decoder.state_dict()
    before = {key: tensor.clone() for key, tensor in before.items() if key.endswith("palette")}
    assert before
    fit(model, images, epochs=1, penalties=[penalty])
    assert all(not torch.equal(model.decoder.state_dict()[key], tensor) for key, tensor in before.items())
