"""The command line as a user meets it: exit codes, one line for each mistake, nothing lost."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from pyro_mvae import MVAE, PruneChannels, Quantize, load_model, save_model
from pyro_mvae.cli import main
from pyro_mvae.export import MilProgram
from pyro_mvae.export._quiet import import_quietly
from pyro_mvae.origin import exported_nll, origin
from pyro_mvae.search.student import calibrated
from pyro_mvae.train import data_for

REPORT_KEYS = {
    "": {"version", "seed", "data", "teacher", "student", "artifacts", "seconds", "environment"},
    "data": {"name", "num_train", "num_test", "shape", "binarization", "skipped"},
    "teacher": {"params", "macs", "nll", "nll_samples", "seconds_per_epoch"},
    "student": {"params", "macs", "nll", "nll_samples", "bits_per_dim", "passes"},
    "environment": {"python", "torch", "pyro", "coremltools", "executorch", "onnxruntime", "scikit-learn", "umap-learn", "cpu"},
}
ARTIFACT_KEYS = {"path", "format", "part", "precision", "bytes", "max_abs_diff", "psnr_db", "p50_us", "p90_us"}


def run(*arguments, code: int = 0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result


def mistake(*arguments, code: int = 2) -> str:
    """The one line that a mistake ends in."""
    result = run(*arguments, code=code)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def picture_folder(path: Path, count: int = 40) -> Path:
    path.mkdir()
    random = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(random.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path / f"{i}.png")
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint") / "student.safetensors"
    save_model(path, calibrated(Quantize()(PruneChannels(ratio=0.5)(MVAE((1, 28, 28))))))
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("build")
    pictures = picture_folder(folder / "pictures")
    (pictures / "broken.png").write_bytes((pictures / "0.png").read_bytes()[:100])
    (pictures / "notes.txt").write_text("not a picture")
    out = folder / "out"
    arguments = ["build", "--data", f"folder:{pictures}", "--size", "16", "--epochs", "2", "--budget-kb", "60"]
    about = ["--about", "author=Ada", "--about", "license=MIT"]
    result = run(*arguments, *about, "--nll-samples", "4", "--json", "--out", out)
    return out, result.stdout


def test_a_build_leaves_everything(built):
    out, printed = built
    report = json.loads(printed)
    assert report == json.loads((out / "report.json").read_text())
    assert set(report) == REPORT_KEYS[""]
    for part, keys in REPORT_KEYS.items():
        assert not part or set(report[part]) == keys
    assert all(set(item) == ARTIFACT_KEYS for item in report["artifacts"])
    assert {(item["format"], item["part"], item["precision"]) for item in report["artifacts"]} == {
        (kind, part, precision)
        for part in ("encoder", "decoder")
        for kind, precision in (("executorch", "int8"), ("onnx", "int8"), ("coreml", "int8"), ("coreml", "float16"))
    }
    assert sum(item["bytes"] for item in report["artifacts"] if item["format"] == "executorch") <= 60_000
    for item in report["artifacts"]:
        assert (out / item["path"]).exists()
        assert (item["p50_us"] is None) == (item["format"] == "coreml")
    assert report["data"]["num_train"] + report["data"]["num_test"] == 40
    assert len(report["data"]["skipped"]) == 1
    assert "broken.png" in report["data"]["skipped"][0]
    assert report["data"]["shape"] == [3, 16, 16]
    assert np.isfinite([report["teacher"]["nll"], report["student"]["nll"]]).all()
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]


def test_a_build_can_be_verified_and_exported_from(built, tmp_path):
    out, _ = built
    for name in ("decoder.pte", "encoder.onnx", "decoder.mlpackage", "encoder-float16.mlpackage"):
        assert "differs from PyTorch by at most" in run("verify", out / name, "--against", out / "student.safetensors").stdout
    metadata = MilProgram.load(out / "decoder.mlpackage").metadata
    assert metadata["nll"].startswith(f"{json.loads((out / 'report.json').read_text())['student']['nll']:.2f} nats an image")
    assert "images of 3 × 16 × 16" in metadata["training_data"]
    own = import_quietly("coremltools").utils.load_spec(str(out / "decoder.mlpackage")).description.metadata
    assert (own.author, own.license) == ("Ada", "MIT")
    package = tmp_path / "decoder.mlpackage"
    run("export-coreml", out / "student.safetensors", package, "--precision", "int8", "--target", "iOS17")
    assert package.is_dir()
    assert "exists" in mistake("export-coreml", out / "student.safetensors", package)


def test_what_is_exported_says_where_it_comes_from(built, tmp_path):
    out, _ = built
    data, checkpoint = json.loads((out / "build.json").read_text())["data"], out / "student.safetensors"
    common = ("--data", data, "--part", "decoder")
    model = load_model(checkpoint)
    pictures = data_for(model, data)
    for precision in ("float16", "int8"):
        run("export-coreml", checkpoint, tmp_path / f"{precision}.mlpackage", *common, "--precision", precision)
    run("export-coreml", checkpoint, tmp_path / "mine.mlpackage", *common, "--about", "training_data=mine")
    told = {path.stem: MilProgram.load(path).metadata for path in tmp_path.glob("*.mlpackage")}
    assert told["mine"]["training_data"] == "mine"
    assert "images of 3 × 16 × 16" in told["int8"]["training_data"]
    for precision in ("float16", "int8"):
        assert told[precision]["nll"] == origin(pictures, exported_nll(model, pictures, precision=precision))["nll"]
    run("export-onnx", checkpoint, tmp_path / "decoder.onnx", *common)
    entries = {entry["path"]: entry for entry in json.loads((tmp_path / "manifest.json").read_text())["files"]}
    assert entries["decoder.onnx"]["verified"]["images"] == entries["int8.mlpackage"]["verified"]["images"] > 1


def test_a_folder_in_use_is_refused_and_untouched(built):
    out, _ = built
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert "not empty" in mistake("build", "--out", out)
    assert "--resume" in mistake("build", "--out", out)
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}


def test_resuming_a_finished_build_trains_nothing_again(built):
    out, _ = built
    teacher = (out / "checkpoints/teacher.safetensors").stat().st_mtime_ns
    again = json.loads(run("build", "--out", out, "--resume", "--json").stdout)
    assert (out / "checkpoints/teacher.safetensors").stat().st_mtime_ns == teacher
    assert again["student"]["nll"] == json.loads(built[1])["student"]["nll"]
    assert "--epochs" in mistake("build", "--out", out, "--resume", "--epochs", "3")


def test_a_budget_that_cannot_be_met_ends_with_3_and_keeps_what_was_trained(tmp_path):
    pictures, out = picture_folder(tmp_path / "pictures"), tmp_path / "out"
    line = mistake("build", "--data", f"folder:{pictures}", "--size", 8, "--epochs", 1, "--budget-kb", 3, "--out", out, code=3)
    assert re.search(r"budget can't be met: 3 KB \(nearest: \d+\.\d+ KB\)", line)
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"teacher.safetensors", "student-distil.safetensors"}


def test_ctrl_c_leaves_a_build_that_resumes(tmp_path):
    pictures, out = picture_folder(tmp_path / "pictures", 300), tmp_path / "out"
    command = [sys.executable, "-m", "pyro_mvae", "build", "--data", f"folder:{pictures}", "--size", "16", "--out", str(out)]
    process = subprocess.Popen([*command, "--epochs", "500", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    state = out / "checkpoints/teacher.training.safetensors"
    deadline = time.monotonic() + 120
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stdout == ""
    assert f"go on with: pyro-mvae build --out {out} --resume" in stderr
    assert "Traceback" not in stderr
    assert state.exists()


def test_ctrl_c_anywhere_else_says_so_in_a_line(monkeypatch, tmp_path):
    def stopped(*args, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["pyro_mvae.experiment"], "load_data", stopped)
    assert run("experiment", "--prompt", "clock", "--out", tmp_path / "out", code=130).stderr == "error: interrupted\n"


def test_a_verb_that_is_none():
    assert "'buld'" in mistake("buld")
    assert "--against" in mistake("verify", "x.pte")
    assert "--data is for comparing: give --against" in mistake("verify", "x.mlpackage", "--data", "digits")
    assert "export-coreml" in run().stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget-kb", "0"], "budget_kb is 0"),
        (["--budget-kb", "nan"], "budget_kb is nan"),
        (["--epochs", "0"], "epochs is 0"),
        (["--data", "digit"], "did you mean 'digits'"),
        (["--model", "mvea"], "did you mean 'mvae'"),
        (["--data", "folder:/nowhere"], "/nowhere"),
        (["--data", "mnist:/nowhere"], "/nowhere"),
        (["--data", "shards:/nowhere/*.tar"], "/nowhere"),
        (["--resume"], "no build to resume"),
        (["--epochs", "many"], "'--epochs': 'many' is not"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_mistakes_in_build(arguments, message, tmp_path):
    out = tmp_path / "out"
    assert message in mistake("build", "--out", out, *arguments)
    assert not out.exists() or not list(out.iterdir())


@pytest.mark.parametrize("content", ["empty", "text"])
def test_folders_without_pictures(content, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    if content == "text":
        (folder / "a.txt").write_text("hello")
    assert str(folder) in mistake("build", "--data", f"folder:{folder}", "--out", tmp_path / "out")


def test_a_wrong_magic_number(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"\x00\x00\x08\x01" + bytes(100))
    assert "magic" in mistake("build", "--data", f"mnist:{tmp_path}", "--out", tmp_path / "out")


def test_a_full_disk_and_a_path_that_cannot_be_written(tmp_path, monkeypatch):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    assert "1 MB of free space" in mistake("build", "--out", tmp_path / "out")
    (tmp_path / "file").write_text("x")
    assert "file" in mistake("build", "--out", tmp_path / "file" / "out")
    assert "is a file" in mistake("build", "--out", tmp_path / "file")


def test_a_loss_that_explodes_stops_the_build(tmp_path, monkeypatch):
    from pyro_mvae.inference import asvi, fastest

    pictures, out = picture_folder(tmp_path / "pictures"), tmp_path / "out"
    original = asvi.compile_gradients

    def poisoned(objective, example, **options):
        graph = original(objective, example, **options)
        return lambda x: ({name: term * torch.nan for name, term in graph(x)[0].items()}, graph(x)[1])

    for module in (asvi, fastest):
        monkeypatch.setattr(module, "compile_gradients", poisoned)
    line = mistake("build", "--data", f"folder:{pictures}", "--size", 8, "--epochs", 1, "--out", out)
    assert "the loss became nan at step 1 of epoch 1" in line


def test_train_writes_a_checkpoint(tmp_path):
    pictures, path = picture_folder(tmp_path / "pictures"), tmp_path / "vae.safetensors"
    arguments = ["train", path, "--data", f"folder:{pictures}", "--size", 8, "--epochs", 1, "--latent-dim", 5]
    assert "nats per test image" in run(*arguments).stdout
    assert load_model(path).latent_dim == 5
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert "exists" in mistake(*arguments)
    run(*arguments, "--overwrite")
    assert ".safetensors" in mistake("train", tmp_path / "x.pt")


def test_train_with_everything(tmp_path):
    folder, path, history = picture_folder(tmp_path / "pictures"), tmp_path / "vae.safetensors", tmp_path / "history.csv"
    how = ["--epochs", 2, "--batch-size", 16, "--likelihood", "gaussian", "--theta", "log_normal", "--kl-weight", 0.5]
    optimizers = ["--optimizer", "root-adam", "--guide-optimizer", "rmsprop", "--guide-lr", 1e-3, "--clip", 100, "--ema", 0.9]
    logs = ["--history", history, "--tensorboard", tmp_path / "board", "--compile", "eager", "--device", "cpu"]
    nets = ["--net", "mlp", "--num-clusters", 3]
    run("train", path, "--model", "mvae", "--data", f"folder:{folder}", "--size", 16, *nets, *how, *optimizers, *logs)
    lines = history.read_text().splitlines()
    assert lines[0].startswith("epoch,loss,kl,likelihood,theta_kl,learning_rate,guide_learning_rate,kl_weight")
    assert len(lines) == 3
    assert list((tmp_path / "board").iterdir())
    assert {name: load_model(path).config[name] for name in ("theta", "net", "num_clusters")} == {
        "theta": "log_normal",
        "net": "mlp",
        "num_clusters": 3,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--optimizer", "adma"], "unknown optimiser 'adma', expected one of: adam, adamw, root-adam, rmsprop, sgd"),
        (["--theta", "gamma", "--likelihood", "bernoulli"], "'bernoulli' has no precision to be random"),
        (["--precision", "half"], "precision is 'half'"),
        (["--device", "gpu"], "there is no device 'gpu' here"),
        (["--ema", "1"], "ema is 1.0"),
        (["--clip", "0"], "clip is 0.0"),
        (["--kl-weight", "-1"], "the weight of kl is -1.0"),
        (["--compile", "fast"], "compile is 'fast'"),
        (["--net", "cnn"], "net is 'cnn'"),
        (["--num-clusters", "3"], "a VAE has no clusters"),
        (["--model", "mvae", "--num-clusters", "0"], "num_clusters is 0"),
    ],
)
def test_mistakes_in_train(options, message, tmp_path):
    assert message in mistake("train", tmp_path / "vae.safetensors", *options)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one here")
def test_a_device_that_is_not_there(tmp_path):
    assert "there is no device 'cuda' here" in mistake("train", tmp_path / "vae.safetensors", "--device", "cuda")


def test_checkpoints_and_artifacts_that_do_not_fit(checkpoint, tmp_path):
    assert "no checkpoint at" in mistake("export-coreml", tmp_path / "none.safetensors", tmp_path / "x.mlpackage")
    assert "no artifact at" in mistake("verify", tmp_path / "x.pte", "--against", checkpoint)
    assert "iOS17 or later" in mistake(
        "export-coreml", checkpoint, tmp_path / "x.mlpackage", "--precision", "int8", "--target", "iOS16"
    )
    assert ".mlpackage" in mistake("export-coreml", checkpoint, tmp_path / "x.zip")
    assert "--seed is for splitting --data" in mistake("export-onnx", checkpoint, tmp_path / "x.onnx", "--seed", 1)
    assert "did you mean 'digits'" in mistake("export-onnx", checkpoint, tmp_path / "x.onnx", "--data", "digit")
    run("export-coreml", checkpoint, tmp_path / "decoder.mlpackage")
    other = tmp_path / "other.safetensors"
    save_model(other, MVAE((1, 28, 28), 7))
    assert "of another model" in mistake("verify", tmp_path / "decoder.mlpackage", "--against", other)


def test_version_and_help():
    version = run("--version").stdout
    assert all(name in version for name in ("pyro-mvae", "torch 2.13", "Pyro 1.9", "coremltools 9.0"))
    for verb in main.commands:
        assert "Example:" in run(verb, "--help").stdout
