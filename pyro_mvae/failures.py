"""What fails is noted, and does not stop the rest."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyro_mvae.atomic import write_text


@contextmanager
def reported(failures: dict[str, str], what: str, out: Path) -> Iterator[None]:
    """Whatever fails is noted, with its traceback in `out/results`, and does not stop the rest."""
    path = out / "results" / f"{what}.failed.txt"
    try:
        yield
    except Exception as error:
        failures[what] = f"{type(error).__name__}: {error}"
        write_text(path, traceback.format_exc())
    else:
        failures.pop(what, None)
        path.unlink(missing_ok=True)
