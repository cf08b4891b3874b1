"""The log joint density of a Pyro model as a batched function of one flat vector."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer.autoguide.initialization import InitMessenger, init_to_median
from torch import Tensor
from torch.distributions import biject_to
from torch.utils._pytree import tree_flatten, tree_unflatten

from pyro_flows_vi.infer._score_node import WithScore
from pyro_flows_vi.infer._vectorise import FAILURES, LinAlgError, ParticleMap, graph_of, is_random
from pyro_flows_vi.infer.layout import (
    Layout,
    Unconstrained,
    init_or_origin,
    is_deterministic,
    is_latent,
    is_observation,
    read_layout,
    trace_model,
)
from pyro_flows_vi.infer.repeat import OwnNoise
from pyro_flows_vi.numerics.new_tensors import placement
from pyro_flows_vi.numerics.tracing import is_traced

__all__ = ["LogDensity"]


class LogDensity:
    r"""The log joint density of a model, vectorised over particles and free of Python handlers.

    .. math::
        \ell(u) = \log p(x, t(u)) + \log\left|\det \frac{\partial t}{\partial u}\right|

    for a flat vector u of all latent sites, where t takes its parts onto the supports of the sites. The model is run
    under ``torch.func.vmap``, so that it need not know of particles; the first call with a new number of particles
    traces this run, with its gradient, into one graph, and later calls run the graph.

    A model that cannot be vectorised (its Python code branches on a latent value, say) is run once per particle,
    with one warning. A model with learnable parameters of its own (``pyro.param``) is vectorised but not traced, so
    that gradients reach them; nor is one with noise of NumPy or a state of its own. The graph of one whose Python code
    reads values of its data holds for these data: with others it runs without a graph. At a particle where a matrix has
    no Cholesky factor the density is NaN.

    Args:
        model: any Pyro model with continuous latents and a structure that does not change.
        *args: what the model is called with; ``rebind`` gives it other data of the same shapes.
        trace: whether to trace into a graph.
        compile: whether to compile the graph with the inductor: a minute or so, paid back in long runs.
        **kwargs: keyword arguments of the model.

    Shapes: ``log_density(u)`` takes ``(n, D)`` to ``(n,)``.

    Raises:
        ValueError: for a model without latents, with discrete latents, with a support that no bijection reaches,
            with NaN in observed data, or whose sites differ between two runs.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     scale = pyro.sample("scale", dist.HalfNormal(1.0))
        ...     pyro.sample("x", dist.Normal(0.0, scale), obs=x)
        >>> log_density = LogDensity(model, torch.tensor(0.5))
        >>> log_density(torch.zeros(3, 1))
        tensor([-1.7697, -1.7697, -1.7697])
    """

    def __init__(
        self, model: Callable[..., Any], *args: Any, trace: bool = True, compile: bool = False, **kwargs: Any
    ) -> None:
        self.model = model
        self.compile = compile
        self.leaves, self._structure = tree_flatten((args, kwargs))
        first = trace_model(model, args, kwargs)
        self.layout: Layout = read_layout(first)
        self._require_same_sites(trace_model(model, args, kwargs))
        values: list[Any] = [site["value"] for site in first.nodes.values() if site["type"] == "param"]
        self._parameters = [p.unconstrained() if hasattr(p, "unconstrained") else p for p in values]
        self.has_parameters = any(p.requires_grad for p in self._parameters)
        self.trace = trace and not self.has_parameters
        self._particles = ParticleMap()
        self._graphs: dict[tuple[Any, ...], Callable[..., tuple[Tensor, Tensor]]] = {}

    @property
    def vectorized(self) -> bool:
        """Whether the model is run for all particles at once, as far as is known by now."""
        return self._particles.vectorized

    @property
    def latent_dim(self) -> int:
        """D, the length of the flat vector."""
        return self.layout.latent_dim

    def parameters(self) -> list[Tensor]:
        """The learnable parameters of the model itself, unconstrained."""
        return [p for p in self._parameters if p.requires_grad]

    def rebind(self, *args: Any, **kwargs: Any) -> LogDensity:
        """Use other data from now on; nothing is traced anew while only the values of tensors change.

        Raises:
            ValueError: for arguments of another structure, or with which the model has other latent sites.
        """
        leaves, structure = tree_flatten((args, kwargs))
        if structure != self._structure:
            raise ValueError(f"expected arguments of the structure {self._structure}, got {structure}")
        if list(map(_mark, leaves)) != list(map(_mark, self.leaves)):
            self._require_same_sites(trace_model(self.model, args, kwargs))
            self._graphs.clear()
        elif self._particles.reads and any(new is not old for new, old in zip(leaves, self.leaves, strict=True)):
            self._graphs.clear()
            self.trace = False  # a graph for each minibatch would cost more than it saves
        self.leaves = leaves
        return self

    def __call__(self, latent: Tensor) -> Tensor:
        """The log joint density at ``(n, D)``: ``(n,)``; differentiable, a second time by another run of the model."""
        self._require_flat(latent)
        wanted = latent.requires_grad and torch.is_grad_enabled()
        if self.trace and self.vectorized and wanted and not is_traced(latent):
            return WithScore.apply(latent, self)
        return self._untraced(latent)

    def value_and_score(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        r"""The log joint density and its gradient :math:`\nabla_u \ell`: ``(n,)`` and ``(n, D)``, both detached."""
        self._require_flat(latent)
        latent = latent.detach()
        if self.trace and self.vectorized:
            graph, tensors = self._graph(latent)
            if graph is not None:
                with suppress(LinAlgError), torch.no_grad():  # of one particle: found below, one by one
                    return graph(latent, *tensors)
        with torch.enable_grad():
            latent = latent.requires_grad_()
            value = self._untraced(latent)
            (score,) = torch.autograd.grad(value.sum(), latent)
        return value.detach(), score

    def constrain(self, latent: Tensor) -> dict[str, Tensor]:
        """The values of latent and deterministic sites at ``(n, D)``, each ``(n, *shape)``."""
        return self._per_particle(latent, lambda run: {k: v["value"] for k, v in run.items() if not is_observation(v)})

    def log_likelihood(self, latent: Tensor) -> dict[str, Tensor]:
        """The pointwise log-likelihoods of the observed sites at ``(n, D)``, each ``(n, *batch_shape)``.

        Without the factors of ``poutine.scale`` and subsampling; 0 where ``poutine.mask`` leaves a value out.
        """

        def pointwise(site: Any) -> Tensor:
            return scale_and_mask(site["fn"].log_prob(site["value"]), mask=site["mask"])

        return self._per_particle(latent, lambda run: {k: pointwise(v) for k, v in run.items() if is_observation(v)})

    def unconstrain(self, values: dict[str, Tensor]) -> Tensor:
        """The flat vector ``(D,)`` of constrained values, one for each latent site.

        Raises:
            ValueError: for a site without a value, or with one of another shape.
        """
        missing = [site.name for site in self.layout if site.name not in values]
        if missing:
            raise ValueError(f"expected a value for each latent site, got none for {', '.join(missing)}")
        for site in self.layout:
            if (shape := values[site.name].shape) != site.shape:
                raise ValueError(f"expected {site.name!r} to have the shape {tuple(site.shape)}, got {tuple(shape)}")
        conditioned = poutine.condition(self.model, {site.name: values[site.name] for site in self.layout})
        return self._flat(trace_model(conditioned, *self._arguments(self.leaves)))

    def initial(self, init_loc_fn: Callable[..., Any] = init_to_median) -> Tensor:
        """A flat vector ``(D,)`` that one of Pyro's init functions chooses."""
        started = InitMessenger(init_or_origin(init_loc_fn))(self.model)
        return self._flat(trace_model(started, *self._arguments(self.leaves)))

    def blame(self, latent: Tensor) -> list[str]:
        """The sites whose log density at ``(D,)`` is not finite, to be named in an error."""
        with torch.no_grad(), pyro.validation_enabled(False):
            run = self._run(latent, self.leaves)[0]
            run.compute_log_prob()
        return [k for k, v in run.nodes.items() if v["type"] == "sample" and not bool(v["log_prob_sum"].isfinite())]

    def _flat(self, run: poutine.Trace) -> Tensor:
        sites: list[Any] = [run.nodes[site.name] for site in self.layout]
        return torch.cat([biject_to(s["fn"].support).inv(s["value"]).reshape(-1) for s in sites]).detach()

    # -- one particle --------------------------------------------------------------------------------

    def _arguments(self, leaves: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return tree_unflatten(leaves, self._structure)

    def _run(self, latent: Tensor, leaves: list[Any]) -> tuple[poutine.Trace, Tensor]:
        args, kwargs = self._arguments(leaves)
        handler = Unconstrained(self.layout, latent)
        with poutine.block(), pyro.validation_enabled(False), placement(leaves):
            trace = poutine.trace(handler(self.model)).get_trace(*args, **kwargs)
        absent = [name for name in handler.parts if name not in trace]
        if absent:
            raise ValueError(f"the latent site {absent[0]!r} is not there in every run: expected the same each time")
        return trace, handler.log_det

    def _log_joint(self, latent: Tensor, leaves: list[Any]) -> Tensor:
        trace, log_det = self._run(latent, leaves)
        with pyro.validation_enabled(False):
            return trace.log_prob_sum() + log_det

    def _untraced(self, latent: Tensor) -> Tensor:
        """By a run of the model for all particles, or else one for each."""
        return cast(Tensor, self._particles(self._log_joint_or_nan, latent, self.leaves))

    def _log_joint_or_nan(self, latent: Tensor, leaves: list[Any]) -> Tensor:
        try:
            return self._log_joint(latent, leaves)
        except LinAlgError:
            if is_traced(latent):  # which of the particles it was is not known
                raise
            return torch.nan * latent.sum()

    def _require_flat(self, latent: Tensor) -> None:
        if latent.dim() != 2 or latent.shape[1] != self.latent_dim or not len(latent):
            raise ValueError(f"expected latents of shape (n, {self.latent_dim}), got {tuple(latent.shape)}")

    def _per_particle(self, latent: Tensor, read: Callable[[dict[str, Any]], dict[str, Tensor]]) -> dict[str, Tensor]:
        def one(row: Tensor) -> dict[str, Tensor]:
            with OwnNoise(), pyro.validation_enabled(False):
                run = self._run(row, self.leaves)[0].nodes
                return read({k: v for k, v in run.items() if is_latent(v) or is_deterministic(v) or is_observation(v)})

        self._require_flat(latent)
        with torch.no_grad():
            return cast("dict[str, Tensor]", self._particles(one, latent, randomness="different"))

    # -- graphs --------------------------------------------------------------------------------------

    def _graph(self, latent: Tensor) -> tuple[Callable[..., tuple[Tensor, Tensor]] | None, list[Tensor]]:
        """The graph for latents like these, if there is one, and the tensors that it takes beside them."""
        tensors = [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]
        kinds = [(t.shape, t.dtype, t.device, t._version if self._particles.reads else 0) for t in tensors]
        key = (latent.shape, latent.dtype, latent.device, *kinds)
        if key not in self._graphs:
            if not self._graphs:
                self.trace = self.trace and self._repeats(torch.cat([latent[:1], latent[:1] + 0.1]))
            graph = self._traced(latent, tensors) if self.vectorized and self.trace else None
            if graph is not None:
                self._graphs[key] = graph
        return self._graphs.get(key), tensors

    def _repeats(self, latent: Tensor) -> bool:
        """Whether a second run gives the same, other than with noise of NumPy or a state of the model's own."""
        with torch.no_grad(), torch.random.fork_rng():
            first = self._untraced(latent)
        with torch.no_grad():
            return torch.allclose(first, self._untraced(latent), rtol=1e-5, atol=1e-5, equal_nan=True)

    def _traced(self, latent: Tensor, tensors: list[Tensor]) -> Callable[..., tuple[Tensor, Tensor]] | None:
        def value_and_score(latent: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
            fresh = iter(tensors)
            leaves = [next(fresh) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
            one = torch.func.grad_and_value(self._log_joint)
            score, value = self._particles.vmap(one)(latent, leaves)
            return value, score

        try:
            graph = graph_of(value_and_score, latent, *tensors)
        except LinAlgError:
            return None
        except FAILURES:
            # Python code reads values, ``int(counts.sum())``: a graph can hold those of data that stay the same.
            self.trace = not self._particles.reads
            self._particles.reads = True
            return self._traced(latent, tensors) if self.trace else None
        if self._particles.reads and is_random(graph):
            self.trace = False  # what was read may be another number the next time
            return None
        graph.graph.eliminate_dead_code()
        graph.recompile()
        return torch.compile(graph) if self.compile else graph

    def _require_same_sites(self, run: poutine.Trace) -> None:
        shapes = [{site.name: tuple(site.shape) for site in layout} for layout in (self.layout, read_layout(run))]
        changed = sorted(k for k in shapes[0].keys() | shapes[1].keys() if shapes[0].get(k) != shapes[1].get(k))
        if changed:
            raise ValueError(
                f"the model's structure changes: in two runs, {', '.join(map(repr, changed))} had the "
                f"shapes {[s.get(changed[0], 'absent') for s in shapes]}; expected the same latent sites each time"
            )


def _mark(leaf: Any) -> Any:
    """What of an argument a graph depends on; of a mutable object that is no tensor, everything."""
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.dtype, leaf.device
    return (type(leaf), leaf) if isinstance(leaf, bool | int | float | str | None) else object()
