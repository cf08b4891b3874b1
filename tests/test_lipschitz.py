"""Networks of bounded Lipschitz constant, against singular values and autograd Jacobians in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pyro_flows_vi.nets.lipschitz import NORMS, LipschitzMLP, lip_swish, operator_norm
from pyro_flows_vi.testing import randomize

DUAL = {"spectral": 2, "inf": float("inf"), "one": 1}


@pytest.fixture(autouse=True)
def float64() -> None:
    torch.set_default_dtype(torch.float64)


def jacobians(net: LipschitzMLP, x: Tensor, context: Tensor | None = None) -> Tensor:
    """``(n, D, D)`` by automatic differentiation."""
    points = (x,) if context is None else (x, context)
    return torch.func.vmap(torch.func.jacrev(net))(*points).detach()


def at_its_bound(dim: int, width: int, norm: str = "spectral", layers: int = 3) -> LipschitzMLP:
    """A network whose slopes are near their maximum at the origin, so that the bound is nearly reached."""
    net = LipschitzMLP(dim, [width] * (layers - 1), lipschitz=0.97, norm=norm)
    with torch.no_grad():
        for weight, bias in zip(net.weights, net.biases, strict=True):
            weight.copy_(30.0 * torch.eye(*weight.shape))
            bias.fill_(100.0)
        for raw in net.raw_sharpness:
            raw.fill_(0.5)
    return net


# -- norms --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (7, 3), (64, 64)])
@pytest.mark.parametrize("scale", [1e-150, 1e-3, 1.0, 1e100])
def test_spectral_norm_is_bounded_from_above_and_tightly(shape: tuple[int, int], scale: float) -> None:
    weight = scale * torch.randn(shape)
    exact = torch.linalg.matrix_norm(weight, ord=2)
    ratio = operator_norm(weight, "spectral") / exact
    assert 1.0 - 1e-12 <= ratio <= min(shape) ** (1 / 256) + 1e-12


def test_spectral_norm_is_loosest_where_singular_values_are_equal() -> None:
    orthogonal = torch.linalg.qr(torch.randn(64, 64))[0]
    assert operator_norm(5.0 * orthogonal, "spectral").item() == pytest.approx(5.0 * 64 ** (1 / 256), rel=1e-12)


@pytest.mark.parametrize("norm", NORMS)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 6), columns=st.integers(1, 6))
def test_norms_bound_the_linear_map(norm: str, seed: int, rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    x = torch.randn(50, columns, generator=generator)
    gain = torch.linalg.vector_norm(x @ weight.T, DUAL[norm], dim=-1) / torch.linalg.vector_norm(x, DUAL[norm], dim=-1)
    bound = operator_norm(weight, norm)
    assert float(gain.max()) <= float(bound) * (1 + 1e-12)
    assert float(bound) <= 1.01 * float(torch.linalg.matrix_norm(weight, ord=DUAL[norm]))


@pytest.mark.parametrize("norm", NORMS)
def test_norm_gradients(norm: str) -> None:
    weight = torch.randn(4, 6, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: operator_norm(w, norm), weight)


@pytest.mark.parametrize("norm", NORMS)
def test_norm_of_zero_is_zero_with_a_finite_gradient(norm: str) -> None:
    weight = torch.zeros(3, 4, requires_grad=True)
    value = operator_norm(weight, norm)
    value.backward()
    assert value.item() < 1e-100
    assert weight.grad is not None and bool(weight.grad.isfinite().all())


def test_half_precision_norms_are_taken_in_float32() -> None:
    weight = torch.randn(8, 8, dtype=torch.bfloat16)
    value = operator_norm(weight)
    assert value.dtype == torch.float32
    assert float(value) >= 0.999 * float(torch.linalg.matrix_norm(weight.float(), ord=2))


# -- activation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharpness", [1e-3, 1.0, 50.0])
def test_lip_swish_slope(sharpness: float) -> None:
    x = torch.linspace(-20, 20, 10_001).div(sharpness).requires_grad_()
    value, slope = lip_swish(x, torch.tensor(sharpness))
    (expected,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(slope, expected, rtol=1e-12, atol=1e-12)
    assert -0.1 < slope.min().item() < -0.09
    assert 0.99 < slope.max().item() < 1.0


# -- networks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("context_dim", [None, 3])
@pytest.mark.parametrize("hidden_dims", [[8], [8, 5], [4, 8, 6]])
@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_linearisation_is_the_autograd_jacobian(scale: float, hidden_dims: list[int], context_dim: int | None) -> None:
    net = LipschitzMLP(4, hidden_dims, context_dim)
    randomize(net, scale)
    x = torch.randn(10, 4)
    context = None if context_dim is None else torch.randn(10, context_dim)
    value, linearisation = net.bind(context)(x)
    expected = jacobians(net, x, context)
    size = expected.abs().max()
    torch.testing.assert_close(value, net(x, context))
    torch.testing.assert_close(linearisation.jacobian() / size, expected / size, rtol=1e-9, atol=1e-9)
    v = torch.randn(2, 10, 4)
    row = torch.einsum("pni,nij->pnj", v, expected)
    torch.testing.assert_close(linearisation.vjp(v) / size, row / size, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [0.5, 2.0, 20.0])
def test_the_bound_holds_for_any_parameters_and_context(norm: str, scale: float) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        net = LipschitzMLP(3, [16, 16], 2, lipschitz=0.97, norm=norm)
        randomize(net, scale, torch.Generator().manual_seed(seed))
        jacobian = jacobians(net, 3.0 * torch.randn(500, 3), 3.0 * torch.randn(500, 2))
        assert float(torch.linalg.matrix_norm(jacobian, ord=DUAL[norm]).max()) <= 0.97


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("layers", [2, 3, 5])
def test_the_bound_is_nearly_reached_and_not_crossed(norm: str, layers: int) -> None:
    net = at_its_bound(4, 4, norm, layers)
    norms = torch.linalg.matrix_norm(jacobians(net, 0.1 * torch.randn(200, 4)), ord=DUAL[norm])
    # Far in the linear part each activation has slope 1 / 1.1, and the spectral bound is 0.5 % loose a layer.
    assert 0.97 * (1 / 1.1) ** (layers - 1) * 0.97 < float(norms.max()) <= 0.97


def test_weights_inside_the_bound_are_untouched() -> None:
    net = LipschitzMLP(3, [8, 8], lipschitz=0.97)
    with torch.no_grad():
        for weight in net.weights:
            weight.mul_(0.1)
    for used, weight in zip(net.constrained_weights(), net.weights, strict=True):
        assert torch.equal(used, weight)


def test_evaluation_is_a_pure_function() -> None:
    net = LipschitzMLP(3, [8, 8])
    randomize(net, 2.0)
    x, before = torch.randn(5, 3), {k: v.clone() for k, v in net.state_dict().items()}
    values = [net.train()(x), net.eval()(x), net(x)]
    assert torch.equal(values[0], values[1]) and torch.equal(values[0], values[2])
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_a_context_broadcasts_and_is_bound_once() -> None:
    net = LipschitzMLP(3, [8], 2)
    x, context = torch.randn(7, 5, 3), torch.randn(5, 2)
    torch.testing.assert_close(net(x, context), net(x, context.expand(7, 5, 2)))
    assert not torch.allclose(net(x, context), net(x, context + 1.0))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"hidden_dims": []}, "hidden_dims"),
        ({"hidden_dims": [4, 0]}, "hidden_dims"),
        ({"lipschitz": 0.0}, "lipschitz"),
        ({"lipschitz": float("nan")}, "lipschitz"),
        ({"norm": "l2"}, "norm"),
    ],
)
def test_bad_options(options: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        LipschitzMLP(3, **({"hidden_dims": [4]} | options))


def test_unknown_norm() -> None:
    with pytest.raises(ValueError, match="spectral"):
        operator_norm(torch.eye(2), "nuclear")
