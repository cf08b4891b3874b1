"""Autoguides made of normalizing flows."""

from pyro_flows_vi.guides.amortized import AutoAmortizedFlow
from pyro_flows_vi.guides.auto_flow import AutoFlow
from pyro_flows_vi.guides.named import (
    AutoBNAF,
    AutoIAF,
    AutoNAF,
    AutoPlanar,
    AutoRadial,
    AutoRealNVP,
    AutoResidual,
    AutoSylvester,
)

__all__ = [
    "AutoAmortizedFlow",
    "AutoBNAF",
    "AutoFlow",
    "AutoIAF",
    "AutoNAF",
    "AutoPlanar",
    "AutoRadial",
    "AutoRealNVP",
    "AutoResidual",
    "AutoSylvester",
]
