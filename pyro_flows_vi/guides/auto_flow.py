"""Autoguides whose posterior is a normalizing flow over all latent sites."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.infer.autoguide import AutoContinuous, init_to_median
from torch import Tensor
from torch.distributions import biject_to

from pyro_flows_vi import flows
from pyro_flows_vi.infer.layout import Layout, Unconstrained, read_layout, trace_model
from pyro_flows_vi.transforms.affine import Affine
from pyro_flows_vi.transforms.base import Flow
from pyro_flows_vi.transforms.compose import Compose

__all__ = ["AutoFlow"]

#: steps of a chain where the user names none; other families take four
DEPTHS = {"realnvp": 8, "nice": 8, "planar": 16, "radial": 16, "sylvester": 4, "iaf": 2, "naf": 2, "ddsf": 2, "bnaf": 1}
#: latents up to which the affine layer is dense
DENSE_UP_TO = 256
#: quasi-random draws from which medians and quantiles are read, and how many of them pass the flow at once
QUANTILE_DRAWS, CHUNK = 1 << 14, 1 << 11


class AutoFlow(AutoContinuous):
    r"""An autoguide :math:`u = m + L\,f(\epsilon)`, :math:`\epsilon \sim N(0, I)`, with a flow f of the registry.

    u is the flat vector of all latent sites in unconstrained space; each site's part goes through the bijection onto its
    support, also where that support depends on other sites. The flow starts near the identity, and the affine
    layer (m, L) at ``init_loc_fn`` and ``init_scale``, so that the guide starts as a narrow Gaussian where the user says.

    Train it with :func:`pyro_flows_vi.infer.fit`, or with Pyro's ``SVI`` and any of its ELBOs.

    Args:
        model: a Pyro model with continuous latents.
        flow: the name of a family, see :func:`pyro_flows_vi.flows.names`.
        num_transforms: the number of steps of the chain; by default what suits the family.
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
        flow: str = "realnvp",
        num_transforms: int | None = None,
        *,
        init_loc_fn: Callable[..., Any] = init_to_median,
        init_scale: float = 0.1,
        dense: bool | None = None,
        **flow_options: Any,
    ) -> None:
        if not (isinstance(init_scale, int | float) and 0 < init_scale < math.inf):
            raise ValueError(f"expected init_scale to be a positive number, got {init_scale!r}")
        super().__init__(model, init_loc_fn)
        self._bare_model: tuple[Callable[..., Any], ...] = (model,)  # in a tuple, so that it is no submodule
        self.flow_name, self.flow_options = flow, flow_options
        self.num_transforms = DEPTHS.get(flow, 4) if num_transforms is None else num_transforms
        self.init_scale, self.dense = float(init_scale), dense
        flows.build(flow, 1, num_transforms=self.num_transforms, **flow_options)  # a wrong word is found now, not later
        self.transform = None

    def setup(self, *args: Any, **kwargs: Any) -> AutoFlow:
        """Look at the model with these arguments and make the parameters; nothing if that was done."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        return self

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._setup_prototype(*args, **kwargs)
            self.layout: Layout = read_layout(cast(poutine.Trace, self.prototype_trace))
        except Exception:
            self.prototype_trace = None  # no half-made guide
            raise
        self._refuse_local_sites()
        self._has_moving_supports = self._supports_move(*args, **kwargs)
        loc = self._init_loc()
        dense = self.latent_dim <= DENSE_UP_TO if self.dense is None else self.dense
        chain = flows.build(self.flow_name, self.latent_dim, None, self.num_transforms, **self.flow_options)
        self.transform = Compose([*chain, Affine(self.latent_dim, loc, self.init_scale, dense)]).to(loc)
        self._create_plates(*args, **kwargs)

    def _refuse_local_sites(self) -> None:
        local = [site.name for site in self.layout if site.local]
        if local:
            self.prototype_trace = None
            raise ValueError(
                f"the latent sites {', '.join(map(repr, local))} are inside a subsampled plate: a flow over one "
                "minibatch would be shared by all others. Use AutoAmortizedFlow with an encoder for them, or the whole plate"
            )

    def _supports_move(self, *args: Any, **kwargs: Any) -> bool:
        """Whether a site's support depends on the values of other sites."""
        latent = self._init_loc()
        latent = latent + torch.linspace(0.1, 0.2, len(latent)).to(latent)
        moved: Any = trace_model(Unconstrained(self.layout, latent)(self._bare_model[0]), args, kwargs).nodes
        return any(
            not torch.equal(biject_to(site["fn"].support)(part), moved[site["name"]]["value"])
            for site, part in self._unpack_latent(latent)
        )

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
        return _log_normal(x) - log_det

    def _base_draws(self, num_particles: int) -> tuple[Tensor, Tensor]:
        loc = self.affine.loc
        x = torch.randn(num_particles, len(loc), dtype=loc.dtype, device=loc.device)
        return x, _log_normal(x)

    # -- Pyro's interface ----------------------------------------------------------------------------

    @torch.no_grad()
    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The marginal posterior median of every site, from symmetric quasi-random draws; the same each time."""
        return {name: value[0] for name, value in self.quantiles([0.5], *args, **kwargs).items()}

    @torch.no_grad()
    def quantiles(self, quantiles: Any, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The marginal posterior quantiles of every site, one row each, from symmetric quasi-random draws.

        Quantiles of the unconstrained coordinates, taken to the supports, as Pyro's other guides do it.
        """
        self.setup(*args, **kwargs)
        loc = self.affine.loc
        levels = torch.as_tensor(quantiles, dtype=loc.dtype, device=loc.device).reshape(-1)
        if not bool(((levels >= 0) & (levels <= 1)).all()):
            raise ValueError(f"expected quantiles between 0 and 1, got {levels.tolist()}")
        draws = _symmetric_draws(self.latent_dim).to(loc)
        latent = torch.cat([self._ready().forward_and_log_det(part)[0] for part in draws.split(CHUNK)])
        latents = torch.stack([column.quantile(levels) for column in latent.unbind(-1)], dim=-1)
        rows = [{s["name"]: biject_to(s["fn"].support)(part) for s, part in self._unpack_latent(q)} for q in latents]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    # -- saving --------------------------------------------------------------------------------------

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As of any module, once the guide has parameters."""
        self._ready()
        return super().load_state_dict(state_dict, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        model, master = self._model, self.master
        try:
            return super().__getstate__().copy() | {"_bare_model": None}  # without the model, as Pyro's guides
        finally:
            self._model, self.master = model, master


def _log_normal(x: Tensor) -> Tensor:
    return -0.5 * (x.square().sum(-1) + x.shape[-1] * math.log(2.0 * math.pi))


def _symmetric_draws(dim: int) -> Tensor:
    """Points of a standard normal with their mirror images and the origin: medians of linear maps are exact."""
    if dim <= torch.quasirandom.SobolEngine.MAXDIM:
        uniform = torch.quasirandom.SobolEngine(dim, scramble=True, seed=0).draw(
            QUANTILE_DRAWS // 2, dtype=torch.float64
        )
        half = torch.special.ndtri(uniform.clamp(1e-9, 1.0 - 1e-9))
    else:
        half = torch.randn(QUANTILE_DRAWS // 2, dim, generator=torch.Generator().manual_seed(0))
    return torch.cat([half, half.new_zeros(1, dim), -half])
