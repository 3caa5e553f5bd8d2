"""Timing, peaks and estimates: what can be said of them without a clock."""

import itertools
import time

import pytest
import torch

from pyro_mvae import VAE, Quantize, export_executorch, export_onnx
from pyro_mvae.export.executorch import loaded, lower
from pyro_mvae.export.verify import load_artifact
from pyro_mvae.latency import peaks
from pyro_mvae.latency.peaks import Peaks, measured_peaks
from pyro_mvae.latency.phones import FLOOR_US, PHONES, estimates
from pyro_mvae.latency.timing import in_turns, ready, summary


def test_each_is_called_as_often_and_as_long_as_asked():
    calls = {"few": 0, "slow": 0}

    def few():
        calls["few"] += 1

    def slow():
        calls["slow"] += 1
        time.sleep(0.002)

    times = in_turns({"few": few, "slow": slow}, runs=30, seconds=0.02, rounds=4, warm_up=3)
    assert times["few"].runs == calls["few"] - 3 >= 30
    assert times["few"].seconds >= 0.02
    assert times["slow"].runs == calls["slow"] - 3 == 32, "32 calls, eight in each of four rounds, take longer than was asked"
    assert times["slow"].p50_us > 2000 > times["few"].p50_us


def test_candidates_take_turns():
    order = []
    in_turns({name: (lambda name=name: order.append(name)) for name in "ab"}, runs=3, seconds=1e-9, rounds=3, warm_up=0)
    assert [name for name, _ in itertools.groupby(order)] == list("ababab")


@pytest.mark.parametrize("export", [export_executorch, export_onnx])
def test_what_is_timed_is_what_is_computed(export, tmp_path):
    path = tmp_path / ("decoder.pte" if export is export_executorch else "decoder.onnx")
    export(VAE((1, 8, 8), 4), path)
    run, z = load_artifact(path).run, torch.randn(1, 4)
    expected = run(z)[0]
    run(torch.zeros(1, 4))
    call = ready(run, z)
    for _ in range(2):
        call()
    if export is export_executorch:
        (found,) = run.method._method.get_outputs()
    else:
        found = torch.from_numpy(call.args[0].copy_outputs_to_cpu()[0])
    assert torch.equal(found, expected)


def test_a_call_whose_input_is_overwritten_gets_it_each_time(images):
    """Programs of several pieces use their input's memory for something else."""
    model = Quantize()(VAE((1, 16, 16), 4, widths=(8, 8), hidden=8), images).eval()
    _, run = loaded(lower(model, part="anomaly", precision="int8"))
    x = images[:1].float()
    call, expected = ready(run, x), run(x)[0]
    for _ in range(3):
        found = call()
    assert torch.equal(found[0] if found else run.method._method.get_outputs()[0], expected)


def test_threads_are_as_before():
    before = torch.get_num_threads()
    seen = []
    in_turns({"a": lambda: seen.append(torch.get_num_threads())}, runs=2, seconds=1e-9, rounds=1)
    assert set(seen) == {1}
    assert torch.get_num_threads() == before


def test_percentiles_and_noise():
    steady = summary([[float(n) for n in range(1, 102)]] * 3)
    assert (steady.p50_us, steady.p90_us, steady.p99_us, steady.noise) == (51.0, 91.0, 100.0, 0.0)
    assert summary([[10.0] * 9, [11.0] * 9, [12.0] * 9]).noise == pytest.approx(1.4826 / 11, abs=1e-4)


def test_roofline():
    machine = Peaks(gemm_float32=40.0, conv_float32=50.0, conv_int8=100.0, copy=10.0)
    assert machine.macs_per_second("float32") == 50e9
    assert machine.macs_per_second("int8") == 100e9
    assert machine.roofline("int8", macs=10**9, moved=1) == 100e9, "bound by arithmetic"
    assert machine.roofline("int8", macs=100, moved=1000) == 1e9, "bound by memory: ten bytes for each multiply-add"


def test_peaks_of_this_machine(monkeypatch):
    monkeypatch.setattr(peaks, "CONVOLUTIONS", ((32, 32, 3, 14), (8, 8, 1, 4)))
    monkeypatch.setattr(peaks, "GEMM_SIZE", 256)
    found = measured_peaks()
    assert min(found.gemm_float32, found.conv_float32, found.conv_int8, found.copy) > 0.1
    single = peaks.of_convolution(8, 8, 1, 4, integers=True)
    assert found.conv_int8 > single, "the largest of all shapes, not the last"


def test_estimates_say_what_they_are_of():
    assert estimates(format="onnx", precision="int8", macs=1, size=1) == {}
    weights_alone, floats = (
        estimates(format="coreml", precision=each, macs=10**9, size=1) for each in ("int8_weights", "float16")
    )
    assert weights_alone == floats, "activations are float16 in both"
    for phone in PHONES:
        name = {"format": phone.format, "precision": phone.precisions[0]}
        assert estimates(**name, macs=1, size=1) == {phone.name: FLOOR_US}
        ten_ms = estimates(**name, macs=int(phone.macs_per_second / 100), size=1)[phone.name]
        assert ten_ms == pytest.approx(10_000, rel=1e-3)
        assert estimates(**name, macs=1, size=25 * 10**6)[phone.name] == 1000.0, "25 MB at 25 GB/s"
