"""Whether the int8 files of one model give the same pixels in all three formats, and as PyTorch.

pytest benchmarks/ -k pixels
"""

from __future__ import annotations

import itertools
from unittest import mock

import torch

from benchmarks.digits import built
from pyro_mvae import load_data, load_model
from pyro_mvae.export import coreml
from pyro_mvae.export.capture import capture
from pyro_mvae.export.verify import inputs_for, load_artifact

LEVELS, NUM_IMAGES = 255, 500


def test_pixels(record):
    """The decoder on codes of test images: differences in levels of 255."""
    out = built()
    model, images = load_model(out / "student.safetensors").eval(), load_data("digits").test.images
    z = torch.cat([inputs_for("decoder", model, some) for some in images[:NUM_IMAGES].split(50)])
    reference = capture(model, "decoder", precision="int8")
    exact = out.parent / "pixels-float32.mlpackage"
    with mock.patch.object(coreml, "COMPUTED", "FLOAT32"):
        coreml.export_coreml(model, exact, precision="int8")
    runs = {
        "PyTorch": lambda code: reference(code),
        "ExecuTorch": load_artifact(out / "decoder.pte").run,
        "ONNX": load_artifact(out / "decoder.onnx").run,
        "Core ML": load_artifact(out / "decoder.mlpackage").run,
        "Core ML in float32": load_artifact(exact).run,
    }
    pictures = {name: torch.cat([run(code)[0].float() for code in z.split(1)]) for name, run in runs.items()}
    rows = []
    for a, b in itertools.combinations(pictures, 2):
        levels = LEVELS * (pictures[a] - pictures[b]).abs()
        share = float((levels > 1).float().mean())
        rows.append({"formats": f"{a}, {b}", "most": round(float(levels.max()), 3), "share_above_one_level": round(share, 6)})
    record("pixels-digits", {"num_images": NUM_IMAGES, "unit": "levels of 255", "goal": 1, "rows": rows})
