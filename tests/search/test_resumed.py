"""How a search goes on: after an interruption, without a student that was lost, at another pace."""

import json
import re
import signal
import sys

import pandas as pd
import pytest

from pyro_mvae import load_model
from pyro_mvae.evaluate import negative_log_likelihood
from pyro_mvae.search import miniaturize, pace
from tests.catalog import MODELS
from tests.search.quick import SECONDS, quick


def test_what_was_interrupted_in_a_round_goes_on_there(data, tmp_path, cheap, paced, monkeypatch):
    rounds = sys.modules["pyro_mvae.search.rounds"]
    teacher, trained, done = MODELS["VAE"]((1, 16, 16)).eval(), rounds.trained, []

    def interrupted(plan, rung, *more):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append((plan.name, rung))
        return trained(plan, rung, *more)

    whole = miniaturize(teacher, **quick(data, tmp_path / "whole"))
    monkeypatch.setattr(rounds, "trained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        miniaturize(teacher, **quick(data, tmp_path / "cut"))
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cut/candidates").glob("*-0.json")}
    assert len(kept) == 2
    monkeypatch.setattr(rounds, "trained", trained)
    found = miniaturize(teacher, **quick(data, tmp_path / "cut"))
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert found.name == whole.name
    pd.testing.assert_frame_equal(found.table, whole.table)


def test_a_student_that_comes_to_no_numbers_is_left_out(data, tmp_path, cheap, paced, monkeypatch, caplog):
    rounds = sys.modules["pyro_mvae.search.rounds"]
    teacher, trained = MODELS["VAE"]((1, 16, 16)).eval(), rounds.trained

    def diverging(kinds):
        def attempt(plan, *more):
            if plan.net in kinds:
                raise FloatingPointError("the loss is nan")
            return trained(plan, *more)

        return attempt

    monkeypatch.setattr(rounds, "trained", diverging({"mobile"}))
    found = miniaturize(teacher, **quick(data, tmp_path / "some"))
    assert "mobile" not in set(found.table["net"])
    assert re.search("student mobile-.*: the loss is nan", caplog.text)
    monkeypatch.setattr(rounds, "trained", diverging(set(SECONDS)))
    with pytest.raises(FloatingPointError, match=r"no student could be trained: mobile-.*: the loss is nan; conv-"):
        miniaturize(teacher, **quick(data, tmp_path / "none"))


def test_two_processes_find_what_one_does(data, tmp_path, cheap, dense, paced):
    teacher = MODELS["VAE"]((1, 16, 16)).eval()
    for processes, minutes in {1: 0.02, 2: 0.01}.items():  # two at a time take half as long
        found = miniaturize(teacher, **quick(data, tmp_path / f"{processes}", processes=processes, minutes=minutes)).table
        assert sorted(found["rounds"]) == [1, 3, 3, 4]
    last = found[found["rounds"] == 4].iloc[0]
    assert (0 < last["rounding_left"] < 1.1, last["rounding_weight"] > 0) == (True, True)
    for path in (tmp_path / "1/candidates").glob("*-0.json"):
        one, two = (json.loads((tmp_path / f"{n}/candidates" / path.name).read_text()) for n in (1, 2))
        assert {**one, "held_out": pytest.approx(one["held_out"], rel=1e-2)} == two
    with pytest.raises(ValueError, match="processes is 0, expected a whole number, 1 or more"):
        miniaturize(teacher, **quick(data, tmp_path / "zero", processes=0))


def test_what_was_interrupted_goes_on_at_any_pace(data, tmp_path, cheap, dense, paced, monkeypatch):
    inside = sys.modules["pyro_mvae.search.rounds"]
    teacher, stage, fitted = MODELS["VAE"]((1, 16, 16)).eval(), inside.fit_stage, []

    def interrupted(model, data, path, **how):
        fitted.append(path.name)
        if len(fitted) == 2:

            def stop(model, row):
                if row["epoch"] == 1:
                    signal.raise_signal(signal.SIGINT)

            how["callbacks"] = [stop]
        return stage(model, data, path, **how)

    miniaturize(teacher, **quick(data, tmp_path / "whole"))
    monkeypatch.setattr(inside, "fit_stage", interrupted)
    with pytest.raises(KeyboardInterrupt):
        miniaturize(teacher, **quick(data, tmp_path / "cut"))
    assert list((tmp_path / "cut/candidates").glob("*-0.float.training.safetensors"))
    monkeypatch.setattr(inside, "fit_stage", stage)
    (tmp_path / "cut/paces.json").unlink()
    monkeypatch.setattr(pace, "seconds_an_epoch", lambda plan, *_, **__: SECONDS[plan.net] / 2)  # as on another machine
    found = miniaturize(teacher, **quick(data, tmp_path / "cut"))
    assert found.table["chosen"].sum() == 1
    cut, uncut = ((tmp_path / n / "candidates" / fitted[1].replace(".float.safetensors", ".json")) for n in ("cut", "whole"))
    assert json.loads(cut.read_text()) == json.loads(uncut.read_text())


def test_a_student_that_was_lost_and_found_again_is_measured_as_it_is(data, tmp_path, cheap, dense, paced, monkeypatch):
    inside = sys.modules["pyro_mvae.search.rounds"]
    teacher, trained = MODELS["VAE"]((1, 16, 16)).eval(), inside.trained

    def lost(plan, rung, *more):
        if rung == 3:
            raise FloatingPointError("the loss is nan")
        return trained(plan, rung, *more)

    monkeypatch.setattr(inside, "trained", lost)
    before = miniaturize(teacher, **quick(data, tmp_path / "small"))
    monkeypatch.setattr(inside, "trained", trained)
    found = miniaturize(teacher, **quick(data, tmp_path / "small"))
    row = found.table[found.table["rounds"] == 4].iloc[0]
    assert (before.table["rounds"].max(), row["name"]) == (3, before.table["name"].iloc[0])
    student = load_model(tmp_path / "small/candidates" / f"{row['name']}.safetensors")
    nll = negative_log_likelihood(student, data.test.images, num_samples=2, binarization="none", seed=0).nats
    assert row["nll"] == pytest.approx(nll)
