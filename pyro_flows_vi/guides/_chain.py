"""The chain of flows of a guide."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pyro_flows_vi import flows
from pyro_flows_vi.guides._steps import even_out
from pyro_flows_vi.infer.layout import Layout
from pyro_flows_vi.transforms.base import Flow

__all__ = ["check_family", "chosen", "default_depth", "make_chain", "takes_parents"]

#: the family of a guide that is asked for none
DEFAULT = "realnvp"
#: steps of a chain where the user names none; other families take four
DEPTHS = {"realnvp": 8, "nice": 8, "planar": 16, "radial": 16, "sylvester": 4, "iaf": 2, "naf": 2, "ddsf": 2, "bnaf": 1}
#: and of couplings that end with one from parents to children, which does what would take the others many steps
WITH_PARENTS = 5


def check_family(name: str | None, num_transforms: int | None, options: Mapping[str, Any]) -> None:
    """Raise a ValueError for a wrong word, before there is a layout."""
    name = name or DEFAULT
    flows.build(name, 1, num_transforms=default_depth(name) if num_transforms is None else num_transforms, **options)


def chosen(
    name: str | None, latent_dim: int, num_transforms: int | None, options: dict[str, Any]
) -> tuple[str, int | None, dict[str, Any]]:
    """The family, its depth and options; where nothing is asked for, a spline for a single latent.

    Affine couplings have no other coordinate to look at there, and would leave it a Gaussian with tails.
    """
    if latent_dim == 1 and name is None and num_transforms is None and not options:
        return "nsf", 1, {"bound": 5.0, "bins": 16}
    return name or DEFAULT, num_transforms, options


def takes_parents(name: str) -> bool:
    """Whether the steps of a family can be told which coordinates are the parents of the rest."""
    return "given" in flows.options(name)


def default_depth(name: str, hierarchical: bool = False) -> int:
    """The number of steps that suits a family."""
    return WITH_PARENTS if hierarchical else DEPTHS.get(name, 4)


def make_chain(
    name: str, layout: Layout, parents: Collection[str], num_transforms: int | None, options: Mapping[str, Any]
) -> list[Flow]:
    """The steps of a family for a layout, in units in which they can be trained together.

    In a hierarchy the location and the scale of the children follow the parents, exactly so in a funnel: the last
    coupling is from the parents to the rest, unless these are few or there is one step only.
    """
    dim = layout.latent_dim
    given = [place for site in layout if site.name in parents for place in range(site.start, site.stop)]
    if num_transforms == 1 or dim - len(given) < dim / 3:
        given = []
    depth = default_depth(name, bool(given)) if num_transforms is None else num_transforms
    chain = list(flows.build(name, dim, None, depth - bool(given), **options))
    if given:
        chain += flows.build(name, dim, None, 1, **{**options, "given": given})
    for step in chain:
        even_out(step, 1.0 / depth)
    return chain
