"""Where an ExecuTorch file keeps its constants, and what each of them takes."""

import pytest
import torch
from torch import nn

from pyro_mvae import VAE
from pyro_mvae.compress import Quantize
from pyro_mvae.export._quiet import import_quietly
from pyro_mvae.export.executorch import loaded, lower, lowered, measured_bytes
from pyro_mvae.export.interleave import interleaved
from pyro_mvae.nets.quantized import as_integers, quantized
from pyro_mvae.search.student import calibrated


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_constants_have_no_names_in_the_program(precision):
    model = VAE((1, 16, 16), 4, widths=(8, 12), hidden=16).eval()
    content = lower(calibrated(Quantize()(model)) if precision == "int8" else model, part="encoder", precision=precision)
    read = import_quietly("executorch.exir._serialize._program").deserialize_pte_binary(content)
    assert not read.program.named_data
    assert read.named_data is None or not read.named_data.pte_data
    assert len(read.program.segments) <= 1, "the piece that XNNPACK runs, and nothing else"


@torch.no_grad()
def test_equal_constants_are_there_once_and_each_layer_finds_its_own():
    torch.manual_seed(0)
    first, other = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)

    def written(*layers):
        net = nn.Sequential(*[each for layer in layers for each in (layer, nn.Sigmoid())]).eval()
        content = lowered(torch.export.export(net, (x,), strict=False))
        torch.testing.assert_close(loaded(content)[1](x)[0], net(x), atol=1e-5, rtol=1e-4)
        return len(content)

    x = torch.rand(1, 16, 8, 8)
    kernel = 4 * first.weight.numel()
    alone, thrice, three = written(first), written(first, first, first), written(first, other, first)
    assert thrice < alone + 0.2 * kernel
    assert alone + kernel < three < alone + 1.2 * kernel


@torch.no_grad()
def test_one_output_spread_over_many_places_has_one_scale():
    torch.manual_seed(0)
    x, net = torch.rand(1, 8, 1, 1), quantized(nn.Sequential(nn.ConvTranspose2d(8, 1, 28, stride=28)))
    net.train()(x)
    net = as_integers(net.eval())
    content = lowered(torch.export.export(interleaved(net), (x,), strict=False))
    bytes_each = (len(content) - 8 * 28 * 28) / (28 * 28)
    assert bytes_each < 4 + 4, "besides its weights an output has a bias, and neither scale is written 784 times"
    torch.testing.assert_close(loaded(content)[1](x)[0], net(x), atol=1e-5, rtol=1e-4)


def test_files_take_little_more_than_their_weights():
    model = VAE((1, 28, 28), 16, net="mobile", widths=(8, 12, 28), hidden=52)
    weights = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d))
    assert measured_bytes(calibrated(Quantize()(model))) < weights + 16_500, (
        "23,400 where each constant has a name and a place of its own"
    )
