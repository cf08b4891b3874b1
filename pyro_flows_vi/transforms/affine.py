"""Affine flow: a location and a scale, diagonal or lower triangular."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from pyro_flows_vi.transforms.base import Flow

__all__ = ["Affine"]


class Affine(Flow):
    r"""An affine map that remembers the frame in which it was last at home.

    .. math::
        y = m + L\,(b + T x), \qquad \log|\det J| = \sum_i \log l_{ii} + \sum_i d_i

    with a learned location b and a learned T, either :math:`\operatorname{diag}(e^d)` or lower triangular with
    :math:`t_{ii} = e^{d_i}`, and a fixed frame (m, L), which is (0, I) until :meth:`reframe` moves it. In a
    frame close to the target's location and covariance, a step of a given size means the same for every
    parameter, whatever the units of the target.

    Starts at :math:`y = \operatorname{loc} + \operatorname{scale} x`. O(D) both ways if diagonal, O(D^2) if not.

    Args:
        input_dim: D.
        loc: ``(D,)`` or a number.
        scale: a positive number, or ``(D,)`` of them.
        dense: whether T is triangular rather than diagonal.

    Raises:
        ValueError: for a scale that is not positive and finite.
    """

    frame_loc: Tensor
    frame_tril: Tensor
    off_diagonal: Tensor

    def __init__(self, input_dim: int, loc: Tensor | float = 0.0, scale: Tensor | float = 1.0, dense: bool = True):
        super().__init__(input_dim)
        self.triangular = True
        self.dense = dense
        loc = torch.as_tensor(loc) if isinstance(loc, Tensor) else torch.tensor(float(loc))
        loc = loc.detach().expand(input_dim).clone()
        scale = torch.as_tensor(scale, dtype=loc.dtype, device=loc.device).detach().expand(input_dim)
        if not bool(((scale > 0) & scale.isfinite()).all()):
            raise ValueError(f"expected positive, finite scales, got {scale.tolist()[:5]}")
        self.loc = nn.Parameter(loc)
        self.log_scale = nn.Parameter(scale.log())
        if dense:
            self.off_diagonal = nn.Parameter(loc.new_zeros(input_dim, input_dim))
        self.register_buffer("frame_loc", torch.zeros_like(loc))
        self.register_buffer("frame_tril", torch.eye(input_dim).to(loc) if dense else torch.ones_like(loc))

    @torch.no_grad()
    def reframe(self, loc: Tensor, scale_tril: Tensor) -> None:
        """Take :math:`y = m + L x` as the new frame, and start at it: b = 0 and T = I.

        Args:
            loc: m, ``(D,)``.
            scale_tril: L, ``(D, D)`` with a positive diagonal; of a diagonal flow ``(D,)``.
        """
        self.frame_loc.copy_(loc)
        self.frame_tril.copy_(scale_tril)
        for parameter in self.parameters():
            parameter.zero_()

    def _tril(self) -> Tensor:
        """T."""
        return torch.tril(self.off_diagonal, -1) + self.log_scale.exp().diag_embed()

    def scale_tril(self) -> Tensor:
        """L T, the whole scale: ``(D, D)``, or ``(D,)`` of a diagonal flow."""
        return self.frame_tril @ self._tril() if self.dense else self.frame_tril * self.log_scale.exp()

    def location(self) -> Tensor:
        """m + L b, where x = 0 goes to."""
        return self.frame_loc + (self.frame_tril @ self.loc if self.dense else self.frame_tril * self.loc)

    def _log_det(self) -> Tensor:
        frame = self.frame_tril.diagonal() if self.dense else self.frame_tril
        return frame.log().sum() + self.log_scale.sum()

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One product."""
        scale = self.scale_tril()
        y = linear(x, scale, self.location()) if self.dense else torch.addcmul(self.location(), scale, x)
        return y, self._log_det().expand(x.shape[:-1])

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One triangular system for the frame and one for T."""
        x = y - self.frame_loc
        if self.dense:
            column = torch.linalg.solve_triangular(self.frame_tril, x[..., None], upper=False)
            x = torch.linalg.solve_triangular(self._tril(), column - self.loc[:, None], upper=False)[..., 0]
        else:
            x = (x / self.frame_tril - self.loc) * torch.exp(-self.log_scale)
        return x, self._log_det().expand(y.shape[:-1])

    def _forward_and_score(self, x: Tensor, score: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        y, log_det = self.forward_and_log_det(x)
        scale = self.scale_tril().detach()
        if not self.dense:
            return y, log_det, score / scale
        return y, log_det, torch.linalg.solve_triangular(scale, score, upper=False, left=False)

    def extra_repr(self) -> str:
        """The dimension and the form, for ``repr``."""
        return f"{super().extra_repr()}, dense={self.dense}"
