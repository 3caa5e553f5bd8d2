"""Core ML packages: several functions in one, what Xcode shows, and packages that are not ours."""

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyro_mvae import examine, export_coreml, export_coreml_functions, export_executorch, load_model, save_model, verify
from pyro_mvae.export._quiet import import_quietly, quiet
from pyro_mvae.export.manifest import describe, digest_of
from pyro_mvae.export.mil import MilProgram, evaluate_mlpackage, functions_of
from pyro_mvae.export.packages import WRONG_PASSES
from pyro_mvae.export.verify import load_artifact
from tests.commands import run

ct = import_quietly("coremltools")
PassPipelineManager = import_quietly("coremltools.converters.mil.mil.passes.pass_pipeline").PassPipelineManager
PARTS = ("encoder", "decoder", "reconstruct", "anomaly")


@pytest.mark.parametrize(("precision", "parts"), [("float16", PARTS), ("int8", PARTS[:2])])
def test_functions_of_one_package(precision, parts, models, images, tmp_path):
    path = tmp_path / "all.mlpackage"
    found = export_coreml_functions(models[precision], path, parts=parts, precision=precision, images=images)
    assert [(each.part, each.function) for each in found] == [(part, part) for part in parts]
    assert functions_of(path) == tuple(sorted(parts))
    for part in parts:
        single = tmp_path / f"{part}.mlpackage"
        export_coreml(models[precision], single, part=part, precision=precision, target="iOS18", images=images)
        noise = MilProgram.load(single).noise()
        ours, theirs = evaluate_mlpackage(path, noise, function=part), evaluate_mlpackage(single, noise)
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            np.testing.assert_array_equal(value, theirs[name])
    sizes = {part: found[0].bytes if part == "all" else size(tmp_path / f"{part}.mlpackage") for part in ("all", *parts)}
    assert sizes["all"] < sum(sizes[part] for part in parts)
    again = tmp_path / "again.mlpackage"
    export_coreml_functions(models[precision], again, parts=parts, precision=precision, images=images)
    assert digest_of(again) == digest_of(path)


def size(package):
    return sum(file.stat().st_size for file in package.rglob("*") if file.is_file())


def test_a_function_is_asked_for_by_name(models, tmp_path):
    path = tmp_path / "two.mlpackage"
    export_coreml_functions(models["float16"], path)
    with pytest.raises(ValueError, match="has functions decoder, encoder, expected one of them: function is None"):
        MilProgram.load(path)
    with pytest.raises(ValueError, match="function is 'main'"):
        verify(path, models["float16"], function="main")
    for parts in ((), ("encoder",), ("encoder", "encoder"), "encoder"):
        with pytest.raises(ValueError, match="expected two or more that differ"):
            export_coreml_functions(models["float16"], tmp_path / "none.mlpackage", parts=parts)
    assert not (tmp_path / "none.mlpackage").exists()


def test_commands(models, tmp_path):
    checkpoint, path = tmp_path / "vae.safetensors", tmp_path / "both.mlpackage"
    save_model(checkpoint, models["float16"])
    words = ("export-coreml", checkpoint, path, "--part", "encoder", "--part", "decoder", "--about", "author=somebody")
    assert run(*words).output.count("differs from PyTorch") == 2
    description = ct.utils.load_spec(str(path)).description
    assert description.metadata.author == "somebody"
    for function in description.functions:
        assert function.input[0].shortDescription.startswith("pixels, raw" if function.name == "encoder" else "a code")
    assert {function.name for function in description.functions} == {"encoder", "decoder"}
    assert [(entry["path"], entry["function"]) for entry in describe(tmp_path)["files"]] == [
        ("both.mlpackage", "decoder"),
        ("both.mlpackage", "encoder"),
    ]
    assert run("verify", path, "--against", checkpoint).output.count("differs from PyTorch") == 2
    page = (tmp_path / "README.md").read_text()
    assert [f'configuration.functionName = "{part}"' in page for part in ("encoder", "decoder")] == [True, True]
    assert "encoder: scale, (1, 4) float16" in run("verify", path).output
    assert "--target is iOS16" in run(*words, "--target", "iOS16", "--overwrite", code=2).stderr
    assert "expected NAME=TEXT" in run(*words[:3], "--about", "author", "--overwrite", code=2).stderr
    assert "give --against" in run("verify", checkpoint, code=2).stderr
    assert load_model(checkpoint)


@pytest.mark.parametrize("backend", [None, "coreml"], ids=["package", "program"])
def test_the_pass_that_fuses_wrong_is_left_out(backend, models, tmp_path, monkeypatch):
    """Of every conversion, whoever starts it."""
    seen, apply = [], PassPipelineManager.apply_pipeline

    def spy(prog, pass_pipeline):
        seen.append(set(pass_pipeline.passes))
        return apply(prog, pass_pipeline)

    monkeypatch.setattr(PassPipelineManager, "apply_pipeline", spy)
    if backend:
        export_executorch(models["int8"], tmp_path / "decoder.pte", backend=backend)
    else:
        export_coreml(models["int8"], tmp_path / "decoder.mlpackage", precision="int8")
    assert any("common::const_elimination" in passes for passes in seen)
    assert not [passes for passes in seen if passes & set(WRONG_PASSES)]


def test_what_xcode_shows(models, tmp_path):
    path = tmp_path / "encoder.mlpackage"
    about = {"author": "somebody", "license": "MIT", "version": "2", "training_data": "squares", "nll": "99.4 nats"}
    export_coreml(models["int8"], path, part="encoder", precision="int8", about=about)
    description = ct.utils.load_spec(str(path)).description
    metadata = description.metadata
    assert (metadata.author, metadata.license, metadata.versionString) == ("somebody", "MIT", "2")
    assert "Encodes a picture" in metadata.shortDescription
    held = dict(metadata.userDefined)
    assert held["training_data"] == "squares"
    assert held["nll"] == "99.4 nats"
    assert held["passes"] == "Quantize(weight_bits=8, ranges='moving')"
    assert not [name for name in held if name.endswith("date")], "the same tomorrow"
    assert description.input[0].shortDescription == "pixels, raw; (1, 1, 16, 16) float16, from 0 to 255"
    for output in description.output:
        assert "q(z|x)" in output.shortDescription
        assert output.type.multiArrayType.dataType == ct.proto.FeatureTypes_pb2.ArrayFeatureType.FLOAT16


class Residual(nn.Module):
    """As in ResNet: two convolutions beside a shortcut."""

    def __init__(self, narrow, wide, stride):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(narrow, wide, 3, stride, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(wide, wide, 3, 1, 1, bias=False), nn.BatchNorm2d(wide))
        self.short = nn.Sequential(nn.Conv2d(narrow, wide, 1, stride, bias=False), nn.BatchNorm2d(wide))

    def forward(self, x):
        return F.relu(self.second(self.first(x)) + self.short(x))


class Inverted(nn.Module):
    """As in MobileNet's second and third version: expand, look around by channel, squeeze and excite, project."""

    def __init__(self, width, wide):
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(width, wide, 1), nn.BatchNorm2d(wide), nn.Hardswish())
        self.depthwise = nn.Sequential(nn.Conv2d(wide, wide, 5, 1, 2, groups=wide), nn.BatchNorm2d(wide), nn.ReLU6())
        self.excite = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide, 4, 1), nn.SiLU(), nn.Conv2d(4, wide, 1), nn.Hardsigmoid()
        )
        self.project = nn.Conv2d(wide, width, 1)

    def forward(self, x):
        h = self.depthwise(self.expand(x))
        return x + self.project(h * self.excite(h))


class Dense(nn.Module):
    """As in DenseNet and Inception: branches side by side, pooled in two ways, and joined."""

    def __init__(self, width):
        super().__init__()
        self.branches = nn.ModuleList([nn.Conv2d(width, 4, 1), nn.Conv2d(width, 4, (1, 3), padding=(0, 1))])

    def forward(self, x):
        pooled = F.max_pool2d(x, 3, 1, 1), F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return torch.cat([F.elu(branch(x)) for branch in self.branches] + list(pooled), 1)


class Shuffled(nn.Module):
    """As in ShuffleNet: halves that change places, and a norm by groups."""

    def __init__(self, width):
        super().__init__()
        self.right = nn.Conv2d(width // 2, width // 2, 3, 1, 1)
        self.norm = nn.GroupNorm(2, width)

    def forward(self, x):
        a, b = x.chunk(2, 1)
        both = torch.cat([a, F.leaky_relu(self.right(b))], 1)
        n, channels, height, width = both.shape
        return self.norm(both.reshape(n, 2, channels // 2, height, width).transpose(1, 2).reshape(n, channels, height, width))


NETS = {
    "resnet": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 7, 2, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1), Residual(8, 12, 2), nn.AdaptiveAvgPool2d(1)
    ),
    "mobilenet": lambda: nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), Inverted(8, 24), nn.AdaptiveAvgPool2d(1)),
    "densenet": lambda: nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), Dense(6), nn.AdaptiveAvgPool2d(1)),
    "shufflenet": lambda: nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), Shuffled(8), nn.AdaptiveAvgPool2d(1)),
}


@pytest.mark.parametrize("name", NETS)
def test_nets_that_are_not_ours(name, tmp_path):
    """Classifiers in the manner of well-known ones, converted by coremltools alone, from the image to softmax."""
    torch.manual_seed(0)
    net = NETS[name]().train()
    net(torch.rand(8, 3, 32, 32))
    channels = net.eval()(torch.rand(1, 3, 32, 32)).shape[1]
    net = nn.Sequential(net, nn.Flatten(), nn.Dropout(0.2), nn.Linear(channels, 10), nn.Softmax(-1)).eval()
    x = torch.rand(1, 3, 32, 32)
    path = tmp_path / f"{name}.mlpackage"
    with quiet():
        program = torch.export.export(net, (x,)).run_decompositions({})
        ct.convert(
            program, inputs=[ct.TensorType("image", x.shape)], minimum_deployment_target=ct.target.iOS16, skip_model_load=True
        ).save(str(path))
    (values,) = evaluate_mlpackage(path, {"image": x.numpy()}).values()
    with torch.no_grad():
        np.testing.assert_allclose(values, net(x).numpy(), atol=5e-3)
    (output,) = examine(path)
    assert (output.shape, output.type) == ((1, 10), "float16")
    assert 0 <= output.low <= output.high <= 1
    assert f"from {output.low:.4g}" in run("verify", path).output


def test_numbers_that_outgrow_their_type(tmp_path):
    path = tmp_path / "large.mlpackage"
    net = nn.Conv2d(1, 1, 1).eval()
    nn.init.constant_(net.weight, 6e4)
    nn.init.constant_(net.bias, 6e4)
    with quiet():
        program = torch.export.export(net, (torch.rand(1, 1, 4, 4),)).run_decompositions({})
        ct.convert(program, minimum_deployment_target=ct.target.iOS16, skip_model_load=True).save(str(path))
    with pytest.raises(ValueError, match="outgrow their type"):
        examine(path)


def test_files_that_no_exporter_of_ours_writes_are_refused_by_what_they_take(tmp_path):
    class Two(nn.Module):
        def forward(self, one, two):
            return one + two

    path = tmp_path / "two.mlpackage"
    with quiet():
        program = torch.export.export(Two().eval(), (torch.rand(1, 4), torch.rand(1, 4))).run_decompositions({})
        ct.convert(program, minimum_deployment_target=ct.target.iOS16, skip_model_load=True).save(str(path))
    with pytest.raises(ValueError, match=r"takes 2 inputs \(one, two\), expected one"):
        load_artifact(path)
    for shape, type_, message in (
        (["n", 1, 4, 4], onnx.TensorProto.FLOAT, r"shape \['n', 1, 4, 4\], expected floats of a fixed shape"),
        ([1, 4], onnx.TensorProto.INT64, r"a tensor\(int64\) of shape \[1, 4\], expected floats"),
    ):
        values = [onnx.helper.make_tensor_value_info(name, type_, shape) for name in ("x", "y")]
        graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "same", values[:1], values[1:])
        opsets = [onnx.helper.make_opsetid("", 18)]
        onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "same.onnx")
        with pytest.raises(ValueError, match=message):
            load_artifact(tmp_path / "same.onnx")
