"""Property checks for flows, for this package's own tests and for yours.

>>> from pyro_flows_vi.transforms.planar import Planar
>>> errors = check_flow(Planar(3))
>>> max(errors.values()) < 1e-8
True

Every check compares a flow with something independent of it, mostly automatic differentiation of its
forward map, in float64 and with parameters redrawn from a normal distribution, since many mistakes vanish at a
near-identity start. Each returns the worst error found and raises ``AssertionError`` where it is too large.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pyro_flows_vi.transforms.base import Flow

__all__ = [
    "check_copies",
    "check_flow",
    "check_gradients",
    "check_inverse",
    "check_inverse_gradients",
    "check_log_det",
    "check_memo",
    "check_modules",
    "check_score",
    "check_triangular",
    "check_vmap",
    "randomize",
]

BATCH_SHAPES: tuple[tuple[int, ...], ...] = ((), (3,), (2, 3))


def randomize(flow: nn.Module, scale: float, generator: torch.Generator | None = None) -> nn.Module:
    """Redraw every parameter from N(0, scale^2), in place, and return the module."""
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return flow


def check_flow(
    flow: Flow,
    scales: Sequence[float | None] = (None, 0.5, 2.0),
    batch_shapes: Sequence[tuple[int, ...]] = BATCH_SHAPES,
    tolerance: float = 1e-8,
    seed: int = 0,
) -> dict[str, float]:
    """Run every check of this module that applies to a flow, on a float64 copy of it.

    Args:
        flow: the flow, with or without a context; it is left as it is.
        scales: standard deviations from which the parameters are redrawn; ``None`` keeps them.
        batch_shapes: batch shapes of the points.
        tolerance: the largest error, relative to the size of what is compared.
        seed: of the points and parameters.

    Returns:
        The worst error of each check.

    Raises:
        AssertionError: where an error is larger than the tolerance, with the place.
    """
    errors: dict[str, float] = {}
    generator = torch.Generator().manual_seed(seed)
    for scale in scales:
        subject = copy.deepcopy(flow).double().eval()
        if scale is not None:
            randomize(subject, scale, generator)
        for batch_shape in batch_shapes:
            x, context = _points(subject, batch_shape, generator)
            for check in (check_log_det, check_inverse, check_inverse_gradients):
                try:
                    error = check(subject, x, context, tolerance=tolerance)
                except AssertionError as failure:
                    raise AssertionError(f"parameters of scale {scale}, batch {batch_shape}: {failure}") from failure
                errors[check.__name__] = max(error, errors.get(check.__name__, 0.0))
        if flow.triangular:
            x, context = _points(subject, (), generator)
            errors["check_triangular"] = check_triangular(subject, x, context)
    subject = copy.deepcopy(flow).double().eval()
    x, context = _points(subject, (4,), generator)
    if flow.exact_log_det:  # at a smaller scale, since the score asks for second derivatives of chains
        randomize(subject, 0.2, generator)
        errors["check_score"] = check_score(subject, x, context)
    randomize(subject, 0.5, generator)
    for simple in (check_gradients, check_copies, check_modules, check_memo, check_vmap):
        errors[simple.__name__] = simple(subject, x, context)
    return errors


def check_log_det(flow: Flow, x: Tensor, context: Tensor | None = None, tolerance: float = 1e-8) -> float:
    """``log_det`` of the forward map against the log-determinant of its autograd Jacobian at every point."""
    claimed = flow.forward_and_log_det(x, context)[1]
    batch = torch.broadcast_shapes(x.shape[:-1], () if context is None else context.shape[:-1])
    assert claimed.shape == batch, f"log_det has shape {tuple(claimed.shape)}, expected the batch shape {tuple(batch)}"
    true = torch.linalg.slogdet(_jacobian(lambda v: flow.forward_and_log_det(v, context)[0], x.expand(*batch, -1)))[1]
    return _agree("log_det and the autograd Jacobian", claimed, true, tolerance)


def check_inverse(flow: Flow, x: Tensor, context: Tensor | None = None, tolerance: float = 1e-8) -> float:
    """The inverse lands on a point that the forward map takes to y, with its log-determinant, with a graph and without.

    The residual is measured in y, the backward error, which stays small however ill-conditioned the map is.
    """
    y, error = flow.forward_and_log_det(x, context)[0].detach(), 0.0
    for graph in (True, False):  # for which an inverse may go different ways
        with torch.set_grad_enabled(graph):
            back, log_det = flow.inverse_and_log_det(y, context)
            again, forward_log_det = flow.forward_and_log_det(back, context)
        found = _agree("f(f^-1(y)) and y", again, y, tolerance)
        error = max(error, found, _agree("the log_det of inverse and forward", log_det, forward_log_det, tolerance))
    return error


def check_score(flow: Flow, x: Tensor, context: Tensor | None = None, tolerance: float = 1e-6) -> float:
    r"""The score that goes along with a draw against :math:`J^{-T}(s_x - \nabla_x \log|\det J|)` from autograd.

    Compared as :math:`J^T s_y`, which does not depend on how well J is conditioned.
    """
    claimed = flow.forward_and_score(x, -x, context)[2]
    jacobian = _jacobian(lambda v: flow.forward_and_log_det(v, context)[0], x)
    point = x.detach().requires_grad_()
    log_det = flow.forward_and_log_det(point, context)[1]
    gradient = _grad(log_det.sum(), [point])[0] if log_det.requires_grad else torch.zeros_like(x)
    return _agree("the score and autograd", (jacobian.mT @ claimed[..., None])[..., 0], -x - gradient, tolerance)


def check_inverse_gradients(flow: Flow, x: Tensor, context: Tensor | None = None, tolerance: float = 1e-8) -> float:
    r"""Gradients through the inverse against the implicit function theorem on the forward map.

    For :math:`L = v \cdot x(y) + u \cdot \log|\det J|` with :math:`\lambda = \nabla_y L`, the theorem says
    :math:`J^\top \lambda = v + \nabla_x (u \log|\det J|)`, and that the gradients of the parameters and the context
    are those of :math:`u \log|\det J| - \lambda \cdot f(x)` at fixed x: one backward pass of the forward map.
    """
    parameters = [p for p in flow.parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(1)
    y = flow.forward_and_log_det(x, context)[0].detach().requires_grad_()
    given = None if context is None else context.detach().requires_grad_()
    leaves = [y, *parameters, *([] if given is None else [given])]
    back, log_det = flow.inverse_and_log_det(y, given)
    v = torch.randn(back.shape, generator=generator, dtype=back.dtype)
    u = torch.randn(log_det.shape, generator=generator, dtype=back.dtype)
    got = _grad((back * v).sum() + (log_det * u).sum(), leaves)

    point = back.detach().requires_grad_()
    image, forward_log_det = flow.forward_and_log_det(point, given)
    expected = _grad((forward_log_det * u).sum() - (image * got[0]).sum(), [point, *leaves[1:]])
    error = _agree("J' (gradient to y) and v", expected[0], -v, tolerance, size=got[0].abs().max())
    for a, b in zip(got[1:], expected[1:], strict=True):
        error = max(error, _agree("gradients through the inverse", a, b, tolerance, size=got[0].abs().max()))
    return error


def check_triangular(flow: Flow, x: Tensor, context: Tensor | None = None) -> float:
    """The Jacobian's upper half is exactly zero, and its diagonal positive."""
    jacobian = _jacobian(lambda v: flow.forward_and_log_det(v, context)[0], x)
    above = torch.triu(jacobian, 1).abs().max().item()
    assert above == 0.0, f"{type(flow).__name__} claims to be triangular, but dy_i/dx_j for j > i is up to {above:.3g}"
    assert bool((jacobian.diagonal(dim1=-2, dim2=-1) >= 0).all()), "the diagonal of the Jacobian is not positive"
    return above


def check_gradients(flow: Flow, x: Tensor, context: Tensor | None = None) -> float:
    """Both y and log_det give finite gradients, and every parameter and the context get one that is not zero.

    In one dimension a parameter may have nothing to do, such as the direction of a basis vector.
    """
    given = None if context is None else context.detach().requires_grad_()
    y, log_det = flow.forward_and_log_det(x, given)
    loss = y.square().sum() + log_det.sum()
    leaves = dict(flow.named_parameters()) | ({} if given is None else {"context": given})
    if not leaves:
        return 0.0
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    for name, gradient in zip(leaves, gradients, strict=True):
        assert gradient is not None, f"{name} has no gradient"
        assert bool(gradient.isfinite().all()), f"the gradient of {name} is not finite"
        assert flow.input_dim == 1 or bool((gradient != 0).any()), f"the gradient of {name} is zero"
    return 0.0


def check_copies(flow: Flow, x: Tensor, context: Tensor | None = None) -> float:
    """``deepcopy``, ``pickle`` and ``state_dict`` give the same map, also after a call."""
    flow.condition(context)(x) if context is not None else flow(x)
    expected = flow.forward_and_log_det(x, context)
    fresh = copy.deepcopy(flow)
    randomize(fresh, 1.0)
    fresh.load_state_dict(flow.state_dict())
    for other in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow)), fresh):
        for a, b in zip(other.forward_and_log_det(x, context), expected, strict=True):
            assert torch.equal(a, b), "a copy of the flow is another map"
    return 0.0


def check_modules(flow: Flow, x: Tensor, context: Tensor | None = None) -> float:
    """The inverse and the conditioned flow are modules with the flow's parameters, and agree with it."""
    bound = flow if context is None else flow.condition(context)
    for module in (flow.inv, bound, bound.inv):
        assert {id(p) for p in module.parameters()} == {id(p) for p in flow.parameters()}, "parameters are lost"
    assert flow.inv.inv is flow, "flow.inv.inv is not the flow"
    y, log_det = flow.forward_and_log_det(x, context)
    error = _agree("the conditioned flow and the flow", bound(x), y, 1e-12)
    back, minus = flow.inv.inverse_and_log_det(x, context)
    return max(error, _agree("flow.inv and the flow", back, y, 1e-12), _agree("log_det", minus, -log_det, 1e-12))


def check_memo(flow: Flow, x: Tensor, context: Tensor | None = None) -> float:
    """What is remembered between a call and its log-determinant is right, and fresh after a change of parameters."""
    flow = copy.deepcopy(flow)
    bound = flow if context is None else flow.condition(context)
    y = bound(x)
    error = 0.0
    for what in ("a remembered and a fresh log_det", "a stale and a fresh log_det"):
        fresh = bound.log_abs_det_jacobian(x.clone(), y.clone())
        error = max(error, _agree(what, bound.log_abs_det_jacobian(x, y), fresh, 1e-9))
        y = bound(x)
        randomize(flow, 0.3)
    return error


def check_vmap(flow: Flow, x: Tensor, context: Tensor | None = None) -> float:
    """``torch.func.vmap`` over the points gives the batched result."""
    expected = flow.forward_and_log_det(x, context)
    if context is None:
        got = torch.func.vmap(flow.forward_and_log_det)(x)
    else:
        got = torch.func.vmap(flow.forward_and_log_det)(x, context.expand(*x.shape[:-1], -1))
    return max(_agree("vmap and a batch", a, b, 1e-10) for a, b in zip(got, expected, strict=True))


def _points(flow: Flow, batch: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """Points, and contexts that lack the first batch dimension, so that they have to broadcast."""
    x = torch.randn(*batch, flow.input_dim, generator=generator, dtype=torch.float64)
    if flow.context_dim is None:
        return x, None
    return x, torch.randn(*batch[1:], flow.context_dim, generator=generator, dtype=torch.float64)


def _jacobian(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """dy_i/dx_j for every point, ``(*batch, D, D)``, by one backward pass for each i."""
    x = x.detach().clone().requires_grad_()
    y = function(x)
    return torch.stack([torch.autograd.grad(y[..., i].sum(), x, retain_graph=True)[0] for i in range(y.shape[-1])], -2)


def _grad(loss: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=True)]


def _agree(what: str, got: Tensor, expected: Tensor, tolerance: float, size: Tensor | float = 0.0) -> float:
    scale = max(1.0, float(expected.detach().abs().max()), float(size))
    error = float((got - expected).detach().abs().max()) / scale
    assert error <= tolerance, f"{what} differ by {error:.3g} (relative to {scale:.3g}), more than {tolerance:.3g}"
    return error
