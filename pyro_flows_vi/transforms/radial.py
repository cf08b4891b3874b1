"""Radial flow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_flows_vi.nets.parameters import ParameterNet
from pyro_flows_vi.numerics.stable import softplus_one
from pyro_flows_vi.transforms.base import Flow

__all__ = ["Radial", "conditional_radial", "radial"]


class Radial(Flow):
    r"""Radial flow: contraction or expansion around a centre.

    .. math::
        y = x + \frac{\alpha (g - 1)}{\alpha + r} (x - x_0), \qquad r = \|x - x_0\|, \quad \alpha, g > 0

        \log|\det J| = (D - 1) \log\frac{r + \alpha g}{r + \alpha}
            + \log\frac{r^2 + 2 \alpha r + \alpha^2 g}{(r + \alpha)^2}

    With :math:`\beta = \alpha (g - 1)` this is the form of the paper under its condition
    :math:`\beta > -\alpha`; here every term is positive, and g = 1 is the identity.
    Both directions cost O(D) and are closed forms: the radius before the map is the positive root of
    :math:`r^2 + (\alpha g - R)\, r - \alpha R = 0` with :math:`R = \|y - x_0\|`.

    Source: Variational inference with normalizing flows (Rezende and Mohamed, 2015), arXiv:1505.05770.

    Args:
        input_dim: D.
        context_dim: C; then the centre, alpha and g are functions of the context.
        hidden_dims: hidden layers of that function; empty for a linear map.
    """

    def __init__(self, input_dim: int, context_dim: int | None = None, hidden_dims: Sequence[int] = ()) -> None:
        super().__init__(input_dim, context_dim)
        init = {
            "centre": input_dim**-0.5 * torch.randn(input_dim),
            "alpha": torch.zeros(1),
            "gain": 0.01 * torch.randn(1),
        }
        self.params = ParameterNet(init, context_dim, hidden_dims)

    def _constrained(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(centre, alpha, alpha * g)."""
        p = self.params(context)
        # Each above the square root of the smallest number, so that their product does not underflow.
        tiny = torch.finfo(p["alpha"].dtype).tiny ** 0.5
        alpha = softplus_one(p["alpha"]) + tiny
        return p["centre"], alpha, alpha * (softplus_one(p["gain"]) + tiny)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """O(D)."""
        centre, alpha, inner = self._constrained(context)
        offset = x - centre
        r = torch.linalg.vector_norm(offset, dim=-1, keepdim=True)  # of gradient zero at the centre
        log_det, stretch = self._log_det(r, alpha, inner)
        return torch.addcmul(centre, stretch, offset), log_det

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """O(D), closed form."""
        centre, alpha, inner = self._constrained(context)
        offset = y - centre
        radius = torch.linalg.vector_norm(offset, dim=-1, keepdim=True)
        p = inner - radius
        root = torch.sqrt(p.square() + 4.0 * alpha * radius)
        # The two forms of the positive root; each cancels where the other does not.
        positive = p > 0
        r = torch.where(
            positive,
            2.0 * alpha * radius / torch.where(positive, p + root, 1.0),
            0.5 * (root - p),
        )
        x = centre + offset * ((alpha + r) / (inner + r))
        return x, self._log_det(r, alpha, inner)[0]

    def _log_det(self, r: Tensor, alpha: Tensor, inner: Tensor) -> tuple[Tensor, Tensor]:
        """The log-determinant, and the factor (r + alpha g) / (r + alpha)."""
        # with t = r / (r + alpha): products of fractions, which do not overflow where r^2 would
        over = (r + alpha).reciprocal()
        t = r * over
        across = torch.addcmul(t, inner, over)
        along = torch.addcmul(t, alpha * over, across)
        return torch.add(along.log(), across.log(), alpha=self.input_dim - 1).squeeze(-1), across


def radial(input_dim: int) -> Radial:
    """A radial flow, with Pyro's signature."""
    return Radial(input_dim)


def conditional_radial(input_dim: int, context_dim: int, hidden_dims: Sequence[int] | None = None) -> Radial:
    """A radial flow with a context, with Pyro's signature and default network."""
    hidden_dims = (10 * input_dim, 10 * input_dim) if hidden_dims is None else hidden_dims
    return Radial(input_dim, context_dim, hidden_dims)
