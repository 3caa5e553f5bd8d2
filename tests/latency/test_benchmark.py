"""`benchmark`: files that were exported, peers, and what became slower."""

import json
import shutil

import pytest
import torch

from pyro_mvae import VAE, Quantize, benchmark, load_model, save_model
from pyro_mvae.export.manifest import part_macs
from pyro_mvae.latency import benchmark as module_function
from pyro_mvae.latency import checkpoints, only_in_one, read_benchmark, regressions
from pyro_mvae.latency.footprint import Footprint, footprint
from pyro_mvae.latency.peaks import Peaks
from pyro_mvae.latency.peers import peers
from tests.catalog import SIZES
from tests.commands import run

FEW = ["--runs", "16", "--seconds", "0.01"]
FILES = ("encoder.pte", "decoder.pte", "decoder.onnx", "decoder.mlpackage")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A small model and files of it, beside their manifest."""
    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    images = (torch.rand(64, 1, 16, 16) * 255).byte()
    save_model(folder / "student.safetensors", Quantize()(VAE((1, 16, 16), 4, **SIZES), images).eval())
    verbs = {".pte": "export-executorch", ".onnx": "export-onnx", ".mlpackage": "export-coreml"}
    for file in FILES:
        part, suffix = file.split(".")
        run(verbs["." + suffix], folder / "student.safetensors", folder / file, "--part", part, "--precision", "int8")
    return folder


@pytest.fixture
def folder(exported, tmp_path, monkeypatch):
    """A copy, on a machine whose peaks are known."""
    known = Peaks(gemm_float32=20.0, conv_float32=50.0, conv_int8=200.0, copy=10.0)
    monkeypatch.setitem(module_function.__globals__, "measured_peaks", lambda: known)
    return shutil.copytree(exported, tmp_path / "exported")


@pytest.fixture
def no_footprints(monkeypatch):
    """What loading a file takes is not measured, which a new process would begin for."""
    monkeypatch.setitem(module_function.__globals__, "footprint", lambda path: Footprint(1.0, 1.0))


def test_files_and_their_figures(folder):
    found = benchmark(folder, runs=32, seconds=0.01)
    assert found == read_benchmark(folder / "benchmark.json"), "what is returned is what was written"
    rows = {row["name"]: row for row in found["rows"]}
    assert set(rows) == set(FILES)
    model = load_model(folder / "student.safetensors")
    for name, row in rows.items():
        assert row["macs"] == part_macs(model, row["part"]) > 0
        if name.endswith(".mlpackage"):
            assert "p50_us" not in row, "no Mac, no figure"
            assert list(row["phones"]) == ["iPhone 15 Pro (A17 Pro), neural engine"]
            continue
        assert row["runs"] >= 32
        assert 0 < row["p50_us"] <= row["p90_us"] <= row["p99_us"]
        assert row["gmacs_per_second"] == pytest.approx(row["macs"] / row["p50_us"] / 1e3, abs=1e-3)
        assert row["share_of_peak"] == pytest.approx(row["gmacs_per_second"] / 200, abs=1e-3)
        assert row["share_of_roofline"] >= row["share_of_peak"]
        assert row["load_ms"] > 0
        assert row["peak_kb"] > 0
    assert found["protocol"]["threads"] == 1
    assert found["environment"]["cpu"]


def test_runtimes_compute_the_same(exported):
    model = load_model(exported / "student.safetensors").eval()
    images = (torch.rand(64, 1, 16, 16) * 255).byte()
    x = images[:1].float()
    found = {(runtime, precision): call(x)[0] for runtime, precision, call in peers(model, "encoder", images)}
    assert {runtime for runtime, _ in found} == {"eager", "torch.compile", "onnxruntime", "executorch"}
    assert len(found) == 6
    expected = found["eager", "float32"]
    for (runtime, precision), loc in found.items():
        allowed = 1e-4 if precision == "float32" else 0.1 * float(expected.abs().max())
        assert torch.allclose(loc, expected, atol=allowed), (runtime, precision)


def test_peers_take_part(folder, no_footprints):
    result = run("benchmark", folder, *FEW)
    rows = {row["name"] for row in read_benchmark(folder / "benchmark.json")["rows"]}
    assert "student, decoder, executorch, int8" in rows
    assert "student, encoder, eager, float32" in rows
    assert len(rows) == len(FILES) + 12, "two parts in six versions, of the only checkpoint there"
    assert "proxy" in result.output
    assert "phones µs, estimate" in result.output


def test_what_became_slower_is_marked(folder, no_footprints):
    run("benchmark", folder, "--no-peers", *FEW)
    held = read_benchmark(folder / "benchmark.json")
    assert regressions(held, held) == {}
    for row in held["rows"]:
        if row["name"] == "decoder.pte":
            row["p50_us"] /= 10
        if row["name"] == "encoder.pte":
            row["name"] = "renamed.pte"
    (folder / "before.json").write_text(json.dumps(held))
    result = run("benchmark", folder, "--no-peers", *FEW, "--compare", folder / "before.json", code=4)
    assert "slower: decoder.pte" in result.stderr
    assert "new, not compared: encoder.pte" in result.stderr
    assert "gone, not compared: renamed.pte" in result.stderr
    before = (folder / "benchmark.json").read_bytes()
    words = ["benchmark", folder, "--no-peers", *FEW, "--compare"]
    assert "is what is to be compared with" in run(*words, folder / "benchmark.json", code=2).stderr
    (folder / "before.json").write_text(json.dumps({**held, "environment": {"cpu": "of a phone"}}))
    assert "figures of another processor can't be compared: of a phone" in run(*words, folder / "before.json", code=2).stderr
    assert (folder / "benchmark.json").read_bytes() == before, "nothing was timed for that"


def test_a_slower_machine_is_no_regression():
    peaks = {"gemm_float32": 20.0, "conv_float32": 50.0, "conv_int8": 200.0, "copy": 10.0}
    row = {"name": "a", "precision": "int8", "p50_us": 100.0, "noise": 0.01}
    before = {"schema": 1, "environment": {"cpu": "one"}, "peaks": peaks, "rows": [row]}
    twice = {**before, "rows": [{**row, "p50_us": 200.0}]}
    assert regressions(twice, before) == {"a": 2.0}
    assert regressions({**twice, "peaks": {**peaks, "conv_int8": 100.0}}, before) == {}, "everything takes twice as long"
    noisy = {**before, "rows": [{**row, "noise": 0.5}]}
    assert regressions(twice, noisy) == {}, "beyond what rounds differ by themselves?"
    slightly = {**before, "rows": [{**row, "p50_us": 104.0}]}
    assert regressions(slightly, before) == {}
    renamed = {**before, "rows": [{**row, "name": "b"}]}
    with pytest.raises(ValueError, match="no file was timed in both runs, the earlier one has: a"):
        regressions(renamed, before)
    assert only_in_one(renamed, before) == {"new": ["b"], "gone": ["a"]}
    with pytest.raises(ValueError, match="another processor"):
        regressions({**before, "environment": {"cpu": "other"}}, before)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "decoder.pte").unlink(), "decoder.pte is gone"),
        (lambda folder: (folder / "decoder.pte").write_bytes(b"else"), "decoder.pte is not what its manifest says"),
        (lambda folder: (folder / "manifest.json").unlink(), "has no manifest.json"),
    ],
)
def test_files_that_are_not_as_noted(folder, harm, message):
    harm(folder)
    assert message in run("benchmark", folder, "--no-peers", *FEW, code=2).stderr
    assert not (folder / "benchmark.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--runs", "0"], "runs is 0"),
        (["--seconds", "-1"], "seconds is -1.0"),
        (["--compare", "nowhere.json"], "no figures at nowhere.json"),
        (["--model", "old"], "expected NAME=CHECKPOINT"),
        (["--no-peers", "--model", "old=old.safetensors"], "--model gives a peer, and --no-peers leaves peers out"),
    ],
)
def test_settings_that_can_not_be(folder, words, message):
    assert message in run("benchmark", folder, *words, code=2).stderr
    assert not (folder / "benchmark.json").exists()


def test_damaged_figures(tmp_path):
    for content in ("{", "[]", "{}"):
        (tmp_path / "before.json").write_text(content)
        with pytest.raises(ValueError, match="damaged"):
            read_benchmark(tmp_path / "before.json")


def test_a_larger_file_takes_more_memory(tmp_path):
    found = {}
    for hidden in (16, 2048):
        path = tmp_path / f"{hidden}.pte"
        save_model(tmp_path / f"{hidden}.safetensors", VAE((1, 16, 16), 4, widths=(8, 12), hidden=hidden))
        run("export-executorch", tmp_path / f"{hidden}.safetensors", path, "--part", "encoder", "--overwrite")
        found[hidden] = footprint(path)
    weights = 4 * 12 * 4 * 4 * (2048 - 16) / 1000  # of the dense layer, in KB
    assert found[2048].peak_kb > found[16].peak_kb + 0.8 * weights


def test_models_of_a_build(tmp_path):
    assert checkpoints(tmp_path) == {}
    (tmp_path / "student.safetensors").touch()
    assert checkpoints(tmp_path) == {"student": tmp_path / "student.safetensors"}
    assert list(checkpoints(tmp_path, ["a=b"])) == ["a"]
