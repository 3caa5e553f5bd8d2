"""Amortised stochastic variational inference (13): `fit`, the only training loop."""

from __future__ import annotations

import copy
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from pyro_mvae.data import Data
from pyro_mvae.data.batches import shown
from pyro_mvae.data.progress import Track, untracked
from pyro_mvae.inference import checkpoint as files
from pyro_mvae.inference.compiled import BACKENDS, Graph, compile_gradients
from pyro_mvae.inference.fastest import fastest
from pyro_mvae.inference.history import Callback
from pyro_mvae.inference.layout import LAYOUTS, in_layout, laid_out
from pyro_mvae.inference.memory import freed_memory_kept
from pyro_mvae.inference.objective import Objective
from pyro_mvae.inference.optimizers import OptimizerFactory, check_factory, described, make_optimizers
from pyro_mvae.inference.parallel import Parallel, ProcessLost
from pyro_mvae.inference.penalties import Penalty
from pyro_mvae.inference.precision import require
from pyro_mvae.inference.run import Run
from pyro_mvae.inference.tracing import own_noise
from pyro_mvae.inference.tuning import TEST_LOSS, Controller, OneCycle, check
from pyro_mvae.nets.modes import evaluating
from pyro_mvae.numbers import above, count, number

KEPT = ("last", "best")

logger = logging.getLogger(__name__)


class Interrupted(KeyboardInterrupt):
    """Training was stopped by Ctrl-C or SIGTERM, between two steps; its state is in `checkpoint`, if one was asked for."""

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
    optimizer: OptimizerFactory = torch.optim.Adam,
    guide_optimizer: OptimizerFactory | None = None,
    penalties: Sequence[Penalty] = (),
    kl_weight: float = 1.0,
    theta_kl_weight: float = 1.0,
    controllers: Sequence[Controller] = (OneCycle(),),
    clip: float | None = None,
    ema: float | None = None,
    keep: str = "last",
    precision: str = "float32",
    test: Tensor | None = None,
    seed: int = 0,
    compile: str = "auto",
    layout: str = "auto",
    callbacks: Sequence[Callback] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = 60.0,
    resume: bool = False,
    progress: Track = untracked,
    description: str = "Fitting",
) -> pd.DataFrame:
    """Fit a Pyro pair by stochastic gradients of the ELBO through its amortised guide: minimise (14), jointly in θ and φ.

    θ, the parameters of the likelihood side, are updated by `optimizer` with rate `lr`, φ, those of the guide (the modules named
    `encoder…`), by `guide_optimizer` with `guide_lr` (29). In all but the shortest runs the pair is traced into one graph,
    so that a step costs what hand-written PyTorch costs; the mathematics is Pyro's own. It is trained on the device that its
    parameters are on.

    Training is reproducible for a seed, `compile` and `layout` on a machine, and leaves the global random state as it was; "auto"
    chooses by time, so that two runs of minutes may differ in rounding, but a run and its resumption do not. A loss that is no
    number or explodes takes the run back to the last good state, with half the learning rate, three times at most. Under
    `torchrun` the processes share each batch, see `pyro_mvae.inference.parallel`.

    Args:
        model: an `nn.Module` with `model(x)` and `guide(x)`; trained in place.
        data: a `Data`, whose training images are used, or a tensor of images, uint8 in 0–255, (n, C, H, W).
        epochs, batch_size, lr, guide_lr, seed: as usual; `guide_lr` is `lr` when None.
        optimizer, guide_optimizer: classes of `torch.optim`, `RootAdam` (28), or `functools.partial` of one for other settings;
            `guide_optimizer` is `optimizer` when None.
        penalties: the regularisers λR of (14), see `pyro_mvae.penalties`.
        kl_weight, theta_kl_weight: β and β′, see `Objective`.
        controllers: what changes the learning rate and other settings while training, see `pyro_mvae.tuning`; one cycle of the
            learning rate by default, () for none.
        clip: the largest norm of the gradient of all parameters; what is longer is shortened to it.
        ema: the decay of a moving average of the weights, such as 0.999, which the model is given at the end.
        keep: the weights that the model has at the end: "last", or "best", those with the best bound on test images after an
            epoch; then images to report a likelihood on should be others.
        precision: "float32", or "bfloat16" for mixed precision: the nets compute in bfloat16, all else in float32.
        test: images that the bound is measured on after each epoch; when None, those of a `Data` where a controller or `keep`
            asks for them.
        compile: how a step is run: "pyro", "eager" or "inductor", see `compile_gradients`; "auto" measures both graphs where the
            run is long enough to win back the time that compiling takes, keeps to "eager" otherwise, and to "pyro" in a run that
            is over before a graph is ready. A run that is resumed goes on as it began, unless told otherwise.
        layout: the memory format of convolutions, "channels_last" or "contiguous"; "auto" measures both where it is worth it.
        callbacks: called with the model and the row of the history after each epoch; see `write_csv` and `write_tensorboard`.
        checkpoint: where the state is kept; the state before it is kept beside it, as `NAME.previous.safetensors`.
        checkpoint_seconds: how often the state is written, besides at the end and at an interruption.
        resume: go on from `checkpoint` if it is there; the parameters then come out as if nothing had happened.
        progress: shows how far it is: takes the steps, `description` and their number, gives the steps on.

    Returns: the history, a row per epoch: epoch, loss, kl, likelihood, theta_kl if there is one, each factor of the model and
        each penalty R (nats per datum), test_loss if asked for, the model's diagnostics, both learning rates, the weights β and
        λ, batch_size, seconds and images_per_second. Its `attrs` hold "changes", what controllers changed and why, and "how",
        the backend and memory format.

    Raises:
        ValueError: for settings that can't be, images of another shape, or a checkpoint of other settings.
        FloatingPointError: when the loss is no number again and again; names the step and the last good state.
        Interrupted: after Ctrl-C or SIGTERM.
        ProcessLost: when another process of a run under `torchrun` is gone; the state of the last window is in `checkpoint`.

    Example:
        >>> from pyro_mvae.models import MVAE
        >>> images = (torch.rand(64, 1, 8, 8) * 255).byte()
        >>> fit(MVAE((1, 8, 8), 4), images, epochs=2).columns.tolist()[:4]
        ['epoch', 'loss', 'kl', 'likelihood']
    """
    if not isinstance(data, Data | Tensor):
        raise ValueError(f"data is a {type(data).__name__}, expected a Data, see load_data, or a tensor of images, uint8")
    images, binarization = (data.train.images, data.binarization) if isinstance(data, Data) else (data, "none")
    check_settings(model, images, epochs=epochs, batch_size=batch_size, seed=seed, lr=lr, guide_lr=guide_lr, clip=clip)
    for name, values in {"penalties": penalties, "controllers": controllers, "callbacks": callbacks}.items():
        if not isinstance(values, Sequence):
            raise ValueError(f"{name} is {values!r}, expected a list of them, () for none")
    if resume and checkpoint is None:
        raise ValueError("resume=True needs to know from where: give checkpoint=")
    if checkpoint is not None:
        files.claim(Path(checkpoint))
    check_choice("compile", compile, ("auto", "pyro", *BACKENDS))
    check_choice("layout", layout, ("auto", *LAYOUTS))
    check_choice("keep", keep, KEPT)
    if ema is not None and not 0 < number(ema, "ema") < 1:
        raise ValueError(f"ema is {ema}, expected a decay between 0 and 1, such as 0.999")
    wants_test = keep == "best" or any(getattr(each, "on", None) == TEST_LOSS for each in controllers)
    if test is None and isinstance(data, Data) and wants_test:
        test = data.test.images
    if keep == "best" and test is None:
        raise ValueError('keep="best" needs the bound on test images: give fit a Data, or test=')
    if test is not None and not len(test):
        raise ValueError("there are no test images to measure a bound on: give fit test= with some")
    device = next(model.parameters()).device
    require(precision, device)
    objective = Objective(model, penalties, kl_weight=kl_weight, theta_kl_weight=theta_kl_weight, precision=precision)
    check(controllers, weights=objective.weights, has_test=test is not None)
    parallel = Parallel.current()
    if parallel.size > 1 and min(batch_size, len(images)) < 2 * parallel.size:
        raise ValueError(f"{parallel.size} processes can't share batches of {min(batch_size, len(images))}: give larger ones")
    guide_optimizer = guide_optimizer or optimizer
    for factory in (optimizer, guide_optimizer):
        check_factory(factory)
    rates = {"lr": lr, "guide_lr": guide_lr or lr}
    settings = {
        "epochs": epochs,
        "batch_size": batch_size,
        **rates,
        "clip": clip,
        "ema": ema,
        "keep": keep,
        "precision": precision,
    }
    settings |= {"optimizer": described(optimizer), "guide_optimizer": described(guide_optimizer), "num_images": len(images)}
    settings |= {
        "penalties": [named(each) for each in penalties],
        "kl_weight": kl_weight,
        "theta_kl_weight": theta_kl_weight,
        "seed": seed,
    }
    settings |= {"controllers": [named(each) for each in controllers]}

    model.train()
    run = Run(
        objective,
        make_optimizers(model, optimizer=optimizer, guide_optimizer=guide_optimizer, **rates),
        settings,
        controllers=controllers,
        average=copy.deepcopy(model).requires_grad_(False) if ema else None,
        best=copy.deepcopy(model).requires_grad_(False) if keep == "best" else None,
        path=Path(checkpoint) if checkpoint else None,
        seconds_between=checkpoint_seconds,
        parallel=parallel,
    )
    with own_noise(), freed_memory_kept(), ExitStack() as stack:
        torch.manual_seed(seed)
        if resume and run.path and files.exists(run.path):
            run.load()
        run.how, graph = chosen(run, images, backend=compile, layout=layout)
        run.lay_out(run.how["layout"])
        graph = graph or traced(run, images[: run.batch_size])
        # not before: until here there is nothing to lose, and nobody looks whether somebody wants to stop
        interrupted = stack.enter_context(delayed_interrupt())
        run.write(run.state())  # what was chosen by time has to be kept as well
        steps = progress(run.steps(images, binarization=binarization), description, run.total - run.done)
        try:
            for x in steps:
                run.update(graph, x)
                if run.at_window:
                    run.look()
                    if run.step == run.steps_per_epoch:
                        finish_epoch(run, test, binarization, callbacks)
                    run.keep()
                if interrupted.is_set():
                    stop(run)
        except ProcessLost:
            run.write()
            raise
    run.keep()
    run.write()
    model.load_state_dict(run.result.state_dict())
    model.zero_grad()
    laid_out(model.eval(), "contiguous")
    frame = pd.DataFrame(run.history)
    frame.attrs = {"changes": run.changes, "how": run.how}
    return frame


def chosen(run: Run, images: Tensor, *, backend: str, layout: str) -> tuple[dict[str, str], Graph | None]:
    """How the steps are run: as told, as the run began, or as is measured to be fastest, with the graph that was measured."""
    told = {name: value for name, value in {"backend": backend, "layout": layout}.items() if value != "auto"}
    if run.how:
        return {**run.how, **told}, None
    x = images[: run.batch_size].to(next(run.model.parameters()).device).float() / 255
    return fastest(run.objective, x, num_steps=run.total - run.done, backend=backend, layout=layout)


def traced(run: Run, images: Tensor) -> Graph:
    """The graph of a step."""
    x = in_layout(images.float().to(next(run.model.parameters()).device), run.how["layout"])
    started = time.perf_counter()
    graph = compile_gradients(run.objective, x, backend=run.how["backend"])
    logger.info("traced in %.1f s", time.perf_counter() - started)
    return graph


def finish_epoch(run: Run, test: Tensor | None, binarization: str, callbacks: Sequence[Callback]) -> None:
    """Measure the bound on test images, close the epoch, and call who wants to know."""
    bound = None if test is None else negative_bound(run.evaluated, test, binarization=binarization, seed=run.settings["seed"])
    row = run.finish_epoch(bound)
    if run.parallel.rank == 0:
        for callback in callbacks:
            callback(run.model, row)


@torch.no_grad()
def negative_bound(model: nn.Module, images: Tensor, *, binarization: str = "none", seed: int = 0, chunk: int = 500) -> float:
    """−ELBO per image in nats, of a model in evaluation mode, without what it weighs or adds to it in training.

    The noise and the binarisation follow from the seed.
    """
    count(chunk, "chunk")
    device, objective, total = next(model.parameters()).device, Objective(model), 0.0
    xs = shown(images, binarization=binarization, seed=seed)
    with own_noise(), evaluating(model):
        torch.manual_seed(seed)
        for x in xs.split(chunk):
            terms = objective(x.to(device))
            total += sum(float(terms[name]) for name in ("likelihood", "kl", "theta_kl") if name in terms) * len(x)
    return total / len(images)


def stop(run: Run) -> None:
    """Write the state as it is, and raise Interrupted."""
    run.write(run.state())
    kept = f"the state is in {run.path}" if run.path else "no checkpoint was asked for"
    raise Interrupted(f"stopped at step {run.step} of epoch {run.epoch + 1}; {kept}", run.path)


def named(value: object) -> str:
    """What a checkpoint says of a value, to know it again: its `repr`, or its class's name where it has none of its own."""
    return type(value).__qualname__ if type(value).__repr__ is object.__repr__ else repr(value)


def check_settings(model: Any, images: Tensor, *, epochs: Any, batch_size: Any, seed: Any, **rates: Any) -> None:
    """Raise a ValueError for what `fit` would not begin with; for whoever wants to know before a folder is made.

    Args:
        rates: `lr` and others that have to be above 0, or None.
    """
    check_model(model, images)
    for name, value in {"epochs": epochs, "batch_size": batch_size}.items():
        count(value, name)
    for name, value in rates.items():
        if value is not None:
            above(value, name)
    count(seed, "seed", 0)
    check_images(images, model, batch_size=batch_size)


def check_model(model: Any, images: Tensor) -> None:
    """Raise a ValueError for what is no pair with parameters, or images that are not its own."""
    if not isinstance(model, nn.Module) or not hasattr(model, "model") or not hasattr(model, "guide"):
        raise ValueError(f"the model is a {type(model).__name__}, expected a module with a method `model` and a method `guide`")
    if next(model.parameters(), None) is None:
        raise ValueError(f"{type(model).__name__} has no parameters: there is nothing to fit")
    check_shape: Any = getattr(model, "check", None)
    if check_shape:
        check_shape(images[:1].float() / 255)


def check_images(images: Tensor, model: nn.Module, *, batch_size: int) -> None:
    """Raise a ValueError for no images, or batches that can't be normalised."""
    if not len(images):
        raise ValueError("there are no images to fit the model to")
    smallest = min(batch_size, len(images))
    if smallest < 2 and any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()):
        what = "batch_size is 1" if len(images) > 1 else "there is one image"
        raise ValueError(f"{what}, and the model normalises by its batches, which takes 2 images or more")


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r}, expected one of: {', '.join(known)}")


@contextmanager
def delayed_interrupt() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM set the event instead of ending a step, or a write, in its middle; a second one does what it used to do.

    `torchrun` sends SIGTERM to the processes that are left when one is lost, schedulers before they stop a job. Only in the
    main thread.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {each: signal.getsignal(each) or signal.SIG_DFL for each in (signal.SIGINT, signal.SIGTERM)}

    def handle(received: int, frame: Any) -> None:
        if event.is_set():
            signal.signal(received, before[signal.Signals(received)])
            signal.raise_signal(received)
        event.set()

    for each in before:
        signal.signal(each, handle)
    try:
        yield event
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
