"""Residual flows: exact and estimated log-determinants, the inverse and its gradients, in float64."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor

from pyro_flows_vi import flows
from pyro_flows_vi.nets.lipschitz import NORMS
from pyro_flows_vi.testing import (
    check_flow,
    check_gradients,
    check_inverse,
    check_inverse_gradients,
    check_log_det,
)
from pyro_flows_vi.transforms.residual import Residual, conditional_residual, residual

# The room exports a factory of the same name, which hides the module from a plain import.
module = importlib.import_module("pyro_flows_vi.transforms.residual")


@pytest.fixture(autouse=True)
def float64() -> None:
    torch.set_default_dtype(torch.float64)


def press(flow: Residual) -> Residual:
    """Bring g near its bound, where it bends: weights drawn at random hardly use what the norms allow."""
    first, middle, last = flow.net.weights
    width = len(middle)
    with torch.no_grad():
        first.copy_(3.0 * torch.linalg.qr(torch.randn(width, width))[0][:, : flow.input_dim])
        middle.copy_(3.0 * torch.linalg.qr(torch.randn(width, width))[0])
        last.copy_(torch.linalg.qr(torch.randn(flow.input_dim, flow.input_dim))[0] @ (middle @ first).T)
        for bias in flow.net.biases:
            bias.copy_(1.0 + 0.5 * torch.randn(bias.shape))
    return flow


def pressed(dim: int = 3, context_dim: int | None = None, **options: object) -> Residual:
    return press(Residual(dim, context_dim, (2 * dim, 2 * dim), **options))  # type: ignore[arg-type]


def points(flow: Residual, *batch: int) -> tuple[Tensor, Tensor | None]:
    context = None if flow.context_dim is None else torch.randn(*batch[1:], flow.context_dim)
    return torch.randn(*batch, flow.input_dim), context


def z_score(samples: Tensor, truth: Tensor) -> float:
    """The largest distance of a sample mean from the truth, in standard errors."""
    return float(((samples.mean(0) - truth).abs() / (samples.std(0) / len(samples) ** 0.5)).max())


# -- the map --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("dim", "context_dim"), [(1, None), (2, None), (5, None), (5, 3)])
def test_contract(dim: int, context_dim: int | None, norm: str) -> None:
    errors = check_flow(Residual(dim, context_dim, norm=norm), scales=(None, 0.5, 2.0, 20.0))
    assert max(errors.values()) < 1e-9


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("context_dim", [None, 2])
@pytest.mark.parametrize("lipschitz", [0.5, 0.97, 0.999])
def test_contract_where_the_bound_is_nearly_reached(
    lipschitz: float, context_dim: int | None, batch: tuple[int, ...]
) -> None:
    flow = pressed(3, context_dim, lipschitz=lipschitz)
    x, context = points(flow, *batch)
    log_det = flow.forward_and_log_det(x, context)[1]
    assert log_det.shape == batch
    norms = torch.linalg.matrix_norm(flow.net.bind(context)(x)[1].jacobian().detach(), ord=2)
    assert 0.25 * lipschitz < float(norms.max()) < lipschitz  # there is something to get wrong
    check_log_det(flow, x, context, tolerance=1e-12)
    check_inverse(flow, x, context, tolerance=1e-12)
    check_inverse_gradients(flow, x, context, tolerance=1e-10)


def test_near_the_identity_at_the_start() -> None:
    flow = Residual(10, 4)
    x, context = points(flow, 50)
    y, log_det = flow.forward_and_log_det(x, context)
    assert float((y - x).detach().abs().max()) < 0.2
    assert float(log_det.detach().abs().max()) < 0.2
    check_gradients(flow, x, context)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_round_trip(dtype: torch.dtype, tolerance: float) -> None:
    for flow in (pressed(5).to(dtype), pressed(5, log_det="series").to(dtype)):
        x = torch.randn(100, 5).to(dtype)
        y = flow.forward_and_log_det(x)[0]
        assert y.dtype == dtype
        assert float((flow.inverse_and_log_det(y)[0] - x).detach().abs().max()) < tolerance
        far = 1e8 * x
        back = flow.inverse_and_log_det(flow.forward_and_log_det(far)[0])[0]
        assert float((back - far).detach().abs().max()) < 1e8 * tolerance


def test_inverse_raises_where_g_is_no_contraction() -> None:
    flow = pressed(3)
    flow.net.lipschitz = 20.0  # what the constructor refuses
    with torch.no_grad():
        flow.net.weights[2].copy_((flow.net.weights[1] @ flow.net.weights[0]).T)  # all slopes positive
    with pytest.raises(RuntimeError, match=r"residual flow: no convergence.*residual"):
        flow.inverse_and_log_det(torch.randn(50, 3))


def test_bfloat16_forward() -> None:
    flow = pressed(4).to(torch.bfloat16)
    x = torch.randn(10, 4).to(torch.bfloat16)
    y, log_det = flow.forward_and_log_det(x)
    expected = flow.double().forward_and_log_det(x.double())
    assert y.dtype == log_det.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), expected[0], atol=0.1, rtol=0.05)
    torch.testing.assert_close(log_det.double(), expected[1], atol=0.2, rtol=0.1)


def test_compiled_equals_eager() -> None:
    flow = pressed(3, 2)
    x, context = points(flow, 4)
    compiled = torch.compile(flow.forward_and_log_det, fullgraph=True, backend="aot_eager")
    for got, expected in zip(compiled(x, context), flow.forward_and_log_det(x, context), strict=True):
        torch.testing.assert_close(got, expected)


def test_many_points_are_taken_in_parts() -> None:
    flow = pressed(4)
    x = torch.randn(7, 5000, 4)  # more than fit in one part
    log_det = flow.forward_and_log_det(x)[1]
    torch.testing.assert_close(log_det[3, ::500], flow.forward_and_log_det(x[3, ::500])[1], rtol=0, atol=1e-14)


@pytest.mark.parametrize("turned", [False, True])
def test_density_integrates_to_one(turned: bool) -> None:
    flow = flows.build("residual", 2, num_transforms=2, hidden_dims=(6, 6))
    for step in flow:
        press(step)
    base = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    density = torch.distributions.TransformedDistribution(base, [flow.inv if turned else flow])
    axis = torch.linspace(-30.0, 30.0, 301)
    with torch.no_grad():
        mass = density.log_prob(torch.cartesian_prod(axis, axis)).exp().sum() * (axis[1] - axis[0]) ** 2
    assert mass.item() == pytest.approx(1.0, abs=1e-3)


# -- the estimators ---------------------------------------------------------------------------------------


def test_exact_log_det_is_honest() -> None:
    expected = {
        "auto": (True, False),
        "exact": (True, True),
        "series": (False, False),
        "roulette": (False, False),
    }
    for log_det, (small, large) in expected.items():
        flow = Residual(2, log_det=log_det)
        big = Residual(module.EXACT_DIM + 1, hidden_dims=(4,), log_det=log_det)
        assert (flow.exact_log_det, big.exact_log_det) == (small, large)
        assert (flow.inv.exact_log_det, flow.eval().exact_log_det) == (small, True)
        assert big.eval().exact_log_det is (log_det == "exact")


@pytest.mark.parametrize(
    "options",
    [
        {"log_det": "series", "num_terms": 40},
        {"log_det": "roulette"},
        {"log_det": "roulette", "num_probes": 3, "num_terms": 1},
        {"log_det": "roulette", "tail": "poisson", "rate": 4.0},
    ],
)
def test_training_estimates_are_unbiased(options: dict) -> None:
    flow = pressed(3, lipschitz=0.7, **options)
    parameters = [flow.net.weights[0], flow.net.weights[2], flow.net.biases[1], flow.net.raw_sharpness[0]]
    x = torch.randn(2, 3, requires_grad=True)
    leaves = [x, *parameters]
    values, gradients = [], []
    for _ in range(600):
        value = flow.forward_and_log_det(x)[1]
        values.append(value.detach())
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(value.sum(), leaves)]))
    truth = flow.eval().forward_and_log_det(x)[1]
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(truth.sum(), leaves)])
    assert z_score(torch.stack(values), truth.detach()) < 4.0
    assert z_score(torch.stack(gradients), expected) < 5.0


def test_a_short_series_is_biased_in_training_only() -> None:
    flow = pressed(3, log_det="series", num_terms=1, num_probes=20_000)
    x = torch.randn(2, 3)
    with torch.no_grad():
        trained, exact = flow.forward_and_log_det(x)[1], flow.eval().forward_and_log_det(x)[1]
    assert float((trained - exact).abs().max()) > 0.05


@pytest.mark.parametrize("norm", NORMS)
def test_evaluation_above_the_exact_dimension_is_converged(monkeypatch: pytest.MonkeyPatch, norm: str) -> None:
    flow = pressed(6, 2, norm=norm, eval_probes=2000, tolerance=1e-4)
    x, context = points(flow, 3)
    exact = flow.forward_and_log_det(x, context)[1].detach()
    monkeypatch.setattr(module, "EXACT_DIM", 5)
    with torch.no_grad():
        value, error = flow.eval().estimate_log_det(x, context)
        plain = flow.forward_and_log_det(x, context)[1]
    assert value.shape == error.shape == plain.shape == (3,)
    assert 0.0 < float(error.max()) < 0.05
    assert bool(((value - exact).abs() < 4.5 * error + 1e-4).all())
    assert bool(((plain - exact).abs() < 4.5 * error + 1e-4).all())


@pytest.mark.parametrize("log_det", ["series", "roulette"])
def test_matrix_free_inverse_gradients(log_det: str) -> None:
    free, exact = (pressed(4, 2, log_det=choice) for choice in (log_det, "exact"))
    exact.load_state_dict(free.state_dict())
    x, context = points(free, 2, 3)
    y = exact.forward_and_log_det(x, context)[0].detach().requires_grad_()
    assert context is not None
    direction, given, results = torch.randn(2, 3, 4), context.requires_grad_(), []
    for flow in (free, exact):
        back = flow.inverse_and_log_det(y, given)[0]
        leaves = [y, given, *flow.parameters()]
        results.append((back, *torch.autograd.grad((back * direction).sum(), leaves, allow_unused=True)))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("log_det", ["series", "roulette"])
def test_memory_is_flat_in_the_number_of_terms(log_det: str) -> None:
    def saved_bytes(num_terms: int) -> int:
        flow, total = Residual(8, log_det=log_det, num_terms=num_terms), 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            flow.forward_and_log_det(torch.randn(16, 8))
        return total

    assert saved_bytes(1) == saved_bytes(10) == saved_bytes(100) > 0


# -- options ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"lipschitz": 1.0}, "lipschitz"),
        ({"lipschitz": 0.0}, "lipschitz"),
        ({"norm": "frobenius"}, "norm"),
        ({"log_det": "trace"}, "log_det"),
        ({"num_terms": 0}, "num_terms"),
        ({"num_probes": 0}, "num_probes"),
        ({"eval_probes": 1}, "eval_probes"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"tail": "pareto"}, "tail"),
        ({"rate": 1.0}, "rate"),
        ({"hidden_dims": ()}, "hidden_dims"),
        ({"input_dim": 0}, "input_dim"),
    ],
)
def test_bad_options(options: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Residual(**({"input_dim": 3} | options))


def test_bad_points() -> None:
    flow = Residual(3, 2)
    for x, context in [
        (torch.zeros(4), torch.zeros(2)),
        (torch.zeros(2, 3), torch.zeros(5, 2)),
        (torch.zeros(3), None),
    ]:
        for method in (flow.forward_and_log_det, flow.inverse_and_log_det, flow.estimate_log_det):
            with pytest.raises(ValueError, match=r"expected|broadcast"):
                method(x, context)
    with pytest.raises(ValueError, match="NaN or infinite"):
        flow.inverse_and_log_det(torch.full((3,), torch.nan), torch.zeros(2))


def test_factories_and_registry() -> None:
    assert residual(3, (8,)).input_dim == 3
    assert conditional_residual(3, 2).context_dim == 2
    flow = flows.build("residual", 40, context_dim=300, num_transforms=2, lipschitz=0.9)
    y = flow.condition(torch.randn(7, 300))(torch.randn(7, 40))
    assert y.shape == (7, 40)
