"""Pictures in a folder and the folders below it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pyro_mvae.data.pictures import SUFFIXES
from pyro_mvae.data.progress import Track
from pyro_mvae.data.samples import Sample, Skipped, sample


def read_folder(folder: Path, *, size: int, channels: int, progress: Track) -> Iterator[Sample | Skipped]:
    """Yield the pictures of a folder in the order of their paths.

    Raises:
        ValueError: when there is no such folder, or it has no file with a picture's name.
    """
    paths = pictures(folder)
    for path in progress(paths, f"Reading {folder}", len(paths)):
        try:
            yield sample(path.read_bytes(), size=size, channels=channels)
        except (OSError, ValueError) as error:
            yield Skipped(str(path), str(error))


def pictures(folder: Path) -> list[Path]:
    """The paths of the pictures below a folder, sorted; ValueError when there are none."""
    if not folder.exists():
        raise ValueError(f"no folder {folder}; expected one with {', '.join(SUFFIXES)} files")
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file, expected a folder with {', '.join(SUFFIXES)} files")
    files = [path for path in folder.rglob("*") if path.is_file()]
    if not files:
        raise ValueError(f"folder {folder} is empty, expected {', '.join(SUFFIXES)} files")
    paths = sorted((path for path in files if path.suffix.lower() in SUFFIXES), key=Path.as_posix)
    if not paths:
        raise ValueError(f"folder {folder} has {len(files)} files, none of them {', '.join(SUFFIXES)}")
    return paths
