"""Differential equations and Newton's method against closed forms, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pyro_flows_vi.numerics.newton import solve_newton
from pyro_flows_vi.numerics.ode import METHODS, Solver, solve_adaptive, solve_rk4


@pytest.fixture(autouse=True)
def float64() -> None:
    torch.set_default_dtype(torch.float64)


def linear(time: Tensor, state: Tensor, matrix: Tensor) -> Tensor:
    return state @ matrix.T


def blow_up(time: Tensor, state: Tensor) -> Tensor:
    return state.square()  # 1 / (1/s - t): infinite at t = 1/s


@pytest.mark.parametrize("start_and_end", [(0.0, 1.0), (2.0, 0.5)])
@pytest.mark.parametrize("method", METHODS)
def test_linear_equations_are_matrix_exponentials(method: str, start_and_end: tuple[float, float]) -> None:
    start, end = start_and_end
    matrix, state = torch.randn(3, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    direction = torch.randn(2, 3)
    final = solve_adaptive(linear, state, [], [matrix], Solver(start, end, method, 1e-9))
    exact = state @ torch.matrix_exp((end - start) * matrix).T
    torch.testing.assert_close(final, exact, rtol=1e-7, atol=1e-7)
    got = torch.autograd.grad((final * direction).sum(), [state, matrix])
    for a, b in zip(got, torch.autograd.grad((exact * direction).sum(), [state, matrix]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_rows_of_their_own_and_times() -> None:
    rate, state = torch.tensor([[0.5], [-2.0]], requires_grad=True), torch.ones(2, 1)
    solver = Solver(0.0, 1.5, "dopri8", 1e-10)
    final = solve_adaptive(lambda t, s, rate: rate * t * s, state, [rate], [], solver)
    torch.testing.assert_close(final, torch.exp(rate * 1.125))
    (got,) = torch.autograd.grad(final.sum(), rate)
    torch.testing.assert_close(got, (1.125 * torch.exp(rate * 1.125)).detach())


def test_rk4_is_of_order_four() -> None:
    errors = []
    for steps in (8, 16):
        final = solve_rk4(linear, torch.ones(1, 1), [torch.ones(1, 1)], 0.0, 1.0, steps)
        errors.append(abs(float(final) - math.e))
    assert errors[0] / errors[1] == pytest.approx(16.0, rel=0.15)


def test_the_tolerance_is_kept_at_the_worst_point() -> None:
    state = torch.cat([torch.zeros(500, 1), torch.ones(1, 1)])  # an average would not see the last
    for tolerance in (1e-4, 1e-7):
        final = solve_adaptive(linear, state, [], [torch.ones(1, 1)], Solver(0.0, 1.0, "dopri5", tolerance))
        assert abs(float(final[-1]) - math.e) < 5.0 * tolerance


def test_vmap_and_its_gradients() -> None:
    matrix, states, rates = torch.randn(2, 2), torch.randn(4, 2), torch.randn(4, 2)

    def final(state: Tensor, rate: Tensor, weight: Tensor) -> Tensor:
        return solve_adaptive(
            lambda t, s, r, w: r * s + s @ w.T, state, [rate], [weight], Solver(0.0, 1.0, "dopri8", 1e-10)
        )

    exact = torch.stack([torch.matrix_exp(rate.diag() + matrix) for rate in rates])
    got = torch.func.vmap(final, in_dims=(0, 0, None))(states, rates, matrix)
    torch.testing.assert_close(got, (exact @ states[..., None])[..., 0])
    jacobian = torch.func.vmap(torch.func.jacrev(final), in_dims=(0, 0, None))(states, rates, matrix)
    torch.testing.assert_close(jacobian, exact)
    each = torch.func.vmap(torch.func.grad(lambda w, s, r: final(s, r, w).sum()), in_dims=(None, 0, 0))
    gradients = each(matrix, states, rates)  # of the shared matrix, one for each state
    weight = matrix.clone().requires_grad_()
    (total,) = torch.autograd.grad(torch.func.vmap(final, (0, 0, None))(states, rates, weight).sum(), weight)
    torch.testing.assert_close(gradients.sum(0), total)
    with pytest.raises(RuntimeError, match="cannot be vmapped over the parameters"):
        torch.func.vmap(final)(states, rates, matrix.expand(4, 2, 2))


def test_what_has_no_solution_says_so() -> None:
    solver = Solver(0.0, 2.0, "dopri5", 1e-6)
    with pytest.raises(RuntimeError, match=r"dopri5 does not get from 0 to 2 at tolerance 1e-06: .*allow a larger"):
        solve_adaptive(blow_up, torch.ones(1, 1), [], [], solver)
    with pytest.raises(RuntimeError, match="more than 3 steps"):
        solve_adaptive(linear, torch.ones(1, 1), [], [torch.full((1, 1), -50.0)], Solver(0.0, 1.0, max_steps=3))
    with pytest.raises(RuntimeError, match="does not get from"):
        solve_adaptive(lambda t, s: s * torch.nan, torch.ones(1, 1), [], [], solver)
    with pytest.raises(ValueError, match="NaN or infinite"):
        solve_adaptive(linear, torch.full((1, 1), torch.inf), [], [torch.ones(1, 1)], solver)


def test_second_derivatives_are_refused_or_right() -> None:
    state = torch.ones(1, 1, requires_grad=True)
    final = solve_adaptive(lambda t, s: -s.square(), state, [], [], Solver(0.0, 1.0))
    (first,) = torch.autograd.grad(final.sum(), state, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(first.sum(), state)
    final = solve_rk4(lambda t, s: -s.square(), state, [], 0.0, 1.0, 20)  # s / (1 + s)
    (first,) = torch.autograd.grad(final.sum(), state, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), state)
    assert (first.item(), second.item()) == pytest.approx((0.25, -0.25), abs=1e-6)


def test_newton_finds_what_plain_steps_overshoot() -> None:
    def bent(x: Tensor):  # type: ignore[no-untyped-def]
        """arctan-like: without a line search Newton's steps grow from far away."""
        value, slope = torch.atan(5.0 * x) + 1e-3 * x, 5.0 / (1.0 + 25.0 * x**2) + 1e-3
        return value, lambda r: r / slope

    roots = torch.tensor([[0.0], [1.0], [-300.0], [2000.0]])
    found = solve_newton(bent, bent(roots)[0], torch.full((4, 1), 7.0))
    torch.testing.assert_close(found, roots, rtol=1e-10, atol=1e-12)


def test_newton_says_when_there_is_no_root() -> None:
    with pytest.raises(RuntimeError, match=r"my search: no convergence in 20 iterations, residual up to 1"):
        solve_newton(
            lambda x: (x.square() + 1.0, lambda r: r / (2.0 * x)), torch.zeros(1, 1), torch.ones(1, 1), 20, "my search"
        )
    with pytest.raises(ValueError, match="NaN or infinite"):
        solve_newton(lambda x: (x, lambda r: r), torch.full((1, 1), torch.nan), torch.zeros(1, 1))
