"""Where a run of training stands: what a checkpoint holds, and what a run that went wrong goes back to."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pyro_mvae.data import batches, num_batches
from pyro_mvae.inference import checkpoint as files
from pyro_mvae.inference.average import blend, warmed
from pyro_mvae.inference.compiled import Graph
from pyro_mvae.inference.layout import laid_out, like, placed
from pyro_mvae.inference.objective import Objective
from pyro_mvae.inference.parallel import Parallel
from pyro_mvae.inference.tuning import Controller, Now

WINDOW = 50
"""Steps between two looks at the loss, at which it is read back, controllers that react to it act, and the state is kept."""
ROLLBACKS = 3
EXPLODED = 10
"""A likelihood term this many times as bad as that of the first window is one that exploded."""
RATES = {"theta": "learning_rate", "phi": "guide_learning_rate"}
NOISE = 4  # what a stream of random numbers is for; `data.batches` has the others

State = tuple[dict[str, Tensor], dict[str, Any]]
logger = logging.getLogger(__name__)


class Run:
    """A run of training between its steps.

    Noise is drawn anew for each step from (seed, rank, epoch, step), so that no random state has to be kept.

    Attributes:
        epoch, step: epochs done, and steps done of the one that goes on.
        parameters: those that are trained; one that wants no gradient stays as it is.
        batch_size: may grow from epoch to epoch.
        peaks: the learning rates of θ and φ that `factors` multiply.
        factors: what each controller of the learning rate has set, by its place among the controllers, and "rollback".
        memories: what each controller remembers.
        average, best: the moving average of the weights, and those with the best bound on test images, where they are kept.
        history: a row an epoch.
        changes: what controllers changed, and why.
        how: the backend and the memory format that the run began with; empty before they are chosen.
    """

    def __init__(
        self,
        objective: Objective,
        optimizers: dict[str, Optimizer],
        settings: dict[str, Any],
        *,
        controllers: Sequence[Controller] = (),
        average: nn.Module | None = None,
        best: nn.Module | None = None,
        path: Path | None = None,
        seconds_between: float = 60.0,
        parallel: Parallel | None = None,
    ):
        self.objective, self.optimizers, self.settings = objective, optimizers, settings
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.controllers, self.path = tuple(controllers), path
        self.average, self.best = average, best
        self.seconds_between, self.parallel = seconds_between, parallel or Parallel()
        self.peaks = {side: float(optimizer.param_groups[0]["lr"]) for side, optimizer in optimizers.items()}
        self.factors: dict[str, float] = {}
        self.memories: list[dict[str, Any]] = [{} for _ in self.controllers]
        self.epoch, self.step, self.seconds, self.batch_size = 0, 0, 0.0, int(settings["batch_size"])
        self.epochs, self.rollbacks = int(settings["epochs"]), 0
        self.first_likelihood: float | None = None
        self.best_loss: float | None = None
        self.epoch_sums: dict[str, float] = {}
        self.window_sums: dict[str, Tensor] = {}
        self.window_images = 0
        self.history: list[dict[str, Any]] = []
        self.changes: list[dict[str, Any]] = []
        self.how: dict[str, str] = {}
        self.rewound = False
        self.kept: State | None = None
        self.written, self.started = time.monotonic(), time.perf_counter()

    @property
    def model(self) -> nn.Module:
        return self.objective.vae

    @property
    def evaluated(self) -> nn.Module:
        """What is measured on test images: the average of the weights, if one is kept."""
        return self.model if self.average is None else self.average

    @property
    def result(self) -> nn.Module:
        """What the model is to be in the end."""
        return self.evaluated if self.best is None else self.best

    @property
    def copies(self) -> dict[str, nn.Module]:
        """The copies of the model that are kept beside it."""
        return {name: copy for name, copy in {"average": self.average, "best": self.best}.items() if copy is not None}

    @property
    def steps_per_epoch(self) -> int:
        return num_batches(self.settings["num_images"], batch_size=self.batch_size)

    @property
    def done(self) -> int:
        """Steps taken, at the present size of a batch."""
        return self.epoch * self.steps_per_epoch + self.step

    @property
    def total(self) -> int:
        """Steps in the whole run, at the present size of a batch."""
        return self.epochs * self.steps_per_epoch

    # the loop

    def steps(self, images: Tensor, *, binarization: str) -> Iterator[Tensor]:
        """The batches that are left, of all epochs, each after the noise of its step has been seeded."""
        self.keep()
        like = next(self.model.parameters())
        while self.epoch < self.epochs:
            self.rewound = False
            self.started = time.perf_counter() - self.seconds
            seeds = noise_seeds(self.settings["seed"], self.parallel.rank, self.epoch, num_steps=self.steps_per_epoch)
            how: dict[str, Any] = {"batch_size": self.batch_size, "epoch": self.epoch, "seed": self.settings["seed"]}
            for x in batches(images, **how, binarization=binarization, start=self.step):
                torch.manual_seed(int(seeds[self.step]))
                self.tune("step")
                yield x.to(like.device, non_blocking=True)
                if self.rewound:
                    break

    def update(self, graph: Graph, x: Tensor) -> None:
        """One gradient step on a batch; the loss is not read back."""
        share = self.parallel.share(x)
        if len(share):
            terms, gradients = graph(share)
        else:  # fewer images than processes
            terms, gradients = dict.fromkeys(self.window_sums, x.new_zeros(())), [torch.zeros_like(p) for p in self.parameters]
        self.parallel.sum_gradients(gradients, weight=len(share) / len(x))
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = like(parameter, gradient)
        if self.settings["clip"]:
            nn.utils.clip_grad_norm_(self.parameters, self.settings["clip"])
        for optimizer in self.optimizers.values():
            optimizer.step()
        if self.average is not None:
            blend(self.average, self.model, decay=warmed(self.settings["ema"], self.done))
        for name, term in terms.items():
            total = self.window_sums.get(name)
            self.window_sums[name] = term * len(share) if total is None else total.add_(term, alpha=len(share))
        self.window_images += len(x)
        self.step += 1
        self.seconds = time.perf_counter() - self.started

    @property
    def at_window(self) -> bool:
        """Whether it is time to look: each `WINDOW` steps and at the end of an epoch."""
        return self.step % WINDOW == 0 or self.step == self.steps_per_epoch

    def look(self) -> dict[str, float]:
        """Read back the terms of the last window, as means over its images; go back where they are not what they should be.

        Raises:
            FloatingPointError: after the last rollback.
        """
        terms = {name: float(value) / self.window_images for name, value in self.parallel.summed(self.window_sums).items()}
        if self.first_likelihood is None:
            self.first_likelihood = terms["likelihood"]
        trouble = self.trouble(terms)
        if trouble:
            self.go_back(trouble)
            return {}
        for name, mean in terms.items():
            self.epoch_sums[name] = self.epoch_sums.get(name, 0.0) + mean * self.window_images
        for value in self.window_sums.values():
            value.zero_()
        self.window_images = 0
        self.parallel.average_buffers(self.model)
        self.tune("window", terms)
        return terms

    def trouble(self, terms: Mapping[str, float]) -> str | None:
        """What is wrong with a window, if anything is."""
        if not math.isfinite(terms["loss"]):
            return f"the loss became {terms['loss']}"
        state = [value for value in self.model.state_dict().values() if value.is_floating_point()]
        if not nn.utils.get_total_norm(state).isfinite():
            return "the parameters or the running statistics became infinite or no numbers"
        assert self.first_likelihood is not None
        worst = self.first_likelihood + (EXPLODED - 1) * max(abs(self.first_likelihood), 1.0)
        if terms["likelihood"] > worst:
            return f"the loss exploded, from {self.first_likelihood:.4g} to {terms['loss']:.4g}"
        return None

    def go_back(self, trouble: str) -> None:
        """Take up the last good state with half the learning rate; after `ROLLBACKS` times, give up."""
        where = f"at step {self.step} of epoch {self.epoch + 1}"
        rollbacks = self.rollbacks + 1
        assert self.kept is not None
        self.restore(self.kept)
        if rollbacks > ROLLBACKS:
            self.write()
            kept = f"the last good state is in {self.path}" if self.path else "no checkpoint was asked for"
            raise FloatingPointError(
                f"{trouble} {where}, and again after the learning rate was halved {ROLLBACKS} times; {kept}; try a lower lr"
            )
        self.rollbacks, self.rewound = rollbacks, True
        self.factors["rollback"] = 0.5**rollbacks
        self.note("lr", self.factors["rollback"], f"{trouble} {where}: back to the last good state, half the learning rate")
        self.keep()

    def finish_epoch(self, test_loss: float | None = None) -> dict[str, Any]:
        """Add the epoch's row to the history, in the paper's columns and more; go on to the next."""
        count = self.settings["num_images"]
        terms = {name: total / count for name, total in self.epoch_sums.items()}
        row: dict[str, Any] = {"epoch": self.epoch, **{name: terms.pop(name) for name in ("loss", "kl", "likelihood")}, **terms}
        if test_loss is not None:
            row["test_loss"] = test_loss
            if self.best is not None and (self.best_loss is None or test_loss < self.best_loss):
                self.best_loss = test_loss
                self.best.load_state_dict(self.evaluated.state_dict())
        diagnostics = getattr(self.model, "diagnostics", dict)
        row |= diagnostics()
        row |= {RATES[side]: optimizer.param_groups[0]["lr"] for side, optimizer in self.optimizers.items()}
        row |= {f"{name}_weight": float(value) for name, value in self.objective.weights.items() if name in self.epoch_sums}
        row |= {"batch_size": self.batch_size, "seconds": self.seconds, "images_per_second": count / max(self.seconds, 1e-9)}
        self.history.append(dict(row))
        self.epoch, self.step, self.seconds, self.epoch_sums = self.epoch + 1, 0, 0.0, {}
        self.tune("epoch")
        return row

    # what controllers change

    def tune(self, moment: str, terms: Mapping[str, float] | None = None) -> None:
        """Let the controllers of a moment, "step", "window" or "epoch", change what they are for."""
        for place, controller in enumerate(self.controllers):
            if controller.moment != moment:
                continue
            now = Now(
                model=self.model,
                epoch=self.epoch + self.step / self.steps_per_epoch,
                epochs=self.epochs,
                terms=terms or {},
                history=self.history,
                value=self.value(controller.knob, place),
            )
            change = controller(now, self.memories[place])
            if change is not None:
                self.turn(controller.knob, change.value, place)
                if change.reason:
                    self.note(controller.knob, change.value, change.reason)
        if moment == "step":
            scale = math.prod(self.factors.values())
            for side, optimizer in self.optimizers.items():
                for group in optimizer.param_groups:
                    group["lr"] = self.peaks[side] * scale

    def value(self, knob: str, place: int) -> float:
        if knob == "lr":
            return self.factors.get(str(place), 1.0)
        if knob in ("batch_size", "epochs"):
            return getattr(self, knob)
        return float(self.objective.weights[knob])

    def turn(self, knob: str, value: float, place: int) -> None:
        if knob == "lr":
            self.factors[str(place)] = value
        elif knob == "batch_size":
            self.batch_size = min(int(value), self.settings["num_images"])
        elif knob == "epochs":
            self.epochs = int(value)
        else:
            self.objective.weights[knob].fill_(value)

    def note(self, knob: str, value: float, reason: str) -> None:
        self.changes.append({"epoch": self.epoch, "step": self.step, "knob": knob, "value": value, "reason": reason})
        logger.info("epoch %d, step %d: %s = %.4g, as %s", self.epoch + 1, self.step, knob, value, reason)

    # what is kept

    def state(self) -> State:
        """Everything that the rest of the run depends on: tensors, and what JSON can hold."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for kind, copy in self.copies.items():
            tensors |= {f"{kind}.{name}": value for name, value in copy.state_dict().items()}
        tensors |= {f"window.{name}": value for name, value in self.window_sums.items()}
        numbers: dict[str, Any] = {}
        for side, optimizer in self.optimizers.items():
            for i, entry in optimizer.state_dict()["state"].items():
                for name, value in entry.items():
                    (tensors if isinstance(value, Tensor) else numbers)[f"{side}.{i}.{name}"] = value
        position = {name: getattr(self, name) for name in POSITION}
        weights = {name: float(value) for name, value in self.objective.weights.items()}
        return tensors, {"settings": self.settings, "position": position, "numbers": numbers, "weights": weights}

    def keep(self) -> None:
        """Copy the state, as one to go back to, and write it if the last one written is `seconds_between` old."""
        tensors, description = self.state()
        history = list(self.history)  # rows do not change, and there may be thousands
        description = files.copied({**description, "position": {**description["position"], "history": []}})
        description["position"]["history"] = history
        if self.kept is not None and self.kept[0].keys() == tensors.keys():
            copies = self.kept[0]
            for name, value in tensors.items():
                copies[name].copy_(value)
        else:
            copies = {name: value.detach().clone() for name, value in tensors.items()}
        self.kept = (copies, description)
        if self.path and time.monotonic() - self.written >= self.seconds_between:
            self.write()

    def write(self, state: State | None = None) -> None:
        """Write a state, the last one kept unless another is given, to `path`; only the first of several processes does."""
        if self.path and self.parallel.rank == 0:
            state = state or self.kept
            assert state is not None
            files.write_keeping_previous(self.path, *state)
        self.written = time.monotonic()

    def load(self) -> None:
        """Take up the state in `path`, or the one before where that is damaged; ValueError when it is of another run."""
        assert self.path is not None
        tensors, description = files.read_or_previous(self.path)
        saved_settings = description.get("settings", {})
        for name, value in self.settings.items():
            saved = saved_settings.get(name)
            if saved != value:
                raise ValueError(f"{self.path} was made with {name}={saved}, not {value}: give the same settings or start anew")
        self.restore((tensors, description))

    def restore(self, state: State) -> None:
        """Take up a state."""
        tensors, description = state
        groups: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "best": {}, "window": {}}
        states: dict[str, dict[int, dict[str, Any]]] = {side: {} for side in self.optimizers}
        for name, value in [*tensors.items(), *description["numbers"].items()]:
            group, _, key = name.partition(".")
            if group in groups:
                groups[group][key] = value
            else:
                index, _, key = key.partition(".")
                states[group].setdefault(int(index), {})[key] = value
        files.fill(self.model, groups["model"], source=self.path)
        for kind, copy in self.copies.items():
            files.fill(copy, groups[kind], source=self.path)
        self.window_sums = {name: value.clone() for name, value in groups["window"].items()}
        for side, optimizer in self.optimizers.items():
            owned = optimizer.param_groups[0]["params"]
            entries = {i: {name: placed(owned[i], value) for name, value in entry.items()} for i, entry in states[side].items()}
            optimizer.load_state_dict({**optimizer.state_dict(), "state": entries})
        for name, value in description["weights"].items():
            self.objective.weights[name].fill_(value)
        for name, value in files.copied(description["position"]).items():
            setattr(self, name, value)

    def lay_out(self, layout: str) -> None:
        """Put the parameters, and what optimisers keep beside them, into a memory format."""
        laid_out(self.model, layout)
        for optimizer in self.optimizers.values():
            for parameter, entry in optimizer.state.items():
                entry.update({name: placed(parameter, value) for name, value in entry.items()})


POSITION = (
    *("epoch", "step", "seconds", "batch_size", "epochs", "rollbacks", "first_likelihood", "best_loss"),
    *("epoch_sums", "window_images"),
    *("factors", "memories", "history", "changes", "how"),
)
"""What of a run JSON can hold."""


def noise_seeds(seed: int, rank: int, epoch: int, *, num_steps: int) -> np.ndarray:
    """A seed for the noise of each step of an epoch, another for each process."""
    return np.random.SeedSequence((NOISE, seed, rank, epoch)).generate_state(num_steps)
