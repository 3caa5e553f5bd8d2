from __future__ import annotations

import gzip
import json
import runpy
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from pyro_mvae.data import Data, Split, load_data
from pyro_mvae.data.bundled import load_emoji
from pyro_mvae.data.pictures import values

BUNDLED = Path(str(files("pyro_mvae.data") / "bundled"))
KNOWN = "Known: digits, emoji, mnist:DIR, folder:DIR, shards:GLOB"


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_digits():
    data = load_data("digits")
    assert (data.name, data.shape, data.binarization) == ("digits", (1, 28, 28), "dynamic")
    assert (len(data.train), len(data.test), data.skipped) == (10_000, 2_000, ())
    for split in (data.train, data.test):
        assert split.labels is not None
        assert split.labels.bincount().min() > 0.07 * len(split)
        assert len(split.labels.bincount()) == 10
        assert len(split.images.flatten(1).unique(dim=0)) == len(split)
    assert bytes_in(BUNDLED / "digits") < 2.5e6


def test_digits_are_mnist_with_its_labels(raw_data):
    whole, part = load_data(f"mnist:{raw_data / 'mnist'}"), load_data("digits")
    for some, every in ((part.train, whole.train), (part.test, whole.test)):
        assert some.labels is not None
        assert every.labels is not None
        known = {(i.numpy().tobytes(), int(n)) for i, n in zip(every.images, every.labels, strict=True)}
        assert all((i.numpy().tobytes(), int(n)) in known for i, n in zip(some.images, some.labels, strict=True))


def test_emoji():
    data = load_data("emoji")
    assert (data.shape, data.binarization, len(data.train), len(data.test)) == ((3, 32, 32), "none", 1706, 200)
    for split in (data.train, data.test):
        assert split.captions is not None
        assert all(split.captions)
        assert not any("skin tone" in caption for caption in split.captions)
        assert split.tags is not None
        assert sum(map(bool, split.tags)) > 0.9 * len(split)
        assert split.images.flatten(1).float().std(dim=1).min() > 1
    assert bytes_in(BUNDLED / "emoji") < 4e6


def test_names_belong_to_their_emoji():
    train = load_data("emoji").train
    assert train.captions is not None
    colours = {name: train.images[train.captions.index(name)].float().mean((1, 2)) for name in ("red heart", "frog")}
    assert colours["red heart"].argmax() == 0
    assert colours["frog"].argmax() == 1


def test_no_first_code_point_on_both_sides():
    listing = json.loads((BUNDLED / "emoji" / "emoji.json").read_text(encoding="utf-8"))["emoji"]
    sides = {side: {e["code"].split("-")[0] for e in listing if e["split"] == side} for side in ("train", "test")}
    assert not sides["train"] & sides["test"]
    assert len(listing) == len({entry["code"] for entry in listing}) == 1906
    assert not any(f"1f3f{letter}" in entry["code"].split("-") for entry in listing for letter in "bcdef")


@pytest.mark.parametrize(("channels", "shape"), [(3, (3, 16, 16)), (1, (1, 16, 16))])
def test_emoji_at_another_size(channels, shape):
    data = load_data("emoji", size=16, channels=channels)
    assert data.shape == shape
    native = load_data("emoji", channels=channels)
    assert torch.allclose(data.test.images.float().mean((1, 2, 3)), native.test.images.float().mean((1, 2, 3)), atol=4)


def test_each_bundled_set_says_where_it_is_from():
    digits, emoji = ((BUNDLED / name / "ATTRIBUTION.md").read_text(encoding="utf-8") for name in ("digits", "emoji"))
    assert all(word in digits for word in ("LeCun", "Cortes", "Burges", "CC BY-SA 3.0"))
    assert all(word in emoji for word in ("Noto", "Google", "Apache", "emojibase", "MIT"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", f"unknown data set 'digit'; did you mean 'digits'? {KNOWN}"),
        ("foldr:pictures", f"unknown data set 'foldr:pictures'; did you mean 'folder:DIR'? {KNOWN}"),
        ("zzz", f"unknown data set 'zzz'. {KNOWN}"),
        ("", f"unknown data set ''. {KNOWN}"),
        ("mnist", f"data set 'mnist' needs a place after its name; write 'mnist:DIR'. {KNOWN}"),
        ("folder", f"data set 'folder' needs a place after its name; write 'folder:DIR'. {KNOWN}"),
        ("shards:", f"data set 'shards:' needs a place after its name; write 'shards:GLOB'. {KNOWN}"),
        ("digits:more", f"data set 'digits:more' takes nothing after its name; write 'digits'. {KNOWN}"),
    ],
)
def test_what_names_no_set_is_answered_with_what_does(spec, message):
    with pytest.raises(ValueError, match="data set") as error:
        load_data(spec)
    assert str(error.value) == message


def test_a_bare_folder_is_answered_with_its_spec(tmp_path):
    with pytest.raises(ValueError, match=f"did you mean 'folder:{tmp_path}'"):
        load_data(str(tmp_path))


@pytest.mark.parametrize("size", [-1, 0, 7, 1025])
def test_size_out_of_range(size):
    with pytest.raises(ValueError, match=f"size is {size}, expected 8 to 1024"):
        load_data("digits", size=size)


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_channels_out_of_range(channels):
    with pytest.raises(ValueError, match=f"channels is {channels}, expected 1"):
        load_data("emoji", channels=channels)


def test_splits_and_data_must_be_consistent():
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"torch\.float32 of shape \(2, 1, 8, 8\), expected torch\.uint8"):
        Split(images.float())
    with pytest.raises(ValueError, match=r"of shape \(1, 8, 8\)"):
        Split(images[0])
    for labels in (torch.tensor([-1, 0]), torch.tensor([0.0, 1.0]), torch.zeros(2, 1).long()):
        with pytest.raises(ValueError, match="labels are torch"):
            Split(images, labels=labels)
    with pytest.raises(ValueError, match="1 captions for 2 images"):
        Split(images, captions=("one",))
    with pytest.raises(ValueError, match="expected one shape"):
        Data("odd", train=Split(images), test=Split(images[..., :4]), binarization="none")


def test_the_script_makes_the_bundled_digits(raw_data, tmp_path):
    bundle_script()["bundle_digits"](raw_data, tmp_path)
    made, bundled = (sorted((folder / "digits").glob("*.gz")) for folder in (tmp_path, BUNDLED))
    assert [path.name for path in made] == [path.name for path in bundled]
    for ours, theirs in zip(made, bundled, strict=True):
        assert gzip.decompress(ours.read_bytes()) == gzip.decompress(theirs.read_bytes())
        assert ours.read_bytes()[4:8] == bytes(4), "gzip's time stamp"


def test_the_script_makes_the_bundled_emoji(raw_data):
    script = bundle_script()
    made = sorted(script["noto"](raw_data / "emoji"), key=lambda entry: entry[0]["code"])
    listing = json.loads((BUNDLED / "emoji" / "emoji.json").read_text(encoding="utf-8"))["emoji"]
    assert [entry for entry, _ in made] == listing
    test = iter(load_emoji(channels=3).test.images)
    for entry, content in made:
        if entry["split"] == "test":
            assert torch.equal(values(script["tile"](content), channels=3), next(test))


def bundle_script() -> dict:
    return runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "bundle_data.py"))
