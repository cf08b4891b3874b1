"""Continuous normalizing flow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from pyro_flows_vi.nets.velocity import VelocityNet, divergence
from pyro_flows_vi.numerics.ode import Solver, solve_adaptive, solve_rk4
from pyro_flows_vi.numerics.tracing import is_traced
from pyro_flows_vi.transforms._door import checked, positive
from pyro_flows_vi.transforms._score import score_by_inverse
from pyro_flows_vi.transforms.base import Flow

__all__ = ["Continuous", "Energies", "penalised", "regularisation", "with_penalty"]

Trace = Literal["auto", "exact", "hutchinson"]
Noise = Literal["rademacher", "normal"]
Method = Literal["dopri5", "dopri8", "rk4"]
Activation = Literal["tanh", "softplus", "silu"]


class Energies(NamedTuple):
    r"""What a point's path costs, each of the batch shape: :math:`\int|v|^2 dt` and :math:`\int\|J\|_F^2 dt`."""

    kinetic: Tensor
    jacobian: Tensor


class Continuous(Flow):
    r"""Continuous normalizing flow: every point moves with a velocity that a network gives.

    .. math::
        \dot z = v(t, z; c), \quad z(0) = x, \quad y = z(T), \qquad
        \log|\det J| = \int_0^T \operatorname{tr} \frac{\partial v}{\partial z}(t, z(t); c)\, dt

    The inverse is the same equation from T back to 0, so both directions cost the same. v is a
    :class:`~pyro_flows_vi.nets.velocity.VelocityNet`; a context is concatenated to its input.

    The trace is ``"exact"`` or, in training, ``"hutchinson"``: :math:`\varepsilon^\top \frac{\partial v}{\partial z}
    \varepsilon` with one noise vector for each point and solution, which is unbiased. ``"auto"`` is exact for up to
    two hidden layers, where the exact trace costs no more than a noise vector, O(H^2), as the products of the weights
    do not depend on the point; with more layers it is an O(D H^2) product, and ``"auto"`` estimates. In ``eval()``
    mode the trace is always exact; ``exact_log_det`` says what the present mode computes.

    An adaptive solver (``"dopri5"``, ``"dopri8"``) keeps the error of each step within ``tolerance`` at the worst
    point of the batch, and raises where it cannot. What is "exact" is so to this tolerance. Its gradients solve the
    adjoint equation: memory does not depend on the number of steps, second derivatives raise. It works under
    ``torch.func.vmap``, but as it decides by values it is no part of a compiled graph. ``"rk4"`` takes ``num_steps``
    steps whatever the error, is compiled and differentiated like any network, and keeps all steps in memory.

    With ``kinetic`` or ``jacobian`` above zero, a pass in training mode integrates these energies along the path;
    :meth:`regularisation` gives their penalty, which the loops of this package add to their losses.

    Sources: FFJORD: Free-form continuous dynamics for scalable reversible generative models (Grathwohl et al., 2019),
    arXiv:1810.01367; How to train your neural ODE: the world of Jacobian and kinetic regularization (Finlay et al.,
    2020), arXiv:2002.02798.

    Args:
        input_dim: D.
        context_dim: C, or ``None``.
        hidden_dims: widths of the hidden layers of v; none for a velocity that is linear in z.
        activation: ``"tanh"``, ``"softplus"`` or ``"silu"``.
        time: T.
        trace: ``"auto"``, ``"exact"`` or ``"hutchinson"``.
        noise: ``"rademacher"`` or ``"normal"``, the law of the noise vector.
        solver: ``"dopri5"``, ``"dopri8"`` (for tolerances below 1e-7) or ``"rk4"``.
        tolerance: absolute and relative error of an adaptive step, not below 32 roundings of the floating-point type.
        max_steps: an adaptive solver gives up after so many.
        num_steps: steps of ``"rk4"``.
        kinetic: weight of the mean kinetic energy in the penalty.
        jacobian: weight of the mean Jacobian energy in the penalty.

    Raises:
        ValueError: for an option out of its range; by a pass, for a point that is NaN or infinite.
        RuntimeError: by a pass, where an adaptive solver does not converge.
    """

    fast_forward = False
    fast_inverse = False

    def __init__(
        self,
        input_dim: int,
        context_dim: int | None = None,
        hidden_dims: Sequence[int] = (64, 64),
        *,
        activation: Activation = "tanh",
        time: float = 1.0,
        trace: Trace = "auto",
        noise: Noise = "rademacher",
        solver: Method = "dopri5",
        tolerance: float = 1e-6,
        max_steps: int = 1000,
        num_steps: int = 20,
        kinetic: float = 0.0,
        jacobian: float = 0.0,
    ) -> None:
        super().__init__(input_dim, context_dim)
        for name, value, known in (("trace", trace, Trace), ("noise", noise, Noise), ("solver", solver, Method)):
            if value not in get_args(known):
                raise ValueError(f"{name}: expected one of {get_args(known)}, got {value!r}")
        if not 0.0 < time < float("inf") or not 0.0 < tolerance < 1.0:
            raise ValueError(f"expected time > 0 and tolerance in (0, 1), got {time} and {tolerance}")
        if not (0.0 <= kinetic < float("inf") and 0.0 <= jacobian < float("inf")):
            raise ValueError(f"expected kinetic and jacobian to be at least 0, got {kinetic} and {jacobian}")
        self.net = VelocityNet(input_dim, hidden_dims, context_dim, activation)
        self.time, self.solver, self.tolerance = float(time), solver, tolerance
        self.max_steps, self.num_steps = positive("max_steps", max_steps), positive("num_steps", num_steps)
        self.noise, self.kinetic, self.jacobian = noise, kinetic, jacobian
        self.estimated = trace == "hutchinson" or (trace == "auto" and len(hidden_dims) > 2)
        self._penalty: Tensor | None = None
        self._scoring = False

    @property
    def penalised(self) -> bool:
        """Whether a penalty was asked for."""
        return self.kinetic > 0.0 or self.jacobian > 0.0

    @property
    def exact_log_det(self) -> bool:  # type: ignore[override]
        """Whether the trace is exact in the present mode, ``train()`` or ``eval()``."""
        return not (self.training and self.estimated)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The state at T, and the integral of the trace.

        Raises:
            RuntimeError: if an adaptive solver does not converge.
        """
        return self._pass(x, context, 0.0, self.time)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The state at 0 of the path that ends in y, and the integral of the trace.

        Raises:
            RuntimeError: if an adaptive solver does not converge.
        """
        return self._pass(y, context, self.time, 0.0)

    def energies(self, x: Tensor, context: Tensor | None = None) -> Energies:
        r"""The energies of the paths from ``x``, in the present mode: in ``eval()`` exact, O(D H^2) a point.

        In training the Jacobian's energy is :math:`\int|\varepsilon^\top J|^2 dt` with one noise vector, whose
        expectation is exact. Nothing is kept for :meth:`regularisation`.
        """
        return Energies(*self._energies(x, context))

    def regularisation(self) -> Tensor:
        r"""The penalty of the last pass in training mode, with its graph: to be added to the loss, once.

        It is ``kinetic`` times the mean kinetic energy plus ``jacobian`` times the mean Jacobian energy over the
        points of that pass, and zero if both weights are. Reading it drops it. A pass under ``torch.func.vmap`` or
        the compiler leaves none, as nothing gets out of there but results; see :meth:`energies`.

        Raises:
            RuntimeError: if there was no such pass since the last reading.
        """
        if not self.penalised:
            return torch.zeros_like(self.net.time_weight[0], requires_grad=False)
        if self._penalty is None:
            raise RuntimeError(
                "regularisation: no pass in training mode since the last reading; call the flow in train() mode, "
                "outside of vmap and compile, and read the penalty once"
            )
        penalty, self._penalty = self._penalty, None
        return penalty

    @checked
    def _energies(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        final = self._solve(x, context, 0.0, self.time, True)
        return final[..., -2], final[..., -1]

    def _pass(self, start: Tensor, context: Tensor | None, begin: float, end: float) -> tuple[Tensor, Tensor]:
        regularised = self.training and self.penalised and not self._scoring and not is_traced(start)
        final = self._solve(start, context, begin, end, regularised)
        # The integrals run with time; those of a path taken backwards have the other sign.
        sign = 1.0 if end > begin else -1.0
        if regularised:
            self._penalty = sign * (self.kinetic * final[..., -2] + self.jacobian * final[..., -1]).mean()
        return final[..., : self.input_dim].to(start.dtype), (sign * final[..., self.input_dim]).to(start.dtype)

    def _forward_and_score(self, x: Tensor, score: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        y, log_det = self.forward_and_log_det(x, context)
        self._scoring = True  # the way back is the same path: its energies are not integrated again
        try:
            return y, log_det, score_by_inverse(self, y, score, context)
        finally:
            self._scoring = False

    def _solve(self, start: Tensor, context: Tensor | None, begin: float, end: float, energies: bool) -> Tensor:
        """The state at ``end``: place, trace and, if asked for, energies."""
        dtype = torch.float32 if start.dtype in (torch.float16, torch.bfloat16) else start.dtype
        dim, net, estimated = self.input_dim, self.net, self.training and self.estimated
        points: list[Tensor] = []
        if context is not None:
            shift = net.shift(context)
            points.append(shift.expand(*start.shape[:-1], shift.shape[-1]).to(dtype))
        if estimated or (self.training and energies):
            points.append(self._draw(start).to(dtype))
        num_points, noisy = len(points), len(points) > (context is not None)

        def dynamics(time: Tensor, state: Tensor, *tensors: Tensor) -> Tensor:
            shift = None if context is None else tensors[0]
            velocity, linearisation = net.linearise(time, state[..., :dim], tensors[num_points:], shift)
            batch = velocity.shape[:-1]
            noise = tensors[num_points - 1] if noisy else None
            row = None if noise is None else linearisation.vjp(noise)
            if noise is None or row is None or not estimated:
                trace = divergence(linearisation).expand(batch)
            else:
                trace = (row * noise).sum(-1)
            parts = [velocity, trace.unsqueeze(-1)]
            if energies:
                jacobian = linearisation.jacobian().flatten(-2) if row is None else row
                parts += [part.square().sum(-1).expand(batch).unsqueeze(-1) for part in (velocity, jacobian)]
            return torch.cat(parts, dim=-1)

        weights = [tensor.to(dtype) for tensor in net.tensors()]
        state = torch.cat(
            [start.to(dtype), start.new_zeros((*start.shape[:-1], 3 if energies else 1), dtype=dtype)], -1
        )
        if self.solver == "rk4" or start.is_meta:
            return solve_rk4(dynamics, state, [*points, *weights], begin, end, 1 if start.is_meta else self.num_steps)
        solver = Solver(begin, end, self.solver, self.tolerance, self.max_steps)
        return solve_adaptive(dynamics, state, points, weights, solver)

    def _draw(self, x: Tensor) -> Tensor:
        if self.noise == "normal":
            return torch.randn_like(x)
        return torch.randint(0, 2, x.shape, device=x.device).to(x.dtype) * 2.0 - 1.0

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_penalty": None}


def regularisation(flow: nn.Module) -> Tensor:
    """The penalties of all continuous steps of a chain, or of anything that holds some; zero if there is none.

    Example:
        >>> flow = Continuous(2, kinetic=0.01, jacobian=0.01)
        >>> loss = -flow.inv(torch.randn(10, 2)).sum() + regularisation(flow)
    """
    penalties = [step.regularisation() for step in _steps(flow)]
    return torch.stack(penalties).sum() if penalties else torch.zeros(())


def with_penalty(loss: Tensor, owner: Any) -> Tensor:
    """``loss`` and :func:`regularisation`, where ``owner`` is a module whose flows were asked for one."""
    return loss + regularisation(owner) if penalised(owner) else loss


def penalised(owner: Any) -> bool:
    """Whether ``owner`` is a module that holds a continuous step with a penalty."""
    return isinstance(owner, nn.Module) and any(step.penalised for step in _steps(owner))


def _steps(flow: nn.Module) -> list[Continuous]:
    return [step for step in flow.modules() if isinstance(step, Continuous)]
