"""Pictures in WebDataset shards: tar files with KEY.webp, KEY.txt and KEY.json, as img2dataset writes them."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from webdataset.tariterators import group_by_keys, tar_file_expander

from pyro_mvae.data.pictures import SUFFIXES
from pyro_mvae.data.progress import Track
from pyro_mvae.data.samples import Sample, Skipped, sample

BLOCK, CHUNK = 512, 1 << 20


def read_shards(pattern: str, *, size: int, channels: int, progress: Track) -> Iterator[Sample | Skipped]:
    """Yield the pictures of the shards a pattern matches, shards by name and pictures in the order of the file.

    Raises:
        ValueError: when the pattern matches no file.
    """
    paths = shards(pattern)
    for path in progress(paths, f"Reading {len(paths)} shards", len(paths)):
        try:
            # Opened here, not by webdataset: a name such as "pipe:..." is then a name and never a command.
            with path.open("rb") as stream:
                yield from read_shard(stream, str(path), size=size, channels=channels)
        except OSError as error:
            yield Skipped(str(path), str(error))


def shards(pattern: str) -> list[Path]:
    """The local files a pattern matches, sorted; ValueError when there are none."""
    place = Path(pattern).expanduser()
    names = [str(place)] if place.is_file() else sorted(glob.glob(str(place), recursive=True))  # noqa: PTH207
    paths = [Path(name) for name in names if Path(name).is_file()]
    if not paths:
        raise ValueError(f"no local file matches {pattern}; expected tar files, such as shards:data/*.tar")
    return paths


def read_shard(stream: BinaryIO, name: str, *, size: int, channels: int) -> Iterator[Sample | Skipped]:
    """Yield the pictures of one open shard, then what was wrong with the file itself."""
    faults: list[str] = []

    def note(error: Exception) -> bool:
        # webdataset adds the stream to the message, which says nothing to a reader
        faults.append(str(error.args[0] if error.args else type(error).__name__).partition(" @ ")[0])
        return True

    files = tar_file_expander([{"url": name, "stream": stream}], handler=note)
    for fields in group_by_keys(files, handler=note):
        yield from picture(fields, name, size=size, channels=channels)
    yield from (Skipped(name, f"damaged shard: {fault}") for fault in dict.fromkeys(faults) or missing_end(stream))


def picture(fields: dict[str, Any], shard: str, *, size: int, channels: int) -> Iterator[Sample | Skipped]:
    """Yield the picture of one group of files; nothing when it has none, as after a failed download."""
    suffix = next((suffix for suffix in SUFFIXES if suffix[1:] in fields), None)
    if suffix is None:
        return
    try:
        caption, tags = described(fields)
        yield sample(fields[suffix[1:]], size=size, channels=channels, caption=caption, tags=tags)
    except (ValueError, RecursionError) as error:
        yield Skipped(f"{shard}/{fields['__key__']}{suffix}", str(error))


def described(fields: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Caption and tags; KEY.txt goes before the caption in KEY.json."""
    notes = json.loads(fields["json"]) if "json" in fields else {}
    if not isinstance(notes, dict):
        raise ValueError(f"its JSON is a {type(notes).__name__}, expected an object with a caption and tags")
    caption = fields["txt"].decode(errors="replace") if "txt" in fields else notes.get("caption")
    tags = notes.get("tags")
    return (
        caption.strip() if isinstance(caption, str) else "",
        tuple(tag for tag in tags if isinstance(tag, str)) if isinstance(tags, list) else (),
    )


def missing_end(stream: BinaryIO) -> list[str]:
    """What is wrong with the end of a tar file that read without an error.

    Python ends quietly at a header that is damaged or cut off, which would lose the pictures behind it.
    """
    stopped = stream.tell()
    stream.seek(257)
    if stream.read(5) != b"ustar":  # compressed files have ends of their own, which are checked
        return []
    stream.seek(max(stopped - BLOCK, 0))
    if any(chunk.strip(b"\0") for chunk in iter(partial(stream.read, CHUNK), b"")):
        return ["cut short, or a damaged header hides the rest"]
    return []
