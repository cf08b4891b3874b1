"""Convex potential flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from pyro_flows_vi.nets.convex import ConvexNet, Curvature
from pyro_flows_vi.numerics.fixed_point import ImplicitGradient
from pyro_flows_vi.numerics.krylov import lanczos_log_and_solve
from pyro_flows_vi.numerics.newton import solve_newton
from pyro_flows_vi.transforms._door import positive
from pyro_flows_vi.transforms.base import Flow

__all__ = ["ConvexPotential"]

LogDet = Literal["auto", "exact", "lanczos"]

#: Up to this dimension "auto" trains with the exact log-determinant. On one core at batch 100 with two layers of width
#: 2 D, an exact step is cheaper than one of 20 products at D = 16 and 32, and takes 2.4 times as long at D = 64 and
#: 5.6 times at D = 128.
EXACT_DIM = 64


class ConvexPotential(Flow):
    r"""Convex potential flow: the gradient of a strongly convex function.

    .. math::
        y = \nabla_x F(x; c), \qquad \log|\det J| = \log\det \nabla_x^2 F(x; c)

    F is a :class:`~pyro_flows_vi.nets.convex.ConvexNet`, whose curvature is nowhere below a learned α > 0: the map is
    onto, and invertible at any value of the parameters. It starts near the identity. Among the maps that take one
    distribution to another, gradients of convex functions are the ones that move the mass the least (Brenier), so
    the family is universal; J is symmetric.

    Forward costs about two passes of the network and the log-determinant of the Hessian, whose factors the network
    hands out:

    * ``"exact"`` multiplies the Hessian out, O(D H^2 + D^2 H) a layer and point for layers of width H, and
      factors it, O(D^3).
    * ``"lanczos"`` is an estimate for training from one noise vector a point and ``num_products`` products
      with the Hessian, O(H^2 + D H) each. It is unbiased with D products, in value and gradient; with fewer, its bias
      falls geometrically in their number. In ``eval()`` mode the log-determinant is exact.
    * ``"auto"`` is exact up to D = 64.

    The inverse minimises the convex function :math:`F(x) - y^\top x` by Newton's method with a line search, mostly in
    five to ten steps of the cost of a forward pass each; its gradients are implicit.

    Source: Convex potential flows: universal probability distributions with optimal transport and convex optimization
    (Huang et al., 2021), arXiv:2012.05942.

    Args:
        input_dim: D.
        context_dim: C, or ``None``; a context shifts every layer.
        hidden_dims: widths of the layers of F, at least one.
        log_det: ``"auto"``, ``"exact"`` or ``"lanczos"``.
        num_products: products with the Hessian that ``"lanczos"`` takes.
        max_iterations: Newton steps after which the inverse gives up.

    Raises:
        ValueError: for an option out of its range.
    """

    fast_inverse = False

    def __init__(
        self,
        input_dim: int,
        context_dim: int | None = None,
        hidden_dims: Sequence[int] = (64, 64),
        *,
        log_det: LogDet = "auto",
        num_products: int = 20,
        max_iterations: int = 200,
    ) -> None:
        super().__init__(input_dim, context_dim)
        if log_det not in get_args(LogDet):
            raise ValueError(f"log_det: expected one of {get_args(LogDet)}, got {log_det!r}")
        self.estimated = log_det == "lanczos" or (log_det == "auto" and input_dim > EXACT_DIM)
        self.num_products = positive("num_products", num_products)
        self.net = ConvexNet(input_dim, hidden_dims, context_dim)
        self.max_iterations = positive("max_iterations", max_iterations)

    @property
    def exact_log_det(self) -> bool:  # type: ignore[override]
        """Whether the log-determinant is exact in the present mode, ``train()`` or ``eval()``."""
        return not (self.training and self.estimated)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The gradient of F, and the log-determinant of its Hessian."""
        y, curvature = self.net(x, context)
        return y, self._log_det(curvature, x)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The minimiser of :math:`F(x) - y^T x`, and the log-determinant there.

        Raises:
            RuntimeError: if Newton's method does not converge.
        """
        shifts = self.net.shifts(context)

        def linearised(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
            value, curvature = self.net(x, shifts=shifts)
            return value, lambda v: _solve(curvature.hessian(), v)

        root = solve_newton(
            linearised, y, y / self.net.strength(), self.max_iterations, "inverse of a convex potential flow"
        )
        value, curvature = self.net(root, shifts=shifts)
        hessian = curvature.hessian().detach()
        residual = y - value
        # The value is the root that was found; the gradient is J^-1 times that of the residual, and J is symmetric.
        x = ImplicitGradient.apply(root + (residual - residual.detach()), lambda v: _solve(hessian, v))
        return x, self._log_det(self.net(x, shifts=shifts)[1], x)

    def _log_det(self, curvature: Curvature, x: Tensor) -> Tensor:
        if self.exact_log_det:
            return _log_det(curvature.hessian())
        probe = torch.randint(0, 2, x.shape, device=x.device).to(x.dtype) * 2.0 - 1.0
        with torch.no_grad():
            value, solution = lanczos_log_and_solve(curvature.product, probe, self.num_products)
        if not torch.is_grad_enabled():
            return value
        surrogate = (solution * curvature.product(probe)).sum(-1)  # of gradient v^T H^-1 dH v
        return value + (surrogate - surrogate.detach())


def _solve(matrix: Tensor, v: Tensor) -> Tensor:
    return torch.linalg.solve(matrix, v.unsqueeze(-1)).squeeze(-1)


def _log_det(hessian: Tensor) -> Tensor:
    """By LU rather than Cholesky factors, which stop at a curvature below rounding; half precision in float32."""
    dtype = hessian.dtype
    hessian = hessian.float() if dtype in (torch.float16, torch.bfloat16) else hessian
    return torch.linalg.slogdet(hessian)[1].to(dtype)
