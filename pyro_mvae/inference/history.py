"""The history of a run outside of it: callbacks that write each epoch's row down."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from pyro_mvae.atomic import atomic

Row = dict[str, Any]
Callback = Callable[[nn.Module, Row], None]
"""What `fit` calls after each epoch, with the model and the epoch's row of the history."""


def write_csv(path: str | os.PathLike[str]) -> Callback:
    """A callback that adds each epoch's row to a CSV file; rows of the same epoch and later ones, of an earlier run, make way.

    Raises:
        ValueError: when the file is there and is no history.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "history.csv"
        >>> write = write_csv(path)
        >>> write(nn.Identity(), {"epoch": 0, "loss": 1.5})
        >>> print(path.read_text().strip())
        epoch,loss
        0,1.5
    """
    path = Path(path)
    if path.exists() and not path.read_text(encoding="utf-8").startswith("epoch,"):
        raise ValueError(f"{path} is there and does not begin with the column 'epoch': give another name for the history")

    def write(model: nn.Module, row: Row) -> None:
        frame = pd.DataFrame([row])
        if path.exists():
            before = pd.read_csv(path)
            before = before[before["epoch"] < row["epoch"]]
            frame = frame if before.empty else pd.concat([before, frame])
        with atomic(path) as temporary:
            frame.to_csv(temporary, index=False)

    return write


def write_tensorboard(folder: str | os.PathLike[str]) -> Callback:
    """A callback that writes each number of a row as a scalar for TensorBoard: `tensorboard --logdir FOLDER` shows them.

    Raises:
        ValueError: when the package `tensorboard` is not there.
    """
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise ValueError("TensorBoard is not installed: pip install 'pyro-mvae[tensorboard]'") from error
    writer = SummaryWriter(str(folder))

    def write(model: nn.Module, row: Row) -> None:
        for name, value in row.items():
            if value is not None:
                writer.add_scalar(name, value, row["epoch"])
        writer.flush()

    return write
