"""Affine flow: a location and a scale, diagonal or lower triangular, with marginal tails of learned weight."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from pyro_flows_vi.numerics.roots import solve_monotone
from pyro_flows_vi.transforms.base import Flow

__all__ = ["Affine"]


class Affine(Flow):
    r"""An affine map in a movable frame, whose marginals may have heavier tails than its input.

    .. math::
        y = m + s \odot h\left(C\,(b + T x)\right), \qquad
        h(w) = w + \tfrac{r}{2} \left(\zeta(w)^2 - \zeta(0)^2\right)
               - \tfrac{l}{2} \left(\zeta(-w)^2 - \zeta(0)^2\right)

    with a learned location b and a learned T, either :math:`\operatorname{diag}(e^d)` or lower triangular with
    :math:`t_{ii} = e^{d_i}`, and a fixed frame (m, L), :math:`L = \operatorname{diag}(s)\, C` with rows of C of norm
    one, which is (0, I) until :meth:`reframe` moves it. In a frame close to the target's location and covariance, a
    step of a given size means the same for every parameter, whatever the units of the target.

    :math:`\zeta` is the softplus, and :math:`r, l > 0` are learned weights of the right and the left tail of every
    coordinate: the square turns a Gaussian tail into an exponential one, that of the logarithm of a scale whose
    posterior reaches down to zero. Without ``tails``, h is the identity.

    Starts at :math:`y = \operatorname{loc} + \operatorname{scale} x`, with tails that are hardly there. O(D) both
    ways if diagonal, O(D^2) if not; with tails the inverse solves one scalar equation for each coordinate.

    Args:
        input_dim: D.
        loc: ``(D,)`` or a number.
        scale: a positive number, or ``(D,)`` of them.
        dense: whether T is triangular rather than diagonal.
        tails: whether the tails are learned.

    Raises:
        ValueError: for a scale that is not positive and finite.
    """

    #: The weights of the tails are FLOOR + softplus(t + FIRST): small at first and never zero, since a guide
    #: whose tails are lighter than the posterior's, by however little, has unbounded importance weights.
    FLOOR, FIRST = 0.1, -4.0

    frame_loc: Tensor
    frame_tril: Tensor
    off_diagonal: Tensor

    def __init__(
        self,
        input_dim: int,
        loc: Tensor | float = 0.0,
        scale: Tensor | float = 1.0,
        dense: bool = True,
        tails: bool = False,
    ) -> None:
        super().__init__(input_dim)
        self.triangular = True
        self.dense, self.tails = dense, tails
        loc = torch.as_tensor(loc) if isinstance(loc, Tensor) else torch.tensor(float(loc))
        loc = loc.detach().expand(input_dim).clone()
        scale = torch.as_tensor(scale, dtype=loc.dtype, device=loc.device).detach().expand(input_dim)
        if not bool(((scale > 0) & scale.isfinite()).all()):
            raise ValueError(f"expected positive, finite scales, got {scale.tolist()[:5]}")
        self.loc = nn.Parameter(loc)
        self.log_scale = nn.Parameter(scale.log())
        if dense:
            self.off_diagonal = nn.Parameter(loc.new_zeros(input_dim, input_dim))
        self.tail_weights = nn.Parameter(loc.new_zeros(2, input_dim)) if tails else None
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

    def _units(self) -> Tensor:
        """s, the norms of the rows of L."""
        return self.frame_tril.norm(dim=-1) if self.dense else self.frame_tril

    def _tails(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """h, log h' and its derivative (log h')'."""
        assert self.tail_weights is not None
        right, left = (self.FLOOR + softplus(self.tail_weights + self.FIRST)).unbind()
        up, down, rising = softplus(w), softplus(-w), torch.sigmoid(w)
        falling = torch.sigmoid(-w)
        zero = math.log(2.0) ** 2
        value = w + 0.5 * (right * (up.square() - zero) - left * (down.square() - zero))
        slope = 1.0 + right * up * rising + left * down * falling
        both = rising * falling
        bend = right * (rising.square() + up * both) - left * (falling.square() + down * both)
        return value, slope.log(), bend / slope

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One product."""
        y, log_det, _ = self._forward(x)
        return y, log_det

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        scale, loc, log_det = self.scale_tril(), self.location() - self.frame_loc, self._log_det()
        if not self.tails:
            moved = linear(x, scale, loc) if self.dense else torch.addcmul(loc, scale, x)
            return self.frame_loc + moved, log_det.expand(x.shape[:-1]), None
        units = self._units()
        if self.dense:
            w = linear(x, scale / units[:, None], loc / units)
        else:
            w = torch.addcmul(loc / units, scale / units, x)
        value, log_slope, bend = self._tails(w)
        return torch.addcmul(self.frame_loc, units, value), log_det + log_slope.sum(-1), (log_slope, bend)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One triangular system for the frame and one for T, after the root of the tails."""
        x, log_det = y - self.frame_loc, self._log_det()
        if self.tails:
            units = self._units()
            w = solve_monotone(lambda w: self._tails(w)[:2], x / units)
            log_det = log_det + self._tails(w)[1].sum(-1)
            x = units * w
        if self.dense:
            column = torch.linalg.solve_triangular(self.frame_tril, x[..., None], upper=False)
            x = torch.linalg.solve_triangular(self._tril(), column - self.loc[:, None], upper=False)[..., 0]
        else:
            x = (x / self.frame_tril - self.loc) * torch.exp(-self.log_scale)
        return x, log_det.expand(y.shape[:-1])

    def _forward_and_score(self, x: Tensor, score: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        y, log_det, tails = self._forward(x)
        scale = self.scale_tril().detach()
        score = torch.linalg.solve_triangular(scale, score, upper=False, left=False) if self.dense else score / scale
        if tails is not None:
            log_slope, bend = (t.detach() for t in tails)
            score = (score - bend / self._units()) * torch.exp(-log_slope)
        return y, log_det, score

    def extra_repr(self) -> str:
        """The dimension and the form, for ``repr``."""
        return f"{super().extra_repr()}, dense={self.dense}, tails={self.tails}"
