"""Which way a step is run: measured where that pays, kept when a run is resumed, and the same run whichever it is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyro_mvae import Interrupted, Objective, fit
from pyro_mvae.inference.layout import like
from tests.inference.mishaps import interrupt_at
from tests.inference.test_fit import small


def test_a_run_goes_on_with_the_backend_it_began_with(tmp_path, images, monkeypatch):
    import pyro_mvae.inference.asvi as asvi

    asked = []
    original = asvi.compile_gradients
    choice = {"backend": "eager", "layout": "channels_last"}
    monkeypatch.setattr(asvi, "fastest", lambda *arguments, **more: (asked.append("measured"), (choice, None))[1])

    def compile_gradients(objective, example, *, backend):
        asked.append(backend)
        return original(objective, example)

    monkeypatch.setattr(asvi, "compile_gradients", compile_gradients)
    settings = {"epochs": 2, "checkpoint": tmp_path / "state.safetensors"}
    with pytest.raises(Interrupted):
        fit(small(), images[:180], **settings, progress=interrupt_at(2))
    fit(small(), images[:180], **settings, resume=True)
    fit(small(), images[:180], **settings, resume=True, compile="inductor")
    assert asked == ["measured", "eager", "eager", "inductor"]


def test_the_fastest_way_is_measured_only_where_it_matters(images, monkeypatch):
    import pyro_mvae.inference.fastest as fastest

    times = {("eager", "channels_last"): 0.03, ("eager", "contiguous"): 0.02, ("inductor", "channels_last"): 0.01}
    asked, tracing = [], [2.0]

    def timed(objective, x, *, backend, layout):
        asked.append((backend, layout))
        return times.get((backend, layout), 0.05), tracing[0], None

    monkeypatch.setattr(fastest, "timed", timed)
    objective, x = Objective(small()), images[:8].float() / 255

    def choice(num_steps, **told):
        asked.clear()
        return tuple(fastest.fastest(objective, x, num_steps=num_steps, **told)[0].values())

    assert choice(10) == ("pyro", "channels_last")
    assert choice(10, layout="contiguous") == ("pyro", "contiguous")
    assert asked == [], "the run is over before it is traced"
    assert choice(500) == ("eager", "channels_last")
    assert len(asked) == 1
    assert choice(2000) == ("eager", "contiguous")
    assert len(asked) == 2
    assert choice(100_000) == ("inductor", "channels_last")
    assert len(asked) == 4
    tracing[0] = 20.0
    assert choice(100_000) == ("eager", "contiguous"), "so much is computed that compiling would take longer than the run"
    assert choice(200_000) == ("inductor", "channels_last")
    assert choice(100_000, layout="contiguous") == ("eager", "contiguous")
    assert choice(100_000, backend="inductor", layout="contiguous") == ("inductor", "contiguous")
    assert asked == []


def test_pyro_its_graph_and_compiled_code_run_the_same_to_rounding_and_say_how_long_they_took_to_compile(images, caplog):
    with caplog.at_level("INFO", logger="pyro_mvae"):
        by_pyro = fit(small(), images[:180], epochs=2)
        assert by_pyro.attrs["how"]["backend"] == "pyro", "so few steps are left to it"
        traced, compiled = (fit(small(), images[:180], epochs=2, compile=how) for how in ("eager", "inductor"))
    assert caplog.text.count("traced") >= 2
    assert "compiled in" in caplog.text
    for column in ("loss", "kl", "likelihood"):
        assert by_pyro[column].tolist() == pytest.approx(traced[column].tolist(), rel=5e-3)
        assert compiled[column].tolist() == pytest.approx(traced[column].tolist(), rel=5e-3)
    with pytest.raises(ValueError, match="compile is 'fast'"):
        fit(small(), images, compile="fast")
    with pytest.raises(ValueError, match="layout is 'rows'"):
        fit(small(), images, layout="rows")


FORMATS = st.sampled_from([torch.contiguous_format, torch.channels_last])


@given(st.lists(st.integers(1, 3), min_size=4, max_size=4), FORMATS, FORMATS)
def test_gradients_are_copied_into_a_parameters_format_only_where_memory_differs(shape, ours, theirs):
    parameter, value = torch.empty(shape, memory_format=ours), torch.empty(shape, memory_format=theirs).copy_(torch.randn(shape))
    result = like(parameter, value)
    assert torch.equal(result, value)
    assert result.stride() == parameter.stride()
    in_memory = [torch.as_strided(x, (x.numel(),), (1,)) for x in (value, result)]
    assert (result.data_ptr() == value.data_ptr()) == torch.equal(*in_memory)
