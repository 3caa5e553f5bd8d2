"""The comparison of Table 9 at a small size, on a data set made for it."""

from __future__ import annotations

import gzip
import json
import math
import struct
import sys
from importlib.util import find_spec

import pandas as pd
import pytest
import torch
from click.testing import CliRunner

import pyro_mvae
from pyro_mvae import VAE, cli, costs, evaluate
from pyro_mvae.compare import KID_PACKAGES, chosen
from pyro_mvae.recipe import RECIPES
from pyro_mvae.results import gathered
from tests.evaluate.test_measures import stripes

SMALL = {"epochs": 1, "seeds": 2, "batch_size": 20, "nll_samples": 2, "num_generated": 40, "latent_dim": 4}


@pytest.fixture(scope="module", autouse=True)
def one_round():
    """Timing is not what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "ROUNDS", 1)
        yield


def write_idx(path, values):
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    with gzip.open(path, "wb") as file:
        file.write(header + values.numpy().astype("uint8").tobytes())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stripes")
    for part, split in {"train": stripes(200), "t10k": stripes(60, seed=1)}.items():
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", split.images[:, 0])
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", split.labels)
    return folder


@pytest.fixture(scope="module")
def compared(folder, tmp_path_factory):
    """Three models, of which one can't be made."""
    out, module = tmp_path_factory.mktemp("compare") / "out", sys.modules["pyro_mvae.compare"]
    original = module.made

    def made(settings, name, seed, data):
        if name == "betavae":
            raise RuntimeError("it won't <work>")
        return original(settings, name, seed, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "made", made)
        comparison = pyro_mvae.compare(data=f"mnist:{folder}", models="vae,betavae,mvae", out=out, **SMALL)
    return out, comparison


def test_every_model_has_a_row_and_the_papers_figures_are_labelled(compared):
    out, _ = compared
    table = pd.read_csv(out / "table9.csv")
    assert table["model"].tolist() == ["VAE", "MVAE", "BetaVAE"]
    missing = table.iloc[2]
    assert (missing["seeds"], missing["paper: accuracy %"]) == (0, 86.1)
    assert missing[["NLL", "s/epoch", "parameters", "int8 KB"]].isna().all()
    assert "| BetaVAE | – | – |" in (out / "table9.md").read_text()
    table = table.iloc[:2]
    for column in ("clustering accuracy", "k-NN accuracy, 100 labels", "generation accuracy", "CAS"):
        assert table[column].between(0, 100).all()
        assert table[f"{column}, sd"].notna().all()
    for column in ("NLL", "s/epoch", "parameters", "int8 KB", "p50 µs"):
        assert (table[column] > 0).all()
    assert table["paper: accuracy %"].tolist() == [75.3, 97.2]
    text = (out / "table9.md").read_text()
    assert "paper: accuracy %" in text
    assert "does not define its accuracy" in text
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 5
    assert "Figure 15" in page
    assert {str(path.relative_to(out)) for path in (out / "files").glob("*/*")} == {
        f"files/{name}-0/{part}.pte" for name in ("vae", "mvae") for part in ("encoder", "decoder")
    }


def test_a_model_that_fails_is_reported_and_does_not_stop_the_others(compared):
    out, comparison = compared
    assert comparison.failures == {f"betavae-{seed}": "RuntimeError: it won't <work>" for seed in (0, 1)}
    assert "Traceback" in (out / "results/betavae-0.failed.txt").read_text()
    assert "it won&#x27;t &lt;work&gt;" in (out / "report.html").read_text()


def test_costs_are_kept_with_their_protocol_and_not_measured_again(compared, folder, monkeypatch):
    out, comparison = compared
    held = json.loads((out / "results/costs.json").read_text())
    assert set(held["figures"]) == {"vae", "mvae"}
    assert set(held["protocol"]) == {"s/epoch", "int8 KB", "p50"}
    monkeypatch.setattr(sys.modules["pyro_mvae.compare"], "costs_of", None)
    again = pyro_mvae.compare(data=f"mnist:{folder}", models="VAE, mvae", out=out, **SMALL)
    assert again.failures == {}
    assert again.table["s/epoch"].tolist() == comparison.table["s/epoch"].tolist()[:2]


def test_every_figure_says_how_it_came_about(compared):
    out, _ = compared
    result = json.loads((out / "results/vae-1.json").read_text())
    assert (result["model"], result["seed"], result["epochs"]) == ("vae", 1, 1)
    assert len(result["measurements"]) == 12
    assert all(entry["protocol"] and entry["num_images"] > 0 for entry in result["measurements"])


def test_what_is_finished_is_not_trained_again_what_failed_is_tried_again_and_a_cost_that_fails_is_a_dash(
    compared, folder, monkeypatch
):
    out, _ = compared
    original = costs.deploy
    monkeypatch.setattr(costs, "deploy", lambda model, *rest: 1 / 0 if type(model) is VAE else original(model, *rest))
    (out / "files/vae-0/decoder.pte").unlink()
    before = {path: path.stat().st_mtime_ns for path in (out / "checkpoints").iterdir()}
    command = ["compare", "--data", f"mnist:{folder}", "--models", "vae,betavae", "--out", str(out)]
    for name, value in {**SMALL, "processes": 1}.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    result = CliRunner().invoke(cli.main, command)
    assert result.exit_code == 1, result.output
    assert "betavae, seed 1: trained and measured; 2 of 2 after" in result.output  # what is no terminal has lines, no bars
    assert "failed: vae-cost: ZeroDivisionError" in result.output
    assert [path.name for path in (out / "results").glob("*.failed.txt")] == ["vae-cost.failed.txt"]
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    vae, beta = pd.read_csv(out / "table9.csv").to_dict("records")
    assert beta["model"] == "BetaVAE"
    assert beta["int8 KB"] > 0
    assert pd.isna(vae["int8 KB"])
    assert vae["NLL"] > 0


def test_models_are_trained_side_by_side_to_the_same_figures(compared, folder, tmp_path):
    """A model and its NLL follow from its seed, whichever process makes them."""
    out, _ = compared
    comparison = pyro_mvae.compare(data=f"mnist:{folder}", models="vae", out=tmp_path / "out", processes=2, **SMALL)
    assert comparison.failures == {}
    for seed in (0, 1):
        here, there = (json.loads((each / f"results/vae-{seed}.json").read_text()) for each in (out, tmp_path / "out"))
        nll = [next(entry["value"] for entry in each["measurements"] if entry["name"] == "NLL") for each in (here, there)]
        assert nll[1] == pytest.approx(nll[0], rel=1e-3)
    with pytest.raises(ValueError, match="processes is 0"):
        pyro_mvae.compare(data=f"mnist:{folder}", models="vae", out=out, **SMALL, processes=0)


def test_a_folder_of_something_else_is_refused(compared, folder, tmp_path):
    out, _ = compared
    with pytest.raises(ValueError, match="holds a comparison with epochs=1, not 2"):
        pyro_mvae.compare(data=f"mnist:{folder}", models="vae", out=out, **{**SMALL, "epochs": 2})
    settings, older = json.loads((out / "compare.json").read_text()), tmp_path / "older"
    older.mkdir()
    (older / "compare.json").write_text(json.dumps({**settings, "recipes": 1}))
    with pytest.raises(ValueError, match=f"holds a comparison with recipes=1, not {RECIPES}"):
        pyro_mvae.compare(data=f"mnist:{folder}", models="vae", out=older, **SMALL)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty and holds no comparison"):
        pyro_mvae.compare(data=f"mnist:{folder}", models="vae", out=tmp_path, **SMALL)
    with pytest.raises(ValueError, match="did you mean 'mvae'"):
        pyro_mvae.compare(models="vae,mvea")
    for wrong in ({"lr": -1.0}, {"lr": math.inf}, {"batch_size": 1}, {"latent_dim": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            pyro_mvae.compare(data=f"mnist:{folder}", models="vae", out=tmp_path / "new", **{**SMALL, **wrong})
    assert not (tmp_path / "new").exists()
    assert chosen("vae,mvae, vae") == ("vae", "mvae")
    assert chosen("all,vae") == chosen("all")
    with pytest.raises(ValueError, match="seeds is 0"):
        pyro_mvae.compare(data=f"mnist:{folder}", models="vae", out=tmp_path / "new", **{**SMALL, "seeds": 0})


def test_what_was_measured_of_a_model_is_kept_when_the_rest_is_interrupted(folder, tmp_path, monkeypatch, caplog):
    """Stopped at the last figure of the second model: the first is in a table, the second goes on with that figure alone."""
    out, settings = tmp_path / "out", {**SMALL, "seeds": 1}
    original, calls = evaluate.generation_accuracy, []

    def stopped(model, *rest, **more):
        calls.append(type(model).__name__)
        if type(model).__name__ == "SVAE" and len(calls) == 2:
            raise KeyboardInterrupt
        return original(model, *rest, **more)

    monkeypatch.setattr(evaluate, "generation_accuracy", stopped)
    caplog.set_level("INFO", "pyro_mvae.compare")
    with pytest.raises(KeyboardInterrupt):
        pyro_mvae.compare(data=f"mnist:{folder}", models="vae,svae", out=out, **settings)
    (line,) = [record.message for record in caplog.records if record.name == "pyro_mvae.compare"]
    assert line.startswith("vae, seed 0: trained and measured; 1 of 2 after")
    vae, svae = pd.read_csv(out / "table9.csv").to_dict("records")
    assert vae["NLL"] > 0
    assert pd.isna(svae["NLL"])
    assert "costs come last" in (out / "table9.md").read_text()
    part = out / "results/svae-0.part.json"
    held = json.loads(part.read_text())
    assert "nll" in held
    assert "generated" not in held
    held["nll"][0]["value"] = 1234.5  # what would be measured again would be another
    part.write_text(json.dumps(held))
    comparison = pyro_mvae.compare(data=f"mnist:{folder}", models="vae,svae", out=out, **settings)
    assert comparison.table["NLL"].tolist()[1] == 1234.5
    assert calls == ["VAE", "SVAE", "SVAE"]
    assert not part.exists()
    assert "costs come last" not in (out / "table9.md").read_text()


def test_data_without_labels_have_no_accuracies(tmp_path):
    from PIL import Image

    for i, image in enumerate(stripes(30).images):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{i}.png")
    comparison = pyro_mvae.compare(
        data=f"folder:{tmp_path}", size=16, models="mvae", out=tmp_path / "out", **{**SMALL, "seeds": 1, "batch_size": 10}
    )
    assert comparison.table["clustering accuracy"].isna().all()
    assert torch.isfinite(torch.tensor(comparison.table["NLL"].tolist())).all()
    table = (tmp_path / "out/table9.md").read_text()
    assert "clustering %" not in table
    assert "| NLL, nats |" in table
    assert ("| KID |" in table) == all(map(find_spec, KID_PACKAGES))  # a folder's pictures are in colour


@pytest.mark.parametrize("content", ["", "[]", '{"measurements": [{"name": "NLL"}]}'])
def test_a_damaged_result_is_named(tmp_path, content):
    path = tmp_path / "results/vae-0.json"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(ValueError, match=r"vae-0.json is damaged: remove it"):
        gathered(tmp_path, "vae", 1)
