"""Changes the format, never the numbers."""

from pyro_mvae.export.coreml import export_coreml, export_coreml_functions
from pyro_mvae.export.executorch import export_executorch
from pyro_mvae.export.mil import MilProgram, evaluate_mlpackage
from pyro_mvae.export.onnx import export_onnx
from pyro_mvae.export.verify import Verification, examine, verify

__all__ = [
    "MilProgram",
    "Verification",
    "evaluate_mlpackage",
    "examine",
    "export_coreml",
    "export_coreml_functions",
    "export_executorch",
    "export_onnx",
    "verify",
]
