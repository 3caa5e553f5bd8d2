"""What an app reads: every fact of it held against the file that it is about."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx
import pytest
import torch

from pyro_mvae import VAE, Quantize, export_coreml, export_executorch, export_onnx, load_model, save_model
from pyro_mvae._version import __version__
from pyro_mvae.cli.export import in_pieces
from pyro_mvae.compress import Palettize
from pyro_mvae.environment import environment
from pyro_mvae.export.delegation import delegation
from pyro_mvae.export.manifest import describe, digest_of, part_macs, write_manifest
from pyro_mvae.export.mil import MilProgram
from pyro_mvae.export.verify import load_artifact
from pyro_mvae.search.student import calibrated
from tests.catalog import EXPORTERS, MODELS
from tests.commands import run

VERBS = {"export-coreml": ".mlpackage", "export-executorch": ".pte", "export-onnx": ".onnx"}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    for name in ("VAE", "SVAE", "VQVAE"):
        save_model(folder / f"{name}.safetensors", MODELS[name]((1, 16, 16)).eval())
    save_model(folder / "int8.safetensors", calibrated(Quantize()(MODELS["MVAE"]((1, 16, 16)))))
    return folder


def names_in(path, entry):
    """What inputs and outputs are called in a file; programs of ExecuTorch call them nothing."""
    if path.suffix == ".pte":
        return ([each["name"] for each in entry["inputs"]], [each["name"] for each in entry["outputs"]])
    if path.suffix == ".onnx":
        graph = onnx.load(path).graph
        return [each.name for each in graph.input], [each.name for each in graph.output]
    program = MilProgram.load(path)
    return list(program.inputs), list(program.outputs)


@pytest.mark.parametrize("name", ["VAE", "VQVAE", "int8"])
def test_every_file_is_as_the_manifest_says(name, checkpoints, tmp_path):
    checkpoint = checkpoints / f"{name}.safetensors"
    for verb, suffix in VERBS.items():
        for part in ("encoder", "decoder"):
            assert "differs from PyTorch by" in run(verb, checkpoint, tmp_path / f"{part}{suffix}", "--part", part).output
    manifest = describe(tmp_path)
    assert manifest["schema"] == 2
    assert [entry["path"] for entry in manifest["files"]] == sorted(
        path.name for path in tmp_path.iterdir() if path.name not in ("manifest.json", "README.md")
    )
    for entry in manifest["files"]:
        path = tmp_path / entry["path"]
        artifact = load_artifact(path)
        assert (entry["format"], entry["part"]) == (artifact.format, artifact.part)
        assert entry["sha256"] == digest_of(path)
        assert entry["inputs"][0]["shape"] == list(artifact.input_shape)
        outputs = artifact.run(torch.zeros(artifact.input_shape))
        assert [output["shape"] for output in entry["outputs"]] == [list(output.shape) for output in outputs]
        assert all(tensor["meaning"] for tensor in entry["inputs"] + entry["outputs"])
        assert ([each["name"] for each in entry["inputs"]], [each["name"] for each in entry["outputs"]]) == names_in(path, entry)
        assert entry["bytes"] == sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())
        assert entry["macs"] == part_macs(load_model(checkpoint), entry["part"])
        assert {each["type"] for each in entry["inputs"] + entry["outputs"]} == {"float16" if path.is_dir() else "float32"}
        for each, values in zip(entry["outputs"], outputs, strict=True):
            low, high = each["range"] or (None, None)
            assert low is None or low <= values.min()
            assert high is None or values.max() <= high
        assert entry["verified"]["psnr_db"] >= 40
        assert (entry["latency"] is None) == (entry["format"] == "coreml")
        assert entry["latency"] is None or 0 < entry["latency"]["p50_us"] <= entry["latency"]["p90_us"]
        assert entry.get("target") == {"coreml": "iOS16"}.get(entry["format"])
        assert entry.get("opset") == {"onnx": 18}.get(entry["format"])
        assert ("caution" in entry, entry.get("caution")) == (entry["format"] == "coreml", None)
        assert entry["versions"] == {"pyro-mvae": __version__, **environment()}
    assert manifest["model"]["passes"] == (["Quantize(weight_bits=8, ranges='moving')"] if name == "int8" else [])


def test_what_to_mind_of_a_package_is_noted(checkpoints, tmp_path):
    run(
        "export-coreml",
        checkpoints / "int8.safetensors",
        tmp_path / "decoder.mlpackage",
        "--precision",
        "int8",
        "--target",
        "iOS17",
    )
    (entry,) = describe(tmp_path)["files"]
    assert entry["target"] == "iOS17"
    assert "set computeUnits to cpuOnly" in entry["caution"]
    assert f"computeUnits = .cpuOnly  // {entry['caution']}" in (tmp_path / "README.md").read_text()


def test_a_path_that_is_another_part_now_is_one_file(checkpoints, tmp_path):
    for part in ("decoder", "encoder"):
        run("export-onnx", checkpoints / "VAE.safetensors", tmp_path / "x.onnx", "--part", part, "--overwrite")
    (entry,) = describe(tmp_path)["files"]
    assert (entry["part"], entry["sha256"]) == ("encoder", digest_of(tmp_path / "x.onnx"))


def test_a_program_of_floats_is_verified_as_such(checkpoints, tmp_path):
    """An ExecuTorch program does not say its precision, and its model is of integers: its manifest does."""
    words = [checkpoints / "int8.safetensors", tmp_path / "decoder.pte", "--precision", "float32"]
    run("export-executorch", *words)
    words = ["verify", tmp_path / "decoder.pte", "--against", words[0]]
    assert ", float32, " in run(*words).output
    (tmp_path / "manifest.json").write_text('{"name": "an app of the web"}')
    assert ", int8, " in run(*words).output, "that is taken for what the model is"
    assert ", float32, " in run(*words, "--precision", "float32").output


def test_a_program_in_pieces_is_told(tmp_path):
    """A file that its backend runs in one is not."""
    decoder = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.ELU(), torch.nn.Softplus(), torch.nn.Unflatten(1, (1, 8, 8)))
    model = VAE((1, 8, 8), 4, decoder=decoder).eval()
    export_executorch(model, tmp_path / "own.pte")
    found = delegation((tmp_path / "own.pte").read_bytes())
    assert found.outside
    message = in_pieces(str(tmp_path / "own.pte"))
    assert f"in {found.pieces} pieces for xnnpack, best is one; outside of them: {found.outside[0]}" in message
    export_executorch(VAE((1, 8, 8), 4).eval(), tmp_path / "ours.pte")
    assert in_pieces(str(tmp_path / "ours.pte")) is None


def test_another_model_is_not_mixed_in(checkpoints, tmp_path):
    run("export-onnx", checkpoints / "VAE.safetensors", tmp_path / "a.onnx")
    before = (tmp_path / "manifest.json").read_bytes()
    message = run("export-onnx", checkpoints / "SVAE.safetensors", tmp_path / "b.onnx", code=2).output
    assert "manifest.json is of another model: give another folder, or --overwrite" in message
    assert (tmp_path / "manifest.json").read_bytes() == before
    assert not (tmp_path / "b.onnx").exists()
    assert "a.onnx exists" in run("export-onnx", checkpoints / "VAE.safetensors", tmp_path / "a.onnx", code=2).output
    run("export-onnx", checkpoints / "SVAE.safetensors", tmp_path / "b.onnx", "--overwrite")
    assert [entry["path"] for entry in describe(tmp_path)["files"]] == ["b.onnx"]


def test_a_file_that_was_deleted_is_left_out_next_time(checkpoints, tmp_path):
    for name in ("a.onnx", "b.onnx", "c.onnx"):
        run("export-onnx", checkpoints / "VAE.safetensors", tmp_path / name)
        (tmp_path / "a.onnx").unlink(missing_ok=True)
    assert [entry["path"] for entry in describe(tmp_path)["files"]] == ["b.onnx", "c.onnx"]


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "damaged"), ("[]", "damaged"), ("{}", "damaged"), ('{"schema": 1}', "has schema 1, expected 2")],
)
def test_a_manifest_that_cannot_be_read_says_so(content, message, tmp_path):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        describe(tmp_path)


@pytest.mark.parametrize("content", ["{", '{"name": "a web app"}', '{"schema": 1}'])
def test_what_is_no_manifest_of_ours_is_not_lost_unasked(content, checkpoints, tmp_path):
    words = ["export-onnx", checkpoints / "VAE.safetensors", tmp_path / "a.onnx"]
    (tmp_path / "manifest.json").write_text(content)
    assert "to another folder or with --overwrite" in run(*words, code=2).output.replace("\n", " ")
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
    model = load_model(words[1])
    with pytest.raises(ValueError, match=r"manifest\.json"):
        write_manifest(tmp_path, model, [])
    run(*words, "--overwrite")
    assert [entry["path"] for entry in describe(tmp_path)["files"]] == ["a.onnx"]


def test_the_manifest_says_how_many_images_were_compared(checkpoints, tmp_path):
    model = load_model(checkpoints / "VAE.safetensors")
    images = torch.randint(0, 256, (3, *model.image_shape), dtype=torch.uint8)
    write_manifest(tmp_path, model, [export_onnx(model, tmp_path / "encoder.onnx", part="encoder", images=images)])
    assert describe(tmp_path)["files"][0]["verified"]["images"] == 3


@pytest.mark.parametrize(
    ("made", "more"),
    [
        (Palettize(bits=2), {"precision": "palettized"}),
        (None, {"precision": "int4"}),
        (None, {"precision": "int8_weights", "pictures": "images"}),
        (None, {"batch_sizes": (1, 4)}),
    ],
    ids=["palettized", "int4", "images", "batches"],
)
def test_the_same_model_gives_the_same_package(made, more, tmp_path):
    torch.manual_seed(0)
    model = MODELS["MVAE"]((1, 16, 16)).eval()
    model = made(model) if made else model
    digests = [digest_of(Path(export_coreml(model, tmp_path / f"{turn}.mlpackage", **more).path)) for turn in range(2)]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("exporter", EXPORTERS)
def test_the_same_model_gives_the_same_bytes(exporter, quantized, tmp_path):
    export, suffix, settings = EXPORTERS[exporter]
    torch.manual_seed(0)
    model = MODELS["MVAE"]((1, 16, 16)).eval()
    if quantized:
        model = calibrated(Quantize()(model))
        settings = {"precision": "int8"}
    paths = [tmp_path / f"{i}{suffix}" for i in range(2)]
    for path in paths:
        export(model, path, part="encoder", **settings)
    assert digest_of(paths[0]) == digest_of(paths[1])


def test_the_digest_of_a_package_is_of_names_and_contents(tmp_path):
    package = tmp_path / "a.mlpackage"
    (package / "b").mkdir(parents=True)
    (package / "b/c").write_text("one")
    (package / "a").write_text("two")
    one, two = (hashlib.sha256(text.encode()).hexdigest() for text in ("one", "two"))
    assert digest_of(package) == hashlib.sha256(f"a\0{two}\nb/c\0{one}\n".encode()).hexdigest()
    assert digest_of(package / "a") == two
