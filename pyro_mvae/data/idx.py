"""MNIST's own file format, idx: a magic number, the sizes, then one byte a value."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyro_mvae.atomic import atomic
from pyro_mvae.data.images import Data, Split

UNSIGNED_BYTES = 0x0800
GZIP = b"\x1f\x8b"


def parse_idx(content: bytes, *, name: str, dimensions: int) -> Tensor:
    """Return the uint8 array an idx file holds, gzipped or not; `name` is what errors call the file.

    Raises:
        ValueError: when the gzip stream is damaged, the magic number is another, or bytes are missing or left over.

    Example:
        >>> parse_idx(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]), name="two-labels", dimensions=1)
        tensor([7, 9], dtype=torch.uint8)
    """
    content = unpacked(content, name=name)
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise ValueError(f"{name}: {len(content)} bytes, expected a header of {start}; the file is cut short")
    magic, expected = int.from_bytes(content[:4], "big"), UNSIGNED_BYTES + dimensions
    if magic != expected:
        raise ValueError(f"{name}: magic number {magic}, expected {expected} (bytes in {dimensions} dimensions)")
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4)]
    found, promised = len(content) - start, math.prod(shape)
    if found != promised:
        fault = "the file is cut short" if found < promised else "the file has bytes left over"
        raise ValueError(f"{name}: {found} bytes of data, expected {promised} for shape {tuple(shape)}; {fault}")
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8, offset=start).copy()).reshape(shape)


def unpacked(content: bytes, *, name: str) -> bytes:
    """Undo gzip, where the bytes are gzipped."""
    if not content.startswith(GZIP):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{name}: damaged or cut short gzip file ({error}); fetch it again") from error


def write_idx(array: Tensor, path: Path) -> None:
    """Write a uint8 array of any shape as gzipped idx; the same array gives the same bytes.

    Raises:
        ValueError: when the array isn't uint8.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "labels.gz"
        >>> write_idx(torch.tensor([7, 9], dtype=torch.uint8), path)
        >>> parse_idx(path.read_bytes(), name="labels", dimensions=1)
        tensor([7, 9], dtype=torch.uint8)
    """
    if array.dtype != torch.uint8:
        raise ValueError(f"array is {array.dtype}, expected torch.uint8; idx files here hold bytes")
    numbers = (UNSIGNED_BYTES + array.ndim, *array.shape)
    header = b"".join(number.to_bytes(4, "big") for number in numbers)
    with atomic(path) as temporary:
        temporary.write_bytes(gzip.compress(header + array.numpy().tobytes(), 6, mtime=0))


def load_mnist(folder: Path, *, name: str) -> Data:
    """Load the four standard files of MNIST, or of a set that copies its layout; the label files may be absent.

    Images are (n, 1, H, W). Raises:
        ValueError: when the folder or an image file is missing, a file is damaged, or images and labels don't match.
    """
    if not folder.is_dir():
        raise ValueError(f"{name}: no folder {folder}; expected one with MNIST's idx files")
    train, test = (load_split(folder, part) for part in ("train", "t10k"))
    return Data(name, train=train, test=test, binarization="dynamic")


def load_split(folder: Path, part: str) -> Split:
    images = find(folder, f"{part}-images", dimensions=3)
    if images is None:
        raise ValueError(f"{folder}: no {part}-images-idx3-ubyte or {part}-images.idx3-ubyte, with or without .gz")
    pixels = parse_idx(images.read_bytes(), name=str(images), dimensions=3)
    if not pixels.numel():
        raise ValueError(f"{images}: no pixels in shape {tuple(pixels.shape)}, expected at least one picture")
    labels = find(folder, f"{part}-labels", dimensions=1)
    if labels is None:
        return Split(pixels.unsqueeze(1))
    digits = parse_idx(labels.read_bytes(), name=str(labels), dimensions=1)
    if len(digits) != len(pixels):
        raise ValueError(f"{labels}: {len(digits)} labels for the {len(pixels)} images of {images.name}")
    return Split(pixels.unsqueeze(1), labels=digits.long())


def find(folder: Path, stem: str, *, dimensions: int) -> Path | None:
    """The first of the names in use for one idx file that the folder has."""
    names = (f"{stem}{mark}idx{dimensions}-ubyte{end}" for mark in "-." for end in ("", ".gz"))
    return next((folder / name for name in names if (folder / name).is_file()), None)
