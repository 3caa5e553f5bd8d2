from __future__ import annotations

import math
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_mvae.data import batches, binarize, num_batches


def numbered(n: int) -> torch.Tensor:
    """Images that tell which they are."""
    return torch.stack([torch.arange(n) // 256, torch.arange(n) % 256], 1).to(torch.uint8).reshape(n, 2, 1, 1)


def numbers(batch: torch.Tensor) -> list[int]:
    high, low = (batch.reshape(-1, 2) * 255).round().long().T
    return (high * 256 + low).tolist()


@settings(max_examples=60, deadline=None)
@given(n=st.integers(0, 300), batch_size=st.integers(1, 70), epoch=st.integers(0, 5), seed=st.integers(0, 2**40))
def test_an_epoch_is_a_permutation(n, batch_size, epoch, seed):
    epoch_batches = list(batches(numbered(n), batch_size=batch_size, epoch=epoch, seed=seed))
    assert sorted(number for batch in epoch_batches for number in numbers(batch)) == list(range(n))
    assert len(epoch_batches) == num_batches(n, batch_size=batch_size)
    assert all(len(batch) == batch_size for batch in epoch_batches[:-1])
    assert all(1 < len(batch) <= batch_size + 1 for batch in epoch_batches[-1:] if n > 1 and batch_size > 1)
    assert all(batch.dtype == torch.float32 for batch in epoch_batches)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 100),
    batch_size=st.integers(1, 30),
    epoch=st.integers(0, 9),
    binarization=st.sampled_from(["none", "dynamic"]),
    data=st.data(),
)
def test_start_gives_the_tail(n, batch_size, epoch, binarization, data):
    images = torch.randint(0, 256, (n, 1, 4, 4), generator=torch.Generator().manual_seed(n), dtype=torch.uint8)
    options = {"batch_size": batch_size, "epoch": epoch, "seed": 3, "binarization": binarization}
    whole = list(batches(images, **options))
    start = data.draw(st.integers(0, len(whole)))
    torch.manual_seed(start)
    tail = list(batches(images, start=start, **options))
    assert len(tail) == len(whole) - start
    assert all(torch.equal(a, b) for a, b in zip(tail, whole[start:], strict=True))


def test_order_changes_with_epoch_and_with_seed():
    first, *others = (
        numbers(next(batches(numbered(500), batch_size=500, epoch=epoch, seed=seed))) for epoch, seed in ((0, 0), (1, 0), (0, 1))
    )
    assert all(other != first for other in others)
    assert others[0] != others[1]


def test_draws_change_with_epoch_batch_and_seed():
    images = torch.full((64, 1, 8, 8), 128, dtype=torch.uint8)
    options = {"batch_size": 32, "binarization": "dynamic"}
    draws = [*batches(images, **options), *batches(images, epoch=1, **options), *batches(images, seed=1, **options)]
    assert all(not torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])


def test_global_random_state_is_neither_read_nor_changed():
    images = torch.full((64, 1, 8, 8), 128, dtype=torch.uint8)
    state = torch.random.get_rng_state()
    first = next(batches(images, batch_size=64, binarization="dynamic"))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(next(batches(images, batch_size=64, binarization="dynamic")), first)


# The draws are fixed by their seeds, so a pass stays a pass. With other seeds an exact sampler would fail one of these
# tests once in 100,000 runs: |z| > 5 has probability 6e-7, and 15 values are looked at.
BOUND = 5.0


def z_score(draws: torch.Tensor, probability: float) -> float:
    deviation = math.sqrt(probability * (1 - probability) / draws.numel())
    return abs(draws.double().mean().item() - probability) / deviation


@pytest.mark.parametrize("pixel", [1, 2, 64, 127, 128, 254])
def test_one_has_probability_pixel_over_255(pixel):
    images = torch.full((2_000_000,), pixel, dtype=torch.uint8)
    draws = binarize(images, seed=pixel)
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    assert z_score(draws, pixel / 255) < BOUND
    trained = torch.cat(list(batches(images.reshape(-1, 1, 40, 50), batch_size=100, binarization="dynamic")))
    assert z_score(trained, pixel / 255) < BOUND


@pytest.mark.parametrize("wrong", [128 / 256, 127 / 255, 129 / 256])
def test_the_bound_tells_a_wrong_probability(wrong):
    draws = binarize(torch.full((8_000_000,), 128, dtype=torch.uint8), seed=0)
    assert z_score(draws, 128 / 255) < BOUND
    mistaken = torch.rand(len(draws), generator=torch.Generator().manual_seed(0)) < wrong
    assert z_score(mistaken, 128 / 255) > BOUND


def test_black_stays_black_and_white_white():
    images = torch.tensor([0, 255], dtype=torch.uint8).repeat(100_000)
    assert torch.equal(binarize(images, seed=1), images.float() / 255)


def test_a_fixed_draw_depends_on_its_seed_alone():
    images = torch.full((10, 1, 8, 8), 100, dtype=torch.uint8)
    first = binarize(images, seed=5)
    torch.manual_seed(99)
    assert torch.equal(binarize(images, seed=5), first)
    assert not torch.equal(binarize(images, seed=6), first)


def test_values_are_scaled_when_nothing_is_drawn():
    batch = next(batches(torch.tensor([51], dtype=torch.uint8).reshape(1, 1, 1, 1), batch_size=1))
    assert batch.item() == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, "batch size is 0, expected 1 or more"),
        ({"start": 4}, "start is 4, expected 0 to 3"),
        ({"start": -1}, "start is -1"),
        ({"seed": -1}, "negative"),
        ({"epoch": -1}, "negative"),
        ({"binarization": "static"}, "binarization is 'static', expected one of: none, dynamic"),
    ],
)
def test_mistakes_are_told_at_once(wrong, message):
    with pytest.raises(ValueError, match=message):
        batches(numbered(6), **{"batch_size": 2, **wrong})


def test_only_bytes_are_taken():
    with pytest.raises(ValueError, match=r"torch\.float32, expected torch\.uint8"):
        batches(torch.zeros(3, 1, 8, 8), batch_size=1)
    with pytest.raises(ValueError, match=r"torch\.float32, expected torch\.uint8"):
        binarize(torch.zeros(3), seed=0)


def test_an_epoch_of_mnist_is_quick():
    images = torch.full((60_000, 1, 28, 28), 100, dtype=torch.uint8)
    begin = time.process_time()
    assert sum(len(batch) for batch in batches(images, batch_size=128, binarization="dynamic")) == 60_000
    assert time.process_time() - begin < 5  # half a second, with room for a busy machine
