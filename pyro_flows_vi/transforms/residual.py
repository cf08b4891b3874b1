"""Residual flow."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_flows_vi.nets.lipschitz import Linearisation, LipschitzMLP, LipschitzNet
from pyro_flows_vi.numerics.fixed_point import ImplicitGradient, implicit_gradient, solve_fixed_point
from pyro_flows_vi.numerics.log_det import (
    LogDetEstimate,
    Roulette,
    converged,
    exact_log_det,
    num_terms_for,
    series_log_det,
)
from pyro_flows_vi.transforms._door import checked, positive
from pyro_flows_vi.transforms.base import Flow

__all__ = ["LOG_DETS", "Residual", "ResidualBase", "below_one", "conditional_residual", "residual"]

LOG_DETS = ("auto", "exact", "series", "roulette")

#: Up to this dimension "auto" trains, and every choice evaluates, with the exact log-determinant. On one core
#: at batch 100, a training step takes 41, 102, 204, 306 ms at D = 64, 96, 128, 160, and with the roulette's
#: 36 expected terms 79, 158, 265, 388 ms. What sets the limit is the Jacobian's memory, O(D H) a point.
EXACT_DIM = 128


class ResidualBase(Flow):
    r"""A residual flow of any contraction g with a known bound: :math:`y = x + g(x; c)`.

    :class:`Residual` is that of a dense network, and says what the options do;
    :class:`~pyro_flows_vi.transforms.image.residual.ConvResidual` is that of a convolutional one.

    Args:
        input_dim: D.
        context_dim: C, or ``None``.
        net: g, with its bound, below 1.
        log_det, num_terms, num_probes, tail, rate, eval_probes, tolerance: as for :class:`Residual`.

    Raises:
        ValueError: for an option out of its range.
    """

    fast_inverse = False

    def __init__(
        self,
        input_dim: int,
        context_dim: int | None,
        net: LipschitzNet,
        *,
        log_det: str,
        num_terms: int | None,
        num_probes: int,
        tail: str,
        rate: float | None,
        eval_probes: int,
        tolerance: float,
    ) -> None:
        super().__init__(input_dim, context_dim)
        if log_det not in LOG_DETS:
            raise ValueError(f"log_det: expected one of {LOG_DETS}, got {log_det!r}")
        num_terms = {"series": 10}.get(log_det, 4) if num_terms is None else num_terms
        if num_terms < 1 or num_probes < 1 or eval_probes < 2 or not tolerance > 0.0:
            raise ValueError(
                "expected num_terms >= 1, num_probes >= 1, eval_probes >= 2 and tolerance > 0, "
                f"got {num_terms}, {num_probes}, {eval_probes} and {tolerance}"
            )
        if rate is None:
            rate = net.lipschitz if tail == "geometric" else 2.0
        self.net = net
        self.lipschitz = net.lipschitz
        self.log_det = log_det
        self.num_terms = num_terms
        self.num_probes = num_probes
        self.roulette = Roulette(num_terms, tail, rate)
        self.eval_probes = eval_probes
        self.tolerance = tolerance

    @property
    def exact_log_det(self) -> bool:  # type: ignore[override]
        """Whether the log-determinant is exact in the present mode, ``train()`` or ``eval()``."""
        if self.training and self.log_det in ("series", "roulette"):
            return False
        return self.log_det == "exact" or self.input_dim <= EXACT_DIM

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One pass of g, and the log-determinant of the present mode."""
        g, linearisation = self.net.bind(context)(x)
        return x + g, self._log_det(x, linearisation)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """A fixed point, then one pass of g at it.

        Raises:
            RuntimeError: if the iteration does not converge.
        """
        linearise = self.net.bind(context)
        most = 100 + int(2.0 * math.log(torch.finfo(y.dtype).eps) / math.log(self.lipschitz))
        root = solve_fixed_point(lambda x: y - linearise(x)[0], y, most, "inverse of a residual flow")
        g, linearisation = linearise(root)
        if self.exact_log_det:
            # One Newton step, as the whole Jacobian is at hand, and the implicit gradient by the same matrix.
            slope = linearisation.jacobian().detach() + torch.eye(self.input_dim, dtype=y.dtype, device=y.device)
            residual = y - g
            change = residual.detach()
            step = torch.linalg.solve(slope, (root - change).unsqueeze(-1)).squeeze(-1)
            x = ImplicitGradient.apply(
                root - step + (residual - change),
                lambda v: torch.linalg.solve(slope.mT, v.unsqueeze(-1)).squeeze(-1),
            )
        else:
            x = implicit_gradient(y - g, lambda v: -linearisation.vjp(v), most)
        return x, self._log_det(x, linearise(x)[1])

    def estimate_log_det(self, x: Tensor, context: Tensor | None = None) -> LogDetEstimate:
        """The converged series, and the standard error that its ``eval_probes`` probes leave.

        Args:
            x: the points, ``(*batch, D)``.
            context: ``(*context_batch, C)``.
        """
        return LogDetEstimate(*self._estimate(x, context))

    @checked
    def _estimate(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        values = self._converged_series(x, self.net.bind(context)(x)[1])
        return values.mean(0), values.std(0) / self.eval_probes**0.5

    def _log_det(self, x: Tensor, linearisation: Linearisation) -> Tensor:
        if self.exact_log_det:
            # Part by part: a core is nearly twice as fast while the Jacobians on their way stay in its cache.
            part = max(1, (2**19 if x.device.type == "cpu" else 2**26) // (self.input_dim * linearisation.width))
            parts = [linearisation] if torch.compiler.is_compiling() else linearisation.split(part)
            return torch.cat([exact_log_det(p.jacobian()).reshape(-1) for p in parts]).reshape(x.shape[:-1])
        if not self.training:
            return self._converged_series(x, linearisation).mean(0)
        weights = [1.0] * self.num_terms if self.log_det == "series" else self.roulette.draw()
        return series_log_det(linearisation.vjp, _signs(self.num_probes, x), weights).mean(0)

    def _converged_series(self, x: Tensor, linearisation: Linearisation) -> Tensor:
        order = {"spectral": 2.0, "inf": 1.0, "one": math.inf}[self.net.norm]  # rows shrink in the dual norm
        enough = converged(self.lipschitz, self.tolerance, order)
        most = num_terms_for(self.input_dim, self.lipschitz, self.tolerance)
        return series_log_det(linearisation.vjp, _signs(self.eval_probes, x), [1.0] * most, enough)


class Residual(ResidualBase):
    r"""Residual flow: the identity plus a contraction.

    .. math::
        y = x + g(x; c), \qquad \|g(x; c) - g(x'; c)\| \le L\,\|x - x'\|, \quad L < 1

    g is a :class:`~pyro_flows_vi.nets.lipschitz.LipschitzMLP`, whose bound L holds at any value of the
    parameters, so the map is always invertible, and :math:`\log|\det J| = \log\det(I + \partial
    g/\partial x)`. A context shifts the first hidden layer.

    Forward costs one pass of g and the log-determinant:

    * ``"exact"`` multiplies the Jacobian out of the weights, one matrix product a layer, and factors it:
      O(D H^2 + D^3) a point for layers of width H.
    * ``"series"`` takes ``num_terms`` terms of the power series and ``"roulette"`` a random number of
      them, which is unbiased. Both use Hutchinson probes at O(H^2) a term, with memory independent of the
      number of terms.
    * ``"auto"`` is exact up to D = 128, and the roulette above.

    The estimators are for training. In ``eval()`` mode every choice is exact up to D = 128; above that,
    unless ``"exact"`` was asked for, the series is converged to within ``tolerance`` and averaged over
    ``eval_probes`` probes, and :meth:`estimate_log_det` gives the standard error that they leave.
    ``exact_log_det`` says what the present mode computes.

    The inverse is a fixed point x <- y - g(x), which takes about log(ε)/log(L) passes at worst and far
    fewer where g contracts more than it has to; its gradients are implicit.

    Sources: Invertible residual networks (Behrmann et al., 2019), arXiv:1811.00995; Residual flows for
    invertible generative modeling (Chen et al., 2019), arXiv:1906.02735.

    Args:
        input_dim: D.
        context_dim: C, or ``None``.
        hidden_dims: widths of the hidden layers of g; two layers of max(64, 2 D) by default.
        lipschitz: L, in (0, 1).
        norm: where g contracts: ``"spectral"``, or the cheaper but narrower ``"inf"`` and ``"one"``.
        log_det: ``"auto"``, ``"exact"``, ``"series"`` or ``"roulette"``.
        num_terms: terms of the series (default 10), or terms that the roulette takes always (default 4).
        num_probes: probes a point in training.
        tail: the law of the roulette's further terms: ``"geometric"``, or ``"poisson"``, for a Jacobian
            that is well inside its bound.
        rate: continuation probability of the geometric tail (default L, which keeps the variance finite), or
            mean of the Poisson tail (default 2).
        eval_probes: probes a point in evaluation, at least 2.
        tolerance: bound, in nats, of what the series leaves out in evaluation.

    Raises:
        ValueError: for an option out of its range.
    """

    def __init__(
        self,
        input_dim: int,
        context_dim: int | None = None,
        hidden_dims: Sequence[int] | None = None,
        *,
        lipschitz: float = 0.97,
        norm: str = "spectral",
        log_det: str = "auto",
        num_terms: int | None = None,
        num_probes: int = 1,
        tail: str = "geometric",
        rate: float | None = None,
        eval_probes: int = 16,
        tolerance: float = 1e-3,
    ) -> None:
        positive("input_dim", input_dim)
        if context_dim is not None:
            positive("context_dim", context_dim)
        hidden_dims = (max(64, 2 * input_dim),) * 2 if hidden_dims is None else hidden_dims
        super().__init__(
            input_dim,
            context_dim,
            LipschitzMLP(input_dim, hidden_dims, context_dim, below_one(lipschitz), norm),
            log_det=log_det,
            num_terms=num_terms,
            num_probes=num_probes,
            tail=tail,
            rate=rate,
            eval_probes=eval_probes,
            tolerance=tolerance,
        )


def below_one(lipschitz: float) -> float:
    """The bound of a contraction as it is, or ``ValueError`` where it is none."""
    if not isinstance(lipschitz, float) or not 0.0 < lipschitz < 1.0:
        raise ValueError(f"lipschitz: expected a number in (0, 1), got {lipschitz!r}")
    return lipschitz


def _signs(num_probes: int, x: Tensor) -> Tensor:
    """Probes of random signs rather than normals: the diagonal of J then enters its trace without noise."""
    return torch.randint(0, 2, (num_probes, *x.shape), device=x.device).to(x.dtype) * 2.0 - 1.0


def residual(input_dim: int, hidden_dims: Sequence[int] | None = None) -> Residual:
    """A residual flow, with a signature in Pyro's manner."""
    return Residual(input_dim, None, hidden_dims)


def conditional_residual(input_dim: int, context_dim: int, hidden_dims: Sequence[int] | None = None) -> Residual:
    """A residual flow with a context, with a signature in Pyro's manner."""
    return Residual(input_dim, context_dim, hidden_dims)
