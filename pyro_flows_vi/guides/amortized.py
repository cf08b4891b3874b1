"""Autoguides for models with local latents: an amortised flow for every datum, beside a flow of the global latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import pyro
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.infer import Predictive
from pyro.infer.autoguide import AutoGuide, init_to_median
from pyro.infer.autoguide.initialization import InitMessenger
from torch import Tensor
from torch.distributions import biject_to

from pyro_flows_vi import flows
from pyro_flows_vi.guides._draws import symmetric_draws
from pyro_flows_vi.guides._local import AmortizedAffine, LocalSite, local_plate
from pyro_flows_vi.guides._model import HoldsModel, forget_arguments, placed
from pyro_flows_vi.guides._plates import FollowsPlates
from pyro_flows_vi.guides._runs import OnlyParallelPlates, Supports, has_bounds, look, sample_delta
from pyro_flows_vi.guides._steps import even_out
from pyro_flows_vi.guides.auto_flow import AutoFlow
from pyro_flows_vi.infer.layout import is_deterministic, is_latent, read_layout
from pyro_flows_vi.transforms.base import Flow
from pyro_flows_vi.transforms.compose import Compose

__all__ = ["AutoAmortizedFlow"]

#: quasi-random draws from which medians and quantiles are read, and numbers that are held at once
QUANTILE_DRAWS, HELD = 1 << 11, 1 << 22


class AutoAmortizedFlow(FollowsPlates, HoldsModel, AutoGuide):
    r"""An autoguide for latents of a (subsampled) plate: a flow per datum, amortised by an encoder.

    .. math::
        q(u, z_1, \dots, z_N) = q(u) \prod_{n=1}^N q(z_n \mid e_n, u), \qquad e_n = \mathrm{encoder}(\dots)_n

    u are the global latents, under an :class:`~pyro_flows_vi.guides.AutoFlow`; :math:`z_n` are the latents of row n of
    the local plate, under one flow whose context is the encoder's row :math:`e_n` and, unless ``see_globals=False``, u
    in the coordinates of the global flow's affine layer, where it is of order one. A minibatch of the plate is one
    pass of the encoder and the flow; Pyro scales its terms. New data, of any number of rows, need no new guide.

    The encoder is called with the model's arguments and the rows that are looked at:
    ``encoder(*args, indices=indices, **kwargs)`` gives ``(len(indices), context_dim)``. Where the model holds all data
    and draws a minibatch (``subsample_size``), it picks the rows itself, ``x[indices]``; where the arguments are the
    minibatch already, it uses them as they are. An ``nn.Module`` is trained along.

    Args:
        model: a Pyro model.
        encoder: see above.
        context_dim: the width of the encoder's output.
        flow: the family of the local flow, see :func:`pyro_flows_vi.flows.names`. One-dimensional local latents are
            Gaussian under "realnvp" and "iaf", and of any form under "naf".
        num_transforms: the steps of its chain.
        plate: the name of the local plate; by default the only subsampled plate around latents, or the only plate.
        see_globals: whether local latents may depend on global ones.
        init_loc_fn: one of Pyro's init functions; local latents start at the mean over the rows.
        init_scale: the scale at the start, in unconstrained space.
        create_plates: as of Pyro's guides: gives the plates of a call. Without it they are as in the model.
        global_options: options of the AutoFlow over the global latents, such as ``{"flow": "naf"}``.
        **flow_options: options of the local family, such as ``hidden_dims``.

    Raises:
        ValueError: for an unknown flow or option; at the first call for a model without a plate of latents, for one
            with several where none is named, and for an encoder's output of another shape.

    Example:
        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x), subsample_size=2) as rows:
        ...         z = pyro.sample("z", dist.Normal(loc, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 0.5), obs=x[rows])
        >>> guide = AutoAmortizedFlow(model, lambda x, indices: x[indices, None], context_dim=1)
        >>> {name: tuple(value.shape) for name, value in guide.median(torch.randn(5)).items()}
        {'loc': (), 'z': (5,)}
    """

    local_flow: Compose | None
    globals: AutoFlow | None

    def __init__(
        self,
        model: Callable[..., Any],
        encoder: Callable[..., Tensor],
        context_dim: int,
        flow: str = "realnvp",
        num_transforms: int = 4,
        *,
        plate: str | None = None,
        see_globals: bool = True,
        init_loc_fn: Callable[..., Any] = init_to_median,
        init_scale: float = 0.1,
        create_plates: Callable[..., Any] | None = None,
        global_options: Mapping[str, Any] | None = None,
        **flow_options: Any,
    ) -> None:
        if not callable(encoder):
            raise ValueError(f"expected encoder to be a function or a module, got {encoder!r}")
        flows.check(flow, num_transforms, **flow_options)  # a wrong word is found now, not later
        super().__init__(InitMessenger(init_loc_fn)(OnlyParallelPlates()(model)), create_plates=create_plates)
        self._bare_model = (model,)
        self.encoder, self.context_dim = encoder, context_dim
        self.flow_name, self.num_transforms, self.flow_options = flow, num_transforms, flow_options
        self.wanted_plate, self.see_globals = plate, see_globals
        self.init_loc_fn, self.init_scale = init_loc_fn, init_scale
        options = {"init_loc_fn": init_loc_fn, "init_scale": init_scale, **(global_options or {})}
        AutoFlow(model, **options)
        self.global_options = options
        self.local_flow = self.globals = None

    # -- making the parameters -----------------------------------------------------------------------

    def setup(self, *args: Any, **kwargs: Any) -> AutoAmortizedFlow:
        """Look at the model with these arguments and make the parameters; nothing if that was done."""
        if self.prototype_trace is None:
            try:
                self._setup_prototype(*args, **kwargs)
            except Exception:
                self.prototype_trace = None  # no half-made guide
                raise
        return self

    @placed
    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        with torch.no_grad():
            super()._setup_prototype(*args, **kwargs)
        trace: Any = self.prototype_trace
        layout = read_layout(trace)
        forget_arguments(trace)
        self._looks = {}
        frame = local_plate(self._prototype_frames, self.wanted_plate)
        self.plate_name, self._plate_dim = frame.name, frame.dim
        sites: list[LocalSite] = []
        for site in layout:
            if (frame.name, frame.dim) in site.plates:
                fn = trace.nodes[site.name]["fn"]
                sites.append(LocalSite.read(site, fn.event_dim, frame.dim, sites[-1].stop if sites else 0))
        self.local_sites = tuple(sites)
        local = [site.name for site in sites]
        self._expected = {site.name: site for site in layout}
        self._moving = any(has_bounds(trace.nodes[name]["fn"].support) for name in local)
        with poutine.block():
            self._create_plates(*args, **kwargs)
        if len(local) < len(layout.sites):
            self.globals = AutoFlow(poutine.block(self._bare(), hide=local), **self.global_options)
            self.globals.setup(*args, **kwargs)
        rows = [s.join(biject_to(trace.nodes[s.name]["fn"].support).inv(trace.nodes[s.name]["value"])) for s in sites]
        loc = torch.cat(rows, dim=-1).mean(dim=0).detach()
        width = self.context_dim + (self.globals.latent_dim if self.globals is not None and self.see_globals else 0)
        chain = flows.build(self.flow_name, len(loc), width, self.num_transforms, **self.flow_options)
        flow = Compose([*chain, AmortizedAffine(len(loc), width, loc, self.init_scale)])
        even_out(flow[:-1], 1.0 / self.num_transforms)
        even_out(flow[-1], 1.0)
        self.local_flow = flow.to(loc)

    def _nodes(self) -> dict[str, Any]:
        """The sites of the run that the guide was set up by."""
        assert self.prototype_trace is not None
        nodes: dict[str, Any] = self.prototype_trace.nodes
        return nodes

    def _check_prototype(self, part_trace: poutine.Trace) -> None:
        """What Pyro asks of a guide with parts; the parts here are made from the model itself."""

    # -- rows of the plate ---------------------------------------------------------------------------

    def _context(self, indices: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        context = self.encoder(*args, indices=indices, **kwargs)
        expected = (len(indices), self.context_dim)
        if not isinstance(context, Tensor) or context.shape != expected:
            got = tuple(context.shape) if isinstance(context, Tensor) else type(context).__name__
            raise ValueError(
                f"expected the encoder to give a tensor of shape {expected}, one row for each index of the plate "
                f"{self.plate_name!r}, got {got}"
            )
        return context

    def _condition(self, context: Tensor, latent: Tensor | None) -> tuple[Flow, torch.Size]:
        """The local flow at contexts ``(*batch, C)`` and global latents whose batch broadcasts; the batch."""
        flow = self.local_flow
        assert flow is not None
        if latent is not None and self.globals is not None and self.see_globals:
            seen = self.globals.affine.inverse_and_log_det(latent)[0]
            batch = torch.broadcast_shapes(context.shape[:-1], seen.shape[:-1])
            context = torch.cat([context.expand(*batch, -1), seen.expand(*batch, -1)], dim=-1)
        return flow.condition(context), context.shape[:-1]

    # -- Pyro's interface ----------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """One draw of the global latents and of the local latents of the rows that this call looks at."""
        self.setup(*args, **kwargs)
        plates = self._create_plates(*args, **kwargs)
        result: dict[str, Tensor] = {}
        latent, seen = None, {}
        if self.globals is not None:
            latent = self.globals.sample_latent(*args, **kwargs)
            result.update(self.globals.emit(latent, args, kwargs))
            seen = self.globals.parts(latent)
        plate = plates[self.plate_name]
        context = self._context(plate.indices, args, kwargs)
        context = context.reshape(len(context), *(1,) * (-self._plate_dim - 1), self.context_dim)
        flow, batch = self._condition(context, latent)
        base = dist.Normal(context.new_zeros(()), 1.0).expand((*batch, flow.input_dim)).to_event(1)
        with plate:
            local = pyro.sample(
                f"_{self._pyro_name}_local", dist.TransformedDistribution(base, [flow]), infer={"is_auxiliary": True}
            )
        parts = {site.name: site.part(local) for site in self.local_sites}
        run = Supports({**seen, **parts}, {name: p.indices for name, p in plates.items()})
        if self._moving:
            run.run(self._bare(), args, kwargs)
        for site in self.local_sites:
            node = self._nodes()[site.name]
            support = run.found[site.name][0] if self._moving else node["fn"].support
            with ExitStack() as stack:
                for frame in node["cond_indep_stack"]:
                    stack.enter_context(plates[frame.name])
                value = biject_to(support)(parts[site.name])
                result[site.name] = sample_delta(site.name, support, parts[site.name], value, site.event_dim)
        return result

    @torch.no_grad()
    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The marginal posterior median of every site; local ones of all rows of the plate, see :meth:`quantiles`."""
        return {name: value[0] for name, value in self.quantiles([0.5], *args, **kwargs).items()}

    @torch.no_grad()
    def quantiles(self, quantiles: Any, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The marginal posterior quantiles of every site, one row each, from quasi-random draws.

        Local latents have all rows of the plate where the model draws a minibatch, and the rows given where the
        arguments or ``create_plates`` say which rows to look at.

        Raises:
            ValueError: for local sites whose bounds depend on other sites or arguments; ``sample_posterior`` has them.
        """
        self.setup(*args, **kwargs)
        if self._moving:
            raise ValueError("a local site has bounds that may move: use sample_posterior for its quantiles")
        frame, rows = self._look(args, kwargs, {})[self.plate_name]
        with poutine.block():
            made = self._create_plates(*args, **kwargs)[self.plate_name]
        random = rows is None and self.create_plates is None
        indices = torch.arange(frame.full_size or frame.size) if random else made.indices
        context = self._context(indices, args, kwargs)
        levels = torch.as_tensor(quantiles, dtype=context.dtype, device=context.device).reshape(-1)
        result = {} if self.globals is None else self.globals.quantiles(quantiles, *args, **kwargs)
        flow = self.local_flow
        assert flow is not None
        width = 0 if self.globals is None else self.globals.latent_dim
        draws = symmetric_draws(QUANTILE_DRAWS, width + flow.input_dim).to(context)
        latent = None if self.globals is None else self.globals.get_transform()(draws[:, :width])[:, None]
        step = max(1, HELD // (len(draws) * (context.shape[-1] + width + flow.input_dim)))
        tables = []
        for part in context.split(step):
            z = self._condition(part[None], latent)[0].forward_and_log_det(draws[:, None, width:])[0]
            tables.append(z.quantile(levels, dim=0))
        table = torch.cat(tables, dim=1)
        table = table.reshape(*table.shape[:2], *(1,) * (-self._plate_dim - 1), -1)
        for site in self.local_sites:
            to_support = biject_to(self._nodes()[site.name]["fn"].support)
            result[site.name] = torch.stack([to_support(site.part(row)) for row in table])
        return result

    @torch.no_grad()
    def sample_posterior(
        self, num_samples: int, *args: Any, parallel: bool = False, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Draws of every latent site and of ``pyro.deterministic`` sites, each ``(n, *shape)``.

        Args:
            num_samples: n.
            *args: the model's arguments, with which it looks at the same rows each time: all, or those given.
            parallel: whether to run the model once for all draws, as of Pyro's ``Predictive``.
            **kwargs: its keyword arguments.

        Raises:
            ValueError: where the model draws rows at random.
        """
        self.setup(*args, **kwargs)
        frame, rows = self._look(args, kwargs, {})[self.plate_name]
        if rows is None and self.create_plates is None and frame.full_size not in (None, frame.size):
            raise ValueError(
                f"the model draws {frame.size} of {frame.full_size} rows of the plate {self.plate_name!r} at random, "
                "other ones for each draw: pass arguments with which it takes the whole plate"
            )
        sites = look(self._bare(), args, kwargs)[0]
        names = [name for name, site in sites.items() if is_latent(site) or is_deterministic(site)]
        predictive = Predictive(
            self._bare(), guide=self, num_samples=num_samples, return_sites=names, parallel=parallel
        )
        drawn = predictive(*args, **kwargs)
        return {name: drawn[name].reshape(num_samples, *sites[name]["value"].shape) for name in names}
