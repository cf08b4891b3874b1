"""Squeezing: pixels become channels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pyro_flows_vi.transforms._door import positive
from pyro_flows_vi.transforms.image.base import ImageFlow, Shape

__all__ = ["Squeeze"]


class Squeeze(ImageFlow):
    r"""Squeezing: every block of f x f pixels of a channel becomes one pixel of f^2 channels.

    .. math::
        y_{(c f + i) f + j,\, h,\, w} = x_{c,\, h f + i,\, w f + j}, \qquad \log|\det J| = 0

    A permutation of the flat vector, in the order of ``torch.nn.functional.pixel_unshuffle``. O(D) both ways.

    Source: Density estimation using Real NVP (Dinh et al., 2016), arXiv:1605.08803.

    Args:
        shape: ``(C, H, W)`` of x; that of y is the attribute ``out_shape``.
        factor: f.

    Raises:
        ValueError: for a height or width that f does not divide.

    Example:
        >>> import torch
        >>> Squeeze((1, 2, 4)).out_shape
        (4, 1, 2)
        >>> Squeeze((1, 2, 4))(torch.arange(8.0))
        tensor([0., 2., 1., 3., 4., 6., 5., 7.])
    """

    def __init__(self, shape: Sequence[int], factor: int = 2) -> None:
        super().__init__(shape)
        channels, height, width = self.shape
        self.factor = positive("factor", factor)
        if height % factor or width % factor:
            raise ValueError(
                f"expected a height and a width that are multiples of {factor} for squeezing, got {height} x {width}; "
                "pad the images or use fewer levels"
            )
        self.out_shape: Shape = (channels * factor**2, height // factor, width // factor)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """O(D)."""
        return self.rearrange(x), x.new_zeros(x.shape[:-1])

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """O(D)."""
        return self.restore(y), y.new_zeros(y.shape[:-1])

    def rearrange(self, x: Tensor) -> Tensor:
        """The forward map alone, for values of any type, such as indices."""
        channels, f, (_, rows, columns) = self.shape[0], self.factor, self.out_shape
        blocks = x.reshape(*x.shape[:-1], channels, rows, f, columns, f)
        n = x.dim() - 1
        return blocks.permute(*range(n), n, n + 2, n + 4, n + 1, n + 3).reshape(x.shape)

    def restore(self, y: Tensor) -> Tensor:
        """The inverse map alone."""
        channels, f, (_, rows, columns) = self.shape[0], self.factor, self.out_shape
        blocks = y.reshape(*y.shape[:-1], channels, f, f, rows, columns)
        n = y.dim() - 1
        return blocks.permute(*range(n), n, n + 3, n + 1, n + 4, n + 2).reshape(y.shape)
