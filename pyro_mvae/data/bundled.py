"""The two sets that come with the package."""

from __future__ import annotations

import io
import json
from importlib.resources import as_file, files

from PIL import Image
from torch import Tensor

from pyro_mvae.data.idx import load_mnist
from pyro_mvae.data.images import Data, Split
from pyro_mvae.data.pictures import values

BUNDLED = files("pyro_mvae.data") / "bundled"


def load_digits() -> Data:
    """Load 10,000 and 2,000 of MNIST's digits, shape (1, 28, 28), with labels.

    Example:
        >>> len(load_digits().train)
        10000
    """
    with as_file(BUNDLED / "digits") as folder:
        return load_mnist(folder, name="digits")


def load_emoji(*, channels: int) -> Data:
    """Load Noto's emoji, shape (channels, 32, 32), with names as captions and tags.

    Example:
        >>> load_emoji(channels=1).shape
        (1, 32, 32)
    """
    listing = json.loads((BUNDLED / "emoji" / "emoji.json").read_text(encoding="utf-8"))
    with Image.open(io.BytesIO((BUNDLED / "emoji" / "emoji.webp").read_bytes())) as sheet:
        tiles = cut(values(sheet, channels=channels), listing["tile"])
    train, test = (emoji_split(tiles, listing["emoji"], side) for side in ("train", "test"))
    return Data("emoji", train=train, test=test, binarization="none")


def cut(sheet: Tensor, tile: int) -> Tensor:
    """Cut a sheet, shape (C, H, W), into its square tiles, row by row."""
    channels, height, width = sheet.shape
    grid = sheet.reshape(channels, height // tile, tile, width // tile, tile)
    return grid.permute(1, 3, 0, 2, 4).reshape(-1, channels, tile, tile)


def emoji_split(tiles: Tensor, listing: list[dict], side: str) -> Split:
    chosen = [index for index, entry in enumerate(listing) if entry["split"] == side]
    return Split(
        tiles[chosen],
        captions=tuple(listing[index]["name"] for index in chosen),
        tags=tuple(tuple(listing[index]["tags"]) for index in chosen),
    )
