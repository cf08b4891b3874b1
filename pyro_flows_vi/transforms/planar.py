"""Planar flow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from pyro_flows_vi.nets.parameters import ParameterNet
from pyro_flows_vi.numerics.roots import solve_tanh
from pyro_flows_vi.numerics.stable import slope_from, softplus_one
from pyro_flows_vi.transforms._door import positive
from pyro_flows_vi.transforms.base import Flow

__all__ = ["Planar", "conditional_planar", "planar"]


class Planar(Flow):
    r"""Planar flow: tanh ridges across K hyperplanes, one after the other.

    .. math::
        x \leftarrow x + \hat u_k \tanh(w_k^\top x + b_k), \qquad
        \log|\det J| = \sum_{k=1}^{K} \log\bigl(1 + w_k^\top \hat u_k \, \tanh'(w_k^\top x + b_k)\bigr)

    Each step is invertible iff :math:`w^\top\hat u > -1`, which
    :math:`\hat u = u + (m(w^\top u) - w^\top u)\, w / \|w\|^2` with
    :math:`m(a) = \operatorname{softplus}(a + \log(e - 1)) - 1` ensures; m(0) = 0, so that u = 0 is the identity.

    Both directions cost O(D) per step. The inverse solves one scalar equation per step,
    :math:`s + w^\top\hat u\tanh s = w^\top y + b`, by a fixed number of Newton iterations. A chain of K steps in one
    flow is several times faster than K flows in a chain: one network makes the parameters of all, and what does
    not depend on x is computed for all steps together.

    Source: Variational inference with normalizing flows (Rezende and Mohamed, 2015), arXiv:1505.05770.

    Args:
        input_dim: D.
        context_dim: C; then u, w and b are functions of the context.
        hidden_dims: hidden layers of that function; empty for a linear map.
        num_transforms: K, the number of steps.
    """

    def __init__(
        self,
        input_dim: int,
        context_dim: int | None = None,
        hidden_dims: Sequence[int] = (),
        num_transforms: int = 1,
    ) -> None:
        super().__init__(input_dim, context_dim)
        self.num_transforms = positive("num_transforms", num_transforms)
        spread = input_dim**-0.5
        init = {
            "u": 0.01 * spread * torch.randn(num_transforms, input_dim),
            "w": spread * torch.randn(num_transforms, input_dim),
            "b": torch.zeros(num_transforms),
        }
        self.params = ParameterNet(init, context_dim, hidden_dims)

    def _steps(self, context: Tensor | None) -> tuple[list[tuple[Tensor, ...]], Tensor]:
        """(u_hat, w, b, gain) of every step, and the gains 1 + w.u_hat ``(*context_batch, K)``."""
        p = self.params(context)
        u, w = p["u"], p["w"]
        overlap, square = (w * u).sum(-1, keepdim=True), w.square().sum(-1, keepdim=True)
        gain = softplus_one(overlap)
        # w = 0 shifts by a constant, whatever u is. So small a w makes a gain that rounds to 1.
        square = square + torch.finfo(square.dtype).eps ** 2
        u = torch.addcmul(u, (gain - overlap - 1.0) / square, w)
        gain = gain.squeeze(-1)
        if self.num_transforms == 1:
            return [(u, w, p["b"], gain)], gain
        parts = u.split(1, -2), w.split(1, -2), p["b"].split(1, -1), gain.split(1, -1)
        return list(zip(*parts, strict=True)), gain

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """O(D) per step."""
        steps, gain = self._steps(context)
        tanhs = []
        for u, w, b, _ in steps:
            tanhs.append(torch.tanh(_ridge(x, w, b)))
            x = torch.addcmul(x, u.squeeze(-2), tanhs[-1])
        return x, self._log_det(tanhs, gain)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """O(D) per step, with a scalar root per point."""
        steps, gain = self._steps(context)
        tanhs: list[Tensor] = []
        for u, w, b, g in reversed(steps):
            tanhs.insert(0, torch.tanh(solve_tanh(_ridge(y, w, b), g)))
            y = torch.addcmul(y, u.squeeze(-2), tanhs[0], value=-1)
        return y, self._log_det(tanhs, gain)

    def _log_det(self, tanhs: list[Tensor], gain: Tensor) -> Tensor:
        if self.num_transforms == 1:
            return slope_from(tanhs[0], gain).squeeze(-1)
        return slope_from(torch.cat(tanhs, -1), gain).sum(-1)

    def extra_repr(self) -> str:
        """The dimensions and the number of steps, for ``repr``."""
        return f"{super().extra_repr()}, num_transforms={self.num_transforms}"


def _ridge(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """w'x + b for w ``(*context_batch, 1, D)`` and b ``(*context_batch, 1)``."""
    return linear(x, w, b) if w.dim() == 2 else torch.linalg.vecdot(x, w.squeeze(-2))[..., None] + b


def planar(input_dim: int) -> Planar:
    """A planar flow, with Pyro's signature."""
    return Planar(input_dim)


def conditional_planar(input_dim: int, context_dim: int, hidden_dims: Sequence[int] | None = None) -> Planar:
    """A planar flow with a context, with Pyro's signature and default network."""
    hidden_dims = (10 * input_dim, 10 * input_dim) if hidden_dims is None else hidden_dims
    return Planar(input_dim, context_dim, hidden_dims)
