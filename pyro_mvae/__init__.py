"""Variational autoencoders from a Pyro model/guide pair to a phone."""

from pyro_mvae._version import __version__
from pyro_mvae.build import build
from pyro_mvae.compress import BudgetError, PruneChannels, Quantize, miniaturize
from pyro_mvae.data import Data, Split, load_data
from pyro_mvae.evaluate import negative_log_likelihood
from pyro_mvae.export import (
    Verification,
    evaluate_mlpackage,
    export_coreml,
    export_executorch,
    export_onnx,
    verify,
)
from pyro_mvae.inference import Interrupted, Miniaturization, Objective, compile_elbo, compile_objective, fit
from pyro_mvae.inference.checkpoint import load_model, save_model
from pyro_mvae.models import MVAE, VAE
from pyro_mvae.report import Report
from pyro_mvae.train import train

__all__ = [
    "MVAE",
    "VAE",
    "BudgetError",
    "Data",
    "Interrupted",
    "Miniaturization",
    "Objective",
    "PruneChannels",
    "Quantize",
    "Report",
    "Split",
    "Verification",
    "__version__",
    "build",
    "compile_elbo",
    "compile_objective",
    "evaluate_mlpackage",
    "export_coreml",
    "export_executorch",
    "export_onnx",
    "fit",
    "load_data",
    "load_model",
    "miniaturize",
    "negative_log_likelihood",
    "save_model",
    "train",
    "verify",
]
