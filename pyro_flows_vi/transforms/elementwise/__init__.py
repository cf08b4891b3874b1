"""Increasing maps of one variable: what coupling, autoregressive and elementwise flows do to a coordinate."""

from pyro_flows_vi.transforms.elementwise.base import ElementwiseMap

__all__ = ["ElementwiseMap"]
