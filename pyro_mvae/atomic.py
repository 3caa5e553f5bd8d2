"""Files that are either whole or absent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary name beside `path`, renamed to `path` when the block ends well and removed when it does not.

    Whatever the block leaves there, a file or a folder (an `.mlpackage` is one), takes the place of what stood at `path`.

    Raises:
        OSError: when the folder can't be made or written to.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with atomic(folder / "report.json") as temporary:
        ...     _ = temporary.write_text("{}")
        >>> [file.name for file in folder.iterdir()]
        ['report.json']
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, aside = (path.with_name(f".{os.getpid()}-{name}{path.name}") for name in ("", "old-"))
    try:
        yield temporary
        if temporary.is_dir() and path.exists():  # a folder takes no folder's place: what stood there steps aside, whole
            path.replace(aside)
        temporary.replace(path)
    finally:
        remove(temporary)
        remove(aside)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file, as `atomic` does.

    Raises:
        OSError: when the folder can't be made or written to.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "note.txt"
        >>> write_text(path, "β")
        >>> path.read_text(encoding="utf-8")
        'β'
    """
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove(path: Path) -> None:
    """Remove a file or a folder; nothing happens when there is none."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
