"""Core ML packages whose pictures are images, and batches of several sizes."""

import numpy as np
import pytest
import torch

from pyro_mvae import Quantize, export_coreml, export_coreml_functions, save_model
from pyro_mvae.export._quiet import import_quietly
from pyro_mvae.export.manifest import describe
from pyro_mvae.export.mil import MilProgram
from tests.catalog import MODELS, unchecked
from tests.commands import run

PARTS = ("encoder", "decoder", "reconstruct", "anomaly")


def made(channels):
    torch.manual_seed(0)
    pixels = torch.randint(256, (64, channels, 16, 16), dtype=torch.uint8)
    model = MODELS["VAE"]((channels, 16, 16)).train()
    model.guide(pixels.float() / 255)
    return model.eval(), pixels


def specification(path):
    return import_quietly("coremltools.models.utils").load_spec(str(path))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("part", PARTS)
def test_an_app_sees_images(part, channels, tmp_path):
    model, pixels = made(channels)
    arrays, images = tmp_path / "arrays.mlpackage", tmp_path / "images.mlpackage"
    export_coreml(model, arrays, part=part, images=pixels)
    found = export_coreml(model, images, part=part, pictures="images", images=pixels)
    assert (found.part, found.pictures) == (part, "images")
    layout = {1: "GRAYSCALE", 3: "RGB"}[channels]
    description = specification(images).description
    for feature in (*description.input, *description.output):
        assert (feature.type.WhichOneof("Type") == "imageType") == (feature.name in ("image", "picture"))
        if feature.type.HasField("imageType"):
            colour = feature.type.imageType
            assert colour.ColorSpace.Name(colour.colorSpace) == layout
            assert (colour.width, colour.height) == (16, 16)
    ours, theirs = MilProgram.load(images), MilProgram.load(arrays)
    noise = theirs.noise()
    for name, value in theirs(noise).items():
        white = 255 if name in ("image", "picture") else 1
        np.testing.assert_allclose(ours(noise)[name] / white, value, atol=2e-3, err_msg="white is 255 in an image, 1 in an array")


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_batches_of_several_sizes(part, precision, tmp_path):
    model, pixels = made(1)
    model = Quantize()(model, pixels).eval() if precision == "int8" else model
    path = tmp_path / "part.mlpackage"
    found = export_coreml(model, path, part=part, precision=precision, batch_sizes=(5, 1, 3), images=pixels)
    assert found.batch_sizes == (1, 3, 5)
    (source,) = specification(path).description.input
    assert source.type.multiArrayType.WhichOneof("ShapeFlexibility") == "enumeratedShapes"
    program = MilProgram.load(path)
    (name,) = program.inputs
    x = np.concatenate([program.noise(seed=seed)[name] for seed in range(5)])
    together, alone = program({name: x}), [program({name: each[None]}) for each in x]
    for output, values in together.items():
        np.testing.assert_allclose(values, np.concatenate([each[output] for each in alone]), atol=2e-3)
    with pytest.raises(ValueError, match="has shape"):
        program({name: x[:2]})


def test_functions_see_images_too(tmp_path):
    model, pixels = made(1)
    found = export_coreml_functions(model, tmp_path / "both.mlpackage", pictures="images", images=pixels)
    assert [each.pictures for each in found] == ["images", "images"]


def test_mistakes_are_explained(tmp_path):
    model, path = MODELS["VAE"]((3, 16, 16)), tmp_path / "x.mlpackage"
    for how, message in (
        ({"pictures": "png"}, "pictures is 'png', expected one of: arrays, images"),
        ({"pictures": "images", "batch_sizes": (1, 2)}, "an image is one"),
        ({"batch_sizes": ()}, "expected 1 among them"),
        ({"batch_sizes": (4,)}, "expected 1 among them"),
        ({"batch_sizes": 4}, r"batch_sizes is 4, expected several, such as \(1, 8\)"),
        ({"batch_sizes": (0,)}, "expected a whole number, 1 or more"),
        ({"batch_sizes": (1, 5000)}, "and 1024 at most"),
    ):
        with pytest.raises(ValueError, match=message):
            unchecked(export_coreml)(model, path, **how)
    assert not path.exists()


def test_commands(tmp_path):
    model, _ = made(3)
    checkpoint = tmp_path / "vae.safetensors"
    save_model(checkpoint, model)
    run("export-coreml", checkpoint, tmp_path / "show.mlpackage", "--pictures", "images")
    run("export-coreml", checkpoint, tmp_path / "many.mlpackage", "--part", "encoder", "--batch", 1, "--batch", 8)
    many, show = describe(tmp_path)["files"]
    assert (many["pictures"], many["batch_sizes"]) == ("arrays", [1, 8])
    assert (show["pictures"], show["batch_sizes"]) == ("images", [1])
    assert show["outputs"][0]["type"] == "image, RGB, 8 bits"
    assert show["outputs"][0]["range"] == [0, 255]
    page = (tmp_path / "README.md").read_text()
    assert "imageBufferValue" in page
    words = ("export-coreml", checkpoint, tmp_path / "x.mlpackage", "--pictures", "images", "--batch", 1, "--batch", 2)
    assert "an image is one" in run(*words, code=2).output
