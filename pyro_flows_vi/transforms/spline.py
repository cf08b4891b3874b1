"""Neural spline flows: coupling, autoregressive and elementwise splines by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from pyro_flows_vi.transforms.elementwise import CubicSpline, LinearSpline, QuadraticSpline, RationalQuadraticSpline
from pyro_flows_vi.transforms.elementwise.base import ElementwiseMap
from pyro_flows_vi.transforms.elementwise_flow import Elementwise
from pyro_flows_vi.transforms.map_autoregressive import Autoregressive
from pyro_flows_vi.transforms.map_coupling import Coupling

__all__ = [
    "SplineAutoregressive",
    "SplineCoupling",
    "SplineName",
    "conditional_spline",
    "conditional_spline_autoregressive",
    "conditional_spline_coupling",
    "named_spline",
    "spline",
    "spline_autoregressive",
    "spline_coupling",
]

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


def spline(input_dim: int, count_bins: int = 8, bound: float = 3.0, order: str = "quadratic") -> Elementwise:
    """An elementwise rational-quadratic spline, with Pyro's signature.

    Of Pyro's two orders there is ``"quadratic"``, here the default, and not the rational ``"linear"`` one.
    """
    return Elementwise(input_dim, map=named_spline(_of_order(order), count_bins, bound))


def conditional_spline(
    input_dim: int,
    context_dim: int,
    hidden_dims: Sequence[int] | None = None,
    count_bins: int = 8,
    bound: float = 3.0,
    order: str = "quadratic",
) -> Elementwise:
    """As :func:`spline`, with parameters that a network makes of a context."""
    hidden_dims = (10 * input_dim,) * 2 if hidden_dims is None else hidden_dims
    return Elementwise(input_dim, context_dim, hidden_dims, map=named_spline(_of_order(order), count_bins, bound))


def spline_coupling(
    input_dim: int,
    hidden_dims: Sequence[int] | None = None,
    count_bins: int = 8,
    bound: float = 3.0,
    order: str = "quadratic",
    **kwargs: Any,
) -> SplineCoupling:
    """A coupling of rational-quadratic splines, called like Pyro's; ``step=1`` turns the roles round."""
    return SplineCoupling(input_dim, None, hidden_dims, _of_order(order), count_bins, bound, **kwargs)


def conditional_spline_coupling(
    input_dim: int,
    context_dim: int,
    hidden_dims: Sequence[int] | None = None,
    count_bins: int = 8,
    bound: float = 3.0,
    order: str = "quadratic",
    **kwargs: Any,
) -> SplineCoupling:
    """A coupling of rational-quadratic splines with a context, which Pyro lacks."""
    return SplineCoupling(input_dim, context_dim, hidden_dims, _of_order(order), count_bins, bound, **kwargs)


def spline_autoregressive(
    input_dim: int,
    hidden_dims: Sequence[int] | None = None,
    count_bins: int = 8,
    bound: float = 3.0,
    order: str = "quadratic",
) -> SplineAutoregressive:
    """Autoregressive rational-quadratic splines, with Pyro's signature; see :func:`spline` for the order."""
    return SplineAutoregressive(input_dim, None, hidden_dims, _of_order(order), count_bins, bound)


def conditional_spline_autoregressive(
    input_dim: int,
    context_dim: int,
    hidden_dims: Sequence[int] | None = None,
    count_bins: int = 8,
    bound: float = 3.0,
    order: str = "quadratic",
) -> SplineAutoregressive:
    """Autoregressive rational-quadratic splines with a context, with Pyro's signature."""
    return SplineAutoregressive(input_dim, context_dim, hidden_dims, _of_order(order), count_bins, bound)


def _of_order(order: str) -> SplineName:
    """The spline that Pyro's word for its order means."""
    if order != "quadratic":
        raise ValueError(
            f"expected order to be 'quadratic', the rational-quadratic spline, got {order!r}; of the rational linear "
            "spline that Pyro calls 'linear' there is none here"
        )
    return "rational-quadratic"
