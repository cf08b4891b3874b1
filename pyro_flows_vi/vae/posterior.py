"""An amortised posterior: any encoder, a diagonal Gaussian, and a flow that sees the encoder's features."""

from __future__ import annotations

import math
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_flows_vi.numerics.stable import SHIFT, log_softplus
from pyro_flows_vi.transforms.base import Flow

__all__ = ["Encoding", "FlowPosterior"]

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class Encoding(NamedTuple):
    """What the encoder has to say about a batch: enough for any number of draws."""

    #: ``(*batch, feature_dim)``, the flow's context
    features: Tensor
    #: ``(*batch, latent_dim)``
    loc: Tensor
    #: ``(*batch, latent_dim)``
    log_scale: Tensor


class FlowPosterior(nn.Module):
    r"""The amortised posterior q(z|x) of a VAE.

    .. math::
        h = \mathrm{encoder}(x), \quad z_0 = \mu(h) + \sigma(h) \odot \epsilon, \quad z = f(z_0; h), \quad
        \log q(z|x) = \log N(z_0; \mu, \sigma^2) - \log |\det \partial z / \partial z_0|

    The two heads :math:`\mu, \sigma` are linear in h, and all of the flow's parameters are amortised through
    its context h. It stands behind any encoder, in a :class:`~pyro_flows_vi.vae.VAE` or a guide of one's own:

    >>> from pyro_flows_vi import flows
    >>> posterior = FlowPosterior(nn.Linear(784, 32), 32, 2, flows.build("planar", 2, context_dim=32))
    >>> z, log_q = posterior.rsample_and_log_prob(torch.zeros(5, 784))
    >>> z.shape, log_q.shape, posterior.condition(torch.zeros(5, 784)).batch_shape
    (torch.Size([5, 2]), torch.Size([5]), torch.Size([5]))

    A draw with its density costs one pass of the flow, forwards; the density of a given z one pass backwards.

    Args:
        encoder: maps ``(*batch, ...)`` to features ``(*batch, feature_dim)``.
        feature_dim: size of the features h.
        latent_dim: size of z.
        flow: a flow with ``input_dim=latent_dim`` and ``context_dim=feature_dim`` (or ``None`` for parameters
            that do not depend on x), or no flow at all for the diagonal Gaussian.
        variance_head: ``"log"`` for a head that gives :math:`\log \sigma^2`, ``"softplus"`` for one that
            gives :math:`\sigma^2` through a softplus.

    Raises:
        ValueError: for a flow of another ``input_dim`` or ``context_dim``, or an unknown ``variance_head``.
    """

    def __init__(
        self,
        encoder: nn.Module,
        feature_dim: int,
        latent_dim: int,
        flow: Flow | None = None,
        *,
        variance_head: str = "log",
    ) -> None:
        super().__init__()
        if flow is not None and flow.input_dim != latent_dim:
            raise ValueError(f"expected a flow with input_dim={latent_dim} (latent_dim), got {flow.input_dim}")
        if flow is not None and flow.context_dim not in (None, feature_dim):
            raise ValueError(
                f"expected a flow with context_dim={feature_dim} (feature_dim) or None, got {flow.context_dim}"
            )
        if variance_head not in ("log", "softplus"):
            raise ValueError(f"expected variance_head 'log' or 'softplus', got {variance_head!r}")
        self.encoder = encoder
        self.heads = nn.Linear(feature_dim, 2 * latent_dim)
        self.flow = flow
        self.feature_dim = feature_dim
        self.latent_dim = latent_dim
        self.variance_head = variance_head

    def encode(self, x: Tensor) -> Encoding:
        """Features, location and log-scale of ``x``: the only part that runs the encoder."""
        features = self.encoder(x)
        if features.shape[-1] != self.feature_dim:
            raise ValueError(
                f"expected features of shape (*batch, {self.feature_dim}) (feature_dim) from the encoder, "
                f"got {tuple(features.shape)}"
            )
        loc, raw = self.heads(features).chunk(2, dim=-1)
        log_variance = raw if self.variance_head == "log" else log_softplus(raw - SHIFT)
        return Encoding(features, loc, 0.5 * log_variance)

    def transform(self, encoding: Encoding, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Draws z and log q(z|x) from standard normal noise.

        Args:
            encoding: of a batch ``(*batch)``.
            eps: ``(*sample_shape, *batch, latent_dim)``.

        Returns:
            z as ``eps``, and log q(z|x) of shape ``(*sample_shape, *batch)``.
        """
        features, loc, log_scale = encoding
        z = torch.addcmul(loc, eps, log_scale.exp())
        log_q = (-0.5 * eps.square() - log_scale).sum(-1) - HALF_LOG_2PI * self.latent_dim
        if self.flow is None:
            return z, log_q
        z, log_det = self.flow.forward_and_log_det(z, self._context(features))
        return z, log_q - log_det

    def rsample_and_log_prob(self, x: Tensor, sample_shape: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
        """z ``(*sample_shape, *batch, latent_dim)`` and log q ``(*sample_shape, *batch)``, with gradients."""
        encoding = self.encode(x)
        return self.transform(encoding, _noise(encoding.loc, sample_shape))

    def condition(self, x: Tensor) -> dist.TorchDistribution:
        """q(z|x) as a Pyro distribution of batch shape ``(*batch)`` over vectors of ``latent_dim``."""
        features, loc, log_scale = self.encode(x)
        base = dist.Normal(loc, log_scale.exp()).to_event(1)
        if self.flow is None:
            return base
        return dist.TransformedDistribution(base, [self.flow.condition(features)])

    def _context(self, features: Tensor) -> Tensor | None:
        assert self.flow is not None
        return None if self.flow.context_dim is None else features

    def extra_repr(self) -> str:
        """The dimensions, for ``repr``."""
        dims = f"feature_dim={self.feature_dim}, latent_dim={self.latent_dim}"
        return f"{dims}, variance_head={self.variance_head!r}"


def _noise(like: Tensor, sample_shape: tuple[int, ...]) -> Tensor:
    return torch.randn((*sample_shape, *like.shape), dtype=like.dtype, device=like.device)
