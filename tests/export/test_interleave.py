"""Decoders written as runtimes like them compute what they computed before."""

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pyro_mvae import export_executorch, export_onnx
from pyro_mvae.compress import Quantize
from pyro_mvae.export._quiet import quiet
from pyro_mvae.export.capture import capture
from pyro_mvae.export.delegation import delegation
from pyro_mvae.export.executorch import lower
from pyro_mvae.export.interleave import Interleave, interleaved
from pyro_mvae.export.verify import load_artifact
from pyro_mvae.models import VAE
from pyro_mvae.nets.quantized import as_integers, quantized

few = st.integers(1, 3)


@st.composite
def transposed(draw):
    """A transposed convolution that is worth it, and an input of it."""
    kernel, stride = (draw(few.map(lambda n: n + 1)), draw(few.map(lambda n: n + 1))), (draw(few), draw(st.integers(2, 3)))
    padding = tuple(draw(st.integers(0, (k - 1) // 2)) for k in kernel)
    more = tuple(draw(st.integers(0, min(p, s - 1))) for p, s in zip(padding, stride, strict=True))
    how = {"stride": stride, "padding": padding, "output_padding": more, "bias": draw(st.booleans())}
    conv = nn.ConvTranspose2d(draw(few), draw(few), kernel, **how)
    return conv, torch.randn(draw(few), conv.in_channels, draw(few.map(lambda n: n + 1)), draw(few.map(lambda n: n + 1)))


@settings(deadline=None, max_examples=60)
@given(transposed())
def test_any_transposed_convolution_is_a_plain_one_and_moves(case):
    conv, x = case
    net = nn.Sequential(conv, nn.ReLU()).eval()
    other = interleaved(net)
    assert any(isinstance(layer, Interleave) for layer in other.modules())
    torch.testing.assert_close(other(x), net(x))


@settings(deadline=None, max_examples=30)
@given(transposed())
def test_integers_are_the_same(case):
    conv, x = case
    conv.output_padding = (0, 0)  # a quantised layer has none
    net = quantized(nn.Sequential(conv, nn.ReLU()))
    net.train()(x)
    integers = as_integers(net.eval())
    assert torch.equal(interleaved(integers)(x), integers(x))


def test_what_gains_nothing_is_left():
    for conv in (nn.ConvTranspose2d(4, 8, 4, stride=2), nn.ConvTranspose2d(4, 2, 3), nn.Conv2d(4, 2, 3, stride=2)):
        net = nn.Sequential(conv)
        assert interleaved(net) is net


def test_files_are_in_one_piece_and_hold_the_plain_convolution():
    images = torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8)
    model = Quantize()(VAE((3, 16, 16), 4, widths=(8, 8), hidden=8), images).eval()
    for part in ("decoder", "reconstruct", "anomaly"):
        with quiet():
            program = capture(model, part, precision="int8", written=interleaved).program()
        names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
        assert any("permute" in name for name in names), part
        found = delegation(lower(model, part=part, precision="int8"))
        assert found.pieces == 1 or part == "anomaly"


@pytest.mark.parametrize(
    ("shape", "sizes", "left"),
    [
        ((1, 28, 28), {"widths": (8, 16), "hidden": 128}, 2),
        ((3, 64, 64), {"widths": (8, 8, 160), "hidden": 16}, 3),  # so many channels that zero points are cast
        ((1, 16, 16), {"widths": (8, 8), "hidden": 8}, 3),  # too small to be worth it
    ],
)
def test_onnxruntime_gets_large_dense_layers_as_convolutions_of_integers(shape, sizes, left, tmp_path):
    torch.manual_seed(0)
    images = torch.randint(256, (8, *shape), dtype=torch.uint8)
    model = Quantize()(VAE(shape, 8, **sizes), images).eval()
    found = export_onnx(model, tmp_path / "decoder.onnx", images=images)
    assert found.max_abs_diff < 0.5 / 255
    graph = onnx.load(tmp_path / "decoder.onnx").graph
    assert [node.op_type for node in graph.node].count("ConvTranspose") == left
    assert not any(node.op_type == "Cast" for node in graph.node)
    used = {name for node in graph.node for name in node.input}
    assert all(tensor.name in used for tensor in graph.initializer)


def test_files_of_two_runtimes_give_the_same_pixels(tmp_path):
    """Within one level of 255, as a picture is shown in, but for ties: halfway between two integers either may be taken."""
    torch.manual_seed(0)
    images = torch.randint(256, (32, 1, 28, 28), dtype=torch.uint8)
    model = Quantize()(VAE((1, 28, 28), 8), images).eval()
    export_onnx(model, tmp_path / "decoder.onnx", images=images)
    export_executorch(model, tmp_path / "decoder.pte", images=images)
    runs = [load_artifact(tmp_path / name).run for name in ("decoder.onnx", "decoder.pte")]
    codes = torch.randn(40, 1, 8)
    first, second = (torch.cat([run(z)[0] for z in codes]) for run in runs)
    with torch.no_grad():
        third = model.decode(codes[:, 0])
    for ours, theirs in ((first, second), (first, third), (second, third)):
        assert ((ours - theirs).abs() > 1 / 255).float().mean() < 1e-3
