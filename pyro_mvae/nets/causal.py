"""A causal net over a sequence of codes: what comes next, given what came before."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_mvae.nets.channels import keep_outputs, selected


class Causal(nn.Module):
    """Codes → logits of each from those before it, by masked self-attention.

    Args:
        num_codes: how many codes there are.
        length: how long a sequence is.
        width: of the features; a multiple of `heads`.
        layers, heads: of the attention.

    Shapes: (n, length) of integers → (n, length, num_codes).

    Source: Vaswani et al., Attention Is All You Need, 2017, with normalisation before each part.

    Example:
        >>> net, codes = Causal(5, 4).eval(), torch.tensor([[1, 2, 3, 4]])
        >>> changed = codes.clone()
        >>> changed[0, 2] = 0
        >>> bool((net(codes)[:, :3] == net(changed)[:, :3]).all()), bool((net(codes)[:, 3] == net(changed)[:, 3]).all())
        (True, False)
    """

    def __init__(self, num_codes: int, length: int, *, width: int = 64, layers: int = 2, heads: int = 4):
        super().__init__()
        self.codes = nn.Embedding(num_codes + 1, width)  # the last one is where the sequence begins
        self.places = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, num_codes)

    def keep_codes(self, kept: Sequence[int]) -> None:
        """Leave these codes alone, in place; they are numbered anew."""
        self.codes.weight = selected(self.codes.weight, [*kept, self.codes.num_embeddings - 1])
        self.codes.num_embeddings = len(kept) + 1
        keep_outputs(self.head, kept)

    def forward(self, codes: Tensor) -> Tensor:
        begin = torch.full_like(codes[:, :1], self.codes.num_embeddings - 1)
        h = self.codes(torch.cat([begin, codes[:, :-1]], 1)) + self.places
        for layer in self.blocks:
            h, _ = layer(h)
        return self.head(self.norm(h))

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """Sequences drawn code by code, the keys and values of those before kept; (n, length)."""
        last = torch.full((n, 1), self.codes.num_embeddings - 1, device=self.places.device)
        drawn, past = [], [None] * len(self.blocks)
        for place in self.places:
            h = self.codes(last) + place
            for i, layer in enumerate(self.blocks):
                h, past[i] = layer(h, past[i])
            last = torch.multinomial(self.head(self.norm(h))[:, 0].softmax(-1), 1)
            drawn.append(last)
        return torch.cat(drawn, 1)


class Block(nn.Module):
    """Attention to what came before, then two layers at each place.

    Shapes: (n, length, width) → the same, and the keys and values up to here, which the places after it are to be called with.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, h: Tensor, past: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        inner = self.attention_norm(h)
        q, k, v = (net(inner).unflatten(-1, (self.heads, -1)).transpose(1, 2) for net in (self.query, self.key, self.value))
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        scores = q @ k.transpose(-1, -2) / k.shape[-1] ** 0.5
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=h.device).triu(1 + k.shape[2] - q.shape[2])
        h = h + self.out((scores.masked_fill(later, -torch.inf).softmax(-1) @ v).transpose(1, 2).flatten(-2))
        return h + self.feed(self.norm(h)), (k, v)
