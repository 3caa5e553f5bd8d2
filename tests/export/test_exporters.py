"""The contract of every exporter, with real files in their own runtimes; a `.mlpackage` in our evaluator."""

from __future__ import annotations

import copy
import itertools
import subprocess
import sys
from collections import Counter

import pytest
import torch
from torch import nn

from pyro_mvae import VAE, PruneChannels, Quantize, export_coreml, export_executorch, export_onnx, fit, verify
from pyro_mvae.compress import Palettize
from pyro_mvae.evaluate import anomaly_scores
from pyro_mvae.evaluate.cost import num_params
from pyro_mvae.export import mil
from pyro_mvae.export.capture import capture
from pyro_mvae.export.delegation import Delegation, delegation
from pyro_mvae.export.executorch import load_executorch
from pyro_mvae.export.verify import load_artifact
from pyro_mvae.likelihoods import LIKELIHOODS
from pyro_mvae.nets.palette import PalettizedConv
from pyro_mvae.nets.rounding import QuantizedConv
from tests.catalog import EXPORTERS, MODELS
from tests.seen import having_seen

PARTS = ("encoder", "decoder")
CASES = [(exporter, part, quantized) for exporter in EXPORTERS for part in PARTS for quantized in (False, True)]


@pytest.fixture(scope="module")
def fitted(images):
    torch.manual_seed(0)
    model = MODELS["MVAE"]((1, 16, 16))
    fit(model, images, epochs=4)
    int8 = Quantize()(model)
    fit(int8, images, epochs=2, lr=5e-4)
    return {False: model, True: int8}


@pytest.mark.parametrize(("exporter", "part", "quantized"), CASES)
def test_a_saved_file_computes_what_pytorch_computes(exporter, part, quantized, fitted, images, tmp_path):
    export, suffix, settings = EXPORTERS[exporter]
    if exporter == "export_coreml" and quantized:
        settings = {"precision": "int8"}
    path = tmp_path / f"{part}{suffix}"
    result = export(fitted[quantized], path, part=part, images=images, **settings)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert (result.part, result.path) == (part, str(path))
    assert result.precision == ("int8" if quantized else settings.get("precision", "float32"))
    assert result.bytes > 1000
    assert result.psnr_db >= 40
    assert verify(path, fitted[quantized], images=images) == result
    if exporter == "export_executorch":
        assert delegation(path.read_bytes()) == Delegation(pieces=1, outside=()), "nothing falls out of XNNPACK"


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_exported_whole(name, exporter, images, tmp_path):
    """Both parts, of a model that was pruned and has seen some data."""
    export, suffix, settings = EXPORTERS[exporter]
    model = PruneChannels(ratio=0.5)(MODELS[name]((1, 16, 16))).train()
    model.guide(images[:64].float() / 255)
    model.eval()
    for part in PARTS:
        path = tmp_path / f"{part}{suffix}"
        result = export(model, path, part=part, images=images, **settings)
        assert result.psnr_db >= 40
        if exporter == "export_executorch":
            assert delegation(path.read_bytes()) == Delegation(pieces=1, outside=()), "nothing falls out of XNNPACK"


def test_an_output_is_the_callers(tmp_path):
    path = tmp_path / "decoder.pte"
    export_executorch(VAE((1, 16, 16), 4), path)
    _, run = load_executorch(path)
    (first,) = run(torch.zeros(1, 4))
    kept = first.clone()
    (second,) = run(torch.ones(1, 4))
    assert not torch.equal(first, second)
    assert torch.equal(first, kept), "the next call leaves it alone"


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", ["VAE", "InfoVAE", "MVAE", "GMVAE", "SVAE", "VQVAE"])  # nets of each kind, and codes
def test_a_picture_comes_back_from_one_file(name, exporter, images, tmp_path):
    """From pixels to the picture of their code, whatever lies between: a sphere, a codebook."""
    export, suffix, settings = EXPORTERS[exporter]
    model = having_seen(MODELS[name]((1, 16, 16)), images)
    path = tmp_path / f"reconstruct{suffix}"
    result = export(model, path, part="reconstruct", images=images, **settings)
    assert (result.part, load_artifact(path).part) == ("reconstruct", "reconstruct")
    with torch.no_grad():
        expected = model.decode(model.encode(images[:1].float() / 255))
    (picture,) = load_artifact(path).run(images[:1].float())
    torch.testing.assert_close(picture, expected, atol=1e-2, rtol=0)


SCORED = [
    *[("VAE", {"likelihood": likelihood}, True) for likelihood in LIKELIHOODS],
    *[("VAE", {"likelihood": "logistic", "theta": theta}, False) for theta in ("gamma", "weights")],
    *[("SVAE", {}, quantized) for quantized in (False, True)],
    ("VQVAE", {"likelihood": "gaussian"}, False),
]


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize(("name", "more", "quantized"), SCORED, ids=str)
def test_what_is_unusual_has_the_score_that_pytorch_gives_it(name, more, exporter, quantized, images, tmp_path):
    export, suffix, settings = EXPORTERS[exporter]
    model = having_seen(MODELS[name]((1, 16, 16), **more), images)
    if quantized:
        model, settings = Quantize()(model, images).eval(), {"precision": "int8"}
    path = tmp_path / f"anomaly{suffix}"
    result = export(model, path, part="anomaly", images=images, **settings)
    assert (result.part, load_artifact(path).part) == ("anomaly", "anomaly")
    some = images[:4]
    scores = torch.cat([load_artifact(path).run(image[None].float())[0] for image in some])
    expected = anomaly_scores(model, some) / some[0].numel()
    torch.testing.assert_close(scores, expected, rtol=0.02, atol=0.02 * float(expected.abs().mean()))
    if exporter == "export_executorch":
        left_out = delegation(path.read_bytes()).outside
        assert left_out, "what a density needs is portable code, and said so"
        assert not [operation for operation in left_out if "conv" in operation]


def test_a_notebook_hears_nothing_of_a_runtime_that_starts(models, images, tmp_path):
    """There standard error is an object of Python's, to which some of the runtime's messages go."""
    export_executorch(models["float16"], tmp_path / "decoder.pte", images=images)
    script = f"""
import io, sys, pathlib
sys.stderr = io.StringIO()
from pyro_mvae.export.executorch import load_executorch
load_executorch(pathlib.Path({str(tmp_path / "decoder.pte")!r}))
print(repr(sys.stderr.getvalue()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("''\n", "")


def test_a_score_is_right_in_float16_where_logits_are_near_zero(tmp_path):
    """Of a net that has seen nothing; with torch's normaliser this score is off by 0.014."""
    torch.manual_seed(0)
    model = VAE((1, 16, 16), 4, widths=(8, 8), hidden=8, likelihood="continuous_bernoulli").eval()
    result = export_coreml(
        model, tmp_path / "anomaly.mlpackage", part="anomaly", images=torch.rand(64, 1, 16, 16).mul(255).byte()
    )
    assert result.precision == "float16"
    assert result.max_abs_diff < 0.002


@pytest.mark.parametrize("name", ["VAE", "VQVAE", "MVAE"])
def test_palettes_are_what_a_package_holds(name, images, tmp_path):
    """Of nets of both kinds, with a scale and without: its tables have as many values, its file is that much smaller."""
    model = Palettize(bits=2)(having_seen(MODELS[name]((1, 16, 16)), images))
    for part in PARTS:
        path = tmp_path / f"{part}.mlpackage"
        result = export_coreml(model, path, part=part, precision="palettized", images=images)
        assert result.psnr_db >= 40
        assert verify(path, model, images=images) == result
        operations = Counter(operation.op_type for operation in mil.MilProgram.load(path)._function.operations)
        layers = sum(isinstance(layer, PalettizedConv) for layer in getattr(model, part).modules())
        assert operations["constexpr_lut_to_dense"] >= layers > 0, "of every layer that has one, scaled after it"
    for export, suffix in ((export_executorch, ".pte"), (export_onnx, ".onnx")):
        assert export(model, tmp_path / f"decoder{suffix}", images=images).precision == "float32"


@pytest.mark.parametrize("bits", [2, 4, 6])
def test_fewer_bits_are_smaller_packages(bits, images, tmp_path):
    model = having_seen(VAE((1, 16, 16), 16, widths=(32, 64), hidden=128), images)
    whole = export_coreml(model, tmp_path / "whole.mlpackage").bytes
    few = export_coreml(Palettize(bits=bits)(model), tmp_path / "few.mlpackage", precision="palettized")
    weights = 2 * num_params(model.decoder)
    assert abs(whole - few.bytes - weights * (1 - bits / 16)) < 0.1 * weights


def test_weights_of_4_bits_take_half_of_a_byte_from_ios18_on(images, tmp_path, caplog):
    """Each of two weights in its half; earlier systems have whole bytes only."""
    model = having_seen(VAE((1, 16, 16), 16, widths=(32, 64), hidden=128), images)
    few, many = (Quantize(weight_bits=bits)(model, images).eval() for bits in (4, 8))
    how = {"precision": "int8", "images": images}
    sizes, cautions = {}, {}
    for (name, each), target in itertools.product({"few": few, "many": many}.items(), ("iOS17", "iOS18")):
        caplog.clear()
        sizes[name, target] = export_coreml(each, tmp_path / "decoder.mlpackage", target=target, **how).bytes
        held = mil.MilProgram.load(tmp_path / "decoder.mlpackage").metadata.get("caution", "")
        cautions[target] = ("set computeUnits to cpuOnly" in held, "set computeUnits to cpuOnly" in caplog.text)
    assert cautions == {"iOS17": (True, True), "iOS18": (False, False)}
    weights = num_params(model.decoder)
    assert sizes["many", "iOS18"] - sizes["few", "iOS18"] == pytest.approx(weights / 2, rel=0.05)
    assert sizes["few", "iOS17"] == pytest.approx(sizes["many", "iOS17"], rel=0.02)


def test_a_package_of_palettes_needs_some(fitted, tmp_path):
    with pytest.raises(ValueError, match="the model has no palettes"):
        export_coreml(fitted[False], tmp_path / "a.mlpackage", precision="palettized")
    with pytest.raises(ValueError, match="a palettised model can't be int8"):
        export_coreml(Palettize()(fitted[False]), tmp_path / "a.mlpackage", precision="int8")
    assert not list(tmp_path.iterdir())


def test_raw_pixels_go_in_and_pixels_come_out(fitted, images, tmp_path):
    model = fitted[True]
    export_executorch(model, tmp_path / "encoder.pte", part="encoder")
    export_executorch(model, tmp_path / "decoder.pte", part="decoder")
    encoder, decoder = (load_artifact(tmp_path / f"{part}.pte") for part in PARTS)
    raw = images[:1].float()
    loc, scale = encoder.run(raw)
    assert (scale > 0).all()
    (picture,) = decoder.run(loc)
    assert picture.shape == raw.shape
    with torch.no_grad():
        expected = model.decode(model.encode(raw / 255))
    torch.testing.assert_close(picture, expected, atol=0.06, rtol=0)
    assert torch.equal(decoder.run(loc)[0], picture)  # no noise inside


@torch.no_grad()
def test_levels_as_coarse_as_a_tenth_of_a_pixel_are_the_same_ones_in_executorch(fitted, images, tmp_path):
    coarse = copy.deepcopy(fitted[False])
    *_, last = (layer for layer in coarse.decoder.modules() if isinstance(layer, torch.nn.ConvTranspose2d))
    last.weight *= 40.0
    result = export_executorch(Quantize()(coarse, images), tmp_path / "decoder.pte", images=images)
    assert result.max_abs_diff < 1e-5


@pytest.mark.parametrize("net", ["conv", "mobile", "mlp"])
def test_int8_weights_alone_for_core_ml(net, images, tmp_path):
    model = having_seen(VAE((1, 16, 16), 8, net=net, widths=(32,), hidden=64), images)
    small, big = (
        export_coreml(model, tmp_path / f"{each}.mlpackage", precision=each).bytes for each in ("int8_weights", "float16")
    )
    assert big - small == pytest.approx(num_params(model.decoder), rel=0.2), "one byte a weight, of two"
    program = mil.MilProgram.load(tmp_path / "int8_weights.mlpackage")
    kinds = Counter(operation.op_type for operation in program._function.operations)
    assert kinds["constexpr_blockwise_shift_scale"] == kinds["conv"] + kinds["conv_transpose"]


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_file_over_tolerance_is_named_and_what_was_there_stays(exporter, fitted, images, tmp_path, monkeypatch):
    export, suffix, settings = EXPORTERS[exporter]
    verifying = sys.modules["pyro_mvae.export.verify"]
    monkeypatch.setattr(verifying, "TOLERANCES", {"float32": -1.0, "float16": -1.0, "int8": -1.0})
    monkeypatch.setattr(verifying, "FLOAT16_IN_PYTORCH", ())
    path = tmp_path / f"decoder{suffix}"
    path.write_text("one that passed")
    with pytest.raises(ValueError, match=rf"^{path}: output 'image' differs from PyTorch by .*allows -1"):
        export(fitted[False], path, images=images, **settings)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "one that passed"


def test_verify_notices_another_models_weights(fitted, images, tmp_path):
    export_onnx(fitted[False], tmp_path / "decoder.onnx", images=images)
    torch.manual_seed(9)
    stranger = MODELS["MVAE"]((1, 16, 16))
    fit(stranger, images[:64], epochs=1)
    with pytest.raises(ValueError, match=r"decoder.onnx: output 'image' (differs|has a PSNR)"):
        verify(tmp_path / "decoder.onnx", stranger, images=images)
    with pytest.raises(ValueError, match=r"of another model: its input has shape \(1, 4\)"):
        verify(tmp_path / "decoder.onnx", MODELS["MVAE"]((1, 16, 16)).__class__((1, 16, 16), 7))


def test_rounding_of_float16_is_allowed_what_integers_cost_and_no_more(fitted, images, tmp_path, monkeypatch):
    """Core ML computes in float16 between integers; what is wrong in one channel of a layer is more than that."""
    model, path = fitted[True], tmp_path / "decoder.mlpackage"
    monkeypatch.setitem(sys.modules["pyro_mvae.export.verify"].TOLERANCES, "int8", 0.0)
    export_coreml(model, path, precision="int8", images=images)
    with pytest.raises(ValueError, match="int8 allows 0"):
        export_onnx(model, tmp_path / "decoder.onnx", images=images)
    wrong = copy.deepcopy(model)
    first = next(module for module in wrong.decoder.modules() if isinstance(module, QuantizedConv))
    first.conv.weight.data[:, :1] *= -1
    with pytest.raises(ValueError, match=r"output 'image' (differs|has a PSNR)"):
        verify(path, wrong, images=images)


def test_what_float16_itself_costs_is_allowed(images, tmp_path):
    """Small differences of large numbers: float16 keeps few of their digits, in PyTorch too."""
    torch.manual_seed(0)
    model = VAE((1, 16, 16), 4, widths=(8, 8), hidden=8).eval()
    first, second, *_ = (layer for layer in model.encoder.modules() if isinstance(layer, nn.BatchNorm2d))
    first.bias.data += 300
    second.running_mean += 300 * model.encoder.get_submodule("body.1.0").weight.detach().sum((1, 2, 3))
    found = export_coreml(model, tmp_path / "encoder.mlpackage", part="encoder", images=images)
    assert 1e-2 < found.max_abs_diff < 0.1
    model.encoder.get_submodule("heads.loc").weight.data[:1] *= -1
    with pytest.raises(ValueError, match=r"output 'loc' (differs|has a PSNR)"):
        verify(tmp_path / "encoder.mlpackage", model, images=images)


@pytest.mark.parametrize("name", ["x.mlpackage", "x.pte", "x.onnx"])
def test_files_that_are_none(name, fitted, tmp_path):
    with pytest.raises(ValueError, match="no artifact at"):
        verify(tmp_path / name, fitted[False])
    (tmp_path / name).write_text("hello")
    with pytest.raises(ValueError, match=name):
        verify(tmp_path / name, fitted[False])


def test_mistakes_are_explained(fitted, images, tmp_path):
    model, int8 = fitted[False], fitted[True]
    with pytest.raises(ValueError, match=r"does not end in \.pte"):
        export_executorch(model, tmp_path / "x.onnx")
    with pytest.raises(ValueError, match="quantise it and fit it first"):
        export_executorch(model, tmp_path / "x.pte", precision="int8")
    with pytest.raises(ValueError, match="float16, palettized, int8, int8_weights, int4"):
        export_coreml(model, tmp_path / "x.mlpackage", precision="int3")
    with pytest.raises(ValueError, match=r"not quantised: .* or choose precision int8_weights"):
        export_coreml(model, tmp_path / "x.mlpackage", precision="int8")
    with pytest.raises(ValueError, match="int8_weights is of a model whose weights are floats"):
        export_coreml(int8, tmp_path / "x.mlpackage", precision="int8_weights")
    with pytest.raises(ValueError, match=r"not quantised: .* or choose precision int8_weights"):
        capture(model, "decoder", precision="int8")
    with pytest.raises(ValueError, match="iOS17 or later"):
        export_coreml(int8, tmp_path / "x.mlpackage", precision="int8", target="iOS16")
    with pytest.raises(ValueError, match="iOS16, iOS17, iOS18"):
        export_coreml(model, tmp_path / "x.mlpackage", target="iOS9")
    with pytest.raises(ValueError, match="encoder, decoder"):
        capture(model, "head", precision="float32")
    with pytest.raises(ValueError, match="seen no data"):
        export_onnx(Quantize()(model), tmp_path / "x.onnx")
    with pytest.raises(ValueError, match="images have shape"):
        export_onnx(model, tmp_path / "x.onnx", images=images[:, :, :9])
    (tmp_path / "note.txt").write_text("x")
    with pytest.raises(ValueError, match=r"expected \.mlpackage, \.pte or \.onnx"):
        verify(tmp_path / "note.txt", model)
    assert [file.name for file in tmp_path.iterdir()] == ["note.txt"]
