"""Elementwise increasing maps of the whole line, as pure functions of a point and parameters.

Each takes ``x`` ``(*batch, D)`` and parameters ``(*batch, K, D)``, one row a component of a mixture, and returns
``(y, log dy/dx)``. All reductions run over dimension -2 on contiguous rows. Slopes a > 0 and weights w (positive,
of sum one) come and stay as logarithms, so that y covers all of R with linear tails and no logarithm ever sees a
zero: nothing saturates where a float does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyro_flows_vi.numerics.log_space import log_matmul_exp
from pyro_flows_vi.numerics.stable import LEAK, leaky

__all__ = ["MIXTURES", "dense_sigmoidal", "elu_mixture", "leaky_relu_mixture", "sigmoid_mixture", "tanh_mixture"]

Pair = tuple[Tensor, Tensor]


def sigmoid_mixture(x: Tensor, slope: Tensor, shift: Tensor, weight: Tensor) -> Pair:
    r"""The deep sigmoidal map :math:`y = \mathrm{logit} \sum_k w_k\, \sigma(a_k x + b_k)`.

    With :math:`A = \log \sum_k w_k \sigma(u_k)`, :math:`B = \log \sum_k w_k \sigma(-u_k)` and
    :math:`C = \log \sum_k w_k a_k \sigma(u_k) \sigma(-u_k)` at :math:`u_k = a_k x + b_k`, the value is
    :math:`y = A - B` and the log-derivative :math:`C - A - B`. The tails are lines of slope :math:`\min_k a_k`.

    Args:
        x: ``(*batch, D)``.
        slope: log a, ``(*batch, K, D)``.
        shift: b, ``(*batch, K, D)``.
        weight: log w up to a constant, ``(*batch, K, D)``.

    Source: "Neural autoregressive flows" (Huang et al., 2018), arXiv:1804.00779.

    Example:
        >>> y, log_slope = sigmoid_mixture(torch.tensor([1e4]), *torch.zeros(3, 8, 1))
        >>> y.item(), log_slope.item()
        (10000.0, 0.0)
    """
    return _sigmoid(x, slope, shift, weight, 1.0)


def tanh_mixture(x: Tensor, slope: Tensor, shift: Tensor, weight: Tensor) -> Pair:
    r"""The map :math:`y = \mathrm{artanh} \sum_k w_k \tanh(a_k x + b_k)`.

    As :math:`\tanh u = 2 \sigma(2u) - 1`, this is half the :func:`sigmoid_mixture` of twice the arguments.

    Args:
        x, slope, shift, weight: as for :func:`sigmoid_mixture`.
    """
    return _sigmoid(x, slope, shift, weight, 2.0)


def _sigmoid(x: Tensor, slope: Tensor, shift: Tensor, weight: Tensor, scale: float) -> Pair:
    u = torch.addcmul(shift, slope.exp(), x.unsqueeze(-2))
    left, right, offset = _two_sides(u if scale == 1.0 else scale * u, weight)
    rate = _log_sum_exp((left + right).sub_(weight).add_(slope))
    above, below = left.exp().sum(-2).log(), right.exp().sum(-2).log()  # each sum holds a one
    # A and B lack the weights' normalisation, which cancels in A - B but not in C - A - B.
    return (above - below + offset.squeeze(-2)) / scale, rate - above - below + _log_sum_exp(weight)


def _log_sum_exp(rows: Tensor) -> Tensor:
    """As ``torch.logsumexp`` over dimension -2, whose derivative takes three passes where this takes one."""
    top = rows.detach().amax(-2, keepdim=True)
    return (rows - top).exp_().sum(-2).log() + top.squeeze(-2)


def _two_sides(u: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The logarithms of w σ(u) and w σ(-u), each less its largest, and the difference of those two.

    Far out they are as large as x; without that shift the log-derivative would be their rounding error.
    """
    left, right = weight - softplus(-u, threshold=40.0), weight - softplus(u, threshold=40.0)
    top_left, top_right = left.detach().amax(-2, keepdim=True), right.detach().amax(-2, keepdim=True)
    return left.sub_(top_left), right.sub_(top_right), top_left - top_right


def dense_sigmoidal(x: Tensor, layers: Sequence[Sequence[Tensor]], mixers: Sequence[Tensor]) -> Pair:
    r"""The dense deep sigmoidal map, layers of mixtures of all units of the layer before.

    .. math::
        h_{l+1} = \mathrm{logit}\bigl(W_l\, \sigma(a_l \odot U_l h_l + b_l)\bigr), \quad h_0 = x,\ y = h_L,

    where :math:`W_l` and :math:`U_l` have positive rows of sum one,
    :math:`W_{ij} \propto e^{V_{ij} + w_j}`, with V shared and w (like a, b) a parameter of the point. The first
    U and the last W have no V. The derivative is carried along as the logarithm of one positive vector, and
    the matrices enter as ordinary products: memory grows with the width, not its square.

    Args:
        x: ``(*batch, D)``.
        layers: for each layer the slope, shift and weight of its units, as for :func:`sigmoid_mixture`, and
            after the first layer the logits of U, all ``(*batch, K, D)``.
        mixers: V for W and then U between each two layers, ``(K, K)`` each, two fewer than twice the layers;
            entries within ±20 or so (see :func:`~pyro_flows_vi.numerics.log_space.soft_bound`).

    Source: "Neural autoregressive flows" (Huang et al., 2018), arXiv:1804.00779, section 3.2.
    """
    h = x.unsqueeze(-2)
    log_slope = torch.zeros_like(h)
    for i, (slope, shift, weight, *inner) in enumerate(layers):
        if inner:
            h, log_slope = _average(mixers[2 * i - 1], inner[0], h, log_slope)
        u = torch.addcmul(shift, slope.exp(), h)
        left, right, offset = _two_sides(u, weight)
        rows = [left, right, left + right - weight + slope + log_slope, weight]
        if i < len(layers) - 1:
            above, below, rate, total = (log_matmul_exp(mixers[2 * i], row) for row in rows)
        else:
            above, below, rate, total = (torch.logsumexp(row, -2, keepdim=True) for row in rows)
        h, log_slope = above - below + offset, rate - above - below + total
    return h.squeeze(-2), log_slope.squeeze(-2)


def _average(mixer: Tensor, logits: Tensor, h: Tensor, log_slope: Tensor) -> Pair:
    """U h, and the logarithm of U times e^log_slope."""
    matrix = torch.exp(mixer)
    share = torch.exp(logits - logits.detach().amax(-2, keepdim=True))
    total = matrix @ share
    log_total = log_matmul_exp(mixer, logits)
    return (matrix @ (share * h)) / total, log_matmul_exp(mixer, logits + log_slope) - log_total


def elu_mixture(x: Tensor, slope: Tensor, shift: Tensor, weight: Tensor) -> Pair:
    r"""The map :math:`y = \mathrm{elu}^{-1} s`, :math:`s = \sum_k w_k\, \mathrm{elu}(a_k x + b_k)`.

    Where s < 0 it is :math:`\log(1 + s) = \log \sum_k w_k g(u_k)` with the positive terms :math:`g(u) = e^u` for
    u < 0 and 1 + u otherwise, where s >= 0 it is s.

    Args:
        x, slope, shift, weight: as for :func:`sigmoid_mixture`.
    """
    log_weight = torch.log_softmax(weight, -2)
    u = torch.addcmul(shift, slope.exp(), x.unsqueeze(-2))
    negative, positive = u.clamp(max=0.0), u.clamp(min=0.0)
    left = log_weight + negative
    offset = left.detach().amax(-2, keepdim=True)  # far left, rate and g are as large as x; not so without it
    left, offset = left - offset, offset.squeeze(-2)
    g = torch.logsumexp(left + torch.log1p(positive), -2)  # negative or positive is zero
    s = (log_weight.exp() * (torch.exp(negative) - 1.0 + positive)).sum(-2)
    y = torch.where(g < -offset, g + offset, s)
    return y, torch.logsumexp(left + slope, -2) - torch.minimum(g, -offset)


def leaky_relu_mixture(x: Tensor, slope: Tensor, shift: Tensor, weight: Tensor) -> Pair:
    r"""The piecewise linear map :math:`y = r^{-1} \sum_k w_k\, r(a_k x + b_k)`, r the leaky rectifier.

    r(u) = u for u >= 0 and u / 100 otherwise.

    Args:
        x, slope, shift, weight: as for :func:`sigmoid_mixture`.
    """
    u = torch.addcmul(shift, slope.exp(), x.unsqueeze(-2))
    log_weight = torch.log_softmax(weight, -2)
    rectified, log_rate = leaky(u)
    s = (log_weight.exp() * rectified).sum(-2)
    return torch.minimum(s, s / LEAK), torch.logsumexp(log_weight + slope + log_rate, -2) - leaky(s)[1]


#: the mixtures by the name of their activation
MIXTURES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Pair]] = {
    "ELU": elu_mixture,
    "LeakyReLU": leaky_relu_mixture,
    "sigmoid": sigmoid_mixture,
    "tanh": tanh_mixture,
}
