"""Tensors → tensors: plain `torch.nn`, safe to prune, quantise and export."""

from pyro_mvae.nets.branches import Branches
from pyro_mvae.nets.conv import ConvDecoder, ConvEncoder
from pyro_mvae.nets.kinds import make_nets
from pyro_mvae.nets.mlp import MLPDecoder, MLPEncoder
from pyro_mvae.nets.mobile import MobileDecoder, MobileEncoder

__all__ = ["Branches", "ConvDecoder", "ConvEncoder", "MLPDecoder", "MLPEncoder", "MobileDecoder", "MobileEncoder", "make_nets"]
