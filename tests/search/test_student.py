"""From a teacher to a student that fits a budget."""

from __future__ import annotations

import copy

import pytest
import torch

from pyro_mvae.compress import PruneChannels, Quantize
from pyro_mvae.data import Data, Split
from pyro_mvae.nets.quantized import check_calibrated
from pyro_mvae.search import BudgetError, make_student
from pyro_mvae.search.student import calibrated, estimated_bytes, ratio_within, student_for
from tests.catalog import MODELS


def bytes_of(model) -> int:
    return 3_000 + estimated_bytes(model)


def test_the_smallest_ratio_that_fits_is_taken():
    student = MODELS["MVAE"]((1, 16, 16))
    sizes = {ratio: bytes_of(Quantize()(PruneChannels(ratio=ratio)(student))) for ratio in (0.1, 0.3, 0.5, 0.7, 0.9)}
    for ratio in (0.3, 0.7):
        found = ratio_within(student, budget_bytes=sizes[ratio], measure=bytes_of)
        assert found <= ratio
        assert bytes_of(Quantize()(PruneChannels(ratio=found)(student))) <= sizes[ratio]
    with pytest.raises(BudgetError, match=r"5 KB \(nearest: [\d.]+ KB") as error:
        ratio_within(student, budget_bytes=5_000, measure=bytes_of)
    assert error.value.nearest == {"kb": sizes[0.9] / 1000}


def test_the_student_grows_with_the_budget():
    teacher = MODELS["VAE"]((1, 16, 16))
    sizes = [estimated_bytes(student_for(teacher, budget_kb=budget)) for budget in (20, 50, 100)]
    assert sizes[0] < sizes[1] < sizes[2]


def test_a_student_is_fitted_and_of_int8(images, tmp_path):
    data = Data("squares", train=Split(images[:192]), test=Split(images[192:]), binarization="none")
    teacher = MODELS["VAE"]((1, 16, 16)).eval()
    before = copy.deepcopy(teacher.state_dict())
    arguments = {"budget_kb": 24, "student": MODELS["MVAE"]((1, 16, 16)), "epochs": 2, "measure": bytes_of, "folder": tmp_path}
    result = make_student(teacher, data, **arguments)
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert [name.split("(")[0] for name in result.model.passes] == ["PruneChannels", "Quantize"]
    assert result.history["stage"].unique().tolist() == ["distil", "prune", "quantise"]
    assert bytes_of(result.model) <= 24_000
    again = make_student(teacher, data, **arguments, resume=True)
    for a, b in zip(result.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_calibrated_can_be_exported():
    check_calibrated(calibrated(Quantize()(MODELS["VAE"]((1, 16, 16)))))
