"""The loss that a bound of Pyro's would step with, as a differentiable tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro.infer.elbo import ELBO
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Intercepted(TorchFunctionMode):
    """Keeps tensors from becoming numbers, and what Pyro would differentiate at once for later.

    `x.item()` gives x without its gradient, and `x.backward()` only adds x to `surrogates`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.surrogates: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func is torch.Tensor.item:
            return args[0].detach()
        if func is torch.Tensor.backward:
            return self.surrogates.append(args[0])
        return func(*args, **(kwargs or {}))


def differentiable_loss(elbo: ELBO, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
    """The loss that `SVI.step` would return, with the gradients that it would leave in the parameters.

    Pyro returns the loss L as a number and differentiates a surrogate S, once for each particle; here L + S − stop_gradient(S) is
    returned. This is what makes one code serve every bound of Pyro's, `RenyiELBO` and `TraceGraph_ELBO` included.

    Raises:
        ValueError: when nothing can be differentiated: the pair has no parameters.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from pyro.infer import RenyiELBO
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.5)), 1.0))
        >>> differentiable_loss(RenyiELBO(num_particles=2), model, guide, torch.tensor(1.0)).requires_grad
        True
    """
    with Intercepted() as intercepted:
        loss = elbo.loss_and_grads(model, guide, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
    if not intercepted.surrogates:
        raise ValueError("the pair has no parameters to differentiate: register them with pyro.param or pyro.module")
    surrogate = torch.stack(intercepted.surrogates).sum()
    return torch.as_tensor(loss).detach() + (surrogate - surrogate.detach())
