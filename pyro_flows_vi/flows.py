"""The registry: every flow family by its name, and the chains that the papers build of them.

>>> import torch
>>> "iaf" in names()
True
>>> flow = build("iaf", 3, num_transforms=2)
>>> flow(torch.zeros(5, 3)).shape
torch.Size([5, 3])
"""

from __future__ import annotations

import difflib
import inspect
import math
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pyro_flows_vi.transforms._door import positive
from pyro_flows_vi.transforms.act_norm import ActNorm
from pyro_flows_vi.transforms.affine_autoregressive import AffineAutoregressive
from pyro_flows_vi.transforms.base import Flow
from pyro_flows_vi.transforms.block_autoregressive import BlockAutoregressive
from pyro_flows_vi.transforms.compose import Compose
from pyro_flows_vi.transforms.continuous import Continuous
from pyro_flows_vi.transforms.convex_potential import ConvexPotential
from pyro_flows_vi.transforms.coupling import AffineCoupling
from pyro_flows_vi.transforms.householder import Householder
from pyro_flows_vi.transforms.image.conv1x1 import PlainLinear
from pyro_flows_vi.transforms.image.flowpp import FlowPlusPlus
from pyro_flows_vi.transforms.image.glow import Glow
from pyro_flows_vi.transforms.image.realnvp import ImageRealNVP
from pyro_flows_vi.transforms.image.residual import ImageResidual
from pyro_flows_vi.transforms.image.tarflow import PatchAutoregressive
from pyro_flows_vi.transforms.lu_linear import LULinear
from pyro_flows_vi.transforms.mixture import MixtureAutoregressive, MixtureCoupling
from pyro_flows_vi.transforms.monotonic_network import MonotonicAutoregressive
from pyro_flows_vi.transforms.neural_autoregressive import NeuralAutoregressive
from pyro_flows_vi.transforms.permute import reverse
from pyro_flows_vi.transforms.planar import Planar
from pyro_flows_vi.transforms.radial import Radial
from pyro_flows_vi.transforms.residual import Residual
from pyro_flows_vi.transforms.spline import SplineAutoregressive, SplineCoupling
from pyro_flows_vi.transforms.sum_of_squares import SumOfSquaresAutoregressive
from pyro_flows_vi.transforms.sylvester import Sylvester

__all__ = ["MAFMoG", "Recipe", "build", "check", "describe", "names", "options"]


@dataclass(frozen=True)
class Recipe:
    """How a family becomes a chain.

    Attributes:
        layer: makes one step, ``layer(input_dim, context_dim=..., **options)``.
        reversals: whether every second step sees the coordinates in reverse order.
        turned: whether each step is used in its inverse direction, so that scoring data is cheap.
        linear: whether an LU linear layer comes before each step, and after the last.
        stacked: whether one layer makes all steps, by its argument ``num_transforms``.
        vary: options of step k that the recipe sets, unless the user does.
        source: paper and arXiv id.
    """

    layer: Callable[..., Flow]
    source: str
    reversals: bool = False
    turned: bool = False
    stacked: bool = False
    linear: bool = False
    vary: Callable[[int], dict[str, Any]] = lambda k: {}


class MAFMoG(Compose):
    """MAF on a base whose conditionals are mixtures of Gaussians, in the order that is the reverse of its first step's.

    Source: Masked autoregressive flow for density estimation (Papamakarios et al., 2017), arXiv:1705.07057.

    Args:
        input_dim: D.
        context_dim: C, or ``None``.
        hidden_dims: widths of the hidden layers of every step, and of the base; the defaults of either otherwise.
        components: of each mixture.
        num_transforms: steps of MAF, besides the base.
    """

    def __init__(
        self,
        input_dim: int,
        context_dim: int | None = None,
        hidden_dims: Sequence[int] | None = None,
        components: int = 10,
        num_transforms: int = 4,
    ) -> None:
        mixture = MixtureAutoregressive(input_dim, context_dim, hidden_dims, components).inv
        base = [reverse(input_dim), mixture, reverse(input_dim)] if input_dim > 1 else [mixture]
        super().__init__([*base, *build("maf", input_dim, context_dim, num_transforms, hidden_dims=hidden_dims)])


_RECIPES: dict[str, Recipe] = {
    "planar": Recipe(Planar, "Rezende and Mohamed 2015, arXiv:1505.05770", stacked=True),
    "radial": Recipe(Radial, "Rezende and Mohamed 2015, arXiv:1505.05770"),
    "sylvester": Recipe(
        Sylvester, "van den Berg et al. 2018, arXiv:1803.05649", vary=lambda k: {"reverse": k % 2 == 1}
    ),
    "iaf": Recipe(AffineAutoregressive, "Kingma et al. 2016, arXiv:1606.04934", reversals=True),
    "maf": Recipe(AffineAutoregressive, "Papamakarios et al. 2017, arXiv:1705.07057", reversals=True, turned=True),
    "nice": Recipe(AffineCoupling, "Dinh et al. 2014, arXiv:1410.8516", vary=lambda k: {"step": k, "additive": True}),
    "realnvp": Recipe(AffineCoupling, "Dinh et al. 2016, arXiv:1605.08803", vary=lambda k: {"step": k}),
    "naf": Recipe(NeuralAutoregressive, "Huang et al. 2018, arXiv:1804.00779", reversals=True),
    "ddsf": Recipe(
        NeuralAutoregressive, "Huang et al. 2018, arXiv:1804.00779", reversals=True, vary=lambda k: {"depth": 2}
    ),
    "bnaf": Recipe(BlockAutoregressive, "De Cao et al. 2019, arXiv:1904.04676", reversals=True),
    "nsf": Recipe(SplineCoupling, "Durkan et al. 2019, arXiv:1906.04032", linear=True, vary=lambda k: {"step": k}),
    "nsf-ar": Recipe(
        SplineAutoregressive, "Durkan et al. 2019, arXiv:1906.04032", reversals=True, turned=True, linear=True
    ),
    "nsf-iaf": Recipe(SplineAutoregressive, "Durkan et al. 2019, arXiv:1906.04032", reversals=True, linear=True),
    "maf-mog": Recipe(MAFMoG, "Papamakarios et al. 2017, arXiv:1705.07057", stacked=True),
    "mixture-cdf": Recipe(MixtureAutoregressive, "Papamakarios et al. 2017, arXiv:1705.07057", reversals=True),
    "mixture-coupling": Recipe(MixtureCoupling, "Ho et al. 2019, arXiv:1902.00275", vary=lambda k: {"step": k}),
    "sos": Recipe(SumOfSquaresAutoregressive, "Jaini et al. 2019, arXiv:1905.02325", reversals=True),
    "umnn": Recipe(MonotonicAutoregressive, "Wehenkel and Louppe 2019, arXiv:1908.05164", reversals=True),
    "residual": Recipe(Residual, "Chen et al. 2019, arXiv:1906.02735"),
    "ffjord": Recipe(Continuous, "Grathwohl et al. 2019, arXiv:1810.01367"),
    "convex-potential": Recipe(ConvexPotential, "Huang et al. 2021, arXiv:2012.05942"),
    "householder": Recipe(Householder, "Tomczak and Welling 2016, arXiv:1611.09630"),
    "affine": Recipe(PlainLinear, "Kingma and Dhariwal 2018, arXiv:1807.03039"),
    "lu": Recipe(LULinear, "Kingma and Dhariwal 2018, arXiv:1807.03039"),
    "actnorm": Recipe(ActNorm, "Kingma and Dhariwal 2018, arXiv:1807.03039"),
    "glow": Recipe(Glow, "Kingma and Dhariwal 2018, arXiv:1807.03039", stacked=True, turned=True),
    "realnvp-image": Recipe(ImageRealNVP, "Dinh et al. 2016, arXiv:1605.08803", stacked=True, turned=True),
    "flow++": Recipe(FlowPlusPlus, "Ho et al. 2019, arXiv:1902.00275", stacked=True),
    "residual-image": Recipe(ImageResidual, "Chen et al. 2019, arXiv:1906.02735", stacked=True),
    "tarflow": Recipe(
        PatchAutoregressive, "Zhai et al. 2024, arXiv:2412.06329", turned=True, vary=lambda k: {"reverse": k % 2 == 1}
    ),
}


def names() -> list[str]:
    """The names of all families."""
    return sorted(_RECIPES)


def describe(name: str) -> Recipe:
    """The recipe of a family.

    Raises:
        ValueError: for an unknown name, with the nearest known one.
    """
    if name not in _RECIPES:
        raise ValueError(f"unknown flow {name!r}{_nearest(name, names())}; expected one of {', '.join(names())}")
    return _RECIPES[name]


def options(name: str) -> list[str]:
    """The names of the options that a family takes, besides its dimensions and the number of steps.

    >>> options("sylvester")
    ['hidden_dims', 'form', 'rank', 'num_reflections', 'reverse']
    """
    parameters = inspect.signature(describe(name).layer).parameters
    return [p for p in parameters if p not in ("input_dim", "context_dim", "num_transforms")]


def build(
    name: str, input_dim: int, context_dim: int | None = None, num_transforms: int = 4, **settings: Any
) -> Compose:
    """Make a chain of ``num_transforms`` steps of one family, with the mixing layers that its paper uses.

    Args:
        name: one of :func:`names`.
        input_dim: D.
        context_dim: C, or ``None`` for a flow without a context.
        num_transforms: the number of steps.
        **settings: options of the family, such as ``hidden_dims``.

    Raises:
        ValueError: for an unknown name or option, with the known ones, and for a value that an option cannot have.

    Example:
        >>> flow = build("sylvester", 4, num_transforms=2, form="householder")
        >>> flow[0].form
        'householder'
    """
    check(name, num_transforms, **settings)
    recipe = describe(name)
    if recipe.stacked:
        chain = recipe.layer(input_dim, context_dim=context_dim, num_transforms=num_transforms, **settings)
        return Compose([chain.inv if recipe.turned else chain])
    flows: list[Flow] = []
    for k in range(num_transforms):
        if recipe.linear:
            flows.append(LULinear(input_dim))
        step = recipe.layer(input_dim, context_dim=context_dim, **(recipe.vary(k) | settings))
        flows.append(step.inv if recipe.turned else step)
        # Reversals come in pairs, so that the chain starts at the identity.
        if recipe.reversals and input_dim > 1 and num_transforms > 1 and (k + 1 < num_transforms or k % 2 == 1):
            flows.append(reverse(input_dim))
    if recipe.linear:
        flows.append(LULinear(input_dim))
    return Compose(flows)


def check(name: str, num_transforms: int = 4, **settings: Any) -> None:
    """Raise for what is wrong with the arguments of :func:`build` in any dimension: names, and types of values."""
    recipe, known = describe(name), options(name)
    for option in settings:
        if option not in known:
            raise ValueError(
                f"unknown option {option!r} of flow {name!r}{_nearest(option, known)}; "
                f"expected one of {', '.join(known) or 'none'}"
            )
    _check_values(name, recipe.layer, settings)
    positive("num_transforms", num_transforms)


def _check_values(name: str, layer: Callable[..., Flow], settings: dict[str, Any]) -> None:
    """Raise for a value that is not of the type that the layer's signature states."""
    made_by: Any = layer  # a class, whose signature is that of __init__, or a function
    hints = typing.get_type_hints(made_by.__init__ if isinstance(layer, type) else made_by)
    for option, value in settings.items():
        if option in hints and not _fits(value, hints[option]):
            raise ValueError(f"option {option!r} of flow {name!r}: expected {_in_words(hints[option])}, got {value!r}")


def _fits(value: Any, kind: Any) -> bool:
    """Whether ``value`` is of type ``kind``; true for kinds that are not looked into."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind in (int, float):  # to which Python counts True and False
        numbers = (int,) if kind is int else (int, float)
        return isinstance(value, numbers) and not isinstance(value, bool) and math.isfinite(value)
    if kind in (bool, str, type(None)):
        return isinstance(value, kind)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if origin is Sequence:
        return isinstance(value, Sequence) and not isinstance(value, str) and all(_fits(v, *inner) for v in value)
    return True


def _in_words(kind: Any) -> str:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_in_words(one) for one in inner)
    if origin is Literal:
        return f"one of {', '.join(map(repr, inner))}"
    if origin is Sequence:
        return f"a sequence (list or tuple) of {_in_words(*inner)}"
    words = {int: "int", float: "a finite number", bool: "True or False", str: "text", type(None): "None"}
    return words.get(kind, str(kind))


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
