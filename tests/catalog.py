"""Every public model, penalty, pass and exporter, in the form that the contract tests are driven by. A new one adds its line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pyro.infer import TraceEnum_ELBO
from pyro.infer.elbo import ELBO

from pyro_mvae import GMVAE, MVAE, SVAE, VAE, VAEGAN, VQVAE, BetaVAE, InfoVAE, VaDE, compress, export, models
from pyro_mvae.compress import Distill, FoldAndFuse, Palettize, PruneChannels, PruneLatents, Quantize, Shrink, SparseCode
from pyro_mvae.inference import penalties, tuning

SHAPES = [(1, 16, 16), (3, 17, 20)]

SIZES = {"widths": (8, 12), "hidden": 16}

MODELS: dict[str, Callable[..., VAE]] = {
    "VAE": lambda shape, **more: VAE(shape, 4, **SIZES, **more),
    "BetaVAE": lambda shape, **more: BetaVAE(shape, 4, **SIZES, **more),
    "InfoVAE": lambda shape, **more: InfoVAE(shape, 4, alpha=0.5, weight=10.0, **{"net": "mlp", **SIZES, **more}),
    "VaDE": lambda shape, **more: VaDE(shape, 4, num_clusters=3, **{"net": "mlp", **SIZES, **more}),
    "GMVAE": lambda shape, **more: GMVAE(shape, 4, num_clusters=3, style_dim=2, style_hidden=8, **SIZES, **more),
    "VQVAE": lambda shape, **more: VQVAE(shape, 4, num_codes=6, **SIZES, **more),
    "VAEGAN": lambda shape, **more: VAEGAN(shape, 4, **SIZES, **more),
    "SVAE": lambda shape, **more: SVAE(shape, 4, **SIZES, **more),
    "MVAE": lambda shape, **more: MVAE(shape, 4, num_clusters=3, **SIZES, **more),
}

OTHER_NETS = {
    "VAE": "mlp",
    "BetaVAE": "mobile",
    "InfoVAE": "conv",
    "VaDE": "conv",
    "GMVAE": "mlp",
    "VQVAE": "mobile",
    "VAEGAN": "mlp",
    "SVAE": "mlp",
    "MVAE": "conv",
}
"""Nets of another kind than those above."""

BOUNDS: dict[str, Callable[[], ELBO]] = {"GMVAE": lambda: TraceEnum_ELBO(max_plate_nesting=1)}
"""Pyro's bound that `fit` takes for a model, where it is not `TraceMeanField_ELBO`."""

REGULARIZERS: dict[str, Callable[[torch.nn.Module, torch.Tensor], torch.Tensor]] = {
    "l1": lambda net, z: penalties.l1(penalties.weights(net)),
    "quantization_error": lambda net, z: penalties.quantization_error(net, bits=3),
    "divergence": lambda net, z: penalties.divergence(
        torch.distributions.Normal(torch.zeros(4), 1.0), torch.distributions.Normal(z.mean(0), 2.0)
    ).sum(),
    "group_l1": lambda net, z: penalties.group_l1(net),
    "sparsity": lambda net, z: penalties.sparsity(z).sum(),
}

PENALTIES: dict[str, Callable[[VAE], penalties.Penalty]] = {
    "Prune": lambda teacher: penalties.Prune(1e-3),
    "PruneGroups": lambda teacher: penalties.PruneGroups(1e-3),
    "Round": lambda teacher: penalties.Round(1e-2, bits=4),
    "Distill": lambda teacher: penalties.Distill(0.5, teacher),
    "MatchFeatures": lambda teacher: penalties.MatchFeatures(0.5, teacher),
    "Sparse": lambda teacher: penalties.Sparse(0.1),
    "Tighten": lambda teacher: penalties.Tighten(1.0, num_samples=3),
    "Invariant": lambda teacher: penalties.Invariant(2.0, every=2),
}

CONTROLLERS: dict[str, tuning.Controller] = {
    "OneCycle": tuning.OneCycle(),
    "WarmUp": tuning.WarmUp("kl", epochs=2),
    "Plateau": tuning.Plateau(patience=1, least=1e9),
    "GrowBatch": tuning.GrowBatch(64, patience=1, least=1e9),
    "EarlyStopping": tuning.EarlyStopping(patience=1, least=1e9),
    "Multiplier": tuning.Multiplier("kl", "kl", 2.0),
}

PASSES: dict[str, compress.Pass] = {
    "PruneChannels": PruneChannels(ratio=0.5),
    "PruneChannels, global": PruneChannels(ratio=0.4, importance="taylor", scope="global"),
    "PruneLatents": PruneLatents(keep=3),
    "Quantize": Quantize(),
    "Quantize, 4 bits": Quantize(weight_bits=4, ranges="learned"),
    "Palettize": Palettize(bits=2),
    "SparseCode": SparseCode(threshold=0.05),
    "FoldAndFuse": FoldAndFuse(),
    "Shrink": Shrink(width=0.5, layers=1, latent_dim=3),
    "Distill": Distill(Shrink(width=0.5, latent_dim=3), epochs=1),
}

REFUSED = {("VQVAE", "SparseCode"): "prune its codes", ("VQVAE", "Distill"): "is one point"}
"""Passes that a model can't go through, and why."""

EXPORTERS: dict[str, tuple[Callable[..., Any], str, dict[str, str]]] = {
    "export_coreml": (export.export_coreml, ".mlpackage", {"precision": "float16"}),
    "export_executorch": (export.export_executorch, ".pte", {}),
    "export_onnx": (export.export_onnx, ".onnx", {}),
}

OF_SEVERAL_PARTS = {"export_coreml_functions"}
"""What puts files of one of the above together."""


def public_functions(module: Any) -> set[str]:
    """Names of the public functions and classes that a module defines itself."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    }


PACKAGE = Path(models.__file__).parents[1]


def unchecked(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function as users call it, without the check of types that tests add: for mistakes that it has to explain itself."""
    return getattr(function, "__wrapped__", function)
