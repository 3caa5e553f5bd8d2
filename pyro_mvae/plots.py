"""Figures of a report, as PNG files in memory."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyro_mvae.data import Split
from pyro_mvae.models import VAE


class Picture(bytes):
    """The bytes of a PNG file, which a notebook shows."""

    def _repr_png_(self) -> bytes:
        return bytes(self)


def drawing(width: float, height: float) -> Any:
    """An empty figure, inches wide and high."""
    from matplotlib.figure import Figure  # slow to import

    return Figure(figsize=(width, height))


def png(figure: Any) -> Picture:
    """A figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, bbox_inches="tight")
    return Picture(file.getvalue())


def image_rows(rows: Mapping[str, Tensor]) -> Picture:
    """Images in labelled rows; each (n, C, H, W) in [0, 1].

    Example:
        >>> image_rows({"noise": torch.rand(3, 1, 8, 8)})[:4]
        b'\\x89PNG'
    """
    num_columns = max(len(images) for images in rows.values())
    figure = drawing(num_columns * 0.75 + 1, len(rows) * 0.8)
    axes = figure.subplots(len(rows), num_columns, squeeze=False)
    for row, (label, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(row, images, strict=False):
            axis.imshow(image.movedim(0, -1).clamp(0, 1).numpy().squeeze(), cmap="gray", vmin=0, vmax=1)
        for axis in row:
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_frame_on(False)
        row[0].set_ylabel(label, rotation=0, ha="right", va="center")
    return png(figure)


@torch.no_grad()
def reconstructions(models: Mapping[str, VAE], images: Tensor, *, num_images: int = 12) -> Picture:
    """A row of test images, from all over the set, and one of each model's reconstruction of them; images are uint8."""
    x = images[:: math.ceil(len(images) / num_images)].float() / 255
    return image_rows({"original": x, **{name: model.decode(model.encode(x)) for name, model in models.items()}})


@torch.no_grad()
def samples(models: Mapping[str, VAE], *, num_images: int = 12, seed: int = 0) -> Picture:
    """A row of pictures drawn from each model's prior, from the same noise."""
    rows = {}
    for name, model in models.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            rows[name] = model.generate(num_images)
    return image_rows(rows)


@torch.no_grad()
def latent_scatter(model: VAE, split: Split, *, num_images: int = 2000) -> Picture:
    """Posterior means of test images on their two principal axes, coloured by label where there are labels."""
    z = model.encode(split.images[:num_images].float() / 255)
    z = z - z.mean(0)
    plane = (z @ torch.linalg.svd(z, full_matrices=False).Vh[:2].T).numpy()
    figure = drawing(5, 4.2)
    axis = figure.subplots()
    colours = {} if split.labels is None else {"c": split.labels[:num_images].numpy(), "cmap": "tab10"}
    points = axis.scatter(plane[:, 0], plane[:, -1], s=5, linewidths=0, **colours)
    if colours:
        figure.colorbar(points, label="label")
    axis.set(xlabel="first principal axis of loc(x)", ylabel="second")
    return png(figure)


def accuracy_bars(table: pd.DataFrame, columns: Mapping[str, str]) -> Picture:
    """Bars of each model's accuracies in %, side by side; `columns` are those of the table, and what they are called.

    Example:
        >>> accuracy_bars(pd.DataFrame({"model": ["VAE"], "a": [50.0]}), {"a": "accuracy"})[:4]
        b'\\x89PNG'
    """
    figure = drawing(max(1.1 * len(table) + 2, 7), 3.8)
    axis = figure.subplots()
    places, width = np.arange(len(table)), 0.8 / len(columns)
    for i, (column, label) in enumerate(columns.items()):
        values = np.nan_to_num(table[column].to_numpy(dtype=float))
        axis.bar(places + (i - (len(columns) - 1) / 2) * width, values, width, label=label)
    axis.set_xticks(places, table["model"])
    axis.set(ylabel="%", ylim=(0, 100))
    axis.legend(fontsize="small", ncols=len(columns), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    return png(figure)


def trade(table: pd.DataFrame, axis: str, *, label: str, bound: float | None = None) -> Picture:
    """Students of `miniaturize`, the NLL of images they did not see against a cost, numbered as in the table of `pareto.html`."""
    figure = drawing(7, 4.2)
    plane = figure.subplots()
    for last, face in ((True, "tab:gray"), (False, "none")):
        some = table[(table["rounds"] == table["rounds"].max()) == last]
        plane.scatter(some[axis], some["held_out"], s=18, edgecolors="tab:gray", facecolors=face)
    best = table.sort_values(axis)
    best = best[best["held_out"] <= best["held_out"].cummin()]
    plane.plot(best[axis], best["held_out"], color="tab:blue", linewidth=1)
    for number, (cost, loss) in enumerate(zip(table[axis], table["held_out"], strict=True), 1):
        plane.annotate(str(number), (cost, loss), textcoords="offset points", xytext=(4, 4), fontsize="small")
    taken = table[table["chosen"]]
    plane.scatter(taken[axis], taken["held_out"], s=160, marker="*", color="tab:red", zorder=3)
    if bound is not None:
        plane.axvline(bound, linestyle=":", color="tab:gray")
    plane.set(xlabel=label, ylabel="NLL of held-out images, nats")
    return png(figure)


def series(
    columns: Mapping[str, Sequence[float]], bounds: Mapping[str, Mapping[str, float]], *, labels: Mapping[str, str]
) -> Picture:
    """Figures over time, a panel for each, its bound dotted and what crosses it red.

    Example:
        >>> series({"nll": [1.0, 3.0]}, {"nll": {"at_most": 2.0}}, labels={"nll": "nats"})[:4]
        b'\\x89PNG'
    """
    figure = drawing(4 * len(columns), 3.0)
    for axis, (name, values) in zip(np.atleast_1d(figure.subplots(1, len(columns))), columns.items(), strict=True):
        low, high = (bounds.get(name, {}).get(end, other) for end, other in (("at_least", -math.inf), ("at_most", math.inf)))
        axis.plot(range(1, len(values) + 1), values, color="tab:blue", marker=".")
        beyond = [(number, value) for number, value in enumerate(values, 1) if not low <= value <= high]
        axis.scatter([number for number, _ in beyond], [value for _, value in beyond], color="tab:red", zorder=3)
        for bound in (low, high):
            if math.isfinite(bound):
                axis.axhline(bound, linestyle=":", color="tab:gray")
        axis.set(title=labels[name], xlabel="reading")
    return png(figure)


def training_curves(histories: Mapping[str, pd.DataFrame]) -> Picture:
    """Loss, likelihood and KL per epoch, in nats, a panel for each history; what marks a change of stage is dotted."""
    figure = drawing(5 * len(histories), 3.2)
    for axis, (name, history) in zip(np.atleast_1d(figure.subplots(1, len(histories))), histories.items(), strict=True):
        epochs, positive = np.arange(1, len(history) + 1), True
        for column in ("loss", "likelihood", "kl", "distill"):
            if column in history:
                axis.plot(epochs, history[column], label=column, marker=".")
                positive &= bool((history[column] > 0).all())
        if "stage" in history:
            for change in np.flatnonzero(history["stage"].ne(history["stage"].shift()).to_numpy())[1:]:
                axis.axvline(float(change) + 0.5, linestyle=":", color="gray")
        axis.set(title=name, xlabel="epoch", ylabel="nats per image", yscale="log" if positive else "linear")
        axis.legend()
    return png(figure)
