"""The paper's prompt experiments (section 4): one model a prompt, and the loss as it falls."""

from __future__ import annotations

import html
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pyro_mvae import plots
from pyro_mvae._version import __version__
from pyro_mvae.atomic import atomic, write_text
from pyro_mvae.claimed import claim
from pyro_mvae.data import Data, load_data, matching
from pyro_mvae.data.progress import Track, untracked
from pyro_mvae.environment import environment
from pyro_mvae.inference.asvi import Interrupted, check_settings, negative_bound
from pyro_mvae.inference.stage import fit_stage
from pyro_mvae.models import VAE, model_class
from pyro_mvae.numbers import count
from pyro_mvae.report import PAGE, html_picture, html_table
from pyro_mvae.side_by_side import side_by_side
from pyro_mvae.train import initialized, suited

COLUMNS, THETA = ("epoch", "loss", "kl", "likelihood"), "theta_kl"
EVERY = 100
ALL = "all prompts"
SETTINGS = "experiments.json"


@dataclass(frozen=True)
class Experiment:
    """One prompt: the paper's table of it, and what the run was."""

    prompt: str
    table: pd.DataFrame
    seconds: float
    num_images: int
    test_loss: float | None


def experiment(
    prompts: Sequence[str],
    *,
    data: str = "emoji",
    out: str | os.PathLike[str] = "experiments",
    model: str = "mvae",
    epochs: int = 1000,
    batch_size: int = 32,
    lr: float = 2e-3,
    latent_dim: int = 16,
    likelihood: str | None = None,
    theta: str | None = None,
    size: int | None = None,
    seed: int = 0,
    processes: int = 1,
    progress: Track = untracked,
) -> list[Experiment]:
    """Train a model on the images of each prompt, and write the paper's tables and figures of it (Tables 1–6, Figures 6–13).

    Loss, KL and likelihood term are those of training, in nats per image, each 100 epochs: loss = KL + likelihood term, which is
    the negative log-likelihood. The epochs and the batches of 32 are those of the paper's Table 8.

    Args:
        prompts: words that captions and tags of the images must have, all of them.
        data, size: where images are looked for, see `load_data`; with captions.
        likelihood, theta: as `train`. Of a Bayesian likelihood loss = KL + likelihood term + `theta_kl`, the KL of θ′.
        out: the folder to make or to go on in: a prompt that is done is not run again.
        processes: how many prompts are run at a time; more than 1 start processes, which a script has to allow for with
            `if __name__ == "__main__":`.

    Returns: an experiment a prompt; also in `out`: a folder for each prompt, `average.csv`, `average.png`, `seconds.csv` and
        `report.html`.

    Raises:
        ValueError: for prompts that no images match, or other settings that can't be.
        Interrupted: after Ctrl-C; the same call goes on.

    Example:
        >>> import tempfile
        >>> done = experiment(["red heart"], epochs=2, out=tempfile.mkdtemp())
        >>> done[0].table.columns.tolist()
        ['epoch', 'loss', 'kl', 'likelihood']
    """
    if not prompts:
        raise ValueError("there is no prompt, expected one or more")
    count(processes, "processes")
    if len({slug(prompt) for prompt in prompts}) < len(prompts):
        raise ValueError(f"prompts are {', '.join(prompts)}, expected ones of different words: each has a folder of its own")
    out, images = Path(out), load_data(data, size=size, seed=seed, progress=progress)
    chosen = {prompt: matching(images, prompt) for prompt in prompts}
    how: dict[str, Any] = {"model": model, "epochs": epochs, "batch_size": batch_size, "lr": lr, "latent_dim": latent_dim}
    how |= {"data": data, "size": size, "seed": seed, "likelihood": likelihood, "theta": theta}
    for some in chosen.values():
        vae = made(some, how)
        check_settings(vae, some.train.images, epochs=epochs, batch_size=batch_size, seed=seed, lr=lr)
    claim(out / SETTINGS, how, what="set of experiments")
    if min(processes, len(chosen)) == 1:
        done = [run(prompt, some, out / slug(prompt), how, progress=progress) for prompt, some in chosen.items()]
    else:
        done = run_all(tuple(chosen), out, how, processes=processes, progress=progress)
    write_all(done, out, {"data": images.name, **how, "prompts at a time": processes})
    return done


def run_all(prompts: Sequence[str], out: Path, how: dict[str, Any], *, processes: int, progress: Track) -> list[Experiment]:
    """The experiments of prompts, several at a time."""
    found, cases = {}, [(prompt, out, how) for prompt in prompts]
    try:
        for each in progress(side_by_side(run_elsewhere, cases, processes=processes), "Prompts", len(cases)):
            found[each.prompt] = each
    except KeyboardInterrupt as error:
        raise Interrupted(f"stopped; the states of models half trained are in {out}", None) from error
    return [found[prompt] for prompt in prompts]


def run_elsewhere(prompt: str, out: Path, how: dict[str, Any]) -> Experiment:
    """`run` in a process that finds its images for itself."""
    data = matching(load_data(how["data"], size=how["size"], seed=how["seed"]), prompt)
    return run(prompt, data, out / slug(prompt), how, progress=untracked)


def slug(prompt: str) -> str:
    """A folder's name for a prompt.

    Example:
        >>> slug("Red heart!")
        'red-heart'
    """
    return re.sub(r"\W+", "-", prompt.lower()).strip("-")


def made(data: Data, how: Mapping[str, Any]) -> VAE:
    """A new model."""
    settings = {name: how[name] for name in ("latent_dim", "seed", "likelihood", "theta")}
    return initialized(model_class(how["model"]), data, **settings)


def run(prompt: str, data: Data, folder: Path, how: dict[str, Any], *, progress: Track) -> Experiment:
    """One experiment, with its table and pictures in its folder; read where it is done."""
    folder.mkdir(parents=True, exist_ok=True)
    settings, path = folder / "experiment.json", folder / "model.safetensors"
    about: dict[str, Any] = {"prompt": prompt, "how": how, "seconds": 0.0, "num_images": len(data.train)}
    if settings.exists():
        about = json.loads(settings.read_text(encoding="utf-8"))
    data = suited(data, how["likelihood"])
    vae = made(data, how)
    begun, known = time.perf_counter(), path.exists()
    try:
        vae, history = fit_stage(
            vae,
            data,
            path,
            resume=True,
            initialize=True,
            progress=progress,
            description=prompt,
            **{name: how[name] for name in ("epochs", "batch_size", "lr", "seed")},
        )
    finally:  # a run that is interrupted has taken its time as well
        about["seconds"] += 0.0 if known else round(time.perf_counter() - begun, 2)
        write_text(settings, json.dumps(about, indent=2) + "\n")
    bound = negative_bound(vae, data.test.images, binarization=data.binarization) if len(data.test) else None
    table = logged(history)
    pictures = {
        "curves.png": plots.training_curves({prompt: history}),
        "latent.png": plots.latent_scatter(vae, data.train),
        "reconstructions.png": plots.reconstructions({how["model"]: vae}, data.train.images),
        "samples.png": plots.samples({how["model"]: vae}, seed=how["seed"]),
    }
    for name, content in pictures.items():
        with atomic(folder / name) as temporary:
            temporary.write_bytes(content)
    write_text(folder / "history.csv", history.to_csv(index=False))
    write_text(folder / "table.csv", table.to_csv(index=False))
    write_text(settings, json.dumps(about | {"test_loss": bound}, indent=2) + "\n")
    return Experiment(prompt, table, round(about["seconds"], 2), len(data.train), bound)


def logged(history: pd.DataFrame) -> pd.DataFrame:
    """The paper's columns, and the KL of θ′ where there is one, at the first epoch, each 100th, and the last, counted from 1.

    Example:
        >>> history = pd.DataFrame({"epoch": range(250), "loss": 1.0, "kl": 0.5, "likelihood": 0.5})
        >>> logged(history)["epoch"].tolist()
        [1, 100, 200, 250]
    """
    counted = history.assign(epoch=history["epoch"] + 1)
    last, columns = int(counted["epoch"].max()), [*COLUMNS, *(name for name in (THETA,) if name in history)]
    return counted.loc[counted["epoch"].isin({1, last, *range(EVERY, last, EVERY)}), columns].reset_index(drop=True)


def averages(done: Sequence[Experiment]) -> pd.DataFrame:
    """Loss, KL and likelihood term averaged over the rows of each experiment's table, and over all: the paper's Table 5."""
    means = [{"prompt": each.prompt, **each.table[list(COLUMNS[1:])].mean().to_dict()} for each in done]
    frame = pd.DataFrame(means)
    return pd.concat([frame, pd.DataFrame([{"prompt": ALL, **frame[list(COLUMNS[1:])].mean().to_dict()}])], ignore_index=True)


def mean_history(done: Sequence[Experiment], out: Path) -> pd.DataFrame:
    """Each epoch's mean of all prompts: the paper's Figure 13."""
    histories = [pd.read_csv(out / slug(each.prompt) / "history.csv")[list(COLUMNS)] for each in done]
    return pd.DataFrame(pd.concat(histories).groupby("epoch").mean()).reset_index()


def run_times(done: Sequence[Experiment]) -> pd.DataFrame:
    """Seconds of each experiment, tracing included, as in the paper's Table 6, and −ELBO in nats on the test images, if any."""
    rows = [
        {"prompt": each.prompt, "images": each.num_images, "seconds": each.seconds, "bound on test images": each.test_loss}
        for each in done
    ]
    return pd.DataFrame(rows)


def as_text(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Header and rows, numbers to two places."""
    rows = [
        ["–" if pd.isna(value) else f"{value:,.2f}" if isinstance(value, float) else str(value) for value in row]
        for row in table.to_numpy(dtype=object)
    ]
    return [str(name) for name in table.columns], rows


def write_all(done: Sequence[Experiment], out: Path, how: dict[str, Any]) -> None:
    """Write `average.csv`, `average.png`, `seconds.csv` and `report.html`."""
    curves = plots.training_curves({f"Mean of {len(done)} prompts": mean_history(done, out)})
    with atomic(out / "average.png") as temporary:
        temporary.write_bytes(curves)
    write_text(out / "average.csv", averages(done).to_csv(index=False))
    write_text(out / "seconds.csv", run_times(done).to_csv(index=False))
    tables = {
        "Averages (Table 5), nats per image": averages(done),
        f"Run times (Table 6): {run_times(done)['seconds'].mean():.1f} s on average": run_times(done),
        **{f"{each.prompt}: loss, KL and likelihood term, nats per image": each.table for each in done},
    }
    names = {
        "curves": "Training",
        "latent": "Codes of training images",
        "reconstructions": "Reconstructions of training images",
        "samples": "Samples",
    }
    pictures = html_picture("Mean of all prompts (Figure 13)", curves) + "".join(
        html_picture(f"{title}: {each.prompt}", (out / slug(each.prompt) / f"{name}.png").read_bytes())
        for each in done
        for name, title in names.items()
    )
    facts = {name: value for name, value in how.items() if value is not None}
    facts |= {"averages": "over the rows of each table, the first epoch's among them, as the paper's"}
    facts |= {"machine": ", ".join(f"{key} {value}" for key, value in {"pyro-mvae": __version__, **environment()}.items())}
    page = PAGE.format(
        title="pyro-mvae: prompts",
        tables="".join(f"<h2>{html.escape(title)}</h2>{html_table(*as_text(table))}" for title, table in tables.items()),
        note="",
        pictures=pictures,
        facts="".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd>" for name, value in facts.items()),
    )
    write_text(out / "report.html", page)
