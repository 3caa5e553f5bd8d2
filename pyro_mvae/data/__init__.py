"""Pictures to train on: the bundled sets, MNIST's files, folders of pictures and WebDataset shards."""

from pyro_mvae.data.batches import batches, binarize, num_batches, shown
from pyro_mvae.data.images import Data, Split
from pyro_mvae.data.load import load_data
from pyro_mvae.data.prompt import matching

__all__ = ["Data", "Split", "batches", "binarize", "load_data", "matching", "num_batches", "shown"]
