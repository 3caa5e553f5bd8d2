"""ExecuTorch programs for Core ML: what the delegate is given is a package, and is evaluated as one."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from pyro_mvae import export_executorch, save_model, verify
from pyro_mvae.export import delegated as delegated_module
from pyro_mvae.export import delegation as delegation_module
from pyro_mvae.export.delegated import delegated
from pyro_mvae.export.delegation import Delegation, delegation
from pyro_mvae.export.deployed import artifacts
from pyro_mvae.export.executorch import lower
from pyro_mvae.export.manifest import describe
from pyro_mvae.export.verify import load_artifact
from tests.catalog import MODELS
from tests.commands import run


@pytest.mark.parametrize("part", ["encoder", "decoder", "reconstruct", "anomaly"])
@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_a_program_for_core_ml(precision, part, models, images, tmp_path, capfd):
    path = tmp_path / "part.pte"
    found = export_executorch(models[precision], path, part=part, backend="coreml", images=images)
    assert (found.format, found.part, found.precision) == ("executorch", part, precision)
    assert delegation(path.read_bytes()) == Delegation(1, (), "coreml")
    assert not "".join(capfd.readouterr()), "nobody hears what is usual"
    assert verify(path, models[precision], images=images) == found, "the file says its precision"


def test_the_same_model_gives_the_same_bytes(models):
    first, second = (lower(models["int8"], part="decoder", precision="int8", backend="coreml") for _ in range(2))
    assert first == second
    other = lower(models["float16"], part="decoder", precision="float16", backend="coreml")
    names = [content[(at := content.index(b"pyro_mvae_")) : at + 74] for content in (first, other)]
    assert names[0] != names[1], "a device knows compiled models apart by their identifiers"


def test_what_xnnpack_runs_has_no_package(models):
    assert delegated(lower(models["int8"], part="encoder", precision="int8")) is None


def plan(*backends, outside=()):
    pieces, operators = ([SimpleNamespace(id=name, name=name) for name in names] for names in (backends, outside))
    return SimpleNamespace(name="forward", delegates=pieces, operators=operators)


def test_a_program_of_other_pieces_is_refused(monkeypatch):
    mixed = plan("CoreMLBackend", "XnnpackBackend", outside=["aten::add"])
    monkeypatch.setattr(delegated_module, "parsed", lambda content: SimpleNamespace(execution_plan=[mixed]))
    with pytest.raises(ValueError, match="pieces are for CoreMLBackend, XnnpackBackend, operations outside are aten::add"):
        delegated(b"CoreMLBackend")
    monkeypatch.setattr(delegated_module, "parsed", lambda content: SimpleNamespace(execution_plan=[plan("XnnpackBackend")]))
    with pytest.raises(ValueError, match="pieces are for XnnpackBackend, operations outside are none"):
        delegated(b"CoreMLBackend")


def test_a_program_of_several_methods_is_refused(monkeypatch):
    program = SimpleNamespace(execution_plan=[plan(), SimpleNamespace(name="backward")])
    serializer = SimpleNamespace(deserialize_pte_binary=lambda content: SimpleNamespace(program=program))
    monkeypatch.setattr(delegation_module, "import_quietly", lambda name: serializer)
    with pytest.raises(ValueError, match="with the methods forward, backward: expected one"):
        delegation(b"")


def test_another_models_program_is_noticed(models, images, tmp_path):
    path = tmp_path / "decoder.pte"
    export_executorch(models["float16"], path, backend="coreml", images=images)
    torch.manual_seed(1)
    with pytest.raises(ValueError, match="differs from PyTorch"):
        verify(path, MODELS["VAE"]((1, 16, 16)).eval(), images=images)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="damaged"):
        load_artifact(path)


def test_mistakes_are_explained(models, tmp_path):
    path = tmp_path / "x.pte"
    for how, message in (
        ({"backend": "qnn"}, "backend is 'qnn', expected one of: xnnpack, coreml"),
        ({"backend": "coreml", "precision": "float32"}, "expected float16 or int8"),
        ({"precision": "float16"}, "expected float32 or int8"),
        ({"backend": "coreml", "precision": "int8"}, "quantise it"),
    ):
        with pytest.raises(ValueError, match=message):
            export_executorch(models["float16"], path, **how)
    assert not path.exists()


def test_what_runs_elsewhere_is_taken_for_android_and_for_monitoring(models, tmp_path):
    save_model(tmp_path / "vae.safetensors", models["int8"])
    files = {("encoder", "e.pte", "xnnpack"), ("decoder", "d.pte", "xnnpack"), ("decoder", "d_apple.pte", "coreml")}
    for part, name, backend in sorted(files):
        run("export-executorch", tmp_path / "vae.safetensors", tmp_path / name, "--part", part, "--backend", backend)
    sections = (tmp_path / "README.md").read_text().split("## ")
    (kotlin,) = (each for each in sections if each.startswith("Decoder in Kotlin"))
    (swift,) = (each for each in sections if each.startswith("Decoder in Swift"))
    assert "For `d.pte`" in kotlin
    assert "For `d_apple.pte`" in swift
    decoder = artifacts(tmp_path, describe(tmp_path))["decoder"]
    assert decoder.precision is None, "XNNPACK's program, which does not say it"


def test_command(models, tmp_path):
    checkpoint = tmp_path / "vae.safetensors"
    save_model(checkpoint, models["int8"])
    assert "differs from PyTorch" in run("export-executorch", checkpoint, tmp_path / "decoder.pte", "--backend", "coreml").output
    (entry,) = describe(tmp_path)["files"]
    assert entry["delegation"] == {"pieces": 1, "outside": [], "backend": "coreml"}
    words = ["verify", str(tmp_path / "decoder.pte"), "--against", str(checkpoint)]
    subprocess.run([sys.executable, "-m", "pyro_mvae", *words], check=True)  # where nothing was lowered before
