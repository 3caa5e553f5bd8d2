"""Integers are the same in every format, and in PyTorch."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from pyro_mvae import Quantize, export_coreml, export_executorch, export_onnx, fit
from pyro_mvae.export.capture import capture
from pyro_mvae.export.delegation import Delegation, delegation
from pyro_mvae.export.executorch import lower
from pyro_mvae.export.verify import inputs_for, load_artifact, outputs_of
from tests.catalog import EXPORTERS, MODELS
from tests.seen import having_seen

PARTS = ("encoder", "decoder")


@pytest.mark.parametrize("name", ["GMVAE", "SVAE", "VQVAE"])  # heads of other kinds than those above
def test_integers_are_one_piece_too(name, images):
    model = Quantize()(MODELS[name]((1, 16, 16)), images[:64]).eval()
    for part in PARTS:
        assert delegation(lower(model, part=part, precision="int8")) == Delegation(pieces=1, outside=())


@pytest.mark.parametrize("ranges", ["moving", "learned"])
@pytest.mark.parametrize("exporter", EXPORTERS)
def test_integers_of_layers_that_came_to_nothing(exporter, ranges, images, tmp_path):
    """Runtimes keep a bias in steps of scales that would be next to nothing, in 32 bits: it was another number there."""
    model = having_seen(MODELS["VAE"]((1, 16, 16)), images)
    _, second = [layer for layer in model.encoder.modules() if isinstance(layer, nn.Conv2d)][:2]
    norm = next(layer for layer in model.encoder.modules() if isinstance(layer, nn.BatchNorm2d))
    with torch.no_grad():
        norm.weight.zero_()
        norm.bias.fill_(-1.0)  # nothing comes through its ReLU
        second.weight[0].zero_()
    small = Quantize(ranges=ranges)(model, images[:64]).eval()
    export, suffix, _ = EXPORTERS[exporter]
    assert export(small, tmp_path / f"encoder{suffix}", part="encoder", images=images[:16]).max_abs_diff < 0.05


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("part", PARTS)
def test_all_formats_compute_the_same_integers(part, bits, images, tmp_path, monkeypatch):
    """Core ML's with the floats between them in float32: in float16 it differs by what float16 rounds.

    Runtimes multiply scales in orders of their own, so that what is halfway between two integers may fall on either: in one of
    eight models drawn like this one that happens to ExecuTorch too, for 9 of 16,384 pixels at most.
    """
    monkeypatch.setattr(sys.modules["pyro_mvae.export.coreml"], "COMPUTED", "FLOAT32")
    model = Quantize(weight_bits=bits)(having_seen(MODELS["VAE"]((1, 16, 16)), images), images).eval()
    for export, suffix, more in (
        (export_executorch, ".pte", {}),
        (export_onnx, ".onnx", {}),
        (export_coreml, ".mlpackage", {"precision": "int8"}),
    ):
        found = export(model, tmp_path / f"{part}{suffix}", part=part, images=images, **more)
        assert found.max_abs_diff < 1e-3, suffix
        assert found.psnr_db > 90, suffix
    codes = inputs_for(part, model, images)
    run = load_artifact(tmp_path / f"{part}.pte").run
    integers, floats = (share_that_differs(run, capture(model, part, precision=each), codes) for each in ("int8", "float32"))
    assert integers < 1e-3
    assert floats > 0.5, "what is not the same integers is told from what is"


def share_that_differs(run, reference, x):
    pairs = zip(outputs_of(run, x), outputs_of(reference, x), strict=True)
    return max(((ours - theirs).abs() > 1e-5).float().mean().item() for ours, theirs in pairs)


def test_signed_weights_that_saturate_are_computed_right(tmp_path):
    """Large weights and inputs of one sign: what 16 bits can't hold between two products."""
    torch.manual_seed(0)
    model = MODELS["MVAE"]((1, 16, 16))
    fit(model, torch.full((64, 1, 16, 16), 255, dtype=torch.uint8), epochs=1)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.weight.data = layer.weight.data.abs() + 0.1
    model.encoder.heads.log_scale.weight.data *= 1e-9  # its exponential would overflow
    int8 = Quantize()(model)
    bright = torch.randint(128, 256, (64, 1, 16, 16), dtype=torch.uint8)
    int8.train()
    int8.decoder(int8.encoder(bright.float() / 255)[0])
    export_onnx(int8.eval(), tmp_path / "encoder.onnx", part="encoder", images=bright)
