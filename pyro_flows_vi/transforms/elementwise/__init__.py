"""Increasing maps of one variable: what coupling, autoregressive and elementwise flows do to a coordinate."""

from pyro_flows_vi.transforms.elementwise.affine import AffineMap
from pyro_flows_vi.transforms.elementwise.base import ElementwiseMap
from pyro_flows_vi.transforms.elementwise.cubic import CubicSpline
from pyro_flows_vi.transforms.elementwise.linear import LinearSpline
from pyro_flows_vi.transforms.elementwise.mixture_cdf import MixtureCDF
from pyro_flows_vi.transforms.elementwise.quadratic import QuadraticSpline
from pyro_flows_vi.transforms.elementwise.rational_quadratic import RationalQuadraticSpline
from pyro_flows_vi.transforms.elementwise.sos import SumOfSquares
from pyro_flows_vi.transforms.elementwise.umnn import MonotonicNetwork

__all__ = [
    "AffineMap",
    "CubicSpline",
    "ElementwiseMap",
    "LinearSpline",
    "MixtureCDF",
    "MonotonicNetwork",
    "QuadraticSpline",
    "RationalQuadraticSpline",
    "SumOfSquares",
]
