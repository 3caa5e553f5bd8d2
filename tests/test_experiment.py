"""The prompt experiments at a small size."""

from __future__ import annotations

import io
import json
import math
import sys
import tarfile

import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

import pyro_mvae
from pyro_mvae import cli, load_data
from pyro_mvae.data import Data, Split, matching
from tests.evaluate.test_measures import stripes

SMALL = {"epochs": 3, "latent_dim": 4}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("experiments") / "out"
    return out, pyro_mvae.experiment(["red heart", "clock"], out=out, **SMALL)


def test_only_images_with_every_word_are_chosen():
    emoji = load_data("emoji")
    found = matching(emoji, "Red heart")
    assert 2 <= len(found.train) < len(matching(emoji, "heart").train)
    for split in (found.train, found.test):
        for caption, tags in zip(split.captions, split.tags, strict=True):
            assert {"red", "heart"} <= set(" ".join([caption, *tags]).lower().replace("-", " ").split())


def test_prompts_that_match_nothing_are_explained(tmp_path):
    with pytest.raises(ValueError, match=r"0 training images of .* match 'purple zebra'"):
        pyro_mvae.experiment(["purple zebra"], out=tmp_path / "out", **SMALL)
    assert not (tmp_path / "out").exists()
    for prompts, message in (((), "no prompt"), (("?!",), "expected a word")):
        with pytest.raises(ValueError, match=message):
            pyro_mvae.experiment(prompts, out=tmp_path / "out", **SMALL)
    some = stripes(10)
    with pytest.raises(ValueError, match="has no captions"):
        matching(Data("stripes", train=Split(some.images), test=Split(some.images), binarization="none"), "heart")


def test_prompts_side_by_side_end_where_they_do_one_after_another(done, tmp_path):
    _, before = done
    with pytest.raises(ValueError, match="processes is 0"):
        pyro_mvae.experiment(["red heart"], out=tmp_path / "out", processes=0, **SMALL)
    after = pyro_mvae.experiment(["red heart", "clock"], out=tmp_path / "out", processes=2, **SMALL)
    assert [each.prompt for each in after] == ["red heart", "clock"]
    for one, other in zip(before, after, strict=True):
        assert other.table["loss"].values == pytest.approx(one.table["loss"].values, rel=1e-3)


def test_tables_are_the_papers(done):
    out, experiments = done
    table = pd.read_csv(out / "red-heart/table.csv")
    assert table.columns.tolist() == ["epoch", "loss", "kl", "likelihood"]
    assert table["epoch"].tolist() == [1, 3]
    assert table["loss"].values == pytest.approx((table["kl"] + table["likelihood"]).values)
    average = pd.read_csv(out / "average.csv")
    assert average["prompt"].tolist() == ["red heart", "clock", "all prompts"]
    assert average["kl"][2] == pytest.approx(average["kl"][:2].mean())
    assert (out / "average.png").read_bytes().startswith(b"\x89PNG")
    assert average["loss"][0] == pytest.approx(table["loss"].mean())
    seconds = pd.read_csv(out / "seconds.csv")
    assert seconds["seconds"].tolist() == [each.seconds for each in experiments]
    assert (seconds["seconds"] > 0).all()
    assert (out / "report.html").read_text().count("data:image/png;base64,") == 9


def test_shards_with_captions_and_a_bayesian_likelihood(tmp_path, monkeypatch):
    """Captions are those of the shards, rows those of every so many epochs, and the loss has a part more."""
    pictures = tmp_path / "pictures.tar"
    with tarfile.open(pictures, "w") as tar:
        for number, image in enumerate(stripes(12).images):
            picture = io.BytesIO()
            Image.fromarray(image[0].numpy()).convert("RGB").save(picture, "png")
            caption = ("a red stripe" if number % 2 else "a blue one").encode()
            for name, content in {"png": picture.getvalue(), "txt": caption}.items():
                member = tarfile.TarInfo(f"{number:04}.{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(sys.modules["pyro_mvae.experiment"], "EVERY", 2)
    settings = {**SMALL, "epochs": 5, "size": 16, "theta": "gamma", "batch_size": 4}
    (done,) = pyro_mvae.experiment(["stripe red"], data=f"shards:{pictures}", out=tmp_path / "out", **settings)
    assert 0 < done.num_images <= 6
    assert done.table["epoch"].tolist() == [1, 2, 4, 5]
    parts = done.table[["kl", "likelihood", "theta_kl"]]
    assert (parts["theta_kl"] > 0).all()
    assert done.table["loss"].values == pytest.approx(parts.sum(axis=1).values)


def test_a_prompt_that_is_done_is_not_run_again(done):
    out, experiments = done
    model = out / "clock/model.safetensors"
    before = model.stat().st_mtime_ns
    command = ["experiment", "--prompt", "clock", "--prompt", "face", "--out", str(out), "--epochs", "3", "--latent-dim", "4"]
    result = CliRunner().invoke(cli.main, command)
    assert result.exit_code == 0, result.output
    assert model.stat().st_mtime_ns == before
    assert json.loads((out / "clock/experiment.json").read_text())["seconds"] == experiments[1].seconds
    assert pd.read_csv(out / "average.csv")["prompt"].tolist() == ["clock", "face", "all prompts"]
    with pytest.raises(ValueError, match="holds a set of experiments with epochs=3, not 4"):
        pyro_mvae.experiment(["clock"], out=out, **{**SMALL, "epochs": 4})


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"lr": math.inf}, {"batch_size": 1}, {"latent_dim": 0}, {"epochs": 0}])
def test_settings_that_cannot_be_leave_nothing_behind(tmp_path, wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong)))):
        pyro_mvae.experiment(["clock"], out=tmp_path / "out", **{**SMALL, **wrong})
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_as_it_is(tmp_path):
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(ValueError, match="not empty and holds no set of experiments"):
        pyro_mvae.experiment(["clock"], out=tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "mine"
