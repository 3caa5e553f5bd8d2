"""Changes the format, never the numbers."""

from pyro_mvae.export.coreml import export_coreml
from pyro_mvae.export.executorch import export_executorch
from pyro_mvae.export.mil import MilProgram, evaluate_mlpackage
from pyro_mvae.export.onnx import export_onnx
from pyro_mvae.export.verify import Verification, verify

__all__ = [
    "MilProgram",
    "Verification",
    "evaluate_mlpackage",
    "export_coreml",
    "export_executorch",
    "export_onnx",
    "verify",
]
