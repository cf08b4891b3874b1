"""What a decoder's output says about the pixels: Bernoulli, 256-way categorical and Gaussian likelihoods."""

from __future__ import annotations

import abc
import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["LIKELIHOODS", "Bernoulli", "Categorical", "Gaussian", "Likelihood"]


#: how far from a whole number a level may be through rounding
GRID_TOLERANCE = 0.01


class Likelihood(nn.Module, abc.ABC):
    """log p(x|z) for pixels that are independent given the decoder's output.

    The decoder gives ``params`` of shape ``(*batch, D * K)``: K numbers per pixel, side by side.
    """

    #: K, how many numbers the decoder gives per pixel
    params_per_pixel: int = 1

    def num_params(self, num_pixels: int) -> int:
        """How wide the decoder's output has to be for ``num_pixels`` pixels."""
        return self.params_per_pixel * num_pixels

    @abc.abstractmethod
    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """log p(x|z) summed over pixels: ``(*batch, D * K)`` and ``(*batch, D)`` to ``batch``; broadcasts."""

    @abc.abstractmethod
    def mean(self, params: Tensor) -> Tensor:
        """E[x|z], ``(*batch, D)``."""

    @abc.abstractmethod
    def distribution(self, params: Tensor) -> dist.TorchDistribution:
        """p(x|z) as a Pyro distribution over vectors of D pixels."""

    @abc.abstractmethod
    def check(self, x: Tensor) -> None:
        """Raise ``ValueError`` where ``x`` holds values that this likelihood cannot produce."""

    def observed(self, x: Tensor) -> Tensor:
        """Pixels as the values that :meth:`distribution` scores."""
        return x

    def sample(self, params: Tensor) -> Tensor:
        """Pixels ``(*batch, D)`` drawn from p(x|z), without gradient."""
        return self.distribution(params).sample()


class Bernoulli(Likelihood):
    r"""Binary pixels, :math:`\log p(x|z) = \sum_d x_d\, l_d - \mathrm{softplus}(l_d)` with logits l.

    Values between 0 and 1 are accepted and scored by the cross-entropy.
    """

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """See :meth:`Likelihood.log_prob`."""
        return torch.linalg.vecdot(x, params) - F.softplus(params).sum(-1)

    def mean(self, params: Tensor) -> Tensor:
        """See :meth:`Likelihood.mean`."""
        return params.sigmoid()

    def distribution(self, params: Tensor) -> dist.TorchDistribution:
        """See :meth:`Likelihood.distribution`."""
        return dist.Bernoulli(logits=params, validate_args=False).to_event(1)

    def check(self, x: Tensor) -> None:
        """See :meth:`Likelihood.check`."""
        _check_range(x, 0.0, 1.0, "the Bernoulli likelihood expects pixels between 0 and 1")


class Categorical(Likelihood):
    """Pixels with ``levels`` grey values, given as numbers between 0 and 1: level k is k / (levels - 1).

    Args:
        levels: how many values a pixel can take.

    Raises:
        ValueError: for ``levels`` that is no integer of at least 2.
    """

    def __init__(self, levels: int = 256) -> None:
        super().__init__()
        if isinstance(levels, bool) or not isinstance(levels, int) or levels < 2:
            raise ValueError(f"expected levels to be an integer of at least 2, got {levels!r}")
        self.params_per_pixel = levels

    def _logits(self, params: Tensor) -> Tensor:
        return params.unflatten(-1, (-1, self.params_per_pixel))

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """See :meth:`Likelihood.log_prob`."""
        logits = self._logits(params)
        levels = self.observed(x).long().unsqueeze(-1)
        batch = torch.broadcast_shapes(logits.shape[:-1], levels.shape[:-1])
        chosen = logits.expand(*batch, -1).gather(-1, levels.expand(*batch, 1)).squeeze(-1)
        return (chosen - logits.logsumexp(-1)).sum(-1)

    def mean(self, params: Tensor) -> Tensor:
        """See :meth:`Likelihood.mean`."""
        values = torch.linspace(0, 1, self.params_per_pixel, dtype=params.dtype, device=params.device)
        return self._logits(params).softmax(-1) @ values

    def distribution(self, params: Tensor) -> dist.TorchDistribution:
        """See :meth:`Likelihood.distribution`; here over the levels 0, ..., ``levels`` - 1."""
        return dist.Categorical(logits=self._logits(params), validate_args=False).to_event(1)

    def observed(self, x: Tensor) -> Tensor:
        """See :meth:`Likelihood.observed`: the levels."""
        return (x * (self.params_per_pixel - 1)).round()

    def sample(self, params: Tensor) -> Tensor:
        """See :meth:`Likelihood.sample`."""
        return self.distribution(params).sample().to(params.dtype) / (self.params_per_pixel - 1)

    def check(self, x: Tensor) -> None:
        """See :meth:`Likelihood.check`."""
        steps = self.params_per_pixel - 1
        _check_range(x, 0.0, 1.0, "the categorical likelihood expects pixels between 0 and 1")
        levels = x.detach() * steps
        off = (levels - levels.round()).abs()
        if float(off.max()) > GRID_TOLERANCE:
            count = int((off > GRID_TOLERANCE).sum())
            raise ValueError(
                f"the categorical likelihood expects pixels k / {steps} with k = 0, ..., {steps}, got {count} values "
                "between these; round them, or use another number of levels or likelihood"
            )


class Gaussian(Likelihood):
    r"""Real pixels, :math:`x_d \sim N(\mu_d, \sigma_d^2)`.

    Args:
        scale: a fixed :math:`\sigma`, or ``None`` to let the decoder give :math:`\log \sigma_d` of each pixel
            beside its mean.
    """

    def __init__(self, scale: float | None = None) -> None:
        super().__init__()
        if scale is not None and not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"expected a positive finite scale or None, got {scale!r}")
        self.scale = scale
        self.params_per_pixel = 2 if scale is None else 1

    def _loc_and_log_scale(self, params: Tensor) -> tuple[Tensor, Tensor]:
        if self.scale is not None:
            return params, params.new_tensor(math.log(self.scale))
        loc, log_scale = params.unflatten(-1, (-1, 2)).unbind(-1)
        return loc, log_scale

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """See :meth:`Likelihood.log_prob`."""
        loc, log_scale = self._loc_and_log_scale(params)
        standard = (x - loc) * (-log_scale).exp()
        return (-0.5 * standard.square() - log_scale - 0.5 * math.log(2 * math.pi)).sum(-1)

    def mean(self, params: Tensor) -> Tensor:
        """See :meth:`Likelihood.mean`."""
        return self._loc_and_log_scale(params)[0]

    def distribution(self, params: Tensor) -> dist.TorchDistribution:
        """See :meth:`Likelihood.distribution`."""
        loc, log_scale = self._loc_and_log_scale(params)
        return dist.Normal(loc, log_scale.exp().expand_as(loc), validate_args=False).to_event(1)

    def check(self, x: Tensor) -> None:
        """See :meth:`Likelihood.check`."""
        _check_range(x, -math.inf, math.inf, "the Gaussian likelihood expects finite pixels")


#: the likelihoods by the name that a protocol uses
LIKELIHOODS: dict[str, type[Likelihood]] = {
    "bernoulli": Bernoulli,
    "categorical": Categorical,
    "gaussian": Gaussian,
}


def _check_range(x: Tensor, low: float, high: float, expected: str) -> None:
    smallest, largest = (float(v) for v in torch.aminmax(x))  # NaN spreads through both
    if not (math.isfinite(smallest) and math.isfinite(largest) and low <= smallest and largest <= high):
        bad = int((~x.isfinite()).sum())
        raise ValueError(
            f"{expected}, got values from {smallest:g} to {largest:g} of which {bad} are NaN or infinite; "
            "scale or clean the data first"
        )
