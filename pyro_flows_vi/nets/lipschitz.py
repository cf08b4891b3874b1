"""Networks whose Lipschitz constant is bounded by construction, at any value of their parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

__all__ = ["NORMS", "Linearisation", "LipschitzMLP", "LipschitzNet", "lip_swish", "operator_norm"]

#: the norms of R^n in which a network can be bounded, by the name of the matrix norm that they induce
NORMS = ("spectral", "inf", "one")

SQUARINGS = 6


def operator_norm(weight: Tensor, norm: str = "spectral") -> Tensor:
    r"""An upper bound of the norm that a matrix has as a linear map: exact, or tight and smooth.

    * ``"inf"``: :math:`\max_i \sum_j |W_{ij}|`, exact, O(mn);
    * ``"one"``: :math:`\max_j \sum_i |W_{ij}|`, exact, O(mn);
    * ``"spectral"``: the Schatten norm :math:`(\sum_i \sigma_i^p)^{1/p}` with p = 256, which is never
      below the largest singular value and at most :math:`\min(m, n)^{1/256}` times it (1.6 % above at 64,
      2.7 % at 1000, and only if all singular values are equal). Six squarings of the smaller Gram matrix
      give it, O(min(m, n)^3), in matrix products alone: it is differentiable, and needs no factorisation
      on a GPU.

    Power iteration would be cheaper, but approaches the norm from below, so that a bound built on it can be
    broken, and it keeps a state. All three here are functions of the weight alone.

    Source: Efficient bound of Lipschitz constant for convolutional layers by Gram iteration (Delattre et
    al., 2023), arXiv:2305.16173.

    Args:
        weight: W, ``(*batch, m, n)``; the spectral norm also takes complex matrices.
        norm: one of :data:`NORMS`.

    Returns:
        a number for each matrix, ``(*batch,)``; in float32 for the half-precision types.

    Raises:
        ValueError: for an unknown norm.

    Example:
        >>> operator_norm(torch.tensor([[3.0, 0.0], [4.0, 0.0]]))
        tensor(5.)
    """
    weight = weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight
    if norm == "inf":
        return weight.abs().sum(-1).amax(-1)
    if norm == "one":
        return weight.abs().sum(-2).amax(-1)
    if norm != "spectral":
        raise ValueError(f"norm: expected one of {NORMS}, got {norm!r}")
    # The norm is homogeneous, so every rescaling may be a constant of the gradient; it is put back last.
    tiny = torch.finfo(weight.dtype).tiny
    scale = weight.detach().abs().amax((-2, -1)).clamp_min(tiny)
    weight, log_scale = weight / scale[..., None, None], scale.log()
    gram = weight @ weight.mH if weight.shape[-2] <= weight.shape[-1] else weight.mH @ weight
    power = 2.0  # gram holds the singular values to this power
    for _ in range(SQUARINGS):
        scale = gram.detach().diagonal(dim1=-2, dim2=-1).real.sum(-1).clamp_min(tiny)
        gram, log_scale = gram / scale[..., None, None], log_scale + scale.log() / power
        gram, power = gram @ gram, 2.0 * power
    frobenius = torch.linalg.vector_norm(gram, dim=(-2, -1))
    return torch.exp(log_scale + frobenius.clamp_min(tiny).log() / power)


def lip_swish(x: Tensor, sharpness: Tensor) -> tuple[Tensor, Tensor]:
    r"""The activation :math:`a(x) = x\,\sigma(\beta x) / 1.1` and its slope, elementwise.

    The slope lies in (-0.1, 1) whatever the sharpness β > 0, so a is 1-Lipschitz in every p-norm; and its
    second derivative does not vanish where the slope is large, which the gradient of a log-determinant
    needs.

    Source: Residual flows for invertible generative modeling (Chen et al., 2019), arXiv:1906.02735.

    Args:
        x: any tensor.
        sharpness: β, positive, broadcast against x.

    Returns:
        (a(x), a'(x)).

    Example:
        >>> lip_swish(torch.zeros(1), torch.tensor(1.0))
        (tensor([0.]), tensor([0.4545]))
    """
    scaled = sharpness * x
    gate = torch.sigmoid(scaled) / 1.1
    return x * gate, gate * (1.0 + scaled * torch.sigmoid(-scaled))


class Linearisation(NamedTuple):
    r"""The Jacobian :math:`J = W_n D_{n-1} W_{n-1} \cdots D_1 W_1` of a network at a batch of points,
    factored.

    ``weights`` are the matrices W, ``slopes`` the diagonals of D, each ``(*batch, width)``. Everything here
    is differentiable in the parameters and in the points, without a second pass of autograd.
    """

    weights: list[Tensor]
    slopes: list[Tensor]

    def jacobian(self) -> Tensor:
        """J, ``(*batch, D, D)``: one matrix product a layer, over all points together."""
        jacobian = self.weights[-1]
        for slope, weight in zip(reversed(self.slopes), reversed(self.weights[:-1]), strict=True):
            jacobian = (jacobian * slope.unsqueeze(-2)) @ weight
        return jacobian

    def split(self, size: int) -> list[Linearisation]:
        """The same over a flattened batch, in parts of at most ``size`` points."""
        parts = zip(*(slope.reshape(-1, slope.shape[-1]).split(size) for slope in self.slopes), strict=True)
        return [Linearisation(self.weights, list(slopes)) for slopes in parts]

    @property
    def width(self) -> int:
        """The largest number of units of a layer."""
        return max(slope.shape[-1] for slope in self.slopes)

    def vjp(self, v: Tensor) -> Tensor:
        """The row v^T J for v of shape ``(*more, *batch, D)``, at about the cost of the network."""
        for slope, weight in zip(reversed(self.slopes), reversed(self.weights[1:]), strict=True):
            v = (v @ weight) * slope
        return v @ self.weights[0]


class LipschitzNet(nn.Module):
    r"""A network g with :math:`\|g(x; c) - g(x'; c)\| \le L\,\|x - x'\|` for any parameters and any
    context: what those of dense and those of convolutional layers share.

    .. math::
        g(x; c) = s\, W_n a(W_{n-1} \cdots a(W_1 x + V c + b_1) \cdots) + b_n, \qquad
        s = \min\Bigl(1, \frac{L}{\|W_1\| \cdots \|W_n\|}\Bigr)

    with :func:`lip_swish` for a, of one learned sharpness a layer. Weights inside the bound are used as
    they are. Only the product of the norms is bounded, not each of them, so the first layers may grow and
    make sharp features that the last scales down. The functions that can be written are those of a bound
    :math:`L^{1/n}` on every layer (the scale of a weight can move into the sharpness of its activation
    and into the next weight), but they are learned sooner.

    The context is added before the first activation through an unbounded V: it moves where in its range the
    network works, which leaves the bound in x as it is. The last layer starts small.

    Args:
        layers: makes layer k of ``widths[k]`` inputs and ``widths[k + 1]`` outputs, with a weight and a bias.
        widths: of the input, the hidden layers (at least one) and the output.
        context_dim: C, or ``None``.
        lipschitz: the bound L.
        norm: the norm of the bound, one of :data:`NORMS`.

    Raises:
        ValueError: for no hidden layer, a bound that is not positive and finite, or an unknown norm.
    """

    #: scale of the last layer's initial weights, relative to those of a usual linear layer
    initial_gain = 0.1

    def __init__(
        self,
        layers: Callable[[int, int, int], nn.Linear | nn.Conv2d],
        widths: Sequence[int],
        context_dim: int | None,
        lipschitz: float,
        norm: str,
    ) -> None:
        super().__init__()
        if len(widths) < 3 or min(widths) < 1:
            raise ValueError(f"hidden_dims: expected at least one positive width, got {tuple(widths[1:-1])}")
        if not 0.0 < lipschitz < float("inf"):
            raise ValueError(f"lipschitz: expected a positive finite bound, got {lipschitz}")
        if norm not in NORMS:
            raise ValueError(f"norm: expected one of {NORMS}, got {norm!r}")
        self.lipschitz = lipschitz
        self.norm = norm
        made = [layers(k, a, b) for k, (a, b) in enumerate(pairwise(widths))]
        with torch.no_grad():
            made[-1].weight.mul_(self.initial_gain)
            cast(Tensor, made[-1].bias).zero_()
        self.weights = nn.ParameterList(layer.weight for layer in made)
        self.biases = nn.ParameterList(layer.bias for layer in made)
        self.raw_sharpness = nn.ParameterList(nn.Parameter(torch.tensor(0.5)) for _ in widths[1:-1])
        self.context_layer = None if context_dim is None else nn.Linear(context_dim, widths[1], bias=False)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """g(x; c) for x ``(*batch, D)`` and a context ``(*context_batch, C)`` that broadcasts."""
        return self.bind(context)(x)[0]

    def bind(self, context: Tensor | None = None) -> Callable[[Tensor], tuple[Tensor, Linearisation]]:
        """Do the work that does not depend on x: the norms of the weights, and the shift by the context.

        Returns:
            x -> (g(x; c), its Jacobian), at about the cost of g alone, for as many passes as are needed.
        """
        weights = self.constrained_weights()
        shift = self.biases[0] if self.context_layer is None else self.context_layer(context) + self.biases[0]

        def linearise(x: Tensor) -> tuple[Tensor, Linearisation]:
            value, slopes = self._enter(x), []
            for k, raw_sharpness in enumerate(self.raw_sharpness):
                value = self._layer(value, weights[k], self.biases[k] if k else shift)
                value, slope = lip_swish(value, softplus(raw_sharpness))
                slopes.append(slope)
            value = self._layer(value, weights[-1], self.biases[-1])
            return self._leave(value), self._linearisation(weights, slopes)

        return linearise

    def constrained_weights(self) -> list[Tensor]:
        """The weights in use: as they are, but for the last; one bound of an operator norm each."""
        *first, last = self.weights
        product = torch.stack([self._operator_norm(weight) for weight in (*first, last)]).prod()
        scale = self.lipschitz / product.clamp_min(self.lipschitz)
        return [*first, last * scale.to(last.dtype)]

    def _enter(self, x: Tensor) -> Tensor:
        return x

    def _leave(self, value: Tensor) -> Tensor:
        return value

    def _layer(self, value: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear(value, weight, bias) if bias.dim() == 1 else linear(value, weight) + bias

    def _operator_norm(self, weight: Tensor) -> Tensor:
        return operator_norm(weight, self.norm)

    def _linearisation(self, weights: list[Tensor], slopes: list[Tensor]) -> Linearisation:
        return Linearisation(weights, slopes)


class LipschitzMLP(LipschitzNet):
    r"""A :class:`LipschitzNet` of dense layers.

    Args:
        dim: D, the size of x and of g(x).
        hidden_dims: widths of the hidden layers, at least one.
        context_dim: C, or ``None``.
        lipschitz: the bound L.
        norm: the norm of the bound, one of :data:`NORMS`.

    Raises:
        ValueError: for no hidden layer, a bound that is not positive and finite, or an unknown norm.

    Example:
        >>> LipschitzMLP(3, [16], context_dim=2)(torch.zeros(5, 3), torch.ones(5, 2)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        dim: int,
        hidden_dims: Sequence[int],
        context_dim: int | None = None,
        lipschitz: float = 0.9,
        norm: str = "spectral",
    ) -> None:
        super().__init__(lambda k, a, b: nn.Linear(a, b), [dim, *hidden_dims, dim], context_dim, lipschitz, norm)
