"""Teaching a small model by a large one."""

from __future__ import annotations

import copy

import pytest
import torch

from pyro_mvae import MVAE, VAE, fit, load_model, save_model
from pyro_mvae.compress import Distill, Palettize, Quantize, Shrink, SparseCode, distill
from pyro_mvae.data import Data, Split
from pyro_mvae.inference import penalties
from pyro_mvae.inference.penalties import MatchFeatures, attention
from pyro_mvae.nets.quantized import is_quantized
from tests.catalog import MODELS


@pytest.fixture(scope="module")
def data(images):
    return Data("squares", Split(images[:192]), Split(images[192:]), binarization="none")


@pytest.fixture(scope="module")
def teacher(images):
    torch.manual_seed(0)
    vae = VAE((1, 16, 16), 4, widths=(16, 24), hidden=32)
    fit(vae, images[:192], epochs=30, batch_size=32, lr=4e-3)
    return vae.eval()


def divergence(teacher, student, images):
    """(19) of a student that is not trained any more."""
    from pyro_mvae import Objective

    torch.manual_seed(0)
    return float(Objective(student.eval(), penalties=[penalties.Distill(1.0, teacher)])(images.float() / 255)["distill"].detach())


def test_a_student_comes_nearer_to_its_teacher_than_one_that_has_none(teacher, data, images):
    torch.manual_seed(1)
    alone = MVAE((1, 16, 16), 4, widths=(8, 12), hidden=16)
    taught = copy.deepcopy(alone)
    settings = {"epochs": 30, "batch_size": 32, "lr": 4e-3}
    fit(alone, data, **settings)
    distill(teacher, taught, data, features=1.0, **settings)
    assert divergence(teacher, taught, images[192:]) < 0.7 * divergence(teacher, alone, images[192:])


def test_the_decoder_alone_is_taught_and_codes_stay_the_teachers(teacher, data, images, tmp_path):
    student = Shrink(width=0.5)(teacher)
    before, x = copy.deepcopy(teacher.state_dict()), images[:8].float() / 255
    decoder = copy.deepcopy(student.decoder.state_dict())
    distill(teacher, student, data, train="decoder", epochs=1)
    torch.testing.assert_close(student.encode(x), teacher.encode(x), atol=1e-5, rtol=1e-4)
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    changed = [key for key, value in student.decoder.state_dict().items() if not torch.equal(value, decoder[key])]
    assert set(decoder) == set(changed)
    assert all(parameter.requires_grad for parameter in student.parameters())
    save_model(tmp_path / "student.safetensors", student.eval())
    loaded = load_model(tmp_path / "student.safetensors")
    assert torch.equal(loaded.decode(loaded.encode(x)), student.decode(student.encode(x)))


def test_a_parameter_that_wants_no_gradient_is_not_trained(images):
    vae = MODELS["VAE"]((1, 16, 16))
    vae.decoder.requires_grad_(False)
    before = copy.deepcopy(dict(vae.named_parameters()))
    fit(vae, images[:64], epochs=1)
    for name, value in vae.named_parameters():
        assert torch.equal(value, before[name]) == name.startswith("decoder")


def test_features_are_those_of_places_whatever_the_channels(teacher):
    z = torch.randn(3, 4)
    maps = attention(teacher.decoder, z)
    assert sorted(maps) == [(4, 4), (8, 8)]
    for value in maps.values():
        torch.testing.assert_close(value.norm(dim=1), torch.ones(3))
    scaled = copy.deepcopy(teacher)
    scaled.decoder.body[1][1].weight.data *= 2
    scaled.decoder.body[1][1].bias.data *= 2
    torch.testing.assert_close(attention(scaled.decoder, z)[4, 4], maps[4, 4])


def test_a_model_that_looks_where_its_teacher_does_has_no_penalty(teacher, images):
    from pyro_mvae import Objective

    twin = copy.deepcopy(teacher)
    x = images[:8].float() / 255
    assert float(Objective(twin, penalties=[MatchFeatures(1.0, teacher)])(x)["match_features"].detach()) < 1e-6
    twin.decoder.body[2][0].weight.data.normal_()
    assert float(Objective(twin, penalties=[MatchFeatures(1.0, teacher)])(x)["match_features"].detach()) > 1e-3


def test_a_pass_teaches_what_another_left(teacher, data, images):
    """Its log has one entry, with the other inside; the student is as `distill` makes it."""
    by = Distill(Shrink(width=0.5, latent_dim=4), features=0.5, epochs=2, batch_size=32, binarization="none")
    small = by(teacher, images[:192])
    assert small.passes == (repr(by),)
    student = Shrink(width=0.5)(teacher)
    distill(teacher, student, data, features=0.5, epochs=2, batch_size=32, lr=4e-3)
    assert all(torch.equal(a, b) for a, b in zip(small.state_dict().values(), student.state_dict().values(), strict=True))
    assert Distill(Shrink(width=0.5, latent_dim=2), epochs=1)(teacher, images[:64]).latent_dim == 2
    rounded = Distill(Quantize(), epochs=1)(teacher, images[:192]).eval()
    assert is_quantized(rounded.decoder)
    assert rounded.latent_dim == teacher.latent_dim
    with pytest.raises(ValueError, match="train is 'encoder'"):
        Distill(train="encoder")
    for name, said in (("epochs", "epochs is 0"), ("by", "by is 0, expected a pass")):
        object.__setattr__(wrong := Distill(), name, 0)
        with pytest.raises(ValueError, match=said):
            wrong.__post_init__()


def test_mistakes_are_explained(teacher, data):
    with pytest.raises(ValueError, match="train is 'encoder'"):
        distill(teacher, MVAE((1, 16, 16), 4), data, train="encoder")
    with pytest.raises(ValueError, match="train both nets"):
        distill(teacher, MVAE((1, 16, 16), 4), data, train="decoder")
    with pytest.raises(ValueError, match="expected a fitted model with a decoder"):
        MatchFeatures(1.0, torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="no map of the same size"):
        distill(teacher, VAE((1, 16, 16), 4, net="mlp", hidden=8), data, features=1.0, epochs=1)
    with pytest.raises(ValueError, match="of the sizes 4 and 3"):
        distill(teacher, VAE((1, 16, 16), 3, widths=(8,), hidden=8), data, epochs=1)


@pytest.mark.parametrize("by", [Quantize(), SparseCode(0.5), Palettize(bits=2)], ids=lambda by: type(by).__name__)
def test_a_teachers_encoder_is_not_given_to_a_student_that_has_another_kind(by, teacher, images):
    with pytest.raises(ValueError, match="which its teacher's encoder is not"):
        Distill(by, train="decoder", epochs=1)(teacher, images)


def test_what_a_prior_learned_goes_with_the_student():
    model = MODELS["VaDE"]((1, 16, 16))
    with torch.no_grad():
        model.mixture.logits.add_(torch.tensor([5.0, 0.0, 1.0]))
    small = Shrink(width=0.5)(model)
    assert all(torch.equal(a, b) for a, b in zip(small.mixture.parameters(), model.mixture.parameters(), strict=True))
    assert small.latent_dim == model.latent_dim
    assert Shrink(latent_dim=2)(model).mixture.loc.shape[1] == 2


def test_a_kind_of_pass_is_no_pass():
    with pytest.raises(ValueError, match="expected a pass that makes the student"):
        Distill(Shrink)
