"""One picture, from a file's bytes to values."""

from __future__ import annotations

import io
import warnings

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
FORMATS = ("JPEG", "PNG", "WEBP")
MODES = {1: "L", 3: "RGB"}


def decode(content: bytes, *, size: int, channels: int) -> Tensor:
    """Return a JPEG, PNG or WebP file's centre square, upright and on white: uint8, shape (channels, size, size).

    Raises:
        ValueError: when the bytes are another thing, are damaged, or would unpack to more pixels than Pillow allows.

    Example:
        >>> file = io.BytesIO()
        >>> Image.new("RGB", (40, 20), "red").save(file, "png")
        >>> decode(file.getvalue(), size=8, channels=3)[:, 0, 0]
        tensor([255,   0,   0], dtype=torch.uint8)
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return values(square(content, size=size), channels=channels)
    except UnidentifiedImageError:
        raise ValueError(f"not a JPEG, PNG or WebP picture ({len(content)} bytes)") from None
    except Exception as error:  # damaged bytes make decoders raise nearly anything
        raise ValueError(f"damaged or too large: {error or type(error).__name__}") from error


def square(content: bytes, *, size: int) -> Image.Image:
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        image.draft(None, (2 * size, 2 * size))  # lets JPEG decode large photographs at a fraction of their size
        image.load()
        return ImageOps.fit(flat(upright(image)), (size, size), method=Image.Resampling.LANCZOS)


def upright(image: Image.Image) -> Image.Image:
    """Turn a picture as its EXIF orientation says, or leave it when its EXIF data is damaged."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # whatever a parser of damaged bytes raises; the pixels are good
        return image


def flat(image: Image.Image) -> Image.Image:
    """Bring 16 bits down to 8 and put what is transparent on white."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image, dtype=np.uint32) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def values(image: Image.Image, *, channels: int) -> Tensor:
    """The pixels as uint8, shape (channels, height, width).

    Example:
        >>> values(Image.new("RGB", (4, 2), "white"), channels=1).shape
        torch.Size([1, 2, 4])
    """
    pixels = torch.from_numpy(np.array(image.convert(MODES[channels])))
    return pixels.reshape(image.height, image.width, channels).permute(2, 0, 1).contiguous()


def resized(images: Tensor, size: int | None) -> Tensor:
    """Scale uint8 images, shape (n, C, H, W), to (n, C, size, size); None leaves them as they are.

    Example:
        >>> resized(torch.full((2, 1, 28, 28), 255, dtype=torch.uint8), 16).unique()
        tensor([255], dtype=torch.uint8)
    """
    if size is None or images.shape[-2:] == (size, size):
        return images
    return interpolate(images, size=(size, size), mode="bicubic", antialias=True)
