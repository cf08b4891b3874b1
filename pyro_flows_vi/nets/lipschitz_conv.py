"""Convolutional networks whose Lipschitz constant is bounded by construction."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_flows_vi.nets.lipschitz import Linearisation, LipschitzNet, operator_norm

__all__ = ["ConvLinearisation", "LipschitzConvNet", "conv_norm"]


def conv_norm(weight: Tensor, size: tuple[int, int], norm: str = "spectral") -> Tensor:
    r"""An upper bound of the norm that a convolution with zero padding has as a linear map of images.

    * ``"inf"`` and ``"one"``: the largest sum of :math:`|w|` over the weights of an output (input) channel.
    * ``"spectral"``: on a torus that is larger than the image by half a kernel, the padding is part of the image,
      and the convolution is a part of the circular one. That is block diagonal in the Fourier basis, one
      matrix of output by input channels for each frequency, so its norm is the largest of theirs, and each is bounded
      by :func:`~pyro_flows_vi.nets.lipschitz.operator_norm`. O(H W C^3), and never below the norm.

    Source: The singular values of convolutional layers (Sedghi et al., 2018), arXiv:1805.10408, for the Fourier basis.

    Args:
        weight: ``(out_channels, in_channels, k, k)`` with an odd k, for a padding of k // 2.
        size: ``(H, W)`` of the images.
        norm: one of :data:`~pyro_flows_vi.nets.lipschitz.NORMS`.

    Returns:
        a scalar.

    Example:
        >>> conv_norm(torch.full((1, 1, 3, 3), 1.0), (8, 8)).round(decimals=3)  # an image of ones grows ninefold
        tensor(9.)
    """
    if norm != "spectral":
        return operator_norm(weight.abs().sum((-2, -1)), norm)
    if weight.shape[-1] == 1:
        return operator_norm(weight[..., 0, 0])
    weight = weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight
    torus = [max(n + weight.shape[-1] // 2, weight.shape[-1]) for n in size]
    return operator_norm(torch.fft.rfft2(weight, s=torus).flatten(-2).permute(2, 0, 1)).amax()


class ConvLinearisation(Linearisation):
    r"""The Jacobian of a convolutional network, factored: ``weights`` are kernels, and ``slopes``
    ``(*batch, channels, H, W)``."""

    def jacobian(self) -> Tensor:
        """J, ``(*batch, D, D)``, by one pass of the transposed network a row."""
        *batch, _, height, width = self.slopes[0].shape
        dim = self.weights[0].shape[1] * height * width
        rows = torch.eye(dim, dtype=self.slopes[0].dtype, device=self.slopes[0].device)
        return self.vjp(rows.reshape(dim, *[1] * len(batch), dim).expand(dim, *batch, dim)).movedim(0, -2)

    def split(self, size: int) -> list[Linearisation]:
        """The same over a flattened batch, in parts of at most ``size`` points."""
        parts = zip(*(slope.reshape(-1, *slope.shape[-3:]).split(size) for slope in self.slopes), strict=True)
        return [ConvLinearisation(self.weights, list(slopes)) for slopes in parts]

    @property
    def width(self) -> int:
        """The largest number of units of a layer."""
        return max(math.prod(slope.shape[-3:]) for slope in self.slopes)

    def vjp(self, v: Tensor) -> Tensor:
        """The row v^T J for v of shape ``(*more, *batch, D)``, at about the cost of the network."""
        image = v.reshape(*v.shape[:-1], -1, *self.slopes[0].shape[-2:])
        for slope, weight in zip(reversed(self.slopes), reversed(self.weights[1:]), strict=True):
            image = _convolve(F.conv_transpose2d, image, weight) * slope
        return _convolve(F.conv_transpose2d, image, self.weights[0]).flatten(-3)


class LipschitzConvNet(LipschitzNet):
    r"""A :class:`~pyro_flows_vi.nets.lipschitz.LipschitzNet` of convolutions, on flat vectors of C H W numbers.

    Kernels of 3 at both ends and of 1 between, as the residual flows for images have them; see :func:`conv_norm` for
    how each is bounded. A context is a bias of the first hidden channels.

    Source: Residual flows for invertible generative modeling (Chen et al., 2019), arXiv:1906.02735.

    Args:
        shape: ``(C, H, W)``.
        hidden_channels: channels of the hidden layers, at least one.
        context_dim: size of the context, or ``None``.
        lipschitz: the bound L.
        norm: the norm of the bound, one of :data:`~pyro_flows_vi.nets.lipschitz.NORMS`.

    Raises:
        ValueError: for no hidden layer, a bound that is not positive and finite, or an unknown norm.

    Example:
        >>> LipschitzConvNet((2, 4, 4), [16, 16])(torch.zeros(5, 32)).shape
        torch.Size([5, 32])
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        hidden_channels: Sequence[int],
        context_dim: int | None = None,
        lipschitz: float = 0.9,
        norm: str = "spectral",
    ) -> None:
        last = len(hidden_channels)

        def layer(k: int, a: int, b: int) -> nn.Conv2d:
            return nn.Conv2d(a, b, 3 if k in (0, last) else 1)

        super().__init__(layer, [shape[0], *hidden_channels, shape[0]], context_dim, lipschitz, norm)
        self.shape = shape

    def _enter(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], *self.shape)

    def _leave(self, value: Tensor) -> Tensor:
        return value.flatten(-3)

    def _layer(self, value: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return _convolve(F.conv2d, value, weight) + bias[..., None, None]

    def _operator_norm(self, weight: Tensor) -> Tensor:
        return conv_norm(weight, self.shape[1:], self.norm)

    def _linearisation(self, weights: list[Tensor], slopes: list[Tensor]) -> Linearisation:
        return ConvLinearisation(weights, slopes)


def _convolve(function: Callable[..., Tensor], x: Tensor, weight: Tensor) -> Tensor:
    """A convolution, or its transpose, that keeps the size; for images with any batch dimensions."""
    result = function(x.reshape(-1, *x.shape[-3:]), weight, padding=weight.shape[-1] // 2)
    return result.reshape(*x.shape[:-3], *result.shape[1:])
