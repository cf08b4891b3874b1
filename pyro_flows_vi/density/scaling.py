"""The fixed scale of the data: a flow without parameters, and the logit of pixels."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_flows_vi.transforms.base import Flow

__all__ = ["PixelLogit", "Scaling"]


class Scaling(Flow):
    r"""The fixed map :math:`y = m + s \odot x`, from standardised values to the data's own units.

    It is the identity until :meth:`measure` sets it; m and s are buffers, so they are saved, moved and never trained.

    Args:
        input_dim: D.
    """

    loc: Tensor
    scale: Tensor
    measured: Tensor

    def __init__(self, input_dim: int) -> None:
        super().__init__(input_dim)
        self.triangular = True
        self.register_buffer("loc", torch.zeros(input_dim))
        self.register_buffer("scale", torch.ones(input_dim))
        self.register_buffer("measured", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def measure(self, loc: Tensor, scale: Tensor) -> None:
        """Take m and s, ``(D,)`` each."""
        self.loc.copy_(loc)
        self.scale.copy_(scale)
        self.measured.fill_(True)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """O(D)."""
        return torch.addcmul(self.loc, self.scale, x), self.scale.log().sum().expand(x.shape[:-1])

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """O(D)."""
        return (y - self.loc) / self.scale, self.scale.log().sum().expand(y.shape[:-1])


class PixelLogit(Flow):
    r"""From logits to pixels on the scale of their L levels: :math:`y = L\,(\sigma(x) - \lambda) / (1 - 2 \lambda)`.

    Its inverse is the preprocessing :math:`x = \operatorname{logit}(\lambda + (1 - 2 \lambda)\, y / L)` of images, with

    .. math::
        \log \left|\frac{\partial y}{\partial x}\right|
            = \sum_i \log \sigma(x_i) + \log \sigma(-x_i) + \log L - \log(1 - 2 \lambda)

    The image of the map is a little larger than the pixels' range [0, L], on both sides by
    :math:`\lambda / (1 - 2 \lambda)` of it. What a density puts there is lost to the pixels, so that their
    likelihood is a lower bound by that much.

    Source: Masked autoregressive flow for density estimation (Papamakarios, Pavlakou, Murray, 2017), arXiv:1705.07057.

    Args:
        input_dim: D, the number of pixels.
        levels: L, 256 for bytes.
        logit_level: :math:`\lambda`, between 0 and 1/2.
    """

    def __init__(self, input_dim: int, levels: int = 256, logit_level: float = 0.05) -> None:
        super().__init__(input_dim)
        if not 0.0 < logit_level < 0.5:
            raise ValueError(f"expected logit_level to be between 0 and 0.5, got {logit_level!r}")
        self.triangular = True
        self.levels, self.logit_level = levels, logit_level

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """O(D)."""
        room = 1.0 - 2.0 * self.logit_level
        return self.levels * (torch.sigmoid(x) - self.logit_level) / room, self._log_det(x)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """O(D); raises ``ValueError`` for values outside of the map's image."""
        share = self.logit_level + (1.0 - 2.0 * self.logit_level) * y / self.levels
        if not torch.compiler.is_compiling() and not bool(((share > 0.0) & (share < 1.0)).all()):
            raise ValueError(
                f"expected pixel values from 0 to {self.levels}, got values from {float(y.detach().min()):g} to "
                f"{float(y.detach().max()):g}; say how many levels there are, or scale the images"
            )
        x = torch.logit(share)
        return x, self._log_det(x)

    def _log_det(self, x: Tensor) -> Tensor:
        constant = math.log(self.levels) - math.log(1.0 - 2.0 * self.logit_level)
        return (logsigmoid(x) + logsigmoid(-x)).sum(-1) + constant * self.input_dim

    def extra_repr(self) -> str:
        """The dimension and the levels, for ``repr``."""
        return f"{super().extra_repr()}, levels={self.levels}, logit_level={self.logit_level}"
