"""How good a model is."""

from pyro_mvae.evaluate.anomaly import anomaly_auc, anomaly_scores
from pyro_mvae.evaluate.judge import generation_accuracy, train_classifier
from pyro_mvae.evaluate.kid import kid
from pyro_mvae.evaluate.latents import (
    active_units,
    clustering_accuracy,
    code_sparsity,
    knn_accuracy,
    perplexity,
    probe_accuracy,
    rate_distortion,
)
from pyro_mvae.evaluate.likelihood import NLL, iwae_bound, negative_log_likelihood
from pyro_mvae.evaluate.measurement import Measurement
from pyro_mvae.evaluate.pictures import psnr, reconstruction, ssim

__all__ = [
    "NLL",
    "Measurement",
    "active_units",
    "anomaly_auc",
    "anomaly_scores",
    "clustering_accuracy",
    "code_sparsity",
    "generation_accuracy",
    "iwae_bound",
    "kid",
    "knn_accuracy",
    "negative_log_likelihood",
    "perplexity",
    "probe_accuracy",
    "psnr",
    "rate_distortion",
    "reconstruction",
    "ssim",
    "train_classifier",
]
