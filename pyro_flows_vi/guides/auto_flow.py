"""Autoguides whose posterior is a normalizing flow over all latent sites."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from pyro import distributions as dist
from pyro import poutine, validation_enabled
from pyro.infer.autoguide import AutoContinuous, init_to_median
from torch import Tensor
from torch.distributions import biject_to

from pyro_flows_vi.guides._chain import check_family, chosen, make_chain, takes_parents
from pyro_flows_vi.guides._draws import log_normal, symmetric_draws
from pyro_flows_vi.guides._model import HoldsModel, forget_arguments, placed
from pyro_flows_vi.guides._runs import (
    OnlyParallelPlates,
    Supports,
    find_parents,
    look,
    refuse_local_sites,
    require_same_shapes,
    sample_delta,
    signature,
    supports_move,
)
from pyro_flows_vi.infer.layout import Layout, init_or_origin, read_layout
from pyro_flows_vi.infer.log_density import LogDensity
from pyro_flows_vi.transforms._door import positive
from pyro_flows_vi.transforms.affine import Affine
from pyro_flows_vi.transforms.base import Flow
from pyro_flows_vi.transforms.compose import Compose

__all__ = ["AutoFlow"]

#: latents up to which the affine layer is dense
DENSE_UP_TO = 256
#: quasi-random draws from which medians and quantiles are read, fewer where each is a run of the model, and how many
#: of them pass the flow at once
QUANTILE_DRAWS, MOVING_DRAWS, CHUNK = 1 << 13, 1 << 12, 1 << 11
#: arguments of different looks that are remembered
MARKS = 64


class AutoFlow(HoldsModel, AutoContinuous):
    r"""An autoguide :math:`u = m + L\,f(\epsilon)`, :math:`\epsilon \sim N(0, I)`, with a flow f of the registry.

    u is the flat vector of all latent sites in unconstrained space; each site's part goes through the bijection onto
    its support, also where that support depends on other sites or on the arguments. The flow starts near the
    identity, and the affine layer (m, L) at ``init_loc_fn`` and ``init_scale``, so that the guide starts as a narrow
    Gaussian with its medians where the user says.

    Train it with :func:`pyro_flows_vi.infer.fit`, or with Pyro's ``SVI`` and any of its ELBOs. The weights of the
    networks are stored in units that let one step size suit all parameters of the guide.

    Args:
        model: a Pyro model with continuous latents.
        flow: the name of a family, see :func:`pyro_flows_vi.flows.names`; by default affine couplings, ``"realnvp"``,
            or for a single latent, which these would leave a Gaussian with tails, a spline.
        num_transforms: the number of steps of the chain; by default what suits the family. The last of two or more
            affine couplings is from the sites on which other priors depend, such as scales of groups, to the rest.
        init_loc_fn: one of Pyro's init functions, or ``init_to_value(values=...)``.
        init_scale: the scale of the guide at the start, in unconstrained space.
        dense: whether the affine layer has a full triangular scale; by default up to 256 latents, and diagonal beyond.
        **flow_options: options of the family, such as ``hidden_dims``.

    The parameters exist from the first call on, or from :meth:`setup` on, which an optimiser, ``load_state_dict`` or
    ``.double()`` want to come after.

    Raises:
        ValueError: here for an unknown flow or option; at the first call for a model without latents, with discrete
            latents, or with latents inside a subsampled plate.

    Example:
        >>> import pyro
        >>> def model():
        ...     scale = pyro.sample("scale", dist.HalfNormal(1.0))
        ...     pyro.sample("x", dist.Normal(0.0, scale), obs=torch.tensor(0.5))
        >>> guide = AutoFlow(model, "naf").setup()
        >>> sorted(guide.median())
        ['scale']
    """

    transform: Compose | None

    def __init__(
        self,
        model: Callable[..., Any],
        flow: str | None = None,
        num_transforms: int | None = None,
        *,
        init_loc_fn: Callable[..., Any] = init_to_median,
        init_scale: float = 0.1,
        dense: bool | None = None,
        **flow_options: Any,
    ) -> None:
        if not (isinstance(init_scale, int | float) and 0 < init_scale < math.inf):
            raise ValueError(f"expected init_scale to be a positive number, got {init_scale!r}")
        super().__init__(OnlyParallelPlates()(model), init_or_origin(init_loc_fn))
        self._bare_model = (model,)
        self.flow_name, self.flow_options = flow, flow_options
        self.num_transforms = num_transforms
        self.init_scale, self.dense = float(init_scale), dense
        check_family(flow, num_transforms, flow_options)  # a wrong word is found now, not later
        self.transform = None

    def setup(self, *args: Any, **kwargs: Any) -> AutoFlow:
        """Look at the model with these arguments and make the parameters; nothing if that was done."""
        if self.prototype_trace is None:
            master = None if self.master is None else self.master()
            if master is not None and master.prototype_trace is None:
                master._setup_prototype(*args, **kwargs)
                with poutine.block():
                    master._create_plates(*args, **kwargs)
            self._setup_prototype(*args, **kwargs)
        return self

    @placed
    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        try:
            with torch.no_grad(), validation_enabled(False):  # a start without density is told by its sites later
                super()._setup_prototype(*args, **kwargs)
            trace: Any = self.prototype_trace
            self.layout: Layout = read_layout(trace)
            refuse_local_sites(self.layout)
        except Exception:
            trace, self.prototype_trace = self.prototype_trace, None  # no half-made guide
            if getattr(self, "latent_dim", None) == 0:
                read_layout(trace)  # which says it in the words of this package
            raise
        forget_arguments(trace)
        self._accepted = {signature(args, kwargs)}
        loc = self._init_loc()
        parts = self.parts(loc + torch.linspace(0.1, 0.2, len(loc)).to(loc))
        supports = {site.name: self._nodes()[site.name]["fn"].support for site in self.layout}
        self._has_moving_supports = supports_move(supports, parts, self._bare(), args, kwargs)
        dense = self.latent_dim <= DENSE_UP_TO if self.dense is None else self.dense
        choice = chosen(self.flow_name, self.latent_dim, self.num_transforms, self.flow_options)
        self.flow_name, self.num_transforms, self.flow_options = choice
        parents = find_parents(parts, self._bare(), args, kwargs) if takes_parents(self.flow_name) else []
        chain = make_chain(self.flow_name, self.layout, parents, self.num_transforms, self.flow_options)
        affine = Affine(self.latent_dim, torch.zeros_like(loc), self.init_scale, dense, tails=True).to(loc)
        affine.frame_loc.copy_(loc)  # around which the tails are bent
        self.transform = Compose([*chain, affine]).to(loc)
        self._centre()
        with poutine.block():
            self._create_plates(*args, **kwargs)

    @torch.no_grad()
    def _centre(self) -> None:
        """Let the medians be at the frame's: the flow is near the identity only, and its medians a little off 0."""
        chain = self._ready()[:-1]
        self.affine.loc.copy_(-self.init_scale * self._quasi_random(QUANTILE_DRAWS, chain).median(dim=0).values)

    # -- values on the supports ----------------------------------------------------------------------

    def _nodes(self) -> dict[str, Any]:
        """The sites of the run that the guide was set up by."""
        assert self.prototype_trace is not None
        nodes: dict[str, Any] = self.prototype_trace.nodes
        return nodes

    def parts(self, latent: Tensor) -> dict[str, Tensor]:
        """The unconstrained values by site, with batch dimensions where Pyro's plates want them."""
        return {site["name"]: part for site, part in self._unpack_latent(latent)}

    def _on_supports(
        self, parts: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> dict[str, tuple[Any, Tensor]]:
        """By site the support and the value; by a run of the model where supports are not always the same."""
        if self._has_moving_supports:
            run = Supports(parts)
            run.run(self._bare(), args, kwargs)
            return run.found
        supports = {name: self._nodes()[name]["fn"].support for name in parts}
        return {name: (supports[name], biject_to(supports[name])(part)) for name, part in parts.items()}

    def _require_same_sites(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Look at the model again where its arguments look different, since the sites may differ too."""
        if self._bare_model is None or (mark := signature(args, kwargs)) in self._accepted:
            return
        require_same_shapes(look(self._bare(), args, kwargs)[0], {site.name: site for site in self.layout})
        if len(self._accepted) < MARKS:
            self._accepted.add(mark)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """One draw of every site, as Pyro's guides make it."""
        self.setup(*args, **kwargs)
        self._require_same_sites(args, kwargs)
        return self.emit(self.sample_latent(*args, **kwargs), args, kwargs)

    def emit(self, latent: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        """The statements of a guide that put a flat vector's values at the sites."""
        parts = self.parts(latent)
        values = self._on_supports(parts, args, kwargs)
        plates = self._create_plates(*args, **kwargs)
        result: dict[str, Tensor] = {}
        for name, part in parts.items():
            support, value = values[name]
            with ExitStack() as stack:
                for frame in self._cond_indep_stacks[name]:
                    stack.enter_context(plates[frame.name])
                result[name] = sample_delta(name, support, part, value, self._nodes()[name]["fn"].event_dim)
        return result

    # -- the posterior over the flat vector ----------------------------------------------------------

    @property
    def affine(self) -> Affine:
        """The last layer, (m, L)."""
        return self._ready()[-1]  # type: ignore[return-value]

    def _ready(self) -> Compose:
        if self.transform is None:
            raise ValueError("the guide has no parameters yet: call guide.setup(*args) with the model's arguments")
        return self.transform

    def get_base_dist(self) -> dist.Distribution:
        """The standard normal of D dimensions."""
        loc = self.affine.loc
        return dist.Normal(torch.zeros_like(loc), torch.ones_like(loc)).to_event(1)

    def get_transform(self, *args: Any, **kwargs: Any) -> Flow:
        """The chain of the flow and the affine layer."""
        return self._ready()

    def rsample_and_log_prob(self, num_particles: int) -> tuple[Tensor, Tensor]:
        """``num_particles`` draws ``(n, D)`` and their log densities ``(n,)``, in one pass and with gradients."""
        x, log_base = self._base_draws(num_particles)
        latent, log_det = self._ready().forward_and_log_det(x)
        return latent, log_base - log_det

    def rsample_and_score(self, num_particles: int) -> tuple[Tensor, Tensor, Tensor]:
        r"""As :meth:`rsample_and_log_prob`, and the score :math:`\nabla_u \log q(u)` ``(n, D)``, without a graph."""
        x, log_base = self._base_draws(num_particles)
        latent, log_det, score = self._ready().forward_and_score(x, -x)
        return latent, log_base - log_det, score

    def log_prob(self, latent: Tensor) -> Tensor:
        """The log density of flat vectors ``(n, D)``: one pass of the inverse."""
        x, log_det = self._ready().inverse_and_log_det(latent)
        return log_normal(x) - log_det

    def _base_draws(self, num_particles: int) -> tuple[Tensor, Tensor]:
        loc = self.affine.loc
        x = torch.randn(num_particles, len(loc), dtype=loc.dtype, device=loc.device)
        return x, log_normal(x)

    # -- Pyro's interface ----------------------------------------------------------------------------

    @torch.no_grad()
    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The marginal posterior median of every site, from symmetric quasi-random draws; the same each time."""
        return {name: value[0] for name, value in self.quantiles([0.5], *args, **kwargs).items()}

    @torch.no_grad()
    def quantiles(self, quantiles: Any, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The marginal posterior quantiles of every site, one row each, from symmetric quasi-random draws.

        Quantiles of the unconstrained coordinates, taken to the supports, as Pyro's other guides do it; of
        sites whose bounds depend on other sites or on the arguments, the quantiles of the values themselves.
        """
        self.setup(*args, **kwargs)
        loc = self.affine.loc
        levels = torch.as_tensor(quantiles, dtype=loc.dtype, device=loc.device).reshape(-1)
        if not bool(((levels >= 0) & (levels <= 1)).all()):
            raise ValueError(f"expected quantiles between 0 and 1, got {levels.tolist()}")
        latent = self._quasi_random(MOVING_DRAWS if self._has_moving_supports else QUANTILE_DRAWS)
        if self._has_moving_supports:
            values = self._log_density(args, kwargs).constrain(latent)
            return {site.name: values[site.name].quantile(levels, dim=0) for site in self.layout}
        latents = torch.stack([column.quantile(levels) for column in latent.unbind(-1)], dim=-1)
        rows = [self._on_supports(self.parts(row), args, kwargs) for row in latents]
        return {site.name: torch.stack([row[site.name][1] for row in rows]) for site in self.layout}

    @torch.no_grad()
    def sample_posterior(self, num_samples: int, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """``num_samples`` draws of every latent site, and of ``pyro.deterministic`` sites, each ``(n, *shape)``."""
        positive("num_samples", num_samples)
        self.setup(*args, **kwargs)
        self._require_same_sites(args, kwargs)
        sizes = [min(CHUNK, num_samples - done) for done in range(0, num_samples, CHUNK)]
        latent = torch.cat([self.rsample_and_log_prob(size)[0] for size in sizes])
        return self._log_density(args, kwargs).constrain(latent)

    def _log_density(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> LogDensity:
        return LogDensity(self._bare(), *args, trace=False, **kwargs)

    def _quasi_random(self, count: int, flow: Flow | None = None) -> Tensor:
        flow = self._ready() if flow is None else flow
        draws = symmetric_draws(count, self.latent_dim).to(self.affine.loc)
        train = self.training
        self.eval()
        latent = torch.cat([flow.forward_and_log_det(part)[0] for part in draws.split(CHUNK)])
        self.train(train)
        return latent
