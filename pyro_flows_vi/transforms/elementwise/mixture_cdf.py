"""The distribution function of a mixture as a map of the line: Gaussian and logistic components, two links."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyro_flows_vi.numerics.gaussian import log_mills, log_survival, upper_quantile
from pyro_flows_vi.numerics.roots import solve_monotone
from pyro_flows_vi.numerics.tempered import scale_shift, temper, unscale_unshift
from pyro_flows_vi.transforms._door import positive
from pyro_flows_vi.transforms.elementwise.base import ElementwiseMap

__all__ = ["MixtureCDF"]

#: the logistic function of 1.702 x is the normal distribution function to within 0.01
LOGISTIC_SCALE = 1.702
HALF_TYPES = (torch.float16, torch.bfloat16)


class MixtureCDF(ElementwiseMap):
    r"""The distribution function of a mixture, then a quantile function: :math:`y = Q(F(x))`.

    .. math::
        F(x) = \sum_{k=1}^{K} w_k\, G\!\left(\frac{x - \mu_k}{s_k}\right), \qquad
        \log \frac{dy}{dx} = \log f(x) - \log q(y), \quad f = F', \ q = (Q^{-1})'.

    G is the logistic or the normal distribution function, and Q the quantile function of either: the ``link`` says
    what y is distributed as when x comes from the mixture, ``"logit"`` standard logistic, ``"normal"`` standard
    normal. **Turned round, the map takes that base to exactly the mixture**, so that an autoregressive flow of it has
    mixtures as conditionals, with a closed log-density.

    Nothing saturates: each point is computed on the side of its smaller tail,
    from :math:`L = \log \min(F, 1 - F)` and the mixture's hazard f / min(F, 1 - F), which is moderate where f is not.
    With components and link of one kind the tails are lines. A Gaussian mixture with the logit has parabolas for
    tails, a logistic one with the normal link square roots: onto R too, but bent.

    In the raw parameters :math:`\mu_k = m + s_k \tau(d_k)`, :math:`\log s = \tau(\cdot)` and
    :math:`\log w = \tau(\cdot)` up to a constant, with :math:`\tau(r) = 2 \operatorname{asinh}(r / 2)`: means that
    are measured in their own scales leave no plateaus that a float cannot see. The inverse is a bracketed search.

    Source: Masked autoregressive flow (Papamakarios et al., 2017), arXiv:1705.07057 (Gaussian conditionals); Flow++
    (Ho et al., 2019), arXiv:1902.00275 (logistic components, logit, then a scale and a shift).

    Args:
        components: K.
        kind: of the components, "logistic" or "gaussian".
        link: "logit" or "normal"; by default the one with straight tails.
        rescale: whether an affine map of y with parameters of its own follows, as in Flow++.

    Raises:
        ValueError: for an unknown kind or link, or a number of components that is not positive.

    Example:
        >>> m = MixtureCDF(8)
        >>> y, log_slope = m.forward_and_log_slope(torch.tensor([1e4]), m.initial())
        >>> abs(y.item() - 1e4) < 3.0, log_slope.abs().item() < 1e-4
        (True, True)
    """

    fast_inverse = False
    #: half the range of the initial means: enough that no two components get the same gradient
    initial_spread = 0.5

    def __init__(
        self,
        components: int = 8,
        kind: Literal["logistic", "gaussian"] = "logistic",
        link: Literal["logit", "normal"] | None = None,
        rescale: bool = False,
    ) -> None:
        super().__init__()
        if kind not in ("logistic", "gaussian"):
            raise ValueError(f'expected kind to be "logistic" or "gaussian", got {kind!r}')
        if link not in ("logit", "normal", None):
            raise ValueError(f'expected link to be "logit" or "normal", got {link!r}')
        self.components, self.kind, self.rescale = positive("components", components), kind, rescale
        self.link = link or ("logit" if kind == "logistic" else "normal")
        self._sizes = [1] + [components] * 3 + [2 * rescale]
        self.num_params = sum(self._sizes)

    def initial(self) -> Tensor:
        """Components of nearly the same mean, and the scale at which the map is close to the identity."""
        values = torch.zeros(self.num_params)
        spread = torch.linspace(-1.0, 1.0, self.components + 2)[1:-1]
        values[1 : 1 + self.components] = self.initial_spread * spread
        log_scale = math.log(LOGISTIC_SCALE) * ((self.link == "logit") - (self.kind == "logistic"))
        values[1 + self.components : 1 + 2 * self.components] = 2.0 * math.sinh(log_scale / 2.0)
        return values

    def mixture(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights (of sum one), means and scales of the components, each ``(*batch, n, K)``."""
        move, offset, log_scale, log_weight, _ = self._parts(params)
        scale = log_scale.exp()
        return torch.log_softmax(log_weight, -1), move + scale * offset, scale

    def _parts(self, params: Tensor) -> tuple[Tensor, ...]:
        move, *rows, rest = params.split(self._sizes, -1)
        return move, *(temper(row, k=2.0) for row in rows), rest

    def forward_and_log_slope(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """In closed form."""
        return self._map(x, *self._parts(params))

    def _map(
        self, x: Tensor, move: Tensor, offset: Tensor, log_scale: Tensor, log_weight: Tensor, rest: Tensor
    ) -> tuple[Tensor, Tensor]:
        y, log_slope = self._cdf(x, move, offset, log_scale, log_weight, self.link)
        if not self.rescale:
            return y, log_slope
        y, stretch = scale_shift(y, *rest.unbind(-1))
        return y, log_slope + stretch

    def _cdf(
        self, x: Tensor, move: Tensor, offset: Tensor, log_scale: Tensor, log_weight: Tensor, link: str
    ) -> tuple[Tensor, Tensor]:
        dtype, logistic = x.dtype, self.kind == "logistic"
        if dtype in HALF_TYPES:  # for which torch has no error functions
            x, move, offset, log_scale, log_weight = (t.float() for t in (x, move, offset, log_scale, log_weight))
        log_weight = torch.log_softmax(log_weight, -1)
        u = torch.addcmul(-offset, x.unsqueeze(-1) - move, torch.exp(-log_scale))
        with torch.no_grad():
            below = torch.sigmoid(u) if logistic else torch.special.ndtr(u)
            side = _sign((log_weight.exp() * below).sum(-1) - 0.5)
        v = side.unsqueeze(-1) * u  # the smaller tail is on the right of it
        tails = log_weight + (-softplus(v, threshold=40.0) if logistic else log_survival(v))
        hazards = (-softplus(-v, threshold=40.0) if logistic else -log_mills(v)) - log_scale
        # Far out the tails are as large as v^2; less the largest of them, their differences keep their digits.
        top = tails.detach().amax(-1, keepdim=True)
        shares = tails - top
        total = torch.logsumexp(shares, -1)
        y, log_hazard = _quantile(top.squeeze(-1) + total, link)
        return (side * y).to(dtype), (torch.logsumexp(shares + hazards, -1) - total - log_hazard).to(dtype)

    def inverse_and_log_slope(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """By a root search over all coordinates together, of some ten evaluations of the map."""
        move, offset, log_scale, log_weight, rest = parts = self._parts(params)
        if self.rescale:
            y = unscale_unshift(y, *rest.unbind(-1))[0]
        straight = "logit" if self.kind == "logistic" else "normal"
        if self.link != straight:  # the search is for the quantile that makes the tails of the map lines
            side = _sign(y)
            log_tail = -softplus(side * y, threshold=40.0) if self.link == "logit" else log_survival(side * y)
            y = side * _quantile(log_tail, straight)[0]
        with torch.no_grad():  # the start: one component of average mean and scale
            scale = log_scale.exp()
            start = (torch.softmax(log_weight, -1) * (move + scale * (offset + y.unsqueeze(-1)))).sum(-1)
        x = solve_monotone(lambda x: self._cdf(x, move, offset, log_scale, log_weight, straight), y, start)
        return x, self._map(x, *parts)[1]

    def extra_repr(self) -> str:
        """The form, for ``repr``."""
        return f"components={self.components}, kind={self.kind!r}, link={self.link!r}, rescale={self.rescale}"


def _sign(x: Tensor) -> Tensor:
    return (x > 0.0).to(x) * 2.0 - 1.0


def _quantile(log_tail: Tensor, link: str) -> tuple[Tensor, Tensor]:
    """The point of a standard distribution with that upper tail, and the logarithm of its hazard there."""
    if link == "logit":
        rest = torch.log1p(-log_tail.exp())
        return rest - log_tail, rest
    y = upper_quantile(log_tail)
    return y, -log_mills(y)
