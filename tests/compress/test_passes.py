"""The contract of every pass, and passes in any order."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pyro
import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyro_mvae import compress, export_coreml, export_executorch, export_onnx, fit, load_model, models, save_model
from pyro_mvae.compress import Distill, FoldAndFuse, Palettize, PruneChannels, PruneLatents, Quantize, Shrink, SparseCode
from pyro_mvae.compress.prune import channels
from pyro_mvae.export.capture import PARTS
from pyro_mvae.nets.palette import how_palettized
from pyro_mvae.nets.quantized import check_calibrated, quantized
from tests.catalog import BOUNDS, EXPORTERS, MODELS, PASSES, REFUSED
from tests.seen import having_seen

CASES = [(model, name) for model in MODELS for name in PASSES if (model, name) not in REFUSED]


@pytest.mark.parametrize(("model", "name"), CASES)
def test_the_contract(model, name, images, tmp_path):
    """A pass copies, is logged by its repr, and leaves a model that trains, by `fit` and by SVI, and is saved and read."""
    original = MODELS[model]((1, 16, 16))
    before = copy.deepcopy(original.state_dict())
    small = PASSES[name](original, images[:64])
    assert all(torch.equal(value, before[key]) for key, value in original.state_dict().items())
    assert original.passes == ()
    assert small.passes == (repr(PASSES[name]),)
    assert eval(small.passes[0], vars(compress)) == PASSES[name]  # its repr rebuilds it

    fitted = copy.deepcopy(dict(small.named_parameters()))
    fit(small, images[:64], epochs=1)
    assert all(not torch.equal(value, fitted[key]) for key, value in small.named_parameters())
    x = images[:8].float() / 255
    SVI(small.model, small.guide, pyro.optim.Adam({"lr": 1e-3}), BOUNDS.get(model, Trace_ELBO)()).step(x)

    small.eval()
    save_model(tmp_path / "small.safetensors", small)
    loaded = load_model(tmp_path / "small.safetensors")
    assert loaded.passes == small.passes
    assert torch.equal(loaded.decode(loaded.encode(x)), small.decode(small.encode(x)))


@pytest.mark.parametrize(("model", "name"), sorted(REFUSED))
def test_a_pass_that_a_model_cannot_go_through_says_why(model, name, images):
    with pytest.raises(ValueError, match=REFUSED[model, name]):
        PASSES[name](MODELS[model]((1, 16, 16)), images[:8])


def test_fewer_layers_are_those_of_the_largest_maps(images):
    vae = MODELS["VAE"]((1, 16, 16))
    small = Shrink(layers=1)(vae)
    assert (small.config["widths"], small.config["hidden"]) == ([8], 16)
    convolutions = [sum(isinstance(layer, nn.Conv2d) for layer in each.encoder.modules()) for each in (vae, small)]
    assert convolutions[1] == convolutions[0] - 1
    assert small.decode(small.encode(images[:3].float() / 255)).shape == (3, 1, 16, 16)


SMALLER = {
    "prune": PruneChannels(ratio=0.3, round_to=1),
    "rank": PruneChannels(ratio=0.3, round_to=2, importance="group_l1", scope="global"),
    "latents": PruneLatents(keep=2),
    "fold": FoldAndFuse(),
    "sparse": SparseCode(0.05),
}


NETS = {
    "net": st.sampled_from(["conv", "mobile", "mlp"]),
    "widths": st.lists(st.integers(2, 9), min_size=1, max_size=3),
    "hidden": st.integers(3, 12),
    "image_shape": st.tuples(st.sampled_from([1, 3]), st.integers(8, 24), st.integers(8, 24)),
    "latent_dim": st.integers(2, 6),
}


@st.composite
def any_passes(draw):
    """The name of a model, what it is made with, and passes that it can go through, in any order."""
    name = draw(st.sampled_from(sorted(MODELS)))
    possible = [each for each in sorted(SMALLER) if (name, type(SMALLER[each]).__name__) not in REFUSED]
    chosen = draw(st.permutations(possible))[: draw(st.integers(0, len(possible)))]
    shrink = Shrink(width=0.6, latent_dim=2)
    taught = [] if (name, "Distill") in REFUSED else [Distill(shrink, epochs=1)]
    first = draw(st.sampled_from([[], [shrink], taught]))
    last = draw(st.sampled_from([[], [Quantize()], [Quantize(weight_bits=4)], [Quantize(ranges="learned")], [Palettize(bits=2)]]))
    return name, draw(st.fixed_dictionaries(NETS)), (*first, *(SMALLER[each] for each in chosen), *last)


def gone_through(name, nets, passes):
    """That model after those passes, and images that it has seen."""
    torch.manual_seed(0)
    model = getattr(models, name)(**nets)
    seen = torch.randint(0, 256, (6, *model.image_shape), dtype=torch.uint8)
    for step in passes:
        try:
            model = step(model, seen)
        except ValueError as error:
            if "where ratio 0.3 asks for" not in str(error):
                raise
            reject()  # of hardly any channels no such share can go
    assert model.passes == tuple(map(repr, passes))
    if SMALLER["latents"] in passes and name != "VQVAE":  # whose latents are numbers of codes
        assert model.latent_dim == 2
    return model, seen


@given(any_passes())
@settings(max_examples=60, deadline=None)
def test_any_passes_in_any_order(tmp_path_factory, drawn):
    """They are logged, the nets still fit each other and train by SVI, and what is read back computes the same."""
    vae, seen = gone_through(*drawn)
    x = seen[:2].float() / 255
    pyro.clear_param_store()
    bound = BOUNDS.get(type(vae).__name__, Trace_ELBO)()
    assert math.isfinite(SVI(vae.train().model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), bound).step(x))
    vae.eval()
    path = tmp_path_factory.mktemp("passes") / "vae.safetensors"
    save_model(path, vae)
    loaded = load_model(path)
    assert loaded.passes == vae.passes
    assert torch.equal(loaded.encode(x), vae.encode(x))
    assert torch.equal(loaded.decode(vae.encode(x)), vae.decode(vae.encode(x)))


@given(any_passes(), st.sampled_from(PARTS), st.sampled_from(sorted(EXPORTERS)))
@settings(max_examples=15, deadline=None)
def test_any_of_them_goes_to_a_phone(tmp_path_factory, drawn, part, name):
    """What is written is held against PyTorch, on images; palettes are for Core ML alone."""
    model, seen = gone_through(*drawn)
    palettes = how_palettized(model) is not None
    export, suffix, _ = EXPORTERS["export_coreml" if palettes else name]
    how = {"precision": "palettized"} if palettes else {}
    export(model.eval(), tmp_path_factory.mktemp("files") / f"{part}{suffix}", part=part, images=seen, **how)


@pytest.mark.parametrize("name", PASSES)
def test_what_a_pass_leaves_goes_to_a_phone(name, images, tmp_path):
    """Each file is held against PyTorch as it is written."""
    small = PASSES[name](having_seen(MODELS["VAE"]((1, 16, 16)), images), images[:64]).eval()
    if name == "Palettize":
        files = [export_coreml(small, tmp_path / "decoder.mlpackage", part="decoder", precision="palettized")]
    else:
        encoder = export_onnx(small, tmp_path / "encoder.onnx", part="encoder")
        files = [encoder, export_executorch(small, tmp_path / "decoder.pte", part="decoder")]
    assert all(Path(file.path).exists() for file in files)


def test_mistakes_are_explained():
    vae = MODELS["MVAE"]((1, 16, 16))
    with pytest.raises(ValueError, match="ratio is 1"):
        PruneChannels(ratio=1.0)
    with pytest.raises(ValueError, match="do so first, then quantise"):
        PruneChannels(ratio=0.5)(Quantize()(vae))
    with pytest.raises(ValueError, match="already"):
        Quantize()(Quantize()(vae))
    with pytest.raises(ValueError, match="seen no data"):
        check_calibrated(Quantize()(vae))
    with pytest.raises(ValueError, match="looks at images: call it with"):
        PruneChannels(importance="taylor")(vae)
    with pytest.raises(ValueError, match="looks at images: call it with"):
        PruneLatents()(vae)
    with pytest.raises(ValueError, match="looks at images: call it with"):
        Quantize(ranges="learned")(vae)
    with pytest.raises(ValueError, match="keep is 9, expected 4 at most"):
        PruneLatents(keep=9)(vae, torch.zeros(4, 1, 16, 16, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"layer '.*' has no batch normalisation"):
        PruneChannels(importance="bn_scale")(MODELS["InfoVAE"]((1, 16, 16)))
    with pytest.raises(ValueError, match="there is one image"):
        PruneLatents()(vae, torch.zeros(1, 1, 16, 16, dtype=torch.uint8))
    for made, wrong in [(Quantize(), "weight_bits"), (PruneLatents(), "keep"), (Shrink(), "layers"), (Shrink(), "latent_dim")]:
        object.__setattr__(made, wrong, 2.5)
        with pytest.raises(ValueError, match=rf"{wrong} is 2\.5, expected a whole number"):
            made.__post_init__()
    with pytest.raises(ValueError, match="sparse already"):
        SparseCode()(SparseCode()(vae))
    with pytest.raises(ValueError, match="shrink it first"):
        Shrink()(PruneChannels()(vae))
    with pytest.raises(ValueError, match="shrink it first"):
        Shrink()(SparseCode()(vae))
    with pytest.raises(ValueError, match="layers is 5, expected 2 at most"):
        Shrink(layers=5)(vae)
    with pytest.raises(ValueError, match="expected 2 or more: a sphere"):
        PruneLatents(keep=1)(MODELS["SVAE"]((1, 16, 16)), torch.zeros(4, 1, 16, 16, dtype=torch.uint8))
    for wrong in (
        lambda: PruneChannels(importance="luck"),
        lambda: PruneChannels(scope="net"),
        lambda: PruneLatents(keep=0),
        lambda: Quantize(weight_bits=1),
        lambda: Quantize(ranges="fixed"),
        lambda: SparseCode(0.0),
        lambda: Shrink(width=0.0),
        lambda: Shrink(latent_dim=0),
    ):
        with pytest.raises(ValueError, match="expected"):
            wrong()
    with pytest.raises(ValueError, match="linear"):
        quantized(nn.Sequential(nn.Linear(2, 2)))


@torch.no_grad()
def test_a_pass_needs_no_gradients_around_it():
    vae = MODELS["VAE"]((1, 16, 16)).eval()
    assert sum(channels(PruneChannels()(vae)).values()) < sum(channels(vae).values())
    assert channels(FoldAndFuse()(vae)) == channels(vae)
