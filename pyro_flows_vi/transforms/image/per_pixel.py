"""A flow on channel vectors, applied to every pixel."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pyro_flows_vi.transforms.base import Flow
from pyro_flows_vi.transforms.image.base import ImageFlow

__all__ = ["PerPixel"]


class PerPixel(ImageFlow):
    r"""One flow f on the channels of every pixel: :math:`y_{\cdot hw} = f(x_{\cdot hw})`.

    With ``ActNorm(C)`` it is Glow's activation normalisation, whose scale and shift all pixels share; with
    ``LULinear(C)`` an invertible 1x1 convolution. The log-determinant is the sum over the pixels.

    Args:
        flow: f, a flow on C numbers.
        shape: ``(C, H, W)``.

    Raises:
        ValueError: for a flow of another dimension.

    Example:
        >>> import torch
        >>> from pyro_flows_vi.transforms.act_norm import ActNorm
        >>> PerPixel(ActNorm(3), (3, 4, 4))(torch.zeros(5, 48)).shape
        torch.Size([5, 48])
    """

    def __init__(self, flow: Flow, shape: Sequence[int]) -> None:
        super().__init__(shape, flow.context_dim)
        if flow.input_dim != self.shape[0]:
            raise ValueError(f"expected a flow on the {self.shape[0]} channels of {self.shape}, got {flow.input_dim}")
        self.flow = flow
        self.fast_forward, self.fast_inverse = flow.fast_forward, flow.fast_inverse

    @property
    def exact_log_det(self) -> bool:  # type: ignore[override]
        """As that of the flow, whose mode may change."""
        return self.flow.exact_log_det

    @property
    def sign(self) -> int:
        """As that of the flow."""
        return super().sign * self.flow.sign

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``flow`` at every pixel."""
        y, log_det = self.flow.forward_and_log_det(self._pixels(x), None if context is None else context[..., None, :])
        return y.mT.reshape(x.shape), log_det.sum(-1)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The inverse of ``flow`` at every pixel."""
        x, log_det = self.flow.inverse_and_log_det(self._pixels(y), None if context is None else context[..., None, :])
        return x.mT.reshape(y.shape), log_det.sum(-1)

    def _pixels(self, x: Tensor) -> Tensor:
        """``(*batch, H * W, C)``."""
        return x.reshape(*x.shape[:-1], self.shape[0], -1).mT
