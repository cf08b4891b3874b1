"""Neural spline flows: coupling, autoregressive and elementwise splines by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from pyro_flows_vi.transforms.elementwise import CubicSpline, LinearSpline, QuadraticSpline, RationalQuadraticSpline
from pyro_flows_vi.transforms.elementwise.base import ElementwiseMap
from pyro_flows_vi.transforms.map_autoregressive import Autoregressive
from pyro_flows_vi.transforms.map_coupling import Coupling

__all__ = ["SplineAutoregressive", "SplineCoupling", "SplineName", "named_spline"]

SplineName = Literal["rational-quadratic", "cubic", "quadratic", "linear"]
_SPLINES = (RationalQuadraticSpline, CubicSpline, QuadraticSpline, LinearSpline)


def named_spline(spline: SplineName, bins: int = 8, bound: float = 3.0) -> ElementwiseMap:
    """The spline of that name.

    Raises:
        ValueError: for an unknown name, fewer than 2 bins, or a bound that is not positive.
    """
    known = get_args(SplineName)
    if spline not in known:
        raise ValueError(f"expected spline to be one of {', '.join(known)}, got {spline!r}")
    return _SPLINES[known.index(spline)](bins, bound)


class SplineCoupling(Coupling):
    r"""Neural spline flow with coupling layers: a :class:`~pyro_flows_vi.transforms.map_coupling.Coupling` of splines.

    Splines are the identity outside [-B, B], so standardise data, or put an affine layer around; a step's input of
    order one is what the default box fits. Both directions are one pass of the network.

    Source: Neural spline flows (Durkan et al., 2019), arXiv:1906.04032 (rational-quadratic); Cubic-spline flows (Durkan
    et al., 2019), arXiv:1906.02145; Neural importance sampling (Müller et al., 2018), arXiv:1808.03856 (quadratic and
    linear).

    Args:
        input_dim: D.
        context_dim: C, or ``None``.
        hidden_dims: widths of the network's hidden layers; ``(max(32, 2 D),) * 2``, at most 128 wide, by default.
        spline: which of the maps of :mod:`~pyro_flows_vi.transforms.elementwise`.
        bins: K, at least 2.
        bound: B.
        step: k, which chooses the split.

    Raises:
        ValueError: for an unknown spline, fewer than 2 bins, or a bound that is not positive.
    """

    def __init__(
        self,
        input_dim: int,
        context_dim: int | None = None,
        hidden_dims: Sequence[int] | None = None,
        spline: SplineName = "rational-quadratic",
        bins: int = 8,
        bound: float = 3.0,
        step: int = 0,
    ) -> None:
        super().__init__(input_dim, context_dim, hidden_dims, map=named_spline(spline, bins, bound), step=step)


class SplineAutoregressive(Autoregressive):
    r"""Neural spline flow with autoregressive layers: an
    :class:`~pyro_flows_vi.transforms.map_autoregressive.Autoregressive` of splines.

    Forward is one pass of the network, the inverse sequential in the coordinates.

    Source: as for :class:`SplineCoupling`.

    Args:
        input_dim: D.
        context_dim: C, or ``None``.
        hidden_dims: widths of the hidden layers; ``(max(32, 2 D),) * 2`` by default.
        spline: which of the maps of :mod:`~pyro_flows_vi.transforms.elementwise`.
        bins: K, at least 2.
        bound: B.

    Raises:
        ValueError: for an unknown spline, fewer than 2 bins, or a bound that is not positive.
    """

    def __init__(
        self,
        input_dim: int,
        context_dim: int | None = None,
        hidden_dims: Sequence[int] | None = None,
        spline: SplineName = "rational-quadratic",
        bins: int = 8,
        bound: float = 3.0,
    ) -> None:
        super().__init__(input_dim, context_dim, hidden_dims, map=named_spline(spline, bins, bound))
