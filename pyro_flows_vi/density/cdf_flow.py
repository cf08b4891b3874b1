"""Mixture-CDF flows as distributions, on a normal, uniform or Beta base."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pyro.distributions import TransformedDistribution
from torch import Tensor
from torch.distributions import Distribution, Gamma, Independent, Normal, constraints
from torch.nn.functional import softplus

from pyro_flows_vi.transforms.mixture import MixtureAutoregressive

__all__ = ["LogitBeta", "cdf_flow"]


class LogitBeta(Distribution):
    r"""The law of :math:`z = \operatorname{logit} u` for :math:`u \sim \operatorname{Beta}(a, b)`, on all of R.

    .. math::
        \log p(z) = -a \operatorname{softplus}(-z) - b \operatorname{softplus}(z) - \log B(a, b)

    With a = b = 1 it is the standard logistic distribution, that of a uniform u. A Beta distribution followed by a
    sigmoid's inverse would be the same, but for u that a float rounds to 0 or 1.

    Args:
        a: positive, of any shape.
        b: positive, broadcast against a.

    Example:
        >>> LogitBeta(torch.tensor(1.0), torch.tensor(1.0)).log_prob(torch.tensor(0.0)).exp()
        tensor(0.2500)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"a": constraints.positive, "b": constraints.positive}
    support = constraints.real
    has_rsample = True

    def __init__(self, a: Tensor, b: Tensor, validate_args: bool | None = None) -> None:
        self.a, self.b = torch.broadcast_tensors(a, b)
        super().__init__(self.a.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> LogitBeta:
        """The same distribution with a larger batch."""
        return LogitBeta(self.a.expand(batch_shape), self.b.expand(batch_shape), validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """The difference of the logarithms of two Gamma draws, each from a larger shape so that none underflows."""
        shape = self._extended_shape(sample_shape)
        logs = []
        for power in (self.a, self.b):
            power = power.expand(shape)
            log_share = torch.log(torch.rand_like(power).clamp(min=torch.finfo(power.dtype).tiny)) / power
            logs.append(Gamma(power + 1.0, torch.ones_like(power), validate_args=False).rsample().log() + log_share)
        return logs[0] - logs[1]

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density, which falls linearly on both sides."""
        log_beta = torch.lgamma(self.a) + torch.lgamma(self.b) - torch.lgamma(self.a + self.b)
        return -self.a * softplus(-value, threshold=40.0) - self.b * softplus(value, threshold=40.0) - log_beta


def cdf_flow(
    input_dim: int = 2,
    base: Literal["normal", "uniform", "beta"] = "normal",
    kind: Literal["gaussian", "logistic"] = "gaussian",
    components: int = 8,
    hidden_dims: Sequence[int] | None = None,
    concentration: tuple[float, float] = (2.0, 2.0),
) -> TransformedDistribution:
    r"""The autoregressive mixture-CDF flow as a distribution: :math:`Q(F_i(y_i \mid y_{<i}))` follows the base.

    For a uniform base :math:`u_i = F_i(y_i \mid y_{<i})` is uniform on (0, 1), and the density is exactly that of the
    mixtures; for a Beta base u is Beta; for a normal one :math:`\Phi^{-1}(u)` is standard normal, the same density as
    for the uniform. The flow runs on :math:`\operatorname{logit} u`, or :math:`\Phi^{-1}(u)`, and its base there is
    the logistic, :class:`LogitBeta` or normal distribution: the same model, without a u that rounds to 0 or 1.

    ``log_prob`` is one pass of the network. A draw takes D root searches. The flow is ``transforms[0]``.

    Args:
        input_dim: D, 1 and 2 in the classroom.
        base: of u (or of its normal quantile).
        kind: of the components.
        components: K of each mixture.
        hidden_dims: of the masked network; see :class:`~pyro_flows_vi.transforms.mixture.MixtureAutoregressive`.
        concentration: a and b of a Beta base.

    Raises:
        ValueError: for an unknown base, or a concentration that is not positive.

    Example:
        >>> cdf_flow(2, base="beta").log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """
    if base not in ("normal", "uniform", "beta"):
        raise ValueError(f'expected base to be "normal", "uniform" or "beta", got {base!r}')
    if not all(0.0 < c < math.inf for c in concentration):
        raise ValueError(f"expected concentration to be two positive numbers, got {concentration}")
    flow = MixtureAutoregressive(
        input_dim, None, hidden_dims, components, kind, link="normal" if base == "normal" else "logit"
    )
    a, b = concentration if base == "beta" else (1.0, 1.0)
    one = torch.ones(input_dim)
    latent = Normal(0.0 * one, one) if base == "normal" else LogitBeta(a * one, b * one)
    return TransformedDistribution(Independent(latent, 1), [flow.inv])
