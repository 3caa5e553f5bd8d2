"""Runs that are killed, files that are damaged, processes that are lost."""

import multiprocessing
import random
import subprocess
import sys

import pytest
import torch

from pyro_mvae import Interrupted, fit, load_model
from pyro_mvae.inference.checkpoint import previous, read
from pyro_mvae.inference.run import noise_seeds
from tests.inference import workers
from tests.inference.mishaps import interrupt_at


@pytest.fixture(scope="module")
def processes():
    """Starts processes that have everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "tests.inference.workers"])  # what an optimiser imports, too
    return context


def run(processes, target, *arguments):
    """The exit code of a process."""
    process = processes.Process(target=target, args=arguments)
    process.start()
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


def run_two(processes, folder, job):
    """What each of two processes returned, None for one that was killed."""
    both = [processes.Process(target=workers.parallel, args=(rank, 2, folder, job)) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(90)
        assert process.exitcode is not None, "a process hangs"
    return [torch.load(path) if path.exists() else None for path in (folder / "0.pt", folder / "1.pt")]


def test_a_run_that_is_killed_again_and_again_ends_as_if_nothing_had_happened(processes, tmp_path):
    """`kill -9` at 20 random moments; tmp files of writes that were cut short may stay, and do no harm."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir(), killed.mkdir()
    assert run(processes, workers.train, whole, None) == 0
    moments, positions = random.Random(0), []
    for _ in range(20):
        assert run(processes, workers.train, killed, moments.randint(1, 60), moments.uniform(0.0, 0.01)) == -9
        if (killed / "state.safetensors").exists():
            position = read(killed / "state.safetensors")[1]["position"]
            positions.append((position["epoch"], position["step"]))
    assert run(processes, workers.train, killed, None) == 0
    assert positions == sorted(positions)
    assert len(set(positions)) > 5
    expected, got = (load_model(folder / "model.safetensors", into=workers.make()).state_dict() for folder in (whole, killed))
    assert all(torch.equal(expected[name], got[name]) for name in expected)


@pytest.mark.parametrize("damage", ["cut short", "a bit turned", "missing"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(damage, tmp_path, caplog):
    state = tmp_path / "state.safetensors"
    how = {"epochs": 6, "batch_size": 20, "checkpoint": state, "checkpoint_seconds": 0.0}
    whole, resumed = workers.make(), workers.make()
    fit(whole, workers.pictures(), **{**how, "checkpoint": None})
    with pytest.raises(Interrupted):
        fit(workers.make(), workers.pictures(), **how, progress=interrupt_at(13))
    assert read(previous(state))[1]["position"]["epoch"] == 4
    content = bytearray(state.read_bytes())
    content[-5] ^= 4
    if damage == "cut short":
        state.write_bytes(state.read_bytes()[:-100])
    elif damage == "a bit turned":
        state.write_bytes(content)
    else:
        state.unlink()
    with caplog.at_level("WARNING"):
        fit(resumed, workers.pictures(), **how, resume=True)
    assert "state.safetensors" in caplog.text
    assert "going on from the checkpoint before it" in caplog.text
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_when_both_checkpoints_are_damaged_the_run_does_not_start(tmp_path):
    state = tmp_path / "state.safetensors"
    how = {"epochs": 2, "batch_size": 20, "checkpoint": state, "checkpoint_seconds": 0.0}
    fit(workers.make(), workers.pictures(), **how)
    for path in (state, previous(state)):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"previous\.safetensors is damaged"):
        fit(workers.make(), workers.pictures(), **how, resume=True)


def test_the_state_is_written_at_the_beginning_every_so_many_seconds_and_at_the_end(tmp_path):
    state = tmp_path / "state.safetensors"
    written = []

    def watch(model, row):
        written.append(read(state)[1]["position"]["epoch"])

    fit(workers.make(), workers.pictures(), epochs=3, checkpoint=state, checkpoint_seconds=3600.0, callbacks=[watch])
    assert written == [0] * 3
    assert read(state)[1]["position"]["epoch"] == 3


def test_two_processes_stay_one_model_and_the_first_one_writes(processes, tmp_path):
    first, second = run_two(processes, tmp_path, "fifty_steps")
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], workers.make().state_dict()["encoder.loc.weight"])
    assert sorted(path.name for path in tmp_path.glob("state*")) == ["state-0.previous.safetensors", "state-0.safetensors"]


def test_two_processes_do_what_one_does_on_the_joined_batch(processes, tmp_path):
    both = run_two(processes, tmp_path, "without_noise")
    expected = workers.without_noise(0, tmp_path)
    for a, b, c in zip(*both, expected, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=1e-5, atol=1e-6)


def test_each_process_draws_noise_of_its_own():
    drawn = [noise_seeds(0, rank, epoch, num_steps=50).tolist() for rank in range(2) for epoch in range(2)]
    assert len({seed for seeds in drawn for seed in seeds}) == 200


def test_a_process_that_is_lost_ends_the_run_with_a_state_to_go_on_from(processes, tmp_path):
    first, second = run_two(processes, tmp_path, "lose_one")
    assert "process 0 of 2 lost another one" in first
    assert second is None
    position = read(tmp_path / "state.safetensors")[1]["position"]
    assert (position["epoch"], position["step"]) == (7, 0)
    history = fit(
        workers.make(), workers.pictures(), epochs=20, batch_size=8, checkpoint=tmp_path / "state.safetensors", resume=True
    )
    assert history["epoch"].tolist() == list(range(20))


def test_a_process_that_is_told_to_end_writes_its_state_first(processes, tmp_path):
    """As `torchrun` does with the processes that are left when one is lost."""
    first, second = run_two(processes, tmp_path, "lose_one_and_be_terminated")
    assert "lost another one" in first or "stopped at step" in first
    assert second is None
    assert read(tmp_path / "state.safetensors")[1]["position"]["epoch"] == 7


def test_torchrun_trains_with_two_processes(tmp_path):
    from PIL import Image

    for i, image in enumerate(workers.pictures(20)):
        Image.fromarray(image[0].numpy()).resize((16, 16)).save(tmp_path / f"{i}.png")
    command = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29513", "-m", "pyro_mvae", "train"]
    options = ["vae.safetensors", "--data", f"folder:{tmp_path}", "--size", "16", "--epochs", "1", "--batch-size", "8"]
    done = subprocess.run([sys.executable, *command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("NLL") == 1
    assert load_model(tmp_path / "vae.safetensors").image_shape == (3, 16, 16)
