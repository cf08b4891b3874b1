"""The protocol of an increasing map of one variable whose parameters come from outside."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["ElementwiseMap", "require_map"]


class ElementwiseMap(nn.Module):
    r"""An increasing map :math:`y = m(x; \phi)` of R onto R, applied to every coordinate with parameters of its own.

    The map does not know where :math:`\phi` comes from. Three flows provide it, each given the map by its keyword
    ``map``: :class:`~pyro_flows_vi.transforms.elementwise_flow.Elementwise` (free, or a function of a context),
    :class:`~pyro_flows_vi.transforms.map_coupling.Coupling` (a function of the other half of the coordinates) and
    :class:`~pyro_flows_vi.transforms.map_autoregressive.Autoregressive` (of the coordinates before).

    A map implements :meth:`initial`, :meth:`forward_and_log_slope` and :meth:`inverse_and_log_slope`, and sets
    ``num_params``. It covers all of R, has a finite slope and a finite logarithm of it at any parameters, and works
    in the forward direction under ``torch.func.vmap`` and ``torch.compile(fullgraph=True)``. It is a module since
    some maps own weights that all coordinates share; most have none.

    Shapes: ``x`` and ``y`` are ``(*batch, n)`` with any n, ``params`` is ``(*batch, n, P)``, where P is
    ``num_params``, or has fewer dimensions or dimensions of size one that broadcast. It need not be contiguous.
    """

    #: P, the raw parameters of one coordinate: unconstrained reals
    num_params: int
    #: whether the inverse costs about as much as the forward map, and does not evaluate a network again and again
    fast_inverse: bool = True

    def initial(self) -> Tensor:
        """The raw parameters ``(P,)`` at which the map is the identity, or close to it.

        Called once for each flow that is built; small random parts are allowed, where units must not start alike.
        """
        raise TypeError(f"{type(self).__name__} is an ElementwiseMap and has to define initial")

    def forward_and_log_slope(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """``(y, log dy/dx)``, each ``(*batch, n)``."""
        raise TypeError(f"{type(self).__name__} is an ElementwiseMap and has to define forward_and_log_slope")

    def inverse_and_log_slope(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """``(x, log dy/dx at x)``, each ``(*batch, n)``, with gradients to y and the parameters."""
        raise TypeError(f"{type(self).__name__} is an ElementwiseMap and has to define inverse_and_log_slope")


def require_map(map: ElementwiseMap) -> ElementwiseMap:
    """``map`` as it is, or ``ValueError`` where it is none."""
    if not isinstance(map, ElementwiseMap):
        raise ValueError(
            f"expected map to be an ElementwiseMap such as RationalQuadraticSpline(bins=8), got {map!r:.80}"
        )
    return map
