"""`monitor`: files measured as their model would be, bounds, and what crosses them."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from pyro_mvae import (
    MVAE,
    VAE,
    Data,
    Quantize,
    Split,
    export_coreml,
    export_executorch,
    export_onnx,
    load_model,
    monitor,
    save_model,
    set_baseline,
)
from pyro_mvae.cli import main
from pyro_mvae.evaluate import negative_log_likelihood
from pyro_mvae.export.deployed import deployed
from pyro_mvae.export.manifest import describe, write_manifest, write_monitoring
from pyro_mvae.inference import fit
from pyro_mvae.monitor import readings
from tests.catalog import SIZES, unchecked


@pytest.fixture(scope="module")
def fitted(images):
    torch.manual_seed(0)
    model = VAE((1, 16, 16), 4, **SIZES)
    fit(model, images, epochs=40, seed=0)
    return model.eval()


@pytest.fixture
def data(images):
    return Data("squares", Split(images[:200]), Split(images[200:]), binarization="dynamic")


def put(folder, model, *, export=export_executorch, suffix="pte"):
    """A folder as the commands leave it."""
    folder.mkdir(exist_ok=True)
    save_model(folder / "student.safetensors", model)
    files = [export(model, folder / f"{part}.{suffix}", part=part) for part in ("encoder", "decoder")]
    write_manifest(folder, model, files)
    return folder


@pytest.fixture(scope="module")
def with_baseline(fitted, images, tmp_path_factory):
    folder = put(tmp_path_factory.mktemp("monitored") / "float", fitted)
    all_of_it = Data("squares", Split(images[:200]), Split(images[200:]), binarization="dynamic")
    set_baseline(folder, all_of_it, num_images=60, num_samples=3)
    return folder


@pytest.fixture
def folder(with_baseline, tmp_path):
    return shutil.copytree(with_baseline, tmp_path / "folder")


@pytest.mark.parametrize(("export", "suffix"), [(export_executorch, "pte"), (export_onnx, "onnx")])
def test_files_are_as_good_as_their_model(fitted, images, tmp_path, export, suffix):
    files = deployed(put(tmp_path / "folder", fitted, export=export, suffix=suffix))
    how = {"num_samples": 3, "binarization": "dynamic"}
    ours, theirs = (negative_log_likelihood(model, images[:40], **how).nats for model in (fitted, files))
    assert theirs == pytest.approx(ours, rel=1e-4)


@pytest.mark.parametrize(("kind", "theta"), [(MVAE, "weights"), (VAE, "gamma")])
def test_bayesian_likelihoods_are_watched(kind, theta, images, data, tmp_path):
    """Files of weights have θ′ = 0 in them; a precision is inferred beside them."""
    torch.manual_seed(0)
    likelihood = "bernoulli" if theta == "weights" else "gaussian"
    model = kind((1, 16, 16), 4, **SIZES, theta=theta, likelihood=likelihood).eval()
    folder = put(tmp_path / "bayesian", model)
    seen = data if theta == "weights" else replace(data, binarization="none")
    set_baseline(folder, seen, num_images=20, num_samples=2)
    assert monitor(folder, seen).nll == pytest.approx(nll(deployed(folder), images[:20], seen.binarization), rel=0.5)


def nll(model, images, binarization):
    return negative_log_likelihood(model, images, num_samples=2, binarization=binarization).nats


def test_another_machine_is_not_held_to_the_latency_of_this_one(with_baseline, data, tmp_path):
    folder = tmp_path / "moved"
    shutil.copytree(with_baseline, folder)
    about = describe(folder)["monitoring"]
    bounds = {**about["bounds"], "p90_us": {"at_most": 1e-3}}
    write_monitoring(folder, {**about, "bounds": bounds})
    assert "p90_us" in monitor(folder, data).crossed
    write_monitoring(folder, {**about, "bounds": bounds, "cpu": "of a phone"})
    assert "p90_us" not in monitor(folder, data).crossed


def test_packages_have_no_latency_here(fitted, data, tmp_path):
    folder = put(tmp_path / "folder", fitted, export=export_coreml, suffix="mlpackage")
    assert "p90_us" not in set_baseline(folder, data, num_images=8, num_samples=2)
    assert monitor(folder, data).p90_us is None
    assert readings(folder)[0].p90_us is None


def test_of_integers(fitted, images, tmp_path):
    small = Quantize()(fitted, images).eval()
    files = deployed(put(tmp_path / "folder", small))
    x = images[:8].float() / 255
    with torch.no_grad():
        expected, got = small.encode(x), files.encode(x)
    assert torch.allclose(got, expected, atol=0.02 * float(expected.abs().max()))


def test_same_data_cross_nothing(folder, data):
    first, second = monitor(folder, data), monitor(folder, data)
    assert first.crossed == second.crossed == ()
    assert first.num_images == 56
    assert readings(folder) == [first, second]
    assert (first.nll, first.drift_p) == (second.nll, second.drift_p), "the same noise at each reading"
    assert "data:image/png" in (folder / "monitor.html").read_text()


def test_other_data_are_noticed(folder, data):
    upside = replace(data, test=Split(255 - data.test.images))
    reading = monitor(folder, upside)
    assert {"nll", "reconstruction_error", "drift_p"} <= set(reading.crossed)
    assert reading.drift_p < 0.001


def test_worse_files_are_noticed(folder, fitted, data):
    """The files of a net whose decoder is another's: quality goes, the codes stay."""
    torch.manual_seed(1)
    worse = load_model(folder / "student.safetensors")
    worse.decoder = VAE((1, 16, 16), 4, **SIZES).decoder
    about = describe(folder)["monitoring"]
    put(folder, worse)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert "monitoring" not in manifest, "a baseline is of one model"
    (folder / "manifest.json").write_text(json.dumps({**manifest, "monitoring": about}))
    assert set(monitor(folder, data).crossed) - {"p90_us"} == {"nll", "reconstruction_error"}


def test_exporting_again_keeps_the_baseline(folder, fitted):
    before = describe(folder)["monitoring"]
    put(folder, fitted)
    assert describe(folder)["monitoring"] == before


def test_command(folder, monkeypatch, data):
    monkeypatch.setitem(unchecked(main.commands["monitor"].callback).__globals__, "load_data", lambda spec, **how: data)
    result = CliRunner().invoke(main, ["monitor", str(folder), "--data", "squares"])
    assert result.exit_code == 0, result.output
    manifest = describe(folder)
    manifest["monitoring"]["bounds"]["nll"]["at_most"] = 1.0  # a bound that nothing meets
    (folder / "manifest.json").write_text(json.dumps(manifest))
    result = CliRunner().invoke(main, ["monitor", str(folder), "--data", "squares"])
    assert result.exit_code == 4
    assert "crossed: nll" in result.stderr
    assert [each.crossed for each in readings(folder)] == [(), ("nll",)], "what crosses a bound is kept too"
    result = CliRunner().invoke(main, ["monitor", str(folder), "--data", "squares", "--baseline"])
    assert result.exit_code == 0
    assert describe(folder)["monitoring"]["bounds"]["nll"]["at_most"] > 1.0
    for words, message in (
        (["--baseline", "--split", "all"], "a baseline has both"),
        (["--format", "onnx"], "readings are of the files that the baseline is of"),
        (["--baseline", "--format", "onnx"], "no encoder and decoder of the format onnx"),
    ):
        result = CliRunner().invoke(main, ["monitor", str(folder), "--data", "squares", *words])
        assert (result.exit_code, message in result.stderr) == (2, True), result.stderr


def test_the_format_that_a_baseline_is_of_is_watched(fitted, data, tmp_path):
    folder = put(tmp_path / "folder", fitted)
    write_manifest(folder, fitted, [export_onnx(fitted, folder / f"{part}.onnx", part=part) for part in ("encoder", "decoder")])
    set_baseline(folder, data, num_images=40, num_samples=2, format="onnx")
    assert describe(folder)["monitoring"]["format"] == "onnx"
    (folder / "decoder.pte").write_bytes(b"not watched")
    assert math.isfinite(monitor(folder, data).nll)
    (folder / "decoder.onnx").write_bytes(b"watched")
    with pytest.raises(ValueError, match=r"decoder\.onnx is not what its manifest says"):
        monitor(folder, data)
    with pytest.raises(ValueError, match="format is 'pte', expected one of: executorch, onnx, coreml"):
        deployed(folder, format="pte")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "no manifest.json"),
        (lambda folder: (folder / "decoder.pte").write_bytes(b"else"), "not what its manifest says"),
        (lambda folder: (folder / "student.safetensors").unlink(), "no checkpoint of the model"),
        (lambda folder: (folder / "monitor.safetensors").write_bytes(b"else"), "set the baseline again"),
        (lambda folder: (folder / "monitor.jsonl").write_text("{}\n"), "line 1, is damaged"),
    ],
)
def test_folders_that_can_not_be_watched(folder, data, harm, message):
    harm(folder)
    with pytest.raises(ValueError, match=message):
        monitor(folder, data)


def test_without_a_baseline(fitted, data, tmp_path):
    with pytest.raises(ValueError, match="--baseline"):
        monitor(put(tmp_path / "folder", fitted), data)


def test_other_mistakes(folder, fitted, data):
    with pytest.raises(ValueError, match="split is 'some'"):
        monitor(folder, data, split="some")
    colour = replace(data, **{name: Split(getattr(data, name).images.expand(-1, 3, -1, -1)) for name in ("train", "test")})
    with pytest.raises(ValueError, match="expected \\(n, 1, 16, 16\\)"):
        monitor(folder, colour)
    with pytest.raises(ValueError, match="another model"):
        monitor(folder, data, model=VAE((1, 16, 16), 4, **SIZES))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["monitoring"]["bounds"]["drift"] = {"at_most": 1.0}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="bounds on drift: expected them on nll, "):
        monitor(folder, data)
    assert not (folder / "monitor.jsonl").exists()
