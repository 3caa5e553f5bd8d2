"""Core ML packages whose weights have 4 bits, with a scale for each block."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_mvae import VAE, Quantize, export_coreml, verify
from pyro_mvae.compress import Palettize
from pyro_mvae.evaluate.cost import num_params
from pyro_mvae.export.capture import capture
from pyro_mvae.export.mil import MilProgram
from pyro_mvae.export.verify import inputs_for
from pyro_mvae.nets.blockwise import block_size, in_blocks
from tests.catalog import MODELS
from tests.seen import having_seen


@pytest.mark.parametrize("name", ["VAE", "VQVAE", "MVAE"])
def test_blocks_of_4_bits_are_what_a_package_holds(name, images, tmp_path):
    model = having_seen(MODELS[name]((1, 16, 16)), images)
    for part in ("encoder", "decoder"):
        path = tmp_path / f"{part}.mlpackage"
        result = export_coreml(model, path, part=part, precision="int4", images=images)
        assert verify(path, model, images=images) == result
        kinds = Counter(operation.op_type for operation in MilProgram.load(path)._function.operations)
        assert kinds["constexpr_blockwise_shift_scale"] == kinds["conv"] + kinds["conv_transpose"]
    assert not torch.equal(
        *(capture(model, "decoder", precision=each).module.net.body[-1].weight for each in ("int4", "float16"))
    )


def test_what_rounding_costs_is_said(images, tmp_path):
    """By PyTorch in two precisions; nothing of what is rounded in the model itself, or not at all."""
    model = having_seen(MODELS["VAE"]((1, 16, 16)), images)
    found = {
        precision: export_coreml(model, tmp_path / f"{precision}.mlpackage", precision=precision, images=images)
        for precision in ("float16", "int8_weights", "int4")
    }
    assert found["float16"].rounding_psnr_db is None
    assert found["int4"].rounding_psnr_db < found["int8_weights"].rounding_psnr_db - 10
    codes = inputs_for("decoder", model, images)
    with torch.no_grad():
        exact, rounded = (capture(model, "decoder", precision=each)(codes)[0] for each in ("float32", "int4"))
    assert found["int4"].rounding_psnr_db == pytest.approx(-10 * (rounded - exact).square().mean().log10().item(), abs=1e-3)
    small = Quantize()(model, images).eval()
    assert export_coreml(small, tmp_path / "small.mlpackage", precision="int8", images=images).rounding_psnr_db is None


def test_blocks_of_4_bits_take_a_quarter(images, tmp_path):
    model = having_seen(VAE((1, 16, 16), 32, widths=(32, 64), hidden=128), images)
    whole, few = (export_coreml(model, tmp_path / f"{each}.mlpackage", precision=each).bytes for each in ("float16", "int4"))
    assert whole - few == pytest.approx(num_params(model.decoder) * (2 - 0.5), rel=0.05), "half a byte a weight, of two"


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 5), st.sampled_from([1, 3, 4, 20, 32, 64, 96]), st.booleans(), st.integers(0, 2**31))
def test_blocks_are_as_near_as_4_bits_can_be(outputs, inputs, transposed, seed):
    shape = (inputs, outputs, 2, 3) if transposed else (outputs, inputs, 2, 3)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    rounded = in_blocks(weight, transposed=transposed)
    torch.testing.assert_close(in_blocks(rounded, transposed=transposed), rounded)
    by_output = [each.transpose(0, 1) if transposed else each for each in (weight, rounded)]
    for start in range(0, inputs, size := block_size(inputs)):
        block, nearest = (each[:, start : start + size] for each in by_output)
        scale = block.abs().amax((1, 2, 3), keepdim=True) / 7
        assert bool(((block - nearest).abs() <= scale / 2 * 1.001).all())


def test_int4_is_refused_where_it_can_not_be(images, tmp_path):
    model = MODELS["VAE"]((1, 16, 16))
    with pytest.raises(ValueError, match="int4 needs iOS18, target is iOS16"):
        export_coreml(model, tmp_path / "a.mlpackage", precision="int4", target="iOS16")
    for done in (Quantize()(model, images), Palettize()(model)):
        with pytest.raises(ValueError, match="rounded already"):
            export_coreml(done.eval(), tmp_path / "a.mlpackage", precision="int4")
    assert not list(tmp_path.iterdir())
