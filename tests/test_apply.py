"""Passes on checkpoints, as they are written in Python."""

from __future__ import annotations

import sys

import pytest
import torch
from PIL import Image

from pyro_mvae import VAE, apply, load_model, save_model
from pyro_mvae.apply import PASSES, pass_of
from pyro_mvae.compress import Pass, PruneChannels, Quantize
from tests import catalog
from tests.commands import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory, images):
    """A checkpoint, and pictures of the kind that it is of."""
    folder = tmp_path_factory.mktemp("apply")
    (folder / "pictures").mkdir()
    for place, image in enumerate(images[:60]):
        Image.fromarray(image[0].numpy()).convert("RGB").save(folder / "pictures" / f"{place}.png")
    torch.manual_seed(0)
    save_model(folder / "vae.safetensors", VAE((3, 16, 16), 4, likelihood="logistic", **catalog.SIZES))
    return folder


@pytest.mark.parametrize("each", catalog.PASSES.values(), ids=str)
def test_the_repr_of_a_pass_is_one(each):
    assert pass_of(repr(each)) == each


def test_every_pass_can_be_named():
    assert set(PASSES) == {type(each).__name__ for each in catalog.PASSES.values()}
    assert all(isinstance(pass_of(name), Pass) for name in PASSES)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Prune(ratio=0.5)", "'Prune.ratio=0.5.' is no pass: expected a pass and its settings"),
        ("__import__('os').remove('x')", "is no pass"),
        ("PruneChannels(", "is no pass"),
        ("Quantize(weight_bits=len('four'))", "len.*four.* is no pass"),
        ("Quantize(**settings)", "'settings' is no pass"),
        ("Quantize(weight_bits=2 ** 3)", "'2 .. 3' is to be a number, a text or a pass, as in Quantize.weight_bits=8"),
        ("Distill(Shrink(width=0))", "'Shrink.width=0.': width is 0"),
        ("Quantize(weight_bits=9)", "weight_bits is 9, expected 2 to 8"),
        ("Quantize(bits=4)", "settings that Quantize has not, or of another type: they are as in Quantize.weight_bits=8"),
        ("Quantize(8, 'moving', 1)", "settings that Quantize has not"),
    ],
)
def test_what_is_no_pass_is_explained(text, said):
    with pytest.raises(ValueError, match=said):
        catalog.unchecked(pass_of)(text)


def test_passes_follow_each_other_and_the_model_is_trained_on(folder, tmp_path):
    out, data = tmp_path / "small.safetensors", f"folder:{folder / 'pictures'}"
    words = ["apply", folder / "vae.safetensors", out, "--pass", "PruneChannels(ratio=0.5)", "--pass", "Quantize(weight_bits=4)"]
    said = run(*words, "--data", data, "--epochs", 1, "--nll-samples", 5).stdout
    model = load_model(out)
    assert model.passes == (repr(PruneChannels(ratio=0.5)), repr(Quantize(weight_bits=4)))
    assert f"{out}: " in said
    assert "NLL" in said
    assert "removed" in said
    assert "50%" in said
    assert list(tmp_path.iterdir()) == [out]


def test_what_has_the_name_stays_until_there_is_something_better(folder, tmp_path, monkeypatch):
    out, data = tmp_path / "small.safetensors", f"folder:{folder / 'pictures'}"
    out.write_bytes((folder / "vae.safetensors").read_bytes())

    def interrupted(*args, **settings):
        raise FloatingPointError("no number")

    monkeypatch.setattr(sys.modules["pyro_mvae.apply"], "fit_stage", interrupted)
    with pytest.raises(FloatingPointError):
        apply(folder / "vae.safetensors", out, passes=["Shrink()"], data=data, epochs=1, nll_samples=1, overwrite=True)
    assert out.read_bytes() == (folder / "vae.safetensors").read_bytes()


def test_what_was_interrupted_is_gone_on_with_as_it_was_begun(folder, tmp_path, monkeypatch):
    out, other = tmp_path / "small.safetensors", tmp_path / "other.safetensors"
    torch.manual_seed(1)
    save_model(other, VAE((3, 16, 16), 4, likelihood="logistic", **catalog.SIZES))
    how = {"data": f"folder:{folder / 'pictures'}", "epochs": 1, "nll_samples": 1}
    module = sys.modules["pyro_mvae.apply"]
    stage = module.fit_stage

    def interrupted(*args, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "fit_stage", interrupted)
    with pytest.raises(KeyboardInterrupt):
        apply(folder / "vae.safetensors", out, passes=["PruneChannels(0.5)"], **how)
    monkeypatch.setattr(module, "fit_stage", stage)
    with pytest.raises(ValueError, match=r"is of passes .*'magnitude'.* not .*'taylor'.*: give the same, or leave out --resume"):
        apply(folder / "vae.safetensors", out, passes=["PruneChannels(0.5, importance='taylor')"], resume=True, **how)
    with pytest.raises(ValueError, match="is of another checkpoint: give the same"):
        apply(other, out, passes=["PruneChannels(0.5)"], resume=True, **how)
    apply(folder / "vae.safetensors", out, passes=["PruneChannels(ratio=0.5)"], resume=True, **how)
    assert sorted(tmp_path.iterdir()) == [other, out]


def test_without_training_the_weights_stay_and_integers_are_those_of_images(folder, tmp_path):
    before, after = apply(
        folder / "vae.safetensors",
        tmp_path / "int8.safetensors",
        passes=["Quantize"],
        data=f"folder:{folder / 'pictures'}",
        nll_samples=20,
    )
    assert before.macs == after.macs
    assert abs(before.nll.nats - after.nll.nats) < 0.02 * before.nll.nats
    run("export-onnx", tmp_path / "int8.safetensors", tmp_path / "encoder.onnx", "--part", "encoder")


def test_nothing_is_written_for_a_mistake(folder, tmp_path):
    vae, out, data = folder / "vae.safetensors", tmp_path / "out.safetensors", ["--data", f"folder:{folder / 'pictures'}"]
    quantize, prune = ["--pass", "Quantize()"], ["--pass", "PruneChannels()"]
    for words, said in {
        (vae, out, *data): "no pass was given",
        (vae, out, *quantize, *prune, *data): "a quantised model can't be pruned: do so first",
        (vae, out, *prune, *data, "--epochs", "-1"): "epochs is -1, expected a whole number, 0 or more",
        (vae, out, *prune, *data, "--nll-samples", "0"): "nll_samples is 0",
        (vae, out, *prune, "--data", "emojis"): "emojis",
        (vae, out, *prune, "--data", "digits"): "expected images of shape (n, 3, 16, 16), got (1000, 1, 16, 16)",
        (vae, tmp_path / "out.pt", *prune, *data): "does not end in .safetensors",
        (tmp_path / "none.safetensors", out, *prune, *data): "no checkpoint at",
    }.items():
        assert said in run("apply", *words, code=2).stderr, said
    assert not list(tmp_path.iterdir())
    before = vae.read_bytes()
    assert "exists" in run("apply", vae, vae, *prune, code=2).stderr
    assert "is the model itself" in run("apply", vae, vae, *prune, "--overwrite", code=2).stderr
    assert vae.read_bytes() == before
