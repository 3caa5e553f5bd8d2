"""What a Bayesian likelihood says of a picture, in closed form, and in files."""

import pytest
import torch

from pyro_mvae import VAE, Quantize, export_coreml, export_executorch, export_onnx, save_model, verify
from pyro_mvae.export.capture import capture
from pyro_mvae.export.manifest import describe, write_manifest
from pyro_mvae.export.snippets import readme
from tests.commands import run

CASES = [
    ("gaussian", "gamma"),
    ("gaussian", "log_normal"),
    ("logistic", "gamma"),
    ("bernoulli", "weights"),
    ("gaussian", "weights"),
    ("continuous_bernoulli", "weights"),
    ("logistic", "weights"),
]


def made(likelihood, theta, *, net="conv", shape=(1, 16, 16)):
    torch.manual_seed(0)
    model = VAE(shape, 4, net=net, widths=(8, 8), hidden=8, likelihood=likelihood, theta=theta)
    with torch.no_grad():
        model.train().model(torch.rand(64, *shape))
        for name, parameter in model.named_parameters():
            if name.startswith("theta"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("net", ["conv", "mlp"])
@pytest.mark.parametrize(("likelihood", "theta"), [case for case in CASES if case[0] != "logistic"])
def test_moments_are_those_of_many_draws(likelihood, theta, net):
    """Four standard errors of 20,000 draws, of all pixels' mean squared deviation: wrong once in thousands, seed fixed."""
    model, num = made(likelihood, theta, net=net), 20_000
    z = torch.randn(1, 4)
    mean, sd = capture(model, "predictive", precision="float32")(z)
    with torch.no_grad():
        found = model.conditional(z.expand(num, -1), model.theta.prior(num).sample())
        draws = found.mean + found.variance.sqrt() * torch.randn_like(found.mean)  # the same first two moments
    deviation = draws - mean
    error = deviation.mean(0, keepdim=True) / (sd / num**0.5)
    assert float(error.square().mean()) < 1.5
    # of the variance: heavy tails make single pixels noisy, so their mean
    ratio = (deviation.square().mean(0) / sd.square()[0]).mean()
    assert float(ratio) == pytest.approx(1, abs=0.03)
    halved = (deviation.square().mean(0) / (sd.square()[0] / 2)).mean()
    assert float(halved) != pytest.approx(1, abs=0.03), "a wrong variance is seen"


def test_a_precision_in_closed_form():
    model = made("gaussian", "gamma")
    spread, m = model.theta.log_spread.exp(), model.theta.log_mean.exp()
    concentration = 1 + spread**-2
    expected = (concentration / m) / (concentration - 1)  # of 1/τ, τ ~ Gamma(a, a / m)
    _, sd = capture(model, "predictive", precision="float32")(torch.zeros(1, 4))
    torch.testing.assert_close(sd.square(), expected.view(1, 1, 1, 1).expand_as(sd))


@pytest.mark.parametrize(("likelihood", "theta"), CASES)
def test_files_say_it_too(likelihood, theta, images, tmp_path):
    model = made(likelihood, theta)
    for export, name, precision in (
        (export_executorch, "a.pte", "float32"),
        (export_onnx, "a.onnx", "float32"),
        (export_coreml, "a.mlpackage", "float16"),
    ):
        found = export(model, tmp_path / name, part="predictive", precision=precision, images=images)
        assert found.part == "predictive"
        assert verify(tmp_path / name, model, images=images) == found


def test_it_needs_random_parameters_and_floats(tmp_path):
    with pytest.raises(ValueError, match="needs a Bayesian likelihood"):
        export_onnx(VAE((1, 16, 16), 4), tmp_path / "a.onnx", part="predictive")
    model = Quantize()(made("bernoulli", "weights"), torch.randint(256, (64, 1, 16, 16), dtype=torch.uint8)).eval()
    with pytest.raises(ValueError, match="is of floats"):
        export_onnx(model, tmp_path / "a.onnx", part="predictive")
    assert export_onnx(model, tmp_path / "a.onnx", part="predictive", precision="float32").part == "predictive"


def test_a_quantised_models_file_is_of_floats(images, tmp_path):
    model = Quantize()(made("bernoulli", "weights"), images).eval()
    export_executorch(model, tmp_path / "a.pte", part="predictive", precision="float32")
    assert verify(tmp_path / "a.pte", model).precision == "float32"
    with pytest.raises(ValueError, match="is of another model: it says how sure"):
        verify(tmp_path / "a.pte", VAE((1, 16, 16), 4))


def test_an_app_sees_its_mean_as_an_image(tmp_path):
    model = made("bernoulli", "weights")
    found = export_coreml(model, tmp_path / "a.mlpackage", part="predictive", pictures="images")
    assert (found.part, found.pictures) == ("predictive", "images")
    write_manifest(tmp_path, model, [found])
    assert readme(describe(tmp_path)).count("func predictivePicture(") == 1, "the standard deviation is an array"


def test_command(tmp_path):
    save_model(tmp_path / "vae.safetensors", made("bernoulli", "weights"))
    run("export-coreml", tmp_path / "vae.safetensors", tmp_path / "a.mlpackage", "--part", "predictive")
    (entry,) = describe(tmp_path)["files"]
    assert [each["name"] for each in entry["outputs"]] == ["image", "sd"]
    assert entry["macs"] > 0
