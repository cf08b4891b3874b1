"""Estimators of log det(I + J) and the fixed-point solver, against dense linear algebra in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyro_flows_vi.numerics.fixed_point import implicit_gradient, solve_fixed_point
from pyro_flows_vi.numerics.log_det import (
    TAILS,
    Roulette,
    converged,
    exact_log_det,
    num_terms_for,
    remainder_bound,
    series_log_det,
)

LIPSCHITZ = 0.8
PROBES = 20_000


@pytest.fixture(autouse=True)
def float64() -> None:
    torch.set_default_dtype(torch.float64)


def contraction(dim: int = 5, lipschitz: float = LIPSCHITZ) -> Tensor:
    """A matrix with every singular value at the bound: the worst case of the series."""
    return lipschitz * torch.linalg.qr(torch.randn(dim, dim))[0]


def signs(num_probes: int, dim: int) -> Tensor:
    return torch.randint(0, 2, (num_probes, dim)).double() * 2.0 - 1.0


def basis_trace(matrix: Tensor, weights: list[float], enough: Callable | None = None) -> Tensor:
    """The series without probe noise: scaled basis vectors as probes, whose mean is the trace."""
    dim = matrix.shape[-1]
    return series_log_det(lambda v: v @ matrix, math.sqrt(dim) * torch.eye(dim), weights, enough).mean()


def z_score(samples: Tensor, truth: Tensor) -> float:
    """The largest distance of a sample mean from the truth, in standard errors."""
    return float(((samples.mean(0) - truth).abs() / (samples.std(0) / len(samples) ** 0.5)).max())


# -- log-determinants -----------------------------------------------------------------------------------


def test_exact_log_det_and_its_gradient() -> None:
    matrix = contraction().requires_grad_()
    value = exact_log_det(matrix)
    assert value.item() == pytest.approx(math.log(torch.det(torch.eye(5) + matrix.detach())), abs=1e-12)
    (gradient,) = torch.autograd.grad(value, matrix)
    torch.testing.assert_close(gradient, torch.linalg.inv(torch.eye(5) + matrix.detach()).T)


@pytest.mark.parametrize("num_terms", [1, 2, 5, 20, 60])
def test_truncation_error_is_within_its_bound(num_terms: int) -> None:
    for matrix in (contraction(), -LIPSCHITZ * torch.eye(5)):  # the second has terms of one sign: the worst
        error = (basis_trace(matrix, [1.0] * num_terms) - exact_log_det(matrix)).abs()
        assert float(error) <= remainder_bound(5, LIPSCHITZ, num_terms) + 1e-13
    if num_terms > 2:  # and the bound is not idle
        assert float(error) >= 0.3 * remainder_bound(5, LIPSCHITZ, num_terms)


@pytest.mark.parametrize("tolerance", [1.0, 1e-3, 1e-8])
def test_num_terms_is_the_least_that_suffices(tolerance: float) -> None:
    n = num_terms_for(40, 0.97, tolerance)
    assert remainder_bound(40, 0.97, n) <= tolerance
    assert n == 1 or remainder_bound(40, 0.97, n - 1) > tolerance


@pytest.mark.parametrize(("order", "norm"), [(2.0, 2), (1.0, math.inf), (math.inf, 1)])
def test_the_stopping_rule_is_safe_and_saves_terms(order: float, norm: float) -> None:
    matrix = torch.randn(6, 6)
    matrix = 0.3 * matrix / torch.linalg.matrix_norm(matrix, ord=norm)  # contracts more than L says
    rule, calls = converged(LIPSCHITZ, 1e-6, order), []
    most = num_terms_for(6, LIPSCHITZ, 1e-6)

    def enough(row: Tensor, k: int) -> bool:
        calls.append(k)
        return rule(row, k)

    probes = signs(50, 6)
    stopped = series_log_det(lambda v: v @ matrix, probes, [1.0] * most, enough)
    full = series_log_det(lambda v: v @ matrix, probes, [1.0] * most)
    assert float((stopped - full).abs().max()) <= 1e-6
    assert calls[-1] < most / 2


def test_hutchinson_is_unbiased_in_value_and_gradient() -> None:
    matrix = contraction().requires_grad_()
    copies = matrix.detach().expand(PROBES, 5, 5).clone().requires_grad_()  # one gradient a probe
    vjp = lambda v: torch.einsum("pi,pij->pj", v, copies)  # noqa: E731
    values = series_log_det(vjp, signs(PROBES, 5), [1.0] * 8)
    (gradients,) = torch.autograd.grad(values.sum(), copies)
    truncated = basis_trace(matrix, [1.0] * 8)
    powers = [torch.linalg.matrix_power(matrix, k) for k in range(1, 9)]
    by_autograd = sum((-1) ** (k + 1) / k * p.trace() for k, p in enumerate(powers, start=1))
    (expected,) = torch.autograd.grad(by_autograd, matrix)
    torch.testing.assert_close(truncated, by_autograd)
    assert z_score(values.detach(), truncated.detach()) < 4.0
    assert z_score(gradients, expected) < 4.5


@pytest.mark.parametrize("tail", TAILS)
def test_roulette_is_unbiased_in_value_and_gradient(tail: str) -> None:
    matrix = contraction(lipschitz=0.6).requires_grad_()
    roulette = Roulette(2, tail, rate=0.6 if tail == "geometric" else 3.0)
    values, gradients = [], []
    for _ in range(4000):
        value = basis_trace(matrix, roulette.draw())  # no probe noise, so the bias would show
        values.append(value.detach())
        gradients.append(torch.autograd.grad(value, matrix)[0])
    truth = exact_log_det(matrix)
    (expected,) = torch.autograd.grad(truth, matrix)
    assert z_score(torch.stack(values), truth.detach()) < 4.0
    assert z_score(torch.stack(gradients), expected) < 4.5
    # A truncation at the mean number of terms would be seen at this precision.
    short = basis_trace(matrix, [1.0] * 3)
    assert z_score(torch.stack(values), short.detach()) > 10.0


@pytest.mark.parametrize(("tail", "rate"), [("geometric", 0.7), ("poisson", 3.0)])
def test_roulette_weights_follow_their_law(tail: str, rate: float) -> None:
    roulette = Roulette(1, tail, rate)
    draws = [roulette.draw() for _ in range(20_000)]
    lengths = torch.tensor([len(weights) - 1.0 for weights in draws])
    mean = rate / (1 - rate) if tail == "geometric" else rate
    assert z_score(lengths, torch.tensor(mean)) < 4.0
    longest = max(draws, key=len)
    assert longest[0] == 1.0
    for k, weight in enumerate(longest, start=1):
        assert weight == pytest.approx(1.0 / roulette.survival(k))
    frequency = (lengths >= 2.0).double()
    assert z_score(frequency, torch.tensor(roulette.survival(3))) < 4.0


def test_memory_does_not_grow_with_the_number_of_terms() -> None:
    def saved_bytes(num_terms: int) -> int:
        total = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        matrix = contraction(20).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            value = series_log_det(lambda v: torch.tanh(v @ matrix), signs(30, 20), [1.0] * num_terms)
        value.sum().backward()
        assert matrix.grad is not None
        return total

    assert saved_bytes(2) == saved_bytes(20) == saved_bytes(200) > 0


def test_no_graph_without_grad() -> None:
    matrix = contraction().requires_grad_()
    with torch.no_grad():
        value = basis_trace(matrix, [1.0] * 200)
    assert not value.requires_grad
    torch.testing.assert_close(value, exact_log_det(matrix).detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: remainder_bound(3, 1.0, 5), "lipschitz"),
        (lambda: num_terms_for(3, 0.9, 0.0), "tolerance"),
        (lambda: Roulette(-1), "num_exact"),
        (lambda: Roulette(1, "cauchy"), "tail"),
        (lambda: Roulette(1, "geometric", 1.0), "rate"),
        (lambda: Roulette(1, "poisson", 0.0), "rate"),
        (lambda: Roulette(1, "poisson", math.nan), "rate"),
    ],
)
def test_bad_options(make: Callable[[], object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make()


# -- fixed points ---------------------------------------------------------------------------------------


def affine_tanh(x: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    return torch.tanh(x @ matrix.T) + shift


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 3e-6)])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e6])
def test_fixed_point(dtype: torch.dtype, tolerance: float, size: float) -> None:
    matrix, shift = contraction().to(dtype), size * torch.randn(4, 2, 5, dtype=dtype)
    x = solve_fixed_point(lambda x: affine_tanh(x, matrix, shift), shift)
    assert float((affine_tanh(x, matrix, shift) - x).abs().max()) <= tolerance * (1.0 + size)
    assert not x.requires_grad


def test_implicit_gradients_are_those_of_the_exact_jacobian() -> None:
    matrix, shift = contraction(lipschitz=0.95).requires_grad_(), torch.randn(3, 5, requires_grad=True)
    root = solve_fixed_point(lambda x: affine_tanh(x, matrix, shift), torch.zeros(3, 5))
    slope = (1.0 - torch.tanh(root @ matrix.T) ** 2).detach()
    x = implicit_gradient(affine_tanh(root, matrix, shift), lambda v: (v * slope) @ matrix)
    direction = torch.randn(3, 5) * torch.tensor([[1e-9], [1.0], [1e9]])  # each point has a scale of its own
    gradients = torch.autograd.grad((x * direction).sum(), [matrix, shift])

    jacobian = slope.unsqueeze(-1) * matrix.detach()
    v = torch.linalg.solve((torch.eye(5) - jacobian).mT, direction.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(gradients[1], v, rtol=1e-11, atol=0)
    expected = torch.einsum("ni,ni,nj->ij", v, slope, root)
    torch.testing.assert_close(gradients[0], expected, rtol=1e-11, atol=0)
    # A single step without the adjoint solution would be far off.
    assert float((direction - v).abs().max() / v.abs().max()) > 0.1


def test_expansions_raise_and_name_the_residual() -> None:
    with pytest.raises(RuntimeError, match=r"my map: no convergence in 50 iterations.*residual"):
        solve_fixed_point(lambda x: 3.0 * torch.cos(3.0 * x), torch.ones(2), 50, name="my map")
    with pytest.raises(RuntimeError, match="no convergence"):
        solve_fixed_point(lambda x: x + 1.0, torch.zeros(2), 50)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_raise(bad: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        solve_fixed_point(lambda x: x * 0.5 + bad, torch.zeros(2))


def test_noise_above_rounding_ends_the_iteration() -> None:
    generator = torch.Generator().manual_seed(0)
    noisy = lambda x: 0.5 * x + 1.0 + 1e-11 * torch.randn(3, generator=generator)  # noqa: E731
    x = solve_fixed_point(noisy, torch.zeros(3), 500)
    assert float((x - 2.0).abs().max()) < 1e-9
