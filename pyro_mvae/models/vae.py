"""The variational autoencoder (Kingma and Welling, 2014): row 1 of the paper's Table 9."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_mvae.data.batches import require_bytes, require_tensor, scaled
from pyro_mvae.likelihoods import make_likelihood
from pyro_mvae.models.weighted import Weighted
from pyro_mvae.nets import ConvEncoder, make_nets
from pyro_mvae.nets.channels import keep_inputs
from pyro_mvae.nets.conv import Heads
from pyro_mvae.nets.kinds import usual_sizes
from pyro_mvae.nets.modes import evaluating
from pyro_mvae.theta import make_theta

ACTIVE = 0.01
"""The variance over images above which a dimension of the code says something (Burda, Grosse and Salakhutdinov, 2016)."""


class VAE(nn.Module):
    """z ~ N(0, I), x ~ p(x|z); the guide is q(z|x) = N(loc(x), scale(x)²), reparameterised as (3): z = loc + scale ⊙ ε.

    With a Bayesian likelihood, (6) to (12): θ′ ~ p(θ′), x ~ p(x|z, θ′), and the guide has q(θ′|x) as well, z and θ′ independent.

    Args:
        image_shape: (channels, height, width); 1 or 3 channels, 8 pixels or more a side.
        latent_dim: size of z.
        net: "conv", "mobile" or "mlp", see `pyro_mvae.nets`.
        widths, hidden: sizes of these nets, see `ConvEncoder` and `MLPEncoder`; usual ones when None.
        likelihood: "bernoulli" for binarised images, "logistic" for pixels of 256 levels, "gaussian" or "continuous_bernoulli"
            for densities.
        theta: what of the likelihood is random, the site `theta`: the precision of the pixels, "gamma" or "log_normal", see
            `Precision`; "weights" of the decoder's last layer, see `Weights`; nothing when None.
        theta_rank: the rank of those weights.
        num_scales: how many scales the encoder gives, where it is not one for each dimension of z: for posteriors of your own.
        encoder, decoder: nets of your own instead: x → (loc, scale) and z → the likelihood's location.

    Shapes: x is (n, C, H, W) in [0, 1], z is (n, latent_dim).

    Raises:
        ValueError: for a shape, size or likelihood that can't be.

    Source: Kingma and Welling, Auto-Encoding Variational Bayes, 2014; θ′ is the paper's.

    To extend the guide or the prior, override one method: `posterior` or `prior`. Models whose prior has clusters say how many,
    `num_clusters`, find those of images, `clusters(x)`, and have a way to begin, `initialize(data)`.

    Example:
        >>> import torch
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> vae = VAE(image_shape=(1, 28, 28), latent_dim=16)
        >>> svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
        >>> svi.step(torch.rand(8, 1, 28, 28).round()) > 0
        True
    """

    num_clusters: int | None = None
    point = False
    """Whether q(z|x) is one point, of which more samples would be the same."""
    meanings: Mapping[str, str] = {
        "z": "a code: loc, or loc + scale · noise, the noise drawn from N(0, 1)",
        "loc": "the mean of q(z|x)",
        "scale": "the standard deviation of q(z|x)",
    }
    """What the tensors of exported nets are."""
    likeness = "normal, fitted to them"
    """How `draw_like` does it, in words."""

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_dim: int = 16,
        *,
        net: str = "conv",
        widths: Sequence[int] | None = None,
        hidden: int | None = None,
        likelihood: str = "bernoulli",
        theta: str | None = None,
        theta_rank: int = 4,
        num_scales: int | None = None,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
    ):
        super().__init__()
        self.image_shape = shape = checked_shape(image_shape)
        self.latent_dim = whole(latent_dim, "latent_dim")
        whole(theta_rank, "theta_rank")
        self.kl_weight = 1.0
        self.passes: tuple[str, ...] = ()
        usual = usual_sizes(net, shape)
        sizes: dict[str, Any] = checked_sizes(usual[0] if widths is None else widths, usual[1] if hidden is None else hidden)
        self.config: dict[str, Any] = {
            "image_shape": list(shape),
            "latent_dim": latent_dim,
            "net": net,
            **sizes,
            "likelihood": likelihood,
            "theta": theta,
            "theta_rank": theta_rank,
        }
        if encoder is None or decoder is None:
            nets = make_nets(net, shape, latent_dim, num_scales=num_scales, **sizes)
            encoder, decoder = nets[0] if encoder is None else encoder, nets[1] if decoder is None else decoder
        self.encoder, self.decoder = encoder, decoder
        self.likelihood = make_likelihood(likelihood, shape[0])
        self.theta = make_theta(theta, likelihood=likelihood, channels=shape[0], decoder=self.decoder, rank=theta_rank)
        if self.theta is not None:
            self.encoder_theta = ConvEncoder(shape, self.theta.size, widths=(8, 16), hidden=32)

    def prior(self, n: int) -> TorchDistributionMixin:
        """p(z) for n data."""
        loc = next(self.parameters()).new_zeros(n, self.latent_dim)
        return dist.Normal(loc, torch.ones_like(loc)).to_event(1)

    def posterior(self, x: Tensor) -> TorchDistributionMixin:
        """q(z|x), (4)."""
        loc, scale = self.encoder(x)
        return dist.Normal(loc, scale).to_event(1)

    def theta_posterior(self, x: Tensor) -> TorchDistributionMixin:
        """q(θ′|x), of a model with a Bayesian likelihood."""
        assert self.theta is not None
        return self.theta.posterior(*self.encoder_theta(x))

    def conditional(self, z: Tensor, theta: Tensor | None = None) -> TorchDistributionMixin:
        """p(x|z, θ′); where θ′ is random and not given, it is what the prior thinks usual."""
        if self.theta is None:
            return self.likelihood(self.decoder(z))
        return self.theta.conditional(self.decoder, self.likelihood, z, self.theta.usual(z.shape[0]) if theta is None else theta)

    def model(self, x: Tensor) -> Tensor:
        """p(x, z, θ′), with sites `z`, `theta` if it is random, and `x` in the plate `data`; returns z."""
        return self.joint(x)[0]

    def joint(self, x: Tensor) -> tuple[Tensor, TorchDistributionMixin]:
        """The sites of `model`; z, and p(x|z, θ′)."""
        self.check_batch(x)
        self.register(guide=False)
        with pyro.plate("data", x.shape[0]):
            with Weighted(self.kl_weight):
                z = pyro.sample("z", self.prior(x.shape[0]))
            conditional = self.conditional(z, self.draw_theta(x.shape[0]))
            pyro.sample("x", conditional, obs=x)
        return z, conditional

    def guide(self, x: Tensor) -> None:
        """q(z|x) and q(θ′|x), with sites `z` and `theta` in the plate `data`."""
        self.check_batch(x)
        self.register(guide=True)
        with pyro.plate("data", x.shape[0]):
            with Weighted(self.kl_weight):
                pyro.sample("z", self.posterior(x))
            self.infer_theta(x)

    def draw_theta(self, n: int) -> Tensor | None:
        """The model's site `theta`, of a Bayesian likelihood; without one, None and no site."""
        return None if self.theta is None else pyro.sample("theta", self.theta.prior(n))

    def infer_theta(self, x: Tensor) -> None:
        """The guide's site `theta`, of a Bayesian likelihood."""
        if self.theta is not None:
            pyro.sample("theta", self.theta_posterior(x))

    def propose(self, x: Tensor, num_samples: int) -> tuple[tuple[Tensor, ...], Tensor]:
        """What `conditional` needs, drawn from the guide, and log p(z, θ′) − log q(z, θ′|x): for importance sampling.

        Images are encoded once, whatever the number of samples K is; draws have gradients where their distributions allow it.

        Shapes: (n, C, H, W) → (K, n, …) each, (K, n).
        """
        self.check_batch(x)
        posterior = self.posterior(x)
        z = draws(posterior, num_samples)
        return self.propose_theta(x, z, self.prior(x.shape[0]).log_prob(z) - posterior.log_prob(z))

    def propose_theta(self, x: Tensor, z: Tensor, weights: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """What `propose` returns, from z, (K, n, …), and its weights: θ′ beside them, where the likelihood is Bayesian."""
        if self.theta is None:
            return (z,), weights
        posterior = self.theta_posterior(x)
        theta = draws(posterior, len(z))
        return (z, theta), weights + self.theta.prior(x.shape[0]).log_prob(theta) - posterior.log_prob(theta)

    def encode(self, x: Tensor) -> Tensor:
        """The mean of q(z|x); (n, latent_dim)."""
        self.check_batch(x)
        return self.code_of(self.encoder(x)[0])

    def code_of(self, loc: Tensor) -> Tensor:
        """The mean of q(z|x), from what the encoder says of it; what exported files that go through both nets compute."""
        return loc

    def decode(self, z: Tensor) -> Tensor:
        """σ(η), the location of p(x|z), as a picture in [0, 1]; (n, latent_dim) → (n, C, H, W)."""
        if not isinstance(z, Tensor):
            raise ValueError(f"expected codes as a tensor, got a {type(z).__name__}: torch.as_tensor makes one of an array")
        if z.ndim != 2 or z.shape[1] != self.latent_dim:
            raise ValueError(f"expected codes of shape (n, {self.latent_dim}), got {tuple(z.shape)}")
        self.check_type("codes", z)
        self.check_lone(z.shape[0])
        return self.decoder(z).sigmoid()

    @torch.no_grad()
    def predictive(self, x: Tensor, *, num_samples: int = 32) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each pixel of a new picture that has the code and the θ′ of `x`; (n, C, H, W) each.

        Over z ~ q(z|x), θ′ ~ q(θ′|x) and x ~ p(x|z, θ′), by the law of total variance.
        """
        self.check_batch(x)
        whole(num_samples, "num_samples")
        posterior, means, variances = self.posterior(x), [], []
        theta_posterior = None if self.theta is None else self.theta_posterior(x)
        for _ in range(num_samples):
            theta = None if theta_posterior is None else theta_posterior.sample()
            conditional: Any = self.conditional(posterior.sample(), theta)
            means.append(conditional.mean)
            variances.append(conditional.variance)
        mean = torch.stack(means)
        return mean.mean(0), (torch.stack(variances).mean(0) + mean.var(0, correction=0)).sqrt()

    def generate(self, n: int) -> Tensor:
        """Pictures, decoded from z drawn from the prior; (n, C, H, W)."""
        return self.decode(self.prior(whole(n, "n", least=0)).sample())

    def draw_like(self, z: Tensor, n: int) -> Tensor:
        """New codes, like those of some images, see `likeness`; (m, latent_dim) → (n, latent_dim)."""
        if len(z) < 2:
            raise ValueError(f"codes were to be drawn like those of {len(z)} image, expected 2 or more of each kind")
        covariance = torch.atleast_2d(z.T.cov()) + 1e-4 * torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        return torch.distributions.MultivariateNormal(z.mean(0), covariance).sample((n,))

    def latent_activity(self, images: Tensor) -> Tensor:
        """How much each dimension of the code says: the variance of its posterior mean over images; (latent_dim,)."""
        return codes(self, images).var(0)

    def keep_latents(self, kept: Sequence[int]) -> None:
        """Leave these dimensions of z alone, in place; ValueError for nets that are not this package's."""
        heads = [module for module in self.encoder.modules() if isinstance(module, Heads)]
        first = next((module for module in self.decoder.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)), None)
        if len(heads) != 1 or first is None or first.in_channels != self.latent_dim:
            raise ValueError(
                "dimensions of the code can be removed where its nets are of this package: `Heads`, then a convolution"
            )
        heads[0].keep(kept)
        keep_inputs(first, kept)
        self.latent_dim = self.config["latent_dim"] = len(kept)

    def diagnostics(self) -> dict[str, float]:
        """What else is worth a column of the history."""
        return {}

    def deployable(self) -> dict[str, tuple[nn.Module, Tensor]]:
        """The nets that passes and exporters work on, each with an example of its input."""
        like = next(self.parameters())
        return {
            "encoder": (self.encoder, like.new_zeros(1, *self.image_shape)),
            "decoder": (self.decoder, like.new_zeros(1, self.latent_dim)),
        }

    def register(self, *, guide: bool) -> None:
        """Make Pyro's parameters of the modules that are the guide's, those named `encoder…`, or of the model's."""
        register_children(self, lambda name: name.startswith("encoder") == guide)

    def check(self, x: Tensor) -> None:
        """Raise a ValueError for anything but a batch of this model's images."""
        require_tensor(x)
        if x.ndim != 4 or tuple(x.shape[1:]) != self.image_shape:
            shape = ", ".join(map(str, self.image_shape))
            raise ValueError(f"expected images of shape (n, {shape}), got {tuple(x.shape)}: reshape or resize them")
        if not x.is_floating_point():
            raise ValueError(f"expected images in [0, 1], of floating point, got {x.dtype}: divide them by 255")
        self.check_type("images", x)

    def check_batch(self, x: Tensor) -> None:
        """Raise a ValueError for anything but a batch of this model's images that its nets can take now."""
        self.check(x)
        self.check_lone(x.shape[0])

    def check_type(self, what: str, x: Tensor) -> None:
        """Raise a ValueError for float64 where the parameters are not, as arrays of NumPy are unless told."""
        if x.dtype == torch.float64 and (own := next(self.parameters()).dtype) != x.dtype:
            raise ValueError(f"{what} are {x.dtype}, and the model is {own}: give {what} of its type, such as by .float()")

    def check_lone(self, n: int) -> None:
        """Raise a ValueError for one image alone where it would be normalised by itself."""
        if self.training and n == 1 and any(isinstance(layer, nn.BatchNorm2d) for layer in self.modules()):
            raise ValueError("there is one image, and in training the model normalises by its batches: give 2, or call eval()")

    def check_bytes(self, images: Any) -> None:
        """Raise a ValueError for anything but images of this model's shape as data have them, uint8, one or more."""
        require_bytes(images)
        self.check(images[:1].float())
        if not len(images):
            raise ValueError("there are no images, expected 1 or more")


@torch.no_grad()
def codes(vae: VAE, images: Tensor, *, chunk: int = 1000) -> Tensor:
    """The means of q(z|x) of all images; (n, latent_dim)."""
    vae.check_bytes(images)
    device = next(vae.parameters()).device
    with evaluating(vae):
        return torch.cat([vae.encode(scaled(x.to(device))) for x in images.split(chunk)])


def register_children(parent: nn.Module, chosen: Callable[[str], bool]) -> None:
    """`register` those submodules whose names are chosen."""
    for name, module in parent.named_children():
        if chosen(name):
            register(name, module)


def register(name: str, module: nn.Module) -> None:
    """`pyro.module`, except that the module's own tensors always win over what the parameter store keeps under their names.

    The store is global and keyed by name, so that a second model in the process, or the same one after pruning, would otherwise
    be given the first one's tensors. Inside `functional_call` the caller holds the parameters and nothing is registered.
    """
    store = pyro.get_param_store()
    parameters = dict(module.named_parameters())
    if not all(isinstance(value, nn.Parameter) for value in parameters.values()):
        return
    for key, value in parameters.items():
        full_name = f"{name}$$${key}"
        if full_name in store and store[full_name] is not value:
            del store[full_name]
    pyro.module(name, module)


def draws(distribution: TorchDistributionMixin, num_samples: int) -> Tensor:
    """Independent samples, with a gradient where the distribution has one for them; (num_samples, n, …)."""
    shape = torch.Size([num_samples])
    return distribution.rsample(shape) if distribution.has_rsample else distribution.sample(shape)


def checked_shape(image_shape: Sequence[int]) -> tuple[int, int, int]:
    sizes = tuple(image_shape) if isinstance(image_shape, Sequence) else (image_shape,)
    whole = all(isinstance(n, Integral) for n in sizes)
    if not whole or len(sizes) != 3 or sizes[0] not in (1, 3) or min(sizes[1:]) < 8:
        raise ValueError(f"image_shape is {image_shape}, expected (1 or 3 channels, height, width) with sides of 8 or more")
    return int(sizes[0]), int(sizes[1]), int(sizes[2])


def checked_sizes(widths: Sequence[int], hidden: int) -> dict[str, Any]:
    """Sizes of nets, for `config`."""
    if not isinstance(widths, Sequence) or isinstance(widths, str):
        raise ValueError(f"widths are {widths!r}, expected a list of whole numbers, such as (32, 64)")
    return {"widths": [whole(n, "each of widths") for n in widths], "hidden": whole(hidden, "hidden")}


def checked_cluster(cluster: int, num_clusters: int) -> int:
    if not isinstance(cluster, Integral) or not 0 <= cluster < num_clusters:
        raise ValueError(f"cluster is {cluster!r}, expected a whole number, 0 to {num_clusters - 1}")
    return cluster


def whole(number: int, name: str, *, least: int = 1) -> int:
    if not isinstance(number, Integral) or number < least:
        raise ValueError(f"{name} is {number!r}, expected a whole number, {least} or more")
    return int(number)
