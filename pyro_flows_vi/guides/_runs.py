"""Runs of the model on behalf of a guide, unseen by the handlers around it and without using up random numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.distributions.util import sum_rightmost
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.utils._pytree import tree_flatten, tree_leaves

from pyro_flows_vi.infer._vectorise import FAILURES
from pyro_flows_vi.infer.layout import Layout, Site, trace_model

__all__ = [
    "OnlyParallelPlates",
    "Supports",
    "find_parents",
    "has_bounds",
    "look",
    "refuse_local_sites",
    "require_same_shapes",
    "sample_delta",
    "signature",
    "supports_move",
]


class OnlyParallelPlates(Messenger):
    """Takes sequential plates (``for i in pyro.plate(...)``) out of a trace: their sites have names of their own.

    Raises:
        ValueError: for a latent site in a subsampled one, which comes and goes.
    """

    def _pyro_sample(self, msg: Any) -> None:
        frames = msg["cond_indep_stack"]
        for frame in frames:
            subsampled = frame.full_size is not None and frame.full_size != frame.size
            if not frame.vectorized and subsampled and not msg["is_observed"]:
                raise ValueError(
                    f"site {msg['name']!r} is in the sequential, subsampled plate {frame.name!r}, so that it is there "
                    "in some runs only: write the plate as `with pyro.plate(...)` and use AutoAmortizedFlow"
                )
        msg["cond_indep_stack"] = tuple(frame for frame in frames if frame.vectorized)


class Supports(Messenger):
    """Gives latent sites their unconstrained parts, through the bijection onto the support that each has right then.

    Args:
        parts: the unconstrained values by site.
        rows: the rows to look at, by plate.

    Attributes:
        found: by site the support, and the value on it.
    """

    def __init__(self, parts: Mapping[str, Tensor], rows: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.parts, self.rows = parts, rows or {}
        self.found: dict[str, tuple[Any, Tensor]] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            msg["value"] = self.rows.get(msg["name"], msg["value"])
        part = self.parts.get(msg["name"])
        if part is None or msg["is_observed"]:
            return
        support = msg["fn"].support
        msg["value"] = biject_to(support)(part)
        self.found[msg["name"]] = support, msg["value"]

    def run(self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run the model, with gradients."""
        with torch.random.fork_rng(), poutine.block(), pyro.validation_enabled(False):
            self(model)(*args, **kwargs)


def bounds(support: Any) -> list[Tensor]:
    """The tensors in a support, such as the ends of an interval."""
    if isinstance(support, constraints.independent):
        return bounds(support.base_constraint)
    return [value for value in vars(support).values() if isinstance(value, Tensor)]


def has_bounds(support: Any) -> bool:
    """Whether a support has a tensor in it, which may differ between runs."""
    return bool(bounds(support))


class _Priors(Supports):
    """Adds up the log densities of the values that the sites have, as functions of their distributions alone."""

    def __init__(self, parts: Mapping[str, Tensor]) -> None:
        super().__init__(parts)
        self.total: Tensor = torch.zeros(())

    def _pyro_sample(self, msg: Any) -> None:
        super()._pyro_sample(msg)
        if msg["name"] in self.found:
            self.total = self.total + msg["fn"].log_prob(msg["value"].detach()).sum()


def find_parents(
    parts: Mapping[str, Tensor], model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[str]:
    """The latent sites on which the priors of other latent sites depend, as far as gradients tell.

    Args:
        parts: unconstrained values of all sites.
        model: the model; one that cannot be run with gradients has no parents.
        args: its arguments.
        kwargs: its keyword arguments.
    """
    leaves = {name: part.detach().requires_grad_() for name, part in parts.items()}
    run = _Priors(leaves)
    try:
        with torch.enable_grad():
            run.run(model, args, kwargs)
            if not run.total.requires_grad:
                return []
            slopes = torch.autograd.grad(run.total, list(leaves.values()), allow_unused=True)
    except FAILURES:
        return []
    return [name for name, slope in zip(leaves, slopes, strict=True) if slope is not None]


class _GivenRows(Messenger):
    """Notes the rows of plates that are told which rows to look at, rather than to draw them."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) and msg["value"] is not None:
            self.rows[msg["name"]] = torch.as_tensor(msg["value"])


def supports_move(
    supports: Mapping[str, Any],
    parts: Mapping[str, Tensor],
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> bool:
    """Whether a support depends on the values of other sites, or may depend on the arguments.

    Args:
        supports: those of one run.
        parts: unconstrained values other than those of that run.
        model: the model.
        args: its arguments.
        kwargs: its keyword arguments.
    """
    if not any(map(has_bounds, supports.values())):
        return False
    if any(not isinstance(leaf, str | bool | None) for leaf in tree_leaves((args, kwargs))):
        return True
    run = Supports({name: part.detach().requires_grad_() for name, part in parts.items()})
    with torch.enable_grad():
        run.run(model, args, kwargs)
    return any(bound.requires_grad for support, _ in run.found.values() for bound in bounds(support))


def look(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The sites of one run, by name, and the rows of those plates to which the model gives them."""
    given = _GivenRows()
    with torch.random.fork_rng():
        return trace_model(given(model), args, kwargs).nodes, given.rows


def signature(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """What the structure of a model may depend on: the shapes of tensors and arrays, and all numbers and words."""
    leaves, structure = tree_flatten((args, kwargs))
    marks = [
        tuple(leaf.shape)
        if hasattr(leaf, "shape")
        else leaf
        if isinstance(leaf, bool | int | float | str | None)
        else type(leaf).__name__
        for leaf in leaves
    ]
    return (str(structure), *marks)


def sample_delta(name: str, support: Any, part: Tensor, value: Tensor, event_dim: int) -> Tensor:
    """The statement of a guide that puts ``value``, with the log density of its bijection, at a site."""
    density: Tensor | float = 0.0
    if poutine.get_mask() is not False:
        terms: Tensor = biject_to(support).inv.log_abs_det_jacobian(value, part)
        density = sum_rightmost(terms, terms.dim() - value.dim() + event_dim)
    sampled: Tensor = pyro.sample(name, dist.Delta(value, log_density=density, event_dim=event_dim))
    return sampled


def refuse_local_sites(layout: Layout) -> None:
    """Raise ``ValueError`` for sites in a subsampled plate."""
    local = [site.name for site in layout if site.local]
    if local:
        raise ValueError(
            f"the latent sites {', '.join(map(repr, local))} are inside a subsampled plate: a flow over one "
            "minibatch would be shared by all others: use AutoAmortizedFlow with an encoder, or the whole plate"
        )


def require_same_shapes(
    sites: Mapping[str, Any], expected: Mapping[str, Site], plate: str | None = None, dim: int = 0
) -> None:
    """Compare a run with the sites that a guide was set up for.

    Args:
        sites: the run.
        expected: the sites by name.
        plate: the name of a plate, at the dimension ``dim``, that may have another size.
        dim: see there.

    Raises:
        ValueError: for a site that is missing, observed or of another shape.
    """
    advice = "make a new guide for these arguments, or call it with arguments of the shapes it was set up with"
    for name, site in expected.items():
        msg = sites.get(name)
        if msg is None or msg["is_observed"]:
            state = "does not have it" if msg is None else "observes it"
            raise ValueError(
                f"the guide has the latent site {name!r}, and with these arguments the model {state}: {advice}"
            )
        was, now = list(site.shape), list(msg["value"].shape)
        if (plate, dim) in site.plates and len(was) == len(now):
            axis = dim - msg["fn"].event_dim
            was[axis] = now[axis]
        if was != now:
            raise ValueError(
                f"the guide was set up for the site {name!r} of shape {tuple(site.shape)}, and with these arguments it "
                f"has the shape {tuple(now)}: {advice}"
            )
