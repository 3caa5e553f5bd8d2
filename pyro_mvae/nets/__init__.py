"""Tensors → tensors: plain `torch.nn`, safe to prune, quantise and export."""

from pyro_mvae.nets.conv import ConvDecoder, ConvEncoder
from pyro_mvae.nets.mobile import MobileDecoder, MobileEncoder

__all__ = ["ConvDecoder", "ConvEncoder", "MobileDecoder", "MobileEncoder"]
