"""A stage of a longer run: fitted once, then read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from pyro_mvae.data import Data
from pyro_mvae.inference import checkpoint as files
from pyro_mvae.inference.asvi import fit
from pyro_mvae.inference.parallel import Parallel
from pyro_mvae.models import VAE

Model = TypeVar("Model", bound=VAE)


def fit_stage(model: VAE, data: Data, path: Path | None, *, resume: bool = False, **settings: Any) -> tuple[VAE, pd.DataFrame]:
    """`fit` a model and keep it at `path` with its history; a stage that `path` holds already is read instead.

    While it is being fitted, its state is kept beside `path`, and is gone when the stage is done.

    Args:
        path: where the fitted model is kept; None keeps nothing.
        resume: read what an earlier run left, whole or half done; otherwise start anew.
        settings: as `fit`.

    Returns: the fitted model and its history.
    """
    if path is None:
        return model, fit(model, data, **settings)
    if resume and path.exists():
        notes = files.read(path)[1]["notes"]
        history = pd.DataFrame(notes["history"])
        history.attrs = notes.get("attrs", {})
        return files.load_model(path), history
    state = path.with_suffix(".training.safetensors")
    history = fit(model, data, checkpoint=state, resume=resume, **settings)
    if Parallel.current().rank == 0:
        files.save_model(path, model, history=history.to_dict("records"), attrs=history.attrs)
        files.discard(state)
    return model, history
