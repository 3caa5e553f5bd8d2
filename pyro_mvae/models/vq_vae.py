"""The VQ-VAE (van den Oord, Vinyals and Kavukcuoglu, 2017): row 6 of the paper's Table 9."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution, constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_mvae.data.batches import scaled
from pyro_mvae.models.vae import VAE, checked_shape, checked_sizes, whole
from pyro_mvae.models.weighted import Weighted
from pyro_mvae.nets.causal import Causal
from pyro_mvae.nets.grid import make_grid_nets
from pyro_mvae.nets.kinds import usual_sizes
from pyro_mvae.nets.modes import evaluating
from pyro_mvae.numbers import at_least, number


class VQVAE(VAE):
    """c ~ Π_p p(c_p | c_<p), z_p = e(c_p), x ~ p(x|z); q(c|x) is the point c_p = argmin_k ‖encoder(x)_p − e(k)‖.

    z is a site: in the guide a point mass whose value is encoder(x) + stop_gradient(e(c) − encoder(x)), so that the decoder's
    gradient passes straight through the rounding; in the model its prior is an autoregressive net over the codes, trained with
    the rest and without a gradient to the encoder. The bound is then one: log p(x|z) + log p(c). The guide has one factor,
    `commitment`, β ‖encoder(x) − stop_gradient(e(c))‖².

    What SVI cannot express: e is not found by a gradient. It is a moving average of the vectors that are rounded to each code,
    kept in buffers that the guide updates in training mode, as batch normalisation does; a code that is hardly used is
    restarted at a vector of the batch, as nearly all are at the first. With that addition plain `SVI` trains the pair.

    Args:
        image_shape, and more: as `VAE`; "conv" and "mobile" nets have a vector at each place of a grid, see `GridEncoder`.
        latent_dim: size of each vector.
        num_codes: how many codes there are.
        commitment: β.
        decay: of the moving average.
        places: how many vectors "mlp" nets have.

    Raises:
        ValueError: for sizes, a weight or a decay that can't be.

    Source: van den Oord, Vinyals and Kavukcuoglu, Neural Discrete Representation Learning, 2017; restarts as in Dhariwal et
        al., Jukebox, 2020.

    Example:
        >>> vae = VQVAE((1, 28, 28), 8, num_codes=32)
        >>> vae.encode_codes(torch.rand(2, 1, 28, 28)).shape, vae.generate(2).shape
        (torch.Size([2, 49]), torch.Size([2, 1, 28, 28]))
    """

    point = True
    likeness = "from a copy of its prior that is trained on them for 200 steps"

    meanings: Mapping[str, str] = {
        "z": "a code: the nearest vector of the codebook for each place, flat, the vectors' dimensions first",
        "loc": "a vector for each place, before the codebook",
    }

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_dim: int = 16,
        *,
        num_codes: int = 128,
        commitment: float = 0.25,
        decay: float = 0.99,
        places: int = 16,
        net: str = "conv",
        widths: Sequence[int] | None = None,
        hidden: int | None = None,
        **more: Any,
    ):
        shape, dim = checked_shape(image_shape), whole(latent_dim, "latent_dim")
        usual = usual_sizes(net, shape)
        sizes: dict[str, Any] = checked_sizes(usual[0] if widths is None else widths, usual[1] if hidden is None else hidden)
        encoder, decoder, num_places = make_grid_nets(net, shape, dim, **sizes, mlp_places=whole(places, "places"))
        super().__init__(shape, dim, net=net, **sizes, encoder=encoder, decoder=decoder, **more)
        commitment = at_least(commitment, "commitment")
        self.config |= {"num_codes": num_codes, "commitment": commitment, "decay": decay, "places": places}
        self.commitment, self.latent_dim = commitment, dim * num_places
        self.codebook = Codebook(whole(num_codes, "num_codes"), dim, decay=decay)
        self.code_prior = Causal(num_codes, num_places)

    def prior(self, n: int) -> TorchDistributionMixin:
        """p(z): codes drawn one after another."""
        return Codes(self.code_prior, self.codebook, (n,))

    def posterior(self, x: Tensor) -> TorchDistributionMixin:
        """q(z|x), a point."""
        return dist.Delta(self.codebook(self.encoder(x))[0], event_dim=1)

    def guide(self, x: Tensor) -> None:
        """q(z|x), with the site `z` and the factor `commitment` in the plate `data`, and q(θ′|x) with `theta` if it is random."""
        self.check_batch(x)
        self.register(guide=True)
        with pyro.plate("data", x.shape[0]):
            flat = self.encoder(x)
            if self.training:
                self.codebook.follow(flat)
            z, distance = self.codebook(flat)
            with Weighted(self.kl_weight):
                pyro.sample("z", dist.Delta(z, event_dim=1))
            pyro.factor("commitment", self.commitment * distance, has_rsample=True)
            self.infer_theta(x)

    def propose(self, x: Tensor, num_samples: int) -> tuple[tuple[Tensor, ...], Tensor]:
        """The code that q gives and its log p(z): once, as more would be the same, or K times with θ′ drawn for each."""
        self.check_batch(x)
        num_samples = 1 if self.theta is None else num_samples
        z = self.posterior(x).sample()
        weights = self.prior(x.shape[0]).log_prob(z)
        return self.propose_theta(x, z.expand(num_samples, *z.shape), weights.expand(num_samples, -1))

    def encode(self, x: Tensor) -> Tensor:
        """e(c), flat, the vectors' dimensions first; (n, latent_dim · places)."""
        self.check_batch(x)
        return self.posterior(x).v

    def code_of(self, loc: Tensor) -> Tensor:
        """e(c), c the nearest vectors."""
        return self.codebook.lookup(self.codebook.indices(self.codebook.split(loc)))

    def encode_codes(self, x: Tensor) -> Tensor:
        """c, what a file would hold of x; (n, places) of integers."""
        self.check_batch(x)
        return self.codebook.indices(self.codebook.split(self.encoder(x)))

    def draw_like(self, z: Tensor, n: int, *, steps: int = 200) -> Tensor:
        """New codes, like those of some images: from a copy of the prior that is trained for some steps on theirs alone."""
        chosen = self.codebook.indices(self.codebook.split(z))
        net = copy.deepcopy(self.code_prior).train()
        optimizer = torch.optim.Adam(net.parameters(), 1e-3)
        with torch.enable_grad():
            for _ in range(steps):
                some = chosen[torch.randint(len(chosen), (64,), device=chosen.device)]
                loss = F.cross_entropy(net(some).flatten(0, 1), some.flatten())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return self.codebook.lookup(net.sample(n))

    @torch.no_grad()
    def latent_activity(self, images: Tensor, *, chunk: int = 500) -> Tensor:
        """How often each code stands for a place of images, to the mean of all codes; (num_codes,)."""
        num_codes, device = len(self.codebook.vectors), self.codebook.vectors.device
        with evaluating(self):
            chosen = torch.cat([self.encode_codes(scaled(x.to(device))).flatten() for x in images.split(chunk)])
        return torch.bincount(chosen, minlength=num_codes) * (num_codes / len(chosen))

    def keep_latents(self, kept: Sequence[int]) -> None:
        """Leave these codes alone, in place."""
        self.codebook.keep(kept)
        self.code_prior.keep_codes(kept)
        self.config["num_codes"] = len(kept)

    def diagnostics(self) -> dict[str, float]:
        """Perplexity of the codes' usage: about how many are in use."""
        return {"perplexity": self.codebook.perplexity()}


class Codebook(nn.Module):
    """The vectors e(k), which `follow` makes moving averages of what is rounded to them.

    Args:
        num_codes, code_dim: how many vectors there are, and of what size.
        decay: of the averages.
        dead: a code used by less than this share of the mean is restarted.

    Shapes: flat vectors (n, code_dim · places) → the same, rounded with a straight-through gradient, and squared distances (n,).

    Example:
        >>> book = Codebook(2, 1).eval()
        >>> book.vectors.copy_(torch.tensor([[0.0], [1.0]]))
        tensor([[0.],
                [1.]])
        >>> book(torch.tensor([[0.2, 0.9]]))[0]
        tensor([[0., 1.]])
    """

    vectors: Tensor
    counts: Tensor
    sums: Tensor
    usage: Tensor

    def __init__(self, num_codes: int, code_dim: int, *, decay: float = 0.99, dead: float = 0.03):
        super().__init__()
        if not 0 < number(decay, "decay") < 1:
            raise ValueError(f"decay is {decay}, expected between 0 and 1")
        self.decay, self.dead = decay, dead
        self.register_buffer("vectors", torch.randn(num_codes, code_dim))
        self.register_buffer("counts", torch.zeros(num_codes))
        self.register_buffer("sums", torch.zeros(num_codes, code_dim))
        self.register_buffer("usage", torch.zeros(num_codes))  # as `counts`, but restarts leave no trace in it

    def split(self, flat: Tensor) -> Tensor:
        """(n, code_dim · places) → (n, places, code_dim)."""
        return flat.reshape(flat.shape[0], self.vectors.shape[1], -1).transpose(1, 2)

    def joined(self, vectors: Tensor) -> Tensor:
        """The opposite of `split`."""
        return vectors.transpose(1, 2).flatten(1)

    def indices(self, vectors: Tensor) -> Tensor:
        """The nearest codes; (…, code_dim) → (…)."""
        return (self.vectors.square().sum(-1) - 2 * vectors @ self.vectors.T).argmin(-1)

    def lookup(self, indices: Tensor) -> Tensor:
        """e(c), flat; (n, places) → (n, code_dim · places)."""
        return self.joined(self.vectors[indices])

    def forward(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        rounded = self.lookup(self.indices(self.split(flat))).detach()
        return flat + (rounded - flat).detach(), (flat - rounded).square().sum(-1)

    @torch.no_grad()
    def follow(self, flat: Tensor) -> None:
        """Move the averages towards a batch, and restart what is dead at vectors of it."""
        vectors = self.split(flat).flatten(0, 1)
        indices, (num_codes, _) = self.indices(vectors), self.vectors.shape
        used = vectors.new_zeros(num_codes).index_add(0, indices, torch.ones_like(vectors[:, 0]))
        self.counts.lerp_(used, 1 - self.decay)
        self.usage.lerp_(used, 1 - self.decay)
        self.sums.lerp_(torch.zeros_like(self.sums).index_add(0, indices, vectors), 1 - self.decay)
        usual = vectors.shape[0] / num_codes
        dead = self.counts < self.dead * usual
        drawn = vectors[(torch.rand(num_codes, device=vectors.device) * vectors.shape[0]).long()]
        self.counts.copy_(torch.where(dead, usual, self.counts))
        self.sums.copy_(torch.where(dead[:, None], usual * drawn, self.sums))
        self.vectors.copy_(self.sums / self.counts[:, None])

    def keep(self, kept: Sequence[int]) -> None:
        """Leave these codes alone, in place."""
        chosen = torch.as_tensor(kept, device=self.vectors.device)
        for name, buffer in list(self.named_buffers()):
            setattr(self, name, buffer[chosen])

    def perplexity(self) -> float:
        shares = self.usage / self.usage.sum().clamp(min=1e-12)
        return float(torch.special.entr(shares).sum().exp())


class Codes(TorchDistribution):
    """z, the flat vectors of codes that a net draws one after another; its log-probability is that of the codes.

    Args:
        net: codes (n, places) → logits (n, places, num_codes), causal.
        codebook: which vector each code stands for; a vector in between counts as the nearest.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}  # pyright: ignore[reportIncompatibleMethodOverride]
    support = constraints.real_vector  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]

    def __init__(self, net: Causal, codebook: Codebook, batch_shape: Sequence[int] = ()):
        self.net, self.codebook = net, codebook
        flat = codebook.vectors.shape[1] * net.places.shape[0]
        super().__init__(torch.Size(batch_shape), torch.Size([flat]), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Codes:
        return Codes(self.net, self.codebook, batch_shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        return self.codebook.lookup(self.net.sample(shape.numel())).reshape(*shape, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        codes = self.codebook.indices(self.codebook.split(value.detach().reshape(-1, value.shape[-1])))
        log_probs = self.net(codes).log_softmax(-1).gather(-1, codes[..., None])[..., 0].sum(-1)
        return log_probs.reshape(value.shape[:-1])
