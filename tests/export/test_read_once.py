"""What torch and onnxscript are asked once for several files, and never longer than a conversion."""

from contextlib import nullcontext

import pytest
import torch._export.utils as export_utils

from pyro_mvae import export_onnx
from pyro_mvae.export import capture, onnx
from pyro_mvae.export._quiet import import_quietly
from tests.catalog import MODELS


def test_operations_are_read_once_and_files_are_the_same(tmp_path, monkeypatch):
    model, paths, calls = MODELS["VAE"]((1, 8, 8)).eval(), [tmp_path / f"{i}.onnx" for i in range(3)], []
    module = import_quietly("torch.onnx._internal.exporter._registration").onnxscript_apis
    read = module.get_torchlib_ops
    monkeypatch.setattr(module, "get_torchlib_ops", lambda: calls.append(1) or read())
    for path in paths[:2]:
        export_onnx(model, path, part="encoder")
    assert len(calls) == 1
    for name in ("read_once", "listed_once"):
        monkeypatch.setattr(onnx, name, nullcontext)
    export_onnx(model, paths[2], part="encoder")
    assert len(calls) == 2
    assert len({path.read_bytes() for path in paths}) == 1


@pytest.mark.parametrize("once", [capture.listed_once, onnx.read_once])
def test_an_error_leaves_the_libraries_as_they_were(once):
    def theirs():
        module = import_quietly("torch.onnx._internal.exporter._registration").onnxscript_apis
        return export_utils._collect_all_valid_cia_ops_for_namespace, module.get_torchlib_ops

    def failing():
        with once():
            assert theirs() != before
            raise RuntimeError("no conversion")

    before = theirs()
    with pytest.raises(RuntimeError, match="no conversion"):
        failing()
    assert theirs() == before
