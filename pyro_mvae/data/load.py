"""From what a user writes to a data set."""

from __future__ import annotations

from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from pyro_mvae.data.bundled import load_digits, load_emoji
from pyro_mvae.data.folder import read_folder
from pyro_mvae.data.idx import load_mnist
from pyro_mvae.data.images import Data
from pyro_mvae.data.pictures import resized
from pyro_mvae.data.progress import Track, untracked
from pyro_mvae.data.samples import assemble
from pyro_mvae.data.shards import read_shards

KNOWN = {"digits": "digits", "emoji": "emoji", "mnist": "mnist:DIR", "folder": "folder:DIR", "shards": "shards:GLOB"}
SMALLEST, LARGEST, USUAL = 8, 1024, 32


def load_data(spec: str, *, size: int | None = None, channels: int = 3, seed: int = 0, progress: Track = untracked) -> Data:
    """Load a data set into memory, uint8, channels · height · width bytes a picture (3,072 for 32×32 in colour).

    | spec | what | size when None |
    |---|---|---|
    | `digits` | 10,000 + 2,000 of MNIST's digits, bundled | 28 |
    | `emoji` | 1,906 emoji with names and tags, bundled | 32 |
    | `mnist:DIR` | MNIST's idx files, gzipped or not | the files' |
    | `folder:DIR` | JPEG, PNG and WebP files, also in folders below | 32 |
    | `shards:GLOB` | local WebDataset tar files, as img2dataset writes them | 32 |

    Digits have one channel whatever `channels` says; the others have 3, or 1 for grey. Folders and shards are split by
    the hash of each file and `seed`, a tenth for the test. Pictures that can't be read are left out and named in
    `Data.skipped`; reading takes twice the memory of the result. `progress` is called with a reader's steps, a
    description and how many steps there are, and returns the steps.

    Raises:
        ValueError: when the spec, size or channels make no sense, files are missing or damaged, or too few pictures
            remain.

    Example:
        >>> digits = load_data("digits")
        >>> digits.shape, len(digits.train), len(digits.test), digits.binarization
        ((1, 28, 28), 10000, 2000, 'dynamic')
    """
    if size is not None and not SMALLEST <= size <= LARGEST:
        raise ValueError(f"size is {size}, expected {SMALLEST} to {LARGEST} pixels")
    if channels not in (1, 3):
        raise ValueError(f"channels is {channels}, expected 1 (grey) or 3 (colour)")
    kind, _, place = spec.partition(":")
    usual = USUAL if size is None else size
    match kind, bool(place):
        case "digits", False:
            return scaled(load_digits(), size)
        case "emoji", False:
            return scaled(load_emoji(channels=channels), size)
        case "mnist", True:
            return scaled(load_mnist(Path(place).expanduser(), name=spec), size)
        case "folder", True:
            read = read_folder(Path(place).expanduser(), size=usual, channels=channels, progress=progress)
            return assemble(spec, read, seed=seed)
        case "shards", True:
            read = read_shards(place, size=usual, channels=channels, progress=progress)
            return assemble(spec, read, seed=seed)
    raise ValueError(advice(spec))


def scaled(data: Data, size: int | None) -> Data:
    train, test = (replace(split, images=resized(split.images, size)) for split in (data.train, data.test))
    return replace(data, train=train, test=test)


def advice(spec: str) -> str:
    """What to write in place of a spec that names no data set."""
    kind = spec.partition(":")[0]
    known = f"Known: {', '.join(KNOWN.values())}"
    if kind in KNOWN:
        fault = "needs a place after its name" if ":" in KNOWN[kind] else "takes nothing after its name"
        return f"data set '{spec}' {fault}; write '{KNOWN[kind]}'. {known}"
    if spec and Path(spec).is_dir():
        return f"unknown data set '{spec}'; did you mean 'folder:{spec}'? {known}"
    near = get_close_matches(kind, KNOWN, n=1)
    suggestion = f"; did you mean '{KNOWN[near[0]]}'?" if near else "."
    return f"unknown data set '{spec}'{suggestion} {known}"
