"""A stage of a longer run: fitted once, then read back."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from pyro_mvae.data import Data
from pyro_mvae.inference import checkpoint as files
from pyro_mvae.inference.asvi import fit
from pyro_mvae.inference.parallel import Parallel
from pyro_mvae.models import VAE

Model = TypeVar("Model", bound=VAE)


def fit_stage(
    model: VAE, data: Data, path: Path | None, *, resume: bool = False, initialize: bool = False, **settings: Any
) -> tuple[VAE, pd.DataFrame]:
    """`fit` a model and keep it at `path` with its history; a stage that `path` holds already is read instead.

    While it is being fitted, its state is kept beside `path`, as is how it was started; both are gone when the stage is done.

    Args:
        path: where the fitted model is kept; None keeps nothing.
        resume: read what an earlier run left, whole or half done; otherwise start anew.
        initialize: whether a model with clusters is started by its `initialize`, before its first step.
        settings: as `fit`.

    Returns: the fitted model and its history, with "initialize_seconds" among its `attrs` where that took any.
    """
    if path is None:
        seconds = started(model, data, None, settings) if initialize else 0.0
        history = fit(model, data, **settings)
        history.attrs["initialize_seconds"] = seconds
        return model, history
    if resume and path.exists():
        notes = files.read(path)[1]["notes"]
        history = pd.DataFrame(notes["history"])
        history.attrs = notes.get("attrs", {})
        return files.load_model(path), history
    state = path.with_suffix(".training.safetensors")
    beginning = path.with_suffix(".started.safetensors")
    if not resume:
        beginning.unlink(missing_ok=True)
        files.discard(state)
    seconds = started(model, data, beginning, settings) if initialize else 0.0
    history = fit(model, data, checkpoint=state, resume=resume, **settings)
    history.attrs["initialize_seconds"] = seconds
    if Parallel.current().rank == 0:
        files.save_model(path, model, history=history.to_dict("records"), attrs=history.attrs)
        files.discard(state)
        beginning.unlink(missing_ok=True)
    return model, history


def started(model: VAE, data: Data, path: Path | None, settings: Mapping[str, Any]) -> float:
    """Start a model that has a way to be started, and keep it at `path`, or read it there; how many seconds that took."""
    if model.num_clusters is None:
        return 0.0
    if path is not None and path.exists():
        files.load_model(path, into=model)
        return float(files.read(path)[1]["notes"]["seconds"])
    begun = time.perf_counter()
    shared = {name: settings[name] for name in ("seed", "batch_size", "epochs", "progress", "compile") if name in settings}
    model.initialize(data, fit=fit, **shared)  # pyright: ignore[reportCallIssue]
    seconds = round(time.perf_counter() - begun, 2)
    if path is not None and Parallel.current().rank == 0:
        files.save_model(path, model, seconds=seconds)
    return seconds
