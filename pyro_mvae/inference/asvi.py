"""Amortised stochastic variational inference (13): `fit`, the only training loop."""

from __future__ import annotations

import logging
import math
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from pyro_mvae.data import Data, batches, num_batches
from pyro_mvae.data.progress import Track, untracked
from pyro_mvae.inference import checkpoint as files
from pyro_mvae.inference.compiled import BACKENDS, compile_gradients, restored
from pyro_mvae.inference.objective import Miniaturization, Objective
from pyro_mvae.nets.conv import channels_last

WORTH_COMPILING = 300.0
"""Seconds of training below which compiling is not tried: it takes its time as well."""

logger = logging.getLogger(__name__)


class Interrupted(KeyboardInterrupt):
    """Training was stopped by Ctrl-C, between two steps; its state is in `checkpoint`, if one was asked for."""

    def __init__(self, message: str, checkpoint: Path | None):
        super().__init__(message)
        self.checkpoint = checkpoint


def fit(
    model: nn.Module,
    data: Data | Tensor,
    *,
    epochs: int = 10,
    batch_size: int = 64,
    lr: float = 3e-3,
    guide_lr: float | None = None,
    seed: int = 0,
    miniaturization: Miniaturization | None = None,
    compile: str = "auto",
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: Track = untracked,
    description: str = "Fitting",
) -> pd.DataFrame:
    """Fit a Pyro pair by stochastic gradients of the ELBO through its amortised guide: minimise (14), jointly in θ and φ.

    θ, the parameters of the likelihood side, are updated by Adam (24–28) with rate `lr`, φ, those of the guide (the modules named
    `encoder`), with `guide_lr`; both follow one cycle: a linear rise over the first tenth of the steps, then half a cosine.
    The pair is traced into one graph, so that a step costs what hand-written PyTorch costs; the mathematics is Pyro's own.
    Training is reproducible for a seed and leaves the global random state as it was.

    Args:
        model: an `nn.Module` with `model(x)` and `guide(x)`; trained in place.
        data: a `Data`, whose training images are used, or a tensor of images, uint8 in 0–255, (n, C, H, W).
        epochs, batch_size, lr, guide_lr, seed: as usual; `guide_lr` is `lr` when None.
        miniaturization: the regularisers of (14).
        compile: how the graph is run: "eager" or "inductor", see `compile_gradients`; "auto" measures both where the run is long
            enough to win back the time that compiling takes, and keeps to "eager" otherwise. A run that is resumed goes on as it
            began, unless told otherwise.
        checkpoint: where the state is kept: after each epoch, and when training is interrupted.
        resume: go on from `checkpoint` if it is there; the parameters then come out as if nothing had happened.
        progress: shows how far it is: takes the steps, `description` and their number, gives the steps on.

    Returns: the history, a row per epoch: epoch, loss, kl, likelihood and penalties (nats per datum), learning_rate, seconds.

    Raises:
        ValueError: for settings that can't be, images of another shape, or a checkpoint of other settings.
        FloatingPointError: when the loss is not finite; names the step and the last good checkpoint.
        Interrupted: after Ctrl-C.

    Example:
        >>> from pyro_mvae.models import MVAE
        >>> images = (torch.rand(64, 1, 8, 8) * 255).byte()
        >>> fit(MVAE((1, 8, 8), 4), images, epochs=2).columns.tolist()
        ['epoch', 'loss', 'likelihood', 'kl', 'learning_rate', 'seconds']
    """
    check_settings(epochs=epochs, batch_size=batch_size, lr=lr)
    if compile not in ("auto", *BACKENDS):
        raise ValueError(f"compile is {compile!r}, expected one of: auto, {', '.join(BACKENDS)}")
    images, binarization = (data.train.images, data.binarization) if isinstance(data, Data) else (data, "none")
    settings = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "guide_lr": guide_lr or lr, "seed": seed}
    settings |= {"num_images": len(images), "miniaturization": repr(miniaturization or Miniaturization())}

    channels_last(model.train())
    optimizer = make_optimizer(model, lr=lr, guide_lr=guide_lr or lr)
    run = Run(model, optimizer, settings, Path(checkpoint) if checkpoint else None)
    with torch.random.fork_rng(devices=[]), delayed_interrupt() as interrupted:
        torch.manual_seed(seed)
        if resume and run.path and run.path.exists():
            run.load()
        example = images[:1].float().contiguous(memory_format=torch.channels_last)
        objective = Objective(model, miniaturization)
        if compile != "auto":
            run.backend = compile
        if run.backend is None:
            run.backend = fastest_backend(objective, images[:batch_size].float() / 255, num_steps=run.total - run.done)
        graph = compile_gradients(objective, example, backend=run.backend)
        steps = run.steps(images, binarization=binarization)
        for x in progress(steps, description, run.total - run.done):
            set_rates(optimizer, one_cycle(run.done, run.total))
            run.update(graph, x)
            if interrupted.is_set():
                run.stop()
    model.eval().to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    return pd.DataFrame(run.history)


class Run:
    """Where a run stands: what a checkpoint holds beyond the settings."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, settings: dict[str, Any], path: Path | None):
        self.model, self.optimizer, self.settings, self.path = model, optimizer, settings, path
        self.steps_per_epoch = num_batches(settings["num_images"], batch_size=settings["batch_size"])
        self.epoch, self.step, self.seconds = 0, 0, 0.0
        self.backend: str | None = None
        self.sums: dict[str, float] = {}
        self.history: list[dict[str, float]] = []

    def steps(self, images: Tensor, *, binarization: str) -> Iterator[Tensor]:
        """The batches that are left, of all epochs; between two epochs, what there is to do at the end of one."""
        batch_size, seed = self.settings["batch_size"], self.settings["seed"]
        while self.epoch < self.settings["epochs"]:
            started = time.perf_counter() - self.seconds
            for x in batches(
                images, batch_size=batch_size, epoch=self.epoch, seed=seed, binarization=binarization, start=self.step
            ):
                yield x
                self.seconds = time.perf_counter() - started
            self.finish_epoch()

    @property
    def total(self) -> int:
        """Steps in the whole run."""
        return self.settings["epochs"] * self.steps_per_epoch

    @property
    def done(self) -> int:
        """Steps taken."""
        return self.epoch * self.steps_per_epoch + self.step

    def update(self, graph: Callable[[Tensor], tuple[dict[str, Tensor], list[Tensor]]], x: Tensor) -> None:
        """One gradient step."""
        terms, gradients = graph(x)
        values = {name: float(term) for name, term in terms.items()}
        if not math.isfinite(values["loss"]):
            kept = f"the last good checkpoint is {self.path}" if self.path and self.path.exists() else "nothing was saved"
            raise FloatingPointError(
                f"the loss became {values['loss']} at step {self.step + 1} of epoch {self.epoch + 1}; {kept}; try a lower lr"
            )
        for parameter, gradient in zip(self.model.parameters(), gradients, strict=True):
            parameter.grad = like(parameter, gradient)
        self.optimizer.step()
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value * len(x)
        self.step += 1

    def finish_epoch(self) -> None:
        """Add the epoch's row to the history and keep its state."""
        terms = {name: total / self.settings["num_images"] for name, total in self.sums.items()}
        rate = self.optimizer.param_groups[0]["lr"]
        self.history.append({"epoch": self.epoch, **terms, "learning_rate": rate, "seconds": self.seconds})
        self.epoch, self.step, self.seconds, self.sums = self.epoch + 1, 0, 0.0, {}
        if self.path and all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            self.save()

    def stop(self) -> None:
        if self.path:
            self.save()
        kept = f"the state is in {self.path}" if self.path else "no checkpoint was asked for"
        raise Interrupted(f"stopped at step {self.step} of epoch {self.epoch + 1}; {kept}", self.path)

    def save(self) -> None:
        """Write the whole state, atomically, to `path`."""
        assert self.path is not None
        state = self.optimizer.state_dict()["state"]
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"optimizer.{i}.{name}": value for i, entry in state.items() for name, value in entry.items()}
        tensors["random"] = torch.get_rng_state()
        position = {"epoch": self.epoch, "step": self.step, "seconds": self.seconds, "sums": self.sums}
        description = {"settings": self.settings, "position": position, "history": self.history, "backend": self.backend}
        files.write(self.path, tensors, description)

    def load(self) -> None:
        """Take up the state in `path`; ValueError when it is of another run."""
        assert self.path is not None
        tensors, description = files.read(self.path)
        for name, value in self.settings.items():
            saved = description.get("settings", {}).get(name)
            if saved != value:
                raise ValueError(f"{self.path} was made with {name}={saved}, not {value}: give the same settings or start anew")
        groups: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}}
        for name, value in tensors.items():
            if name != "random":
                group, _, key = name.partition(".")
                groups[group][key] = value
        files.fill(self.model, groups["model"], source=self.path)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in groups["optimizer"].items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = value if value.ndim == 0 else like(parameters[int(index)], value)
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        torch.set_rng_state(tensors["random"])
        position = description["position"]
        self.epoch, self.step, self.seconds, self.sums = (position[key] for key in ("epoch", "step", "seconds", "sums"))
        self.history, self.backend = description["history"], description["backend"]


def fastest_backend(objective: Objective, x: Tensor, *, num_steps: int) -> str:
    """The backend that takes a run to its end soonest, compiling included; measured on a batch, without training on it.

    Compiling is not tried where the whole run, at the pace of "eager", ends before it could pay off.
    """
    layout = torch.channels_last if x.ndim == 4 else torch.contiguous_format
    x = x.contiguous(memory_format=layout)
    with restored(list(objective.buffers())):
        seconds = seconds_per_step(compile_gradients(objective, x), x)
        if num_steps * seconds < WORTH_COMPILING:
            return "eager"
        try:
            started = time.perf_counter()
            graph = compile_gradients(objective, x, backend="inductor")
            graph(x)
            compiling = time.perf_counter() - started
            compiled = seconds_per_step(graph, x)
        except Exception as error:  # no C++ compiler, or an operation that it does not know: whatever torch raises
            logger.warning("not compiled: %s", str(error).strip().splitlines()[0])
            return "eager"
    logger.info("a step takes %.2f ms run as it is, %.2f ms compiled (in %.0f s)", seconds * 1e3, compiled * 1e3, compiling)
    return "inductor" if compiled < seconds else "eager"


def seconds_per_step(graph: Callable[[Tensor], Any], x: Tensor) -> float:
    """The median of a few runs, the first left out."""
    times = []
    for _ in range(8):
        started = time.perf_counter()
        graph(x)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def like(parameter: Tensor, value: Tensor) -> Tensor:
    """`value` in the memory format of `parameter`: fused optimisers go through both by address."""
    return value if value.stride() == parameter.stride() else torch.empty_like(parameter).copy_(value)


def make_optimizer(model: nn.Module, *, lr: float, guide_lr: float) -> torch.optim.Optimizer:
    """Adam with a rate for θ and one for φ."""
    groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for name, parameter in model.named_parameters():
        groups[name.startswith("encoder")].append(parameter)
    rates = {False: lr, True: guide_lr}
    params = [{"params": groups[key], "lr": rates[key], "peak": rates[key]} for key in groups if groups[key]]
    return torch.optim.Adam(params, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def one_cycle(step: int, total: int) -> float:
    """The learning rate at a step, as a share of its peak.

    Example:
        >>> [round(one_cycle(step, 100), 2) for step in (0, 9, 10, 55, 99)]
        [0.1, 1.0, 1.0, 0.5, 0.0]
    """
    rise = max(total // 10, 1)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / (total - rise)))


def check_settings(**settings: float) -> None:
    for name, value in settings.items():
        if not value > 0:
            raise ValueError(f"{name} is {value}, expected more than 0")


@contextmanager
def delayed_interrupt() -> Iterator[threading.Event]:
    """Ctrl-C sets the event instead of raising in the middle of a step; a second one raises. Only in the main thread."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: Any) -> None:
        if event.is_set() and callable(before):
            before(number, frame)
        event.set()

    signal.signal(signal.SIGINT, handle)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
