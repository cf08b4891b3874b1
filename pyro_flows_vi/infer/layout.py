"""Which latent sites a model has, and where each lies in one flat unconstrained vector."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import ImproperUniform
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import biject_to

from pyro_flows_vi.numerics.new_tensors import placement

__all__ = [
    "Layout",
    "Site",
    "Unconstrained",
    "init_or_origin",
    "is_deterministic",
    "is_latent",
    "is_observation",
    "read_layout",
    "require_same_layout",
    "trace_model",
]


@dataclass(frozen=True)
class Site:
    """A latent site: its constrained and unconstrained shapes, its slice of the flat vector, its plates.

    Attributes:
        name: as in ``pyro.sample(name, ...)``.
        shape: of the constrained value, plates included.
        unconstrained_shape: of the unconstrained value.
        start: where its slice of the flat vector begins; it ends at ``stop``.
        plates: name and dimension of the plates around it, outermost first.
        local: whether one of these plates is subsampled.
    """

    name: str
    shape: torch.Size
    unconstrained_shape: torch.Size
    start: int
    plates: tuple[tuple[str, int], ...]
    local: bool

    @property
    def stop(self) -> int:
        """The first place after its slice."""
        return self.start + self.unconstrained_shape.numel()


@dataclass(frozen=True)
class Layout:
    """The latent sites of a model in the order in which they are sampled."""

    sites: tuple[Site, ...]

    @property
    def latent_dim(self) -> int:
        """D, the length of the flat vector."""
        return self.sites[-1].stop

    def __iter__(self) -> Iterator[Site]:
        return iter(self.sites)

    def __contains__(self, name: object) -> bool:
        return any(site.name == name for site in self.sites)

    def split(self, latent: Tensor) -> dict[str, Tensor]:
        """The unconstrained values in a flat ``(*batch, D)``, each ``(*batch, *unconstrained_shape)``."""
        return {
            site.name: latent[..., site.start : site.stop].reshape(latent.shape[:-1] + site.unconstrained_shape)
            for site in self.sites
        }

    def labels(self) -> list[str]:
        """A label for every coordinate: ``"tau"``, ``"theta[3]"``, ``"w[0, 2]"``."""
        return [label for site in self.sites for label in _labels(site.name, site.unconstrained_shape)]


class Unconstrained(Messenger):
    """Gives every latent site its part of a flat vector, through the bijection onto the support it has right then.

    Args:
        layout: where the parts lie.
        latent: ``(D,)``.

    Attributes:
        log_det: the sum of the log-determinants of the bijections.

    Raises:
        ValueError: for a latent site that the layout does not have.
    """

    def __init__(self, layout: Layout, latent: Tensor) -> None:
        super().__init__()
        self.parts = layout.split(latent)
        self.log_det: Tensor = latent.new_zeros(())

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        part = self.parts.get(msg["name"])
        if part is None and is_latent(msg) and msg["value"] is None:
            raise ValueError(
                f"the latent site {msg['name']!r} is not there in every run: expected the same sites each time"
            )
        if part is None or msg["is_observed"]:
            return
        to_support = biject_to(msg["fn"].support)
        value = to_support(part)
        self.log_det = self.log_det + to_support.log_abs_det_jacobian(part, value).sum()
        msg["value"] = value


def is_latent(site: Any) -> bool:
    """Whether a site of a trace is a random variable without a value of its own."""
    return site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)


def is_deterministic(site: Any) -> bool:
    """Whether a site of a trace is a ``pyro.deterministic``."""
    return site["type"] == "sample" and bool(site["infer"].get("_deterministic"))


def is_observation(site: Any) -> bool:
    """Whether a site of a trace is data."""
    return site["type"] == "sample" and site["is_observed"] and not is_deterministic(site)


def read_layout(trace: poutine.Trace) -> Layout:
    """The latent sites of a trace of a model.

    Raises:
        ValueError: for a model without latent sites, a discrete one, a support that no bijection reaches, and
            observed values that are NaN; it names the site and says what to do.
    """
    sites: list[Site] = []
    start = 0
    msg: Any
    for name, msg in trace.nodes.items():
        if is_observation(msg):
            _require_numbers(name, msg["value"])
        if not is_latent(msg):
            continue
        shape = _unconstrained_shape(name, msg["fn"], msg["value"])
        frames = [frame for frame in msg["cond_indep_stack"] if frame.vectorized]
        site = Site(
            name=name,
            shape=msg["value"].shape,
            unconstrained_shape=shape,
            start=start,
            plates=tuple(sorted(((frame.name, frame.dim) for frame in frames), key=lambda plate: plate[1])),
            local=any(frame.full_size is not None and frame.full_size != frame.size for frame in frames),
        )
        sites.append(site)
        start = site.stop
    if start == 0:
        raise ValueError(
            "the model has no latent sites, so there is nothing to infer: expected at least one pyro.sample "
            "without obs=..."
        )
    return Layout(tuple(sites))


def _unconstrained_shape(name: str, fn: TorchDistributionMixin, value: Tensor) -> torch.Size:
    if fn.support.is_discrete:
        raise ValueError(
            f"site {name!r} is discrete ({type(fn).__name__}): a flow needs continuous latents. Sum it out of the "
            "model (by a mixture distribution or in log space), or enumerate it: "
            "@config_enumerate on the model, the flow on poutine.block(model, hide=[...]), and SVI with TraceEnum_ELBO"
        )
    try:
        return biject_to(fn.support).inverse_shape(value.shape)
    except NotImplementedError:
        raise ValueError(
            f"site {name!r} has the support {fn.support}, onto which no bijection from the real numbers is known: "
            "reparametrise it (poutine.reparam, e.g. ProjectedNormalReparam for a sphere) or choose another prior"
        ) from None


def _require_numbers(name: str, value: Any) -> None:
    if isinstance(value, Tensor) and value.is_floating_point():
        missing = int(value.isnan().sum())
        if missing:
            raise ValueError(
                f"the observed site {name!r} holds {missing} NaN among {value.numel()} values: expected numbers; "
                "leave these rows out, or mask them with poutine.mask and any finite filler"
            )


def _labels(name: str, shape: torch.Size) -> list[str]:
    if not shape:
        return [name]
    indices = torch.cartesian_prod(*(torch.arange(n) for n in shape)).reshape(-1, len(shape))
    return [f"{name}[{', '.join(map(str, index))}]" for index in indices.tolist()]


def require_same_layout(fitted: Layout, wanted: Layout) -> None:
    """Compare the sites that a guide was set up for with those of a model.

    Raises:
        ValueError: for a site that only one has, or that has another shape, by name.
    """
    shapes = [{site.name: tuple(site.shape) for site in layout} for layout in (fitted, wanted)]
    for name in sorted(shapes[0].keys() | shapes[1].keys()):
        guides, models = (f"{name!r} of shape {of[name]}" if name in of else f"no site {name!r}" for of in shapes)
        if guides != models:
            raise ValueError(
                f"the guide was set up for {guides}, and with these arguments the model has {models}: make a new "
                "guide, or use the arguments that the guide was fitted with"
            )


def init_or_origin(init_loc_fn: Callable[..., Any]) -> Callable[..., Any]:
    """An init function that takes the image of the origin where ``init_loc_fn`` needs draws of an improper prior."""

    def init(site: Any = None) -> Any:
        if site is None:
            return init
        try:
            return init_loc_fn(site)
        except NotImplementedError:
            return _origin(site["fn"])

    return init


class _WithoutDraws(Messenger):
    """Lets a model run whose improper priors have no draws."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if is_latent(msg) and msg["value"] is None and not msg["done"] and isinstance(msg["fn"], ImproperUniform):
            msg["value"] = _origin(msg["fn"])


def _origin(fn: Any) -> Tensor:
    to_support = biject_to(fn.support)
    return to_support(torch.zeros(to_support.inverse_shape(fn.shape())))


def trace_model(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> poutine.Trace:
    """One run of a model, unseen by the handlers around it."""
    with poutine.block(), torch.no_grad(), pyro.validation_enabled(False), placement((args, kwargs)):
        return poutine.trace(_WithoutDraws()(model)).get_trace(*args, **kwargs)
