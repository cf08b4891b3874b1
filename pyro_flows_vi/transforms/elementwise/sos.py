"""Sum-of-squares polynomials: the integral of a positive polynomial."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_flows_vi.numerics.quadrature import gauss_legendre
from pyro_flows_vi.numerics.roots import solve_monotone
from pyro_flows_vi.numerics.tempered import temper
from pyro_flows_vi.transforms._door import positive
from pyro_flows_vi.transforms.elementwise.base import ElementwiseMap

__all__ = ["SumOfSquares"]


class SumOfSquares(ElementwiseMap):
    r"""The integral of a sum of squared polynomials, an increasing polynomial of degree 2r + 1.

    .. math::
        y = c + \int_0^x \Bigl(e^{t} + \sum_{k=1}^{K} p_k(u)^2\Bigr) du, \qquad
        p_k(u) = \sum_{l=0}^{r} \tau(a_{kl}) \frac{u^l}{l!}

    The constant :math:`e^t`, itself a square, keeps the slope away from zero, so that the map is onto R with a
    differentiable inverse at any parameters; every increasing polynomial with such a slope is of this form with K = 2.
    With :math:`\tau(a) = 2 \operatorname{asinh}(a / 2)` a rare large output of a network cannot blow up the map.

    The integral is taken by the Gauss-Legendre rule of r + 1 nodes, which is exact for its degree and, unlike the
    expanded polynomial, adds positive terms only: every y - c has full relative accuracy. **The tails are those of the
    polynomial**, :math:`x^{2r+1}`: the image of a normal base has heavy tails, and points beyond about
    :math:`10^{38 / (2r + 1)}` overflow in float32. The inverse is a bracketed search.

    Source: Sum-of-squares polynomial flow (Jaini et al., 2019), arXiv:1905.02325.

    Args:
        degree: r, the degree of the polynomials that are squared.
        polynomials: K.

    Raises:
        ValueError: for a degree or a number of polynomials that is not positive.

    Example:
        >>> m = SumOfSquares(degree=2)
        >>> y, log_slope = m.forward_and_log_slope(torch.tensor([0.0, 1.0]), m.initial())
        >>> bool((y - torch.tensor([0.0, 1.0])).abs().max() < 0.1)
        True
    """

    fast_inverse = False
    #: of the terms that tell the polynomials apart at the start, all polynomials together
    initial_size = 0.02

    def __init__(self, degree: int = 4, polynomials: int = 2) -> None:
        super().__init__()
        self.degree, self.polynomials = positive("degree", degree), positive("polynomials", polynomials)
        self.num_params = 2 + polynomials * (degree + 1)
        # As numbers, since buffers would keep the rounding of the dtype that they were made in.
        self._nodes, self._weights = gauss_legendre(degree + 1)

    def initial(self) -> Tensor:
        """Half of the slope from the constant and half from the squares, whose other terms differ and are small."""
        order, index = torch.arange(self.degree + 1.0), torch.arange(self.polynomials)[:, None]
        size = self.initial_size / math.sqrt(self.polynomials)
        terms = size * torch.cos(math.pi * order * (index + 0.5) / self.polynomials)
        terms -= terms.mean(0)  # their products with the first term cancel in the sum of squares
        terms[:, 0] = math.sqrt(0.5 / self.polynomials)
        return 2.0 * torch.sinh(0.5 * torch.cat([torch.tensor([0.0, math.log(0.5)]), terms.flatten()]))

    def _parts(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The shift c, the logarithm t of the constant and the coefficients, ``(*batch, n, r + 1, K)``."""
        shift, rest = params[..., 0], temper(params[..., 1:], k=2.0)
        return shift, rest[..., 0], rest[..., 1:].unflatten(-1, (self.polynomials, self.degree + 1)).mT

    def _values(self, x: Tensor, terms: Tensor) -> Tensor:
        """p_k(x) by Horner's rule for x ``(*batch, n, N)``: ``(*batch, n, N, K)``."""
        x, terms = x.unsqueeze(-1), terms.unsqueeze(-3)
        value = terms[..., self.degree, :] / self.degree
        for l in range(self.degree - 1, 0, -1):
            value = torch.addcmul(terms[..., l, :], x, value) / l
        return torch.addcmul(terms[..., 0, :], x, value)

    def forward_and_log_slope(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """In closed form, r + 2 values of each polynomial."""
        return self._map(x, *self._parts(params))

    def _map(self, x: Tensor, shift: Tensor, log_constant: Tensor, terms: Tensor) -> tuple[Tensor, Tensor]:
        values = self._values(x.unsqueeze(-1) * x.new_tensor([*self._nodes, 1.0]), terms)
        inner, last = values[..., :-1, :], values[..., -1, :]
        mean = (inner.square().sum(-1) * x.new_tensor(self._weights)).sum(-1) + log_constant.exp()
        root = torch.exp(0.5 * log_constant)
        size = torch.maximum(last.detach().abs().amax(-1), root.detach())  # squares could overflow where sums do not
        squares = (last / size.unsqueeze(-1)).square().sum(-1) + (root / size).square()
        return torch.addcmul(shift, x, mean), squares.log() + 2.0 * size.log()

    def inverse_and_log_slope(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """By a root search over all coordinates together, of some ten evaluations of the map."""
        parts = self._parts(params)
        away = y - parts[0]
        start = away * (1.0 + away.square()).pow(-self.degree / (2.0 * self.degree + 1.0))  # where nothing overflows
        x = solve_monotone(lambda x: self._map(x, *parts), y, start)
        return x, self._map(x, *parts)[1]

    def extra_repr(self) -> str:
        """The degree and the number of polynomials, for ``repr``."""
        return f"degree={self.degree}, polynomials={self.polynomials}"
