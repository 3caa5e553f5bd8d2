"""What tests run in processes of their own, to be killed there."""

from __future__ import annotations

import os
import signal
import threading
from functools import partial
from pathlib import Path

import pyro.distributions as dist
import torch
import torch.distributed as distributed
from torch import Tensor, nn

from pyro_mvae import VAE, fit, save_model
from pyro_mvae.inference.asvi import Interrupted
from pyro_mvae.inference.parallel import ProcessLost

SHAPE = (1, 8, 8)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.loc, self.log_scale = nn.Linear(64, 3), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.loc(x.flatten(1)), self.log_scale(x.flatten(1)).exp()


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Linear(3, 64)

    def forward(self, z: Tensor) -> Tensor:
        return self.logits(z).unflatten(1, SHAPE)


class Still(VAE):
    """Its posterior is so narrow that no noise is seen."""

    def posterior(self, x: Tensor):
        loc, _ = self.encoder(x)
        return dist.Normal(loc, torch.full_like(loc, 1e-7)).to_event(1)


def make(kind: type[VAE] = VAE) -> VAE:
    torch.manual_seed(0)
    return kind(SHAPE, 3, encoder=Encoder(), decoder=Decoder())


def pictures(n: int = 60) -> Tensor:
    return torch.randint(0, 256, (n, *SHAPE), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def train(folder: Path, last: int | None, seconds: float = 0.0) -> None:
    """Go on with a run and leave its model in `folder`; or be killed some seconds after its `last` step began."""
    torch.set_num_threads(1)

    def progress(steps, description, total):
        for number, x in enumerate(steps):
            if number == last:
                threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
            yield x

    model, state = make(), folder / "state.safetensors"
    how = {"epochs": 150, "batch_size": 8, "optimizer": torch.optim.Adam, "ema": 0.9, "compile": "pyro"}
    fit(model, pictures(), **how, checkpoint=state, checkpoint_seconds=0.0, resume=True, progress=progress)
    save_model(folder / "model.safetensors", model)


def parallel(rank: int, size: int, folder: Path, job: str) -> None:
    """A process of several; leaves what it found in `folder`."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=size)
    try:
        result = JOBS[job](rank, folder)
    finally:
        distributed.destroy_process_group()
    torch.save(result, folder / f"{rank}.pt")


def fifty_steps(rank: int, folder: Path) -> list[Tensor]:
    model = make()
    fit(model, pictures(63), epochs=7, batch_size=8, checkpoint=folder / f"state-{rank}.safetensors", test=pictures(8))
    return [value.detach() for value in model.state_dict().values()]


def without_noise(rank: int, folder: Path) -> list[Tensor]:
    """What a single process computes on the joined batches; 63 images, so that the shares differ in size."""
    model = make(Still)
    fit(model, pictures(63), epochs=2, batch_size=9, optimizer=torch.optim.SGD, lr=1e-3, controllers=())
    return [value.detach() for value in model.parameters()]


def lose_one(rank: int, folder: Path, *, terminated: bool = False) -> str:
    """One process is killed; where the other is `terminated`, it is told to end as well, as `torchrun` does."""
    (folder / f"pid-{rank}").write_text(str(os.getpid()))

    def progress(steps, description, total):
        for number, x in enumerate(steps):
            if number == 60 and rank == 1:
                if terminated:
                    os.kill(int((folder / "pid-0").read_text()), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGKILL)
            yield x

    try:
        fit(make(), pictures(), epochs=20, batch_size=8, checkpoint=folder / "state.safetensors", progress=progress)
    except (ProcessLost, Interrupted) as error:
        return str(error)
    return "nothing happened"


JOBS = {
    "fifty_steps": fifty_steps,
    "without_noise": without_noise,
    "lose_one": lose_one,
    "lose_one_and_be_terminated": partial(lose_one, terminated=True),
}
