from __future__ import annotations

import gzip
import random
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_mvae.data import load_data
from pyro_mvae.data.idx import parse_idx, write_idx


def images(count: int, *, height: int = 28, width: int = 28) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, height, width), generator=generator, dtype=torch.uint8)


def labels(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.uint8) % 10


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    for part, count in (("train", 5), ("t10k", 3)):
        write_idx(images(count), tmp_path / f"{part}-images-idx3-ubyte.gz")
        write_idx(labels(count), tmp_path / f"{part}-labels-idx1-ubyte.gz")
    return tmp_path


@settings(max_examples=40, deadline=None)
@given(shape=st.lists(st.integers(0, 5), min_size=1, max_size=4), seed=st.integers(0, 1000), packed=st.booleans())
def test_what_was_written_is_read_back(shape, seed, packed):
    generator = torch.Generator().manual_seed(seed)
    array = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "array"
        write_idx(array, path)
        content = path.read_bytes()
    content = content if packed else gzip.decompress(content)
    assert torch.equal(parse_idx(content, name="array", dimensions=array.ndim), array)


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=64), dimensions=st.integers(1, 4))
def test_any_bytes_give_an_array_or_a_value_error(content, dimensions):
    for junk in (content, b"\x1f\x8b" + content, bytes([0, 0, 8, dimensions]) + content):
        with suppress(ValueError):
            assert parse_idx(junk, name="junk", dimensions=dimensions).ndim == dimensions


def test_only_bytes_are_written(tmp_path):
    with pytest.raises(ValueError, match=r"torch\.float32, expected torch\.uint8"):
        write_idx(torch.zeros(2), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_mnist_is_loaded(mnist):
    data = load_data(f"mnist:{mnist}")
    assert torch.equal(data.train.images[:, 0], images(5))
    assert torch.equal(data.test.images[:, 0], images(3))
    assert data.train.labels is not None
    assert data.train.labels.dtype == torch.int64
    assert data.train.labels.tolist() == [0, 1, 2, 3, 4]
    assert (data.name, data.shape, data.binarization) == (f"mnist:{mnist}", (1, 28, 28), "dynamic")


@pytest.mark.parametrize("mark", ["-", "."])
@pytest.mark.parametrize("packed", [True, False])
def test_both_spellings_gzipped_or_not(tmp_path, mark, packed):
    for part in ("train", "t10k"):
        path = tmp_path / f"{part}-images{mark}idx3-ubyte.gz"
        write_idx(images(4), path)
        if not packed:
            path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
            path.unlink()
    data = load_data(f"mnist:{tmp_path}")
    assert (len(data.train), len(data.test)) == (4, 4)
    assert data.train.labels is None


def test_size_scales_the_digits(mnist):
    data = load_data(f"mnist:{mnist}", size=16)
    assert data.shape == (1, 16, 16)
    assert data.train.images.float().mean() == pytest.approx(images(5).float().mean().item(), abs=3)


def test_missing_folder_and_missing_file_are_named(mnist):
    with pytest.raises(ValueError, match=r"no folder .*nowhere"):
        load_data(f"mnist:{mnist / 'nowhere'}")
    (mnist / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(ValueError, match=r"no t10k-images-idx3-ubyte or t10k-images\.idx3-ubyte"):
        load_data(f"mnist:{mnist}")


def test_wrong_magic_number_is_named_beside_the_right_one(mnist):
    write_idx(labels(5), mnist / "train-images-idx3-ubyte.gz")
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz: 13 bytes, expected a header of 16"):
        load_data(f"mnist:{mnist}")
    write_idx(labels(500), mnist / "train-images-idx3-ubyte.gz")
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz: magic number 2049, expected 2051"):
        load_data(f"mnist:{mnist}")


def test_cut_short_files_are_named(mnist):
    path = mnist / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz: damaged or cut short gzip"):
        load_data(f"mnist:{mnist}")
    path.write_bytes(gzip.decompress(whole)[:-1])
    with pytest.raises(ValueError, match=r"3919 bytes of data, expected 3920 .* cut short"):
        load_data(f"mnist:{mnist}")
    path.write_bytes(gzip.decompress(whole) + b"x")
    with pytest.raises(ValueError, match="left over"):
        load_data(f"mnist:{mnist}")


def test_a_damaged_gzip_never_passes(mnist):
    path = mnist / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for place in random.Random(0).sample(range(20, len(whole)), 20):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="train-images-idx3-ubyte"):
            load_data(f"mnist:{mnist}")


def test_counts_and_shapes_must_match(mnist):
    write_idx(labels(4), mnist / "train-labels-idx1-ubyte.gz")
    with pytest.raises(ValueError, match="4 labels for the 5 images"):
        load_data(f"mnist:{mnist}")
    write_idx(labels(5), mnist / "train-labels-idx1-ubyte.gz")
    write_idx(images(3, height=20), mnist / "t10k-images-idx3-ubyte.gz")
    with pytest.raises(ValueError, match="expected one shape"):
        load_data(f"mnist:{mnist}")
    write_idx(images(0), mnist / "train-images-idx3-ubyte.gz")
    with pytest.raises(ValueError, match="no pixels"):
        load_data(f"mnist:{mnist}")


def test_the_full_mnist(raw_data):
    data = load_data(f"mnist:{raw_data / 'mnist'}")
    assert (len(data.train), len(data.test), data.shape) == (60_000, 10_000, (1, 28, 28))
    assert data.train.labels is not None
    assert data.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
