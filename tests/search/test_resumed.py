"""How a search goes on: after an interruption, without a student that was lost, at another pace."""

import json
import re
import signal
import sys
from dataclasses import replace

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
    assert set(found.lost.values()) == {"the loss is nan"}
    page = (tmp_path / "some/pareto.html").read_text()
    assert all(f"<dt>lost: {name}</dt><dd>the loss is nan</dd>" in page for name in found.lost)
    monkeypatch.setattr(rounds, "trained", diverging(set(SECONDS)))
    with pytest.raises(FloatingPointError, match=r"no student could be trained: mobile-.*: the loss is nan; conv-"):
        miniaturize(teacher, **quick(data, tmp_path / "none"))


def test_two_processes_find_what_one_does(data, tmp_path, cheap, dense, paced):
    teacher = MODELS["VAE"]((1, 16, 16)).eval()
    for processes, minutes in {1: 0.02, 2: 0.01}.items():  # two at a time take half as long
        found = miniaturize(teacher, **quick(data, tmp_path / f"{processes}", processes=processes, minutes=minutes)).table
        assert sorted(found["rounds"]) == [1, 3, 3, 4]
    (last,) = (json.loads(path.read_text()) for path in (tmp_path / "2/candidates").glob("*-3.json"))
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


def test_a_search_that_is_given_more_minutes_trains_its_best_students_on(data, tmp_path, cheap, dense, paced, monkeypatch):
    inside = sys.modules["pyro_mvae.search.rounds"]
    teacher, out, trained = MODELS["VAE"]((1, 16, 16)).eval(), tmp_path / "small", inside.trained
    before = miniaturize(teacher, **quick(data, out, minutes=0.02)).table.set_index("name")
    kept = {path: path.stat().st_mtime_ns for path in (out / "candidates").glob("*-[0-3].json")}

    def interrupted(plan, rung, *more):
        if list((out / "candidates").glob("*-4.json")):
            raise KeyboardInterrupt
        return trained(plan, rung, *more)

    monkeypatch.setattr(inside, "trained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        miniaturize(teacher, **quick(data, out, minutes=0.06))
    monkeypatch.setattr(inside, "trained", trained)
    more = miniaturize(teacher, **quick(data, out, minutes=0.06))
    after = more.table.set_index("name")
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert sorted(path.name.rsplit("-", 1)[1] for path in (out / "candidates").glob("*-[45].json")) == ["4.json"] * 3 + ["5.json"]
    assert (after["held_out"] <= before["held_out"][after.index]).all()
    assert after["held_out"].min() < before["held_out"].min()
    assert after.loc[more.name, "epochs"] > before.loc[more.name, "epochs"]
    agreeing(out, more.table)
    times = {path: path.stat().st_mtime_ns for path in (out / "candidates").iterdir()}
    assert miniaturize(teacher, **quick(data, out, minutes=None)).name == more.name
    assert times == {path: path.stat().st_mtime_ns for path in (out / "candidates").iterdir()}


def agreeing(out, table):
    """Each row is the best of its student's, and so is the file of its name."""
    for row in table.itertuples():
        rows = {path: json.loads(path.read_text()) for path in (out / "candidates").glob(f"{row.name}-?.json")}
        best = min(rows, key=lambda path: rows[path]["held_out"])
        assert (row.rounds, row.held_out, row.epochs) == (len(rows), rows[best]["held_out"], rows[best]["epochs"])
        small = best.with_suffix(".int8.safetensors").read_bytes()
        assert (out / "candidates" / f"{row.name}.safetensors").read_bytes() == small


def test_who_comes_back_late_takes_nothing_from_who_came_instead(data, tmp_path, cheap, dense, paced, monkeypatch):
    inside = sys.modules["pyro_mvae.search.rounds"]
    teacher, out, trained, gone = MODELS["VAE"]((1, 16, 16)).eval(), tmp_path / "small", inside.trained, []

    def lost(plan, rung, *more):
        if rung == 1 and gone in ([], [plan.name]):
            gone[:] = [plan.name]
            raise FloatingPointError("the loss is nan; try a lower lr")
        return trained(plan, rung, *more)

    monkeypatch.setattr(inside, "trained", lost)
    found = miniaturize(teacher, **quick(data, out, minutes=0.02))
    assert found.lost == {gone[0]: "the loss is nan"}
    assert len(found.table) == 4
    agreeing(out, found.table)
    monkeypatch.setattr(inside, "trained", trained)
    again = miniaturize(teacher, **quick(data, out, minutes=0.02))
    assert again.lost == {}
    agreeing(out, again.table)
    assert again.table["held_out"].min() <= found.table["held_out"].min()


def test_a_round_that_makes_a_student_worse_leaves_it_as_it_was(data, tmp_path, cheap, dense, paced, monkeypatch):
    inside = sys.modules["pyro_mvae.search.rounds"]
    teacher, out, measure, bits = MODELS["VAE"]((1, 16, 16)).eval(), tmp_path / "small", inside.negative_log_likelihood, []

    def worse_and_worse(*given, **how):
        bits.append(measure(*given, **how))
        return replace(bits[-1], nats=1000.0 + len(bits))

    monkeypatch.setattr(inside, "negative_log_likelihood", worse_and_worse)
    found = miniaturize(teacher, **quick(data, out))
    assert (found.table["rounds"].max(), set(found.table["round"])) == (4, {1})
    agreeing(out, found.table)
    nll = measure(found.model, data.test.images, num_samples=2, binarization="none", seed=0).nats
    assert found.table["nll"][found.table["chosen"]].item() == pytest.approx(nll)


def test_a_student_of_no_likelihood_is_lost(data, tmp_path, cheap, dense, paced, monkeypatch):
    inside = sys.modules["pyro_mvae.search.rounds"]
    measure, nan = inside.negative_log_likelihood, float("nan")
    monkeypatch.setattr(inside, "negative_log_likelihood", lambda *given, **how: replace(measure(*given, **how), nats=nan))
    with pytest.raises(FloatingPointError, match=r"no student could be trained: mlp-.*: the NLL of held-out images is nan"):
        miniaturize(MODELS["VAE"]((1, 16, 16)).eval(), **quick(data, tmp_path / "small", minutes=0.001))
