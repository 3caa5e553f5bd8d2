"""Variational autoencoders from a Pyro model/guide pair to a phone."""

from pyro_mvae._version import __version__
from pyro_mvae.apply import apply
from pyro_mvae.build import build
from pyro_mvae.compare import compare
from pyro_mvae.compress import PruneChannels, Quantize
from pyro_mvae.data import Data, Split, load_data
from pyro_mvae.document import document
from pyro_mvae.evaluate import negative_log_likelihood
from pyro_mvae.experiment import experiment
from pyro_mvae.export import (
    Verification,
    evaluate_mlpackage,
    examine,
    export_coreml,
    export_coreml_functions,
    export_executorch,
    export_onnx,
    verify,
)
from pyro_mvae.inference import (
    Interrupted,
    Objective,
    RootAdam,
    compile_elbo,
    compile_objective,
    fit,
    kl_weighted,
    penalties,
    tuning,
    write_csv,
    write_tensorboard,
)
from pyro_mvae.inference.checkpoint import load_model, save_model
from pyro_mvae.latency import benchmark
from pyro_mvae.models import GMVAE, MVAE, SVAE, VAE, VAEGAN, VQVAE, BetaVAE, InfoVAE, VaDE
from pyro_mvae.monitor import monitor, set_baseline
from pyro_mvae.report import Report
from pyro_mvae.search import Budget, BudgetError, miniaturize
from pyro_mvae.train import train

__all__ = [
    "GMVAE",
    "MVAE",
    "SVAE",
    "VAE",
    "VAEGAN",
    "VQVAE",
    "BetaVAE",
    "Budget",
    "BudgetError",
    "Data",
    "InfoVAE",
    "Interrupted",
    "Objective",
    "PruneChannels",
    "Quantize",
    "Report",
    "RootAdam",
    "Split",
    "VaDE",
    "Verification",
    "__version__",
    "apply",
    "benchmark",
    "build",
    "compare",
    "compile_elbo",
    "compile_objective",
    "document",
    "evaluate_mlpackage",
    "examine",
    "experiment",
    "export_coreml",
    "export_coreml_functions",
    "export_executorch",
    "export_onnx",
    "fit",
    "kl_weighted",
    "load_data",
    "load_model",
    "miniaturize",
    "monitor",
    "negative_log_likelihood",
    "penalties",
    "save_model",
    "set_baseline",
    "train",
    "tuning",
    "verify",
    "write_csv",
    "write_tensorboard",
]
