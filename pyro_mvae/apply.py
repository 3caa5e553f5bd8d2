"""Passes of the compression module on a checkpoint: from one file to a smaller one."""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyro_mvae import compress
from pyro_mvae.atomic import write_text
from pyro_mvae.compress import Pass
from pyro_mvae.compress.prune import channels
from pyro_mvae.data.progress import Track, untracked
from pyro_mvae.evaluate.cost import num_macs, num_params
from pyro_mvae.evaluate.likelihood import NLL, negative_log_likelihood
from pyro_mvae.inference.checkpoint import digest, load_model, path_for, save_model
from pyro_mvae.inference.stage import fit_stage
from pyro_mvae.models import VAE
from pyro_mvae.numbers import count
from pyro_mvae.train import data_for

PASSES: dict[str, type[Any]] = {
    name: kind for name in compress.__all__ if isinstance(kind := getattr(compress, name), type) and kind is not Pass
}


@dataclass(frozen=True)
class Standing:
    """A model in figures: its weights, multiply-adds for an image, NLL on test images, and the channels that each layer gives."""

    params: int
    macs: int
    nll: NLL
    channels: dict[str, int]


def apply(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    passes: Sequence[str],
    data: str = "digits",
    epochs: int = 0,
    batch_size: int = 64,
    lr: float = 1e-3,
    seed: int = 0,
    nll_samples: int = 50,
    overwrite: bool = False,
    resume: bool = False,
    progress: Track = untracked,
) -> tuple[Standing, Standing]:
    """Let the model in a checkpoint go through passes, one after the other, train it on, and write it to another checkpoint.

    Args:
        checkpoint: what `train`, `build` or `apply` wrote.
        out: a `.safetensors` file to write; while training goes on, its state is beside it.
        passes: as they are written in Python: "PruneChannels(ratio=0.5)", "Quantize()". Only numbers, texts and the like can be
            given to them; nothing that is written there is run.
        data: what passes look at, what is trained on, and what is tested on; see `load_data`.
        epochs: of training after the last pass; without any, integers are those of ranges that training images have.
        lr: peak of the one-cycle learning rate.
        nll_samples: importance samples for each test image.
        overwrite: whether a checkpoint that is there may be replaced.
        resume: go on with a run that was interrupted in training, with the same settings.

    Returns: the model before and after.

    Raises:
        ValueError: for settings, data or a checkpoint that can't be, and for what a pass refuses.
        FloatingPointError, Interrupted: as `fit`.
        OSError: when the checkpoint can't be written.
    """
    named = [pass_of(text) for text in passes]
    if not named:
        raise ValueError(f"no pass was given, expected one or more of: {', '.join(PASSES)}")
    count(epochs, "epochs", 0)
    count(nll_samples, "nll_samples")
    path = path_for(out, overwrite=overwrite)
    if path.resolve() == Path(checkpoint).resolve():
        raise ValueError(f"{path} is the model itself: give another name for what becomes of it")
    model = load_model(checkpoint)
    images = data_for(model, data, seed=seed, progress=progress)

    def standing(model: VAE) -> Standing:
        how: dict[str, Any] = {"binarization": images.binarization, "seed": seed, "progress": progress}
        nll = negative_log_likelihood(model, images.test.images, num_samples=nll_samples, **how)
        return Standing(num_params(model), num_macs(model), nll, channels(model))

    before = standing(model)
    begun = {"checkpoint": digest(model), "passes": [repr(each) for each in named]}
    for each in named:
        model = each(model, images.train.images)
    if epochs:
        how: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "seed": seed, "resume": resume}
        apart = path.with_suffix(".applied.safetensors")  # what has the name already stays until there is something better
        note = apart.with_suffix(".json")
        check_begun(note, begun, resume=resume)
        model, _ = fit_stage(model, images, apart, description="Training", progress=progress, **how)
        apart.replace(path)
        note.unlink()
    else:
        save_model(path, model)
    return before, standing(model)


def check_begun(note: Path, wanted: dict[str, Any], *, resume: bool) -> None:
    """Raise a ValueError where a run of something else is to be gone on with; note what is trained, beside its state."""
    if resume and note.is_file():
        held = json.loads(note.read_text(encoding="utf-8"))
        for name, value in wanted.items():
            if held[name] != value:
                what = "another checkpoint" if name == "checkpoint" else f"passes {held[name]}, not {value}"
                raise ValueError(f"what was interrupted is of {what}: give the same, or leave out --resume to begin anew")
    write_text(note, json.dumps(wanted) + "\n")


def pass_of(text: str) -> Pass:
    """The pass that a text is of, such as the repr of one.

    Raises:
        ValueError: for anything else, or settings that the pass can't have.

    Example:
        >>> pass_of("Quantize(weight_bits=4)")
        Quantize(weight_bits=4, ranges='moving')
    """
    try:
        return made(ast.parse(text.strip(), mode="eval").body)
    except SyntaxError as error:
        raise ValueError(f"{text!r} is no pass: {form()}") from error


def made(node: ast.expr) -> Pass:
    """The pass that is written somewhere; a name by itself is one with its usual settings."""
    call, text = (ast.Call(node, [], []), node.id) if isinstance(node, ast.Name) else (node, ast.unparse(node))
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in PASSES):
        raise ValueError(f"{text!r} is no pass: {form()}")
    kind = PASSES[call.func.id]
    values = [value_of(value, kind) for value in call.args]
    settings = {str(keyword.arg): value_of(keyword.value, kind) for keyword in call.keywords}
    try:
        return kind(*values, **settings)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from error
    except TypeError as error:
        raise ValueError(
            f"{text!r} has settings that {call.func.id} has not, or of another type: they are as in {kind()!r}"
        ) from error


def value_of(node: ast.expr, kind: type[Any]) -> Any:
    """A setting of a kind of pass: a number, a text or the like, or another pass."""
    if isinstance(node, ast.Call | ast.Name):
        return made(node)
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise ValueError(f"{ast.unparse(node)!r} is to be a number, a text or a pass, as in {kind()!r}") from error


def form() -> str:
    return f"expected a pass and its settings, such as 'PruneChannels(ratio=0.5)', of: {', '.join(PASSES)}"
