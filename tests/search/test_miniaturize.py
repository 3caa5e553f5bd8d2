"""The search for the best student within a budget: what it chooses from, how it goes on, and what it says when there is none."""

from __future__ import annotations

import copy
import math
import re
import sys
from dataclasses import replace

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_mvae import VAE, document, export_onnx, load_model, save_model
from pyro_mvae.compress import Quantize
from pyro_mvae.data import Split
from pyro_mvae.data.progress import untracked
from pyro_mvae.evaluate.cost import num_macs
from pyro_mvae.export.manifest import describe, digest_of
from pyro_mvae.inference.checkpoint import read
from pyro_mvae.inference.precision import computed
from pyro_mvae.latency.blocks import LatencyTable
from pyro_mvae.nets.quantized import is_quantized
from pyro_mvae.search import Budget, BudgetError, cost_of, miniaturize, pace
from pyro_mvae.search.halving import rungs
from pyro_mvae.search.miniaturize import Search, planned, with_held_out
from pyro_mvae.search.pareto import front
from pyro_mvae.search.plans import SCALES, Plan, candidates, least, shapes
from pyro_mvae.search.student import calibrated, estimated_bytes
from tests.catalog import MODELS
from tests.commands import run
from tests.search.quick import SECONDS, quick
from tests.test_cli import mistake, picture_folder


def test_a_budget_says_what_is_over_it_and_how_near_one_can_come():
    budget = Budget(kb=30, latency_us=100, nll_loss=1.0)
    points = [
        {"kb": 20.0, "macs": 5, "latency_us": 120.0, "nll_loss": 0.5},
        {"kb": 40.0, "macs": 9, "latency_us": 90.0, "nll_loss": 0.2},
        {"kb": 25.0, "macs": 6, "latency_us": 95.0, "nll_loss": 3.0},
        {"kb": 10.0, "macs": 6, "latency_us": 300.0, "nll_loss": math.nan},
    ]
    assert [list(budget.over(point)) for point in points] == [["latency_us"], ["kb"], ["nll_loss"], ["latency_us", "nll_loss"]]
    # on each axis the best among those that are within the others
    assert budget.nearest(points) == {"kb": points[1], "latency_us": points[0], "nll_loss": points[2]}
    nothing = Budget(kb=10, macs=1000).unmet([{"kb": 30.0, "macs": 5000}, {"kb": 40.0, "macs": 3000}])
    assert "10 KB (nearest: 30 KB with 5,000 multiply-adds), 1,000 multiply-adds (nearest: 3,000" in str(nothing)
    assert nothing.nearest == {"kb": 30.0, "macs": 3000}
    assert "10 KB (nearest: 30 KB), 2 nats of NLL lost (nothing was trained)" in str(
        Budget(kb=10, nll_loss=2).unmet([{"kb": 30.0}])
    )
    assert "30 KB (nearest: 40 KB), 100 µs (nearest: 120 µs), 1 nats of NLL lost (nearest: 3" in str(budget.unmet(points))
    with pytest.raises(ValueError, match="budget is empty"):
        Budget()
    for wrong in ({"kb": 0.0}, {"macs": -1.0}, {"latency_us": math.inf}, {"nll_loss": math.nan}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} of the budget"):
            Budget(**wrong)
    assert Budget(nll_loss=-0.5).over({"nll_loss": -0.6}) == {}


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_the_front_is_what_nothing_beats(rows):
    def beaten(row):
        return any(all(a <= b for a, b in zip(other, row, strict=True)) and other != row for other in rows)

    assert front(pd.DataFrame(rows, columns=list("abc")), list("abc")) == [not beaten(row) for row in rows]


def test_plans_are_as_large_as_the_budget_allows():
    teacher = MODELS["VAE"]((1, 16, 16))
    for budget in (Budget(kb=60), Budget(macs=100_000), Budget(kb=60, macs=60_000), Budget(latency_us=40)):
        plans = candidates(teacher, budget, latent_dims=[4], weight_bits=[8], latency=lambda model: num_macs(model) / 2000)
        assert len(plans) > 3
        for plan in plans:
            student = plan.student(teacher)
            figures = {
                "kb": estimated_bytes(student) / 1000,
                "macs": num_macs(student),
                "latency_us": num_macs(student) / 2000,
            }
            assert not budget.over(figures)
        # the first shape, a little wider, is over the budget
        shape = shapes(teacher)[0]
        widths, hidden = shape.widths, shape.hidden
        scale = next(s for s in SCALES if tuple(max(round(s * w / 4), 1) * 4 for w in widths) == plans[0].widths)
        wider = 1.16 * scale  # two steps of the scale: widths are rounded to 4
        larger = Plan("mobile", tuple(math.ceil(wider * w / 4) * 4 for w in widths), math.ceil(wider * hidden / 4) * 4, 4, 8)
        student = larger.student(teacher)
        assert budget.over(
            {"kb": estimated_bytes(student) / 1000, "macs": num_macs(student), "latency_us": num_macs(student) / 2000}
        )
    assert candidates(teacher, Budget(kb=1), latent_dims=[4], weight_bits=[8], latency=lambda model: 0.0) == []


def test_a_student_is_given_the_prior_that_its_teacher_learned():
    teacher = MODELS["VaDE"]((1, 16, 16))
    student = Plan("mobile", (8, 8), 16, teacher.latent_dim, 8).student(teacher)
    assert type(student) is type(teacher)
    learned = [name for name, _ in teacher.named_parameters() if not name.startswith(("encoder", "decoder"))]
    assert learned
    for name in learned:
        assert torch.equal(student.get_parameter(name), teacher.get_parameter(name))


def test_a_student_may_have_a_smaller_encoder(tmp_path):
    teacher = MODELS["VAE"]((1, 16, 16))
    even, small = (Plan("conv", (8, 16), 32, teacher.latent_dim, 8, encoder=share).student(teacher) for share in (1.0, 0.5))
    widths = [
        [layer.out_channels for layer in net.modules() if isinstance(layer, torch.nn.Conv2d)]
        for net in (even.encoder, small.encoder)
    ]
    assert widths == [[8, 16, 32, 4, 4], [4, 8, 16, 4, 4]]
    assert [p.shape for p in even.decoder.parameters()] == [p.shape for p in small.decoder.parameters()]
    save_model(tmp_path / "small.safetensors", small)
    x = torch.rand(3, 1, 16, 16)
    assert torch.equal(load_model(tmp_path / "small.safetensors").eval().encode(x), small.eval().encode(x))
    assert cost_of(calibrated(Quantize()(small))).macs == num_macs(small) < num_macs(even)


def test_students_are_trained_on_the_bound_of_several_codes(data, tmp_path, cheap):
    teacher = MODELS["VAE"]((1, 16, 16)).eval()
    how = {"budget": Budget(kb=45), "minutes": 0.002, "nll_samples": 2, "latent_dims": (4,), "importance_samples": 3}
    found = miniaturize(teacher, data, **how, out=tmp_path / "small")
    fitted = {path.name: read(path)[1]["notes"]["history"] for path in (tmp_path / "small" / "candidates").glob("*.float.*")}
    assert f"{found.name}-3.float.safetensors" in fitted
    assert all("tighten" in history[0] for history in fitted.values())
    with pytest.raises(ValueError, match="precision is 'float16', expected"):
        miniaturize(teacher, data, **{**how, "precision": "float16"})
    with pytest.raises(ValueError, match="importance_samples is 0"):
        miniaturize(teacher, data, **{**how, "importance_samples": 0})


@pytest.fixture
def told(monkeypatch):
    """The precision that each stage was to be trained in, rounding apart; it is, where this processor computes in it."""
    rounds, told = sys.modules["pyro_mvae.search.rounds"], []

    def fit_stage(model, data, path, **how):
        precision = how.pop("precision", "float32")
        told.append(("rounding" in path.name, precision))
        return stage(model, data, path, precision=precision if precision in here else "float32", **how)

    stage, here = rounds.fit_stage, computed(torch.device("cpu"))
    monkeypatch.setattr(rounds, "fit_stage", fit_stage)
    return told


@pytest.mark.parametrize("known", [("float32",), ("float32", "bfloat16")])
def test_students_are_trained_in_the_fastest_precision_that_the_processor_computes_in(
    known, data, tmp_path, cheap, paced, told, monkeypatch
):
    def seconds(plan, *_, precision, **__):
        return SECONDS[plan.net] / (8 if (plan.net, precision) == ("mobile", "bfloat16") else 4)

    monkeypatch.setattr(pace, "seconds_an_epoch", seconds)
    for name in ("miniaturize", "rounds"):
        monkeypatch.setattr(sys.modules[f"pyro_mvae.search.{name}"], "computed", lambda device: known)
    miniaturize(MODELS["VAE"]((1, 16, 16)).eval(), **quick(data, tmp_path / "small", precision="fastest"))
    assert set(told) == {(True, "float32"), *((False, precision) for precision in known)}


def test_students_are_trained_in_a_precision_until_they_are_rounded(data, tmp_path, cheap, paced, told, monkeypatch):
    module = sys.modules["pyro_mvae.search.miniaturize"]
    monkeypatch.setattr(module, "require", lambda precision, device: None)
    monkeypatch.setattr(sys.modules["pyro_mvae.search.rounds"], "computed", lambda device: ("float32", "bfloat16"))
    miniaturize(MODELS["VAE"]((1, 16, 16)).eval(), **quick(data, tmp_path / "small", precision="bfloat16"))
    assert set(told) == {(False, "bfloat16"), (True, "float32")}
    with pytest.raises(ValueError, match="holds a search with precision=bfloat16, not float32"):
        miniaturize(MODELS["VAE"]((1, 16, 16)).eval(), **quick(data, tmp_path / "small"))


def test_the_nearest_is_the_smallest_there_is_on_each_axis():
    teacher = MODELS["VAE"]((1, 28, 28))
    budget = Budget(kb=1, macs=1)
    plans = least(teacher, budget, latent_dim=4, bits=8, latency=lambda model: 0.0)
    everything = [shape.plan(SCALES[0], 4, 8).student(teacher) for shape in shapes(teacher)]
    for cost, plan in zip((estimated_bytes, num_macs), (plans[0], plans[-1]), strict=True):
        assert cost(plan.student(teacher)) == min(map(cost, everything))


def test_a_search_begins_with_the_largest_of_each_kind_of_nets():
    teacher, budget = VAE((1, 28, 28), 16), Budget(kb=32)
    how = {"latent_dims": (16,), "weight_bits": (8,), "latency": lambda model: 0.0}
    as_laid_out = candidates(teacher, budget, **how)
    plans = planned(Search(budget), {16: teacher}, how["latency"], untracked)
    assert [plan.net for plan in as_laid_out[:3]] == ["mobile"] * 3, "of 32 KB, dense layers leave little"
    assert [plan.net for plan in plans[:2]] == ["mobile", "conv"]
    assert (plans[0], set(plans)) == (as_laid_out[0], set(as_laid_out))


def test_a_budget_that_nothing_is_within_is_soon_told():
    asked = []
    teacher, budget = MODELS["VAE"]((1, 28, 28)), Budget(latency_us=1)
    how = {"latent_dims": (4,), "weight_bits": (8,), "latency": lambda model: asked.append(num_macs(model)) or 2.0}
    assert candidates(teacher, budget, **how) == []
    smallest = [num_macs(shape.plan(SCALES[0], 4, 8).student(teacher)) for shape in shapes(teacher)]
    assert set(asked) == set(smallest), "blocks of larger nets take minutes to measure"


def test_a_teacher_that_no_file_can_hold_is_refused_at_once(data, tmp_path):
    class Own(VAE):
        """A model as one would write it."""

    out = tmp_path / "small"
    for teacher in (
        Own((1, 16, 16), 4),
        VAE((1, 16, 16), 4, decoder=torch.nn.Sequential(torch.nn.Conv2d(4, 256, 1), torch.nn.PixelShuffle(16))),
    ):
        with pytest.raises(ValueError, match="of your own"):
            miniaturize(teacher, data, budget=Budget(kb=45), minutes=0.001, out=out)
    assert not out.exists()


def test_costs_are_those_of_the_files():
    model = calibrated(Quantize()(MODELS["MVAE"]((1, 16, 16))))
    cost = cost_of(model)
    assert cost.kb == pytest.approx(estimated_bytes(model) / 1000, rel=0.05)
    assert (cost.macs, cost.latency_us > 0) == (num_macs(model), True)


def test_the_best_student_within_the_budget_is_found_and_found_again(data, tmp_path, cheap, monkeypatch):
    def seconds(plan, teacher, data, *, penalties, **_):
        """There is time for 66 epochs of mobile nets; a lesson is dear for them, and cheap for convolutions, which are slow."""
        return SECONDS[plan.net] + 0.08 * len(penalties)

    monkeypatch.setattr(pace, "seconds_an_epoch", seconds)
    teacher = MODELS["VAE"]((1, 16, 16)).eval()
    before = copy.deepcopy(teacher.state_dict())
    arguments = {"budget": Budget(kb=45), "minutes": 0.07, "nll_samples": 2, "latent_dims": (4,), "out": tmp_path / "small"}
    found = miniaturize(teacher, data, **arguments)
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    table = found.table
    assert len(table) == 4
    assert (table["kb"] <= 45).all()
    assert table["chosen"].sum() == 1
    best = table[table["chosen"]].iloc[0]
    assert best["held_out"] == table["held_out"].min()
    assert best["name"] == found.name
    assert table["distilled"].equals(table["net"] == "conv")
    shares = rungs(len(table), [0.07])

    def rounds_of(row):
        """In how many rounds a student was."""
        epoch = SECONDS[row["net"]] + 0.08 * row["distilled"]
        each = [int(rung.seconds / epoch) for rung in shares]
        return [sum(each[: n + 1]) for n in range(len(each))].index(row["epochs"]) + 1

    assert {row["net"] for _, row in table.iterrows() if rounds_of(row) > 1} == set(SECONDS)
    assert sorted(table.apply(rounds_of, axis=1)) == [1, 3, 3, 4]
    assert rounds_of(best) == 4
    assert set(table["rounded"]) == {"in training", "after"}
    assert table["nll"].notna().equals(table["front"])
    assert found.model.passes == ("Quantize(weight_bits=8, ranges='moving')",)
    kept = load_model(tmp_path / "small/student.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(kept.state_dict().values(), found.model.state_dict().values(), strict=True))
    for name in table["name"]:
        assert is_quantized(load_model(tmp_path / f"small/candidates/{name}.safetensors").decoder)
    assert found.name in (tmp_path / "small/pareto.html").read_text()
    another = load_model(tmp_path / "small/candidates" / f"{table[~table['chosen']]['name'].iloc[0]}.safetensors")
    assert export_onnx(another, tmp_path / "another.onnx", part="encoder").precision == "int8"
    assert len(pd.read_csv(tmp_path / "small/pareto.csv")) == len(table)

    cheap.clear()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "small/candidates").iterdir()}
    again = miniaturize(teacher, data, **arguments)
    assert not cheap
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "small/candidates").iterdir()}
    assert again.name == found.name
    with pytest.raises(ValueError, match=r"holds a search of 0\.07 minutes, not 0\.01"):
        miniaturize(teacher, data, **{**arguments, "minutes": 0.01})
    with pytest.raises(ValueError, match="holds a search with data="):
        miniaturize(teacher, replace(data, test=Split(data.test.images[1:])), **arguments)
    teacher.decoder.apply(lambda layer: torch.nn.init.zeros_(layer.bias) if getattr(layer, "bias", None) is not None else None)
    with pytest.raises(ValueError, match="holds a search with teacher="):
        miniaturize(teacher, data, **arguments)


class Proportional(LatencyTable):
    """A machine that computes two multiply-adds a nanosecond."""

    def estimate(self, model):
        return num_macs(model) / 2000


def test_students_are_within_a_latency_by_a_machines_table(data, tmp_path, cheap, paced):
    teacher = MODELS["VAE"]((1, 16, 16)).eval()
    table = Proportional(tmp_path / "table.json")
    found = miniaturize(teacher, **quick(data, None, budget=Budget(latency_us=40), latency_table=table))
    assert found.table["macs"].max() <= 80_000
    with pytest.raises(BudgetError, match=r"5 µs \(nearest: 10 µs\)"):  # what files of `cheap` take
        miniaturize(teacher, **quick(data, None, budget=Budget(latency_us=5), latency_table=table))


def test_without_a_bound_on_costs_the_smallest_files_that_lose_no_more_are_taken(data, tmp_path, cheap, paced):
    teacher = MODELS["VAE"]((1, 16, 16)).eval()
    found = miniaturize(teacher, **quick(data, None, budget=Budget(nll_loss=1000.0)))
    best = found.table[found.table["chosen"]].iloc[0]
    assert best["kb"] == found.table.loc[found.table["within"], "kb"].min() < found.table["kb"].max()


def test_sizes_of_codes_and_bits_are_searched(data, tmp_path, cheap, paced, monkeypatch):
    teacher = MODELS["VAE"]((1, 16, 16)).eval()
    monkeypatch.setattr(sys.modules["pyro_mvae.search.teachers"], "fitting_latents", lambda *given: 4)
    more = {"latent_dims": (4, 2), "weight_bits": (8, 4), "minutes": 0.06}
    found = miniaturize(teacher, **quick(data, tmp_path / "small", **more))
    tried = set(zip(found.table["latent_dim"], found.table["weight_bits"], strict=True))
    assert tried == {(4, 8), (2, 8), (4, 4), (2, 4)}
    assert found.model.latent_dim == found.table.loc[found.table["chosen"], "latent_dim"].item()
    assert load_model(tmp_path / "small/candidates/teacher-z2.safetensors").latent_dim == 2
    for row in found.table.itertuples():
        student = load_model(tmp_path / f"small/candidates/{row.name}.safetensors")
        assert student.latent_dim == row.latent_dim
        assert f"weight_bits={row.weight_bits}" in student.passes[-1]


def test_what_a_search_is_told_is_checked(data):
    teacher = MODELS["VAE"]((1, 16, 16))
    for wrong, message in (
        ({"distill": -1.0}, "distill is -1"),
        ({"seed": -3}, "seed is -3"),
        ({"minutes": 0.0}, "minutes is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            miniaturize(teacher, **quick(data, None, **wrong))


def test_codes_that_no_teacher_has_leave_nothing_behind(data, tmp_path):
    for name, size in (("VAE", 5), ("VQVAE", 2)):
        with pytest.raises(ValueError, match=f"latent_dims has {size}, expected 4 at most"):
            miniaturize(MODELS[name]((1, 16, 16)), data, budget=Budget(kb=45), latent_dims=(size,), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_loss_that_cannot_be_kept_says_how_near_one_came(data, tmp_path, cheap):
    teacher = MODELS["VAE"]((1, 16, 16)).eval()
    arguments = {"minutes": 0.01, "nll_samples": 2, "latent_dims": (4,)}
    with pytest.raises(BudgetError, match=r"-1,000 nats of NLL lost \(nearest: ") as error:
        miniaturize(teacher, data, budget=Budget(kb=45, nll_loss=-1000.0), out=tmp_path / "a", **arguments)
    assert error.value.nearest["kb"] <= 45
    assert error.value.nearest["nll_loss"] > -1000
    assert (tmp_path / "a/pareto.html").is_file()
    with pytest.raises(BudgetError, match=r"4 KB \(nearest: \d") as error:
        miniaturize(teacher, data, budget=Budget(kb=4), out=tmp_path / "b", **arguments)
    (tmp_path / "b/search.json").unlink()
    with pytest.raises(ValueError, match="holds no search"):
        miniaturize(teacher, data, budget=Budget(kb=4), out=tmp_path / "b", **arguments)


def slow(latencies):
    """Of files that turn out to take a millisecond each."""
    return {path: {**timed, "p50_us": 1000.0} for path, timed in latencies.items()}


def test_command(tmp_path, cheap, monkeypatch):
    pictures, vae, out = f"folder:{picture_folder(tmp_path / 'pictures')}", tmp_path / "vae.safetensors", tmp_path / "small"
    run("train", vae, "--data", pictures, "--size", 8, "--epochs", 1, "--latent-dim", 4)
    words = ["miniaturize", vae, "--data", pictures, "--minutes", 0.001, "--nll-samples", 1, "--latent-dim", 4]
    line = mistake(*words, "--budget-kb", 3, "--out", tmp_path / "none", code=3)
    assert re.search(r"budget can't be met: 3 KB \(nearest: \d+\.\d+ KB\)", line)
    bounds = ["--max-macs", 1e9, "--max-nll-loss", 1e6, "--max-latency-us", 400]  # files of `cheap` take 10
    monkeypatch.setattr(sys.modules["pyro_mvae.search.miniaturize"], "LatencyTable", Proportional)
    monkeypatch.setattr(sys.modules["pyro_mvae.cli.miniaturize"], "document", lambda *given, **how: slow(document(*given, **how)))
    text = run(*words, "--budget-kb", 30, *bounds, "--processes", 1, "--out", out).stdout
    student = load_model(out / "student.safetensors")
    assert "Its files, measured at last, are over the budget: 2,000 µs. Ask for less than the phone allows." in text
    kb = sum((out / f"{part}.pte").stat().st_size for part in ("encoder", "decoder")) / 1000
    assert f"{kb:.4g} KB of 30 KB, {num_macs(student):,} multiply-adds of 1,000,000,000 multiply-adds" in text
    kept = {"student.safetensors", "pareto.csv", "pareto.html", "candidates", "manifest.json", "README.md"}
    assert kept <= {path.name for path in out.iterdir()}
    assert {entry["sha256"] for entry in describe(out)["files"]} == {digest_of(out / f"{p}.pte") for p in ("encoder", "decoder")}
    assert "search with budget" in mistake(*words, "--budget-kb", 31, "--out", out)
    assert "budget is empty" in mistake(*words, "--out", tmp_path / "empty")


def test_students_do_not_see_what_they_are_chosen_by(data):
    rest, held = with_held_out(data, seed=0)
    assert len(rest.train) + len(held) == len(data.train)
    seen = {image.numpy().tobytes() for image in rest.train.images}
    assert not [image for image in held if image.numpy().tobytes() in seen]


@pytest.mark.parametrize("name", ["GMVAE", "VQVAE", "SVAE", "VAEGAN"])  # what a student has besides nets differs in these
def test_every_model_has_students(name, data, cheap, monkeypatch):
    monkeypatch.setattr(sys.modules["pyro_mvae.search.plans"], "SHARES", (1.0,))
    monkeypatch.setattr(pace, "seconds_an_epoch", lambda *_, **__: 1.0)  # a trace of each is what they take
    teacher = MODELS[name]((1, 16, 16)).eval()
    size = teacher.config["latent_dim"]
    found = miniaturize(teacher, data, budget=Budget(macs=400_000), minutes=0.001, nll_samples=1, latent_dims=(size,))
    assert type(found.model) is type(teacher)
    assert found.table["macs"].max() <= 400_000
