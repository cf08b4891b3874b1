"""The flow families, each a :class:`~pyro_flows_vi.transforms.base.Flow`, and factories with Pyro's signatures."""

from pyro_flows_vi.transforms.act_norm import ActNorm
from pyro_flows_vi.transforms.affine import Affine
from pyro_flows_vi.transforms.affine_autoregressive import (
    AffineAutoregressive,
    affine_autoregressive,
    conditional_affine_autoregressive,
)
from pyro_flows_vi.transforms.base import Conditioned, Flow, Inverse
from pyro_flows_vi.transforms.block_autoregressive import (
    BlockAutoregressive,
    block_autoregressive,
    conditional_block_autoregressive,
)
from pyro_flows_vi.transforms.compose import Compose
from pyro_flows_vi.transforms.continuous import Continuous
from pyro_flows_vi.transforms.convex_potential import ConvexPotential
from pyro_flows_vi.transforms.coupling import AffineCoupling, affine_coupling, conditional_affine_coupling
from pyro_flows_vi.transforms.elementwise_flow import Elementwise
from pyro_flows_vi.transforms.householder import Householder, conditional_householder, householder
from pyro_flows_vi.transforms.lu_linear import LULinear
from pyro_flows_vi.transforms.map_autoregressive import Autoregressive
from pyro_flows_vi.transforms.map_coupling import Coupling
from pyro_flows_vi.transforms.mixture import MixtureAutoregressive, MixtureCoupling
from pyro_flows_vi.transforms.monotonic_network import MonotonicAutoregressive
from pyro_flows_vi.transforms.neural_autoregressive import (
    NeuralAutoregressive,
    conditional_neural_autoregressive,
    neural_autoregressive,
)
from pyro_flows_vi.transforms.permute import Permute, Reverse, permute, reverse
from pyro_flows_vi.transforms.planar import Planar, conditional_planar, planar
from pyro_flows_vi.transforms.radial import Radial, conditional_radial, radial
from pyro_flows_vi.transforms.residual import Residual, conditional_residual, residual
from pyro_flows_vi.transforms.spline import (
    SplineAutoregressive,
    SplineCoupling,
    conditional_spline,
    conditional_spline_autoregressive,
    conditional_spline_coupling,
    spline,
    spline_autoregressive,
    spline_coupling,
)
from pyro_flows_vi.transforms.sum_of_squares import SumOfSquaresAutoregressive
from pyro_flows_vi.transforms.sylvester import Sylvester, conditional_sylvester, sylvester

__all__ = [
    "ActNorm",
    "Affine",
    "AffineAutoregressive",
    "AffineCoupling",
    "Autoregressive",
    "BlockAutoregressive",
    "Compose",
    "Conditioned",
    "Continuous",
    "ConvexPotential",
    "Coupling",
    "Elementwise",
    "Flow",
    "Householder",
    "Inverse",
    "LULinear",
    "MixtureAutoregressive",
    "MixtureCoupling",
    "MonotonicAutoregressive",
    "NeuralAutoregressive",
    "Permute",
    "Planar",
    "Radial",
    "Residual",
    "Reverse",
    "SplineAutoregressive",
    "SplineCoupling",
    "SumOfSquaresAutoregressive",
    "Sylvester",
    "affine_autoregressive",
    "affine_coupling",
    "block_autoregressive",
    "conditional_affine_autoregressive",
    "conditional_affine_coupling",
    "conditional_block_autoregressive",
    "conditional_householder",
    "conditional_neural_autoregressive",
    "conditional_planar",
    "conditional_radial",
    "conditional_residual",
    "conditional_spline",
    "conditional_spline_autoregressive",
    "conditional_spline_coupling",
    "conditional_sylvester",
    "householder",
    "neural_autoregressive",
    "permute",
    "planar",
    "radial",
    "residual",
    "reverse",
    "spline",
    "spline_autoregressive",
    "spline_coupling",
    "sylvester",
]
