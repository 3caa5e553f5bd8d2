"""A folder belongs to one thing that was asked for: what is gone on with, and what is never mixed."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pyro_mvae.atomic import write_text


def claim(path: Path, wanted: Mapping[str, Any], *, what: str, free: Collection[str] = ()) -> None:
    """Make a folder the place of what is asked for, noted in a file there, or go on where the same was asked for before.

    Args:
        path: the note, in the folder to be claimed.
        wanted: what is asked for, of values that JSON holds.
        what: its name, for messages.
        free: those of its entries that may differ from what was asked before.

    Raises:
        ValueError: for a folder that holds anything else; it is left as it is.

    Example:
        >>> import tempfile
        >>> note = Path(tempfile.mkdtemp()) / "walk.json"
        >>> claim(note, {"steps": 3}, what="walk")
        >>> claim(note, {"steps": 4}, what="walk")
        Traceback (most recent call last):
            ...
        ValueError: ... holds a walk with steps=3, not 4: give another --out
    """
    out, wanted = path.parent, json.loads(json.dumps(wanted))
    if path.is_file():
        held = json.loads(path.read_text(encoding="utf-8"))
        other = [name for name in sorted(held.keys() | wanted.keys()) if held.get(name) != wanted.get(name)]
        for name in other:
            if name not in free:
                raise ValueError(f"{out} holds a {what} with {name}={held.get(name)}, not {wanted.get(name)}: give another --out")
    elif out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file, expected a folder: give another --out")
    elif out.is_dir() and any(not unfinished(each, path) for each in out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no {what}: give another --out")
    write_text(path, json.dumps(wanted, indent=2) + "\n")


def unfinished(found: Path, path: Path) -> bool:
    """Whether a file is what `atomic` leaves of another where a process is killed while it writes."""
    return re.fullmatch(rf"\.\d+-(old-)?{re.escape(path.name)}", found.name) is not None
