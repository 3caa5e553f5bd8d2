"""The compression module: passes, model → smaller model."""

from pyro_mvae.compress.distill import Distill, distill
from pyro_mvae.compress.fold import FoldAndFuse
from pyro_mvae.compress.gradual import prune_gradually
from pyro_mvae.compress.palettize import Palettize
from pyro_mvae.compress.passes import Pass
from pyro_mvae.compress.prune import PruneChannels, PruneLatents, channels
from pyro_mvae.compress.quantize import Quantize
from pyro_mvae.compress.shrink import Shrink
from pyro_mvae.compress.sparse import SparseCode

__all__ = [
    "Distill",
    "FoldAndFuse",
    "Palettize",
    "Pass",
    "PruneChannels",
    "PruneLatents",
    "Quantize",
    "Shrink",
    "SparseCode",
    "channels",
    "distill",
    "prune_gradually",
]
