"""The block neural autoregressive flow, against autograd and the formula with plain matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyro_flows_vi.nets.block_masked import ACTIVATIONS, BlockLinear
from pyro_flows_vi.numerics.log_space import log_matmul_exp, soft_bound
from pyro_flows_vi.transforms.block_autoregressive import (
    BlockAutoregressive,
    block_autoregressive,
    conditional_block_autoregressive,
)

CASES = {
    f"{activation}-{residual}": {"activation": activation, "residual": residual}
    for activation in ACTIVATIONS
    for residual in ("gated", "normal", None)
} | {"one-layer": {"hidden_factors": (5,)}, "three-layers": {"hidden_factors": (3, 1, 4)}}
every_case = pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())


def make(
    input_dim: int, context_dim: int | None = None, scale: float | None = None, **options: object
) -> BlockAutoregressive:
    options = {"hidden_factors": (4, 3)} | options
    flow = BlockAutoregressive(input_dim, context_dim, **options).double()  # type: ignore[arg-type]
    if scale is not None:
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.normal_(0.0, scale)
    return flow


def diagonal(flow: BlockAutoregressive, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """The diagonal of the autograd Jacobian, and its largest entry above the diagonal."""
    x = x.detach().requires_grad_()
    y = flow.forward_and_log_det(x, context)[0]
    rows = [torch.autograd.grad(y[..., i].sum(), x, retain_graph=True)[0] for i in range(flow.input_dim)]
    jacobian = torch.stack(rows, -2)
    return jacobian.diagonal(dim1=-2, dim2=-1), jacobian.triu(1).abs().max()


# -- the parts ---------------------------------------------------------------------------------------


def test_log_matmul_exp_is_the_logarithm_of_the_product() -> None:
    a, b = torch.randn(2, 3, 4).double(), torch.randn(4, 5).double()
    torch.testing.assert_close(log_matmul_exp(a, b), torch.log(a.exp() @ b.exp()))


def test_log_matmul_exp_of_any_range() -> None:
    a, b = 1e4 * torch.randn(6, 8), soft_bound(100.0 * torch.randn(8, 5))
    expected = torch.logsumexp(a[:, :, None].double() + b.double(), 1)
    torch.testing.assert_close(log_matmul_exp(a, b).double(), expected, rtol=1e-6, atol=1e-6)


def test_log_matmul_exp_gradients() -> None:
    inputs = (torch.randn(3, 4).double().requires_grad_(), torch.randn(4, 2).double().requires_grad_())
    assert torch.autograd.gradcheck(log_matmul_exp, inputs)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_activation_slopes(name: str, dtype: torch.dtype) -> None:
    u = torch.linspace(-4.0, 4.0, 50, dtype=dtype, requires_grad=True)
    value, log_rate = ACTIVATIONS[name](u)
    (rate,) = torch.autograd.grad(value.sum(), u)
    error = 1e-11 if dtype == torch.float64 else 1e-3  # autograd's 1 - tanh² cancels
    torch.testing.assert_close(log_rate, rate.log(), rtol=error, atol=error)
    far = ACTIVATIONS[name](torch.tensor([-1e4, 1e4], dtype=dtype))
    assert all(part.isfinite().all() for part in far)


def test_block_linear_has_positive_diagonal_blocks_and_nothing_above() -> None:
    layer = BlockLinear(3, 2, 4, gain=1.0, bias=torch.zeros(4)).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0.0, 2.0)
    matrix, scale, log_blocks = layer.matrix()
    weight = (matrix * scale[:, None]).view(3, 4, 3, 2)
    for i in range(3):
        torch.testing.assert_close(weight[i, :, i], log_blocks[i].exp().mT)
        assert (weight[i, :, i + 1 :] == 0).all()
        assert i == 0 or (weight[i, :, :i] != 0).all()
    torch.testing.assert_close((matrix * scale[:, None]).norm(dim=-1), torch.exp(layer.start + layer.log_scale))


def test_flow_is_the_formula() -> None:
    flow, x = make(3, None, 0.7, activation="tanh", residual="gated"), torch.randn(5, 3).double()
    h = x
    for i, layer in enumerate(flow.net.layers):
        assert isinstance(layer, BlockLinear)
        matrix, scale, _ = layer.matrix()
        h = h @ (matrix * scale[:, None]).mT + layer.bias
        h = torch.tanh(h) if i < 2 else h
    assert flow.gate is not None
    alpha = torch.sigmoid(flow.gate)
    torch.testing.assert_close(flow.forward_and_log_det(x)[0], alpha * h + (1.0 - alpha) * x)


# -- the flow ----------------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("input_dim, context_dim", [(1, None), (1, 3), (2, None), (5, None), (5, 3)])
def test_log_det_is_that_of_the_jacobian(options: dict[str, object], input_dim: int, context_dim: int | None) -> None:
    for scale in (None, 0.5, 2.0):
        flow = make(input_dim, context_dim, scale, **options)
        x = torch.randn(6, input_dim).double()
        context = None if context_dim is None else torch.randn(6, context_dim).double()
        log_det = flow.forward_and_log_det(x, context)[1]
        slopes, above = diagonal(flow, x, context)
        torch.testing.assert_close(log_det, slopes.log().sum(-1), rtol=1e-10, atol=1e-10)
        assert above == 0.0


@every_case
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("context_dim", [None, 3])
def test_round_trip(options: dict[str, object], batch: tuple[int, ...], context_dim: int | None) -> None:
    for scale in (None, 0.5, 2.0):
        flow = make(4, context_dim, scale, **options)
        x = torch.randn(*batch, 4).double()
        context = None if context_dim is None else torch.randn(*batch[1:], context_dim).double()
        y, log_det = flow.forward_and_log_det(x, context)
        back, log_det_back = flow.inverse_and_log_det(y, context)
        assert log_det.shape == log_det_back.shape == batch
        torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(log_det_back, log_det, rtol=1e-9, atol=1e-9)


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_onto_with_linear_tails(options: dict[str, object], dtype: torch.dtype) -> None:
    flow = make(2, None, 0.5, **options).to(dtype)
    far = torch.cat([-torch.logspace(4, -1, 30), torch.logspace(-1, 4, 30)]).to(dtype)
    for i in range(2):
        x = torch.full((60, 2), 0.3, dtype=dtype)
        x[:, i] = far
        y, log_det = flow.forward_and_log_det(x)
        assert y.isfinite().all() and log_det.isfinite().all()
        assert (y[:, i].diff() > 0).all()
        # The outermost chord has the slope that the log-determinant claims there.
        slope = (y[-1, i] - y[-2, i]) / (x[-1, i] - x[-2, i])
        assert slope > 1e-3
        rest = diagonal(flow, x[-1:], None)[0][0, 1 - i].log()
        torch.testing.assert_close(log_det[-1] - rest, slope.log(), rtol=1e-3, atol=1e-3)
    back = flow.inverse_and_log_det(y)[0]
    error = 1e-3 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(back, x, rtol=0.1 * error, atol=error)


@every_case
def test_near_the_identity_at_the_start(options: dict[str, object]) -> None:
    flow = make(3, 2, **{**options, "hidden_factors": (8, 8)})
    x = 0.7 * torch.randn(100, 3).double()
    y, log_det = flow.forward_and_log_det(x, torch.randn(100, 2).double())
    assert (y - x).abs().max() < 0.15
    assert log_det.abs().mean() < 0.2


@pytest.mark.parametrize("case", ["tanh-gated", "sigmoid-normal", "ELU-None", "LeakyReLU-gated", "one-layer"])
def test_gradients_of_the_inverse(case: str) -> None:
    flow = make(3, 2, 0.5, **CASES[case])
    y, context = torch.randn(2, 3).double().requires_grad_(), torch.randn(2, 2).double().requires_grad_()
    parameters = list(flow.parameters())

    def loss(y: Tensor, context: Tensor) -> Tensor:
        x, log_det = flow.inverse_and_log_det(y, context)
        return (x.square().sum(-1) * 0.7 - log_det).sum()

    grads = torch.autograd.grad(loss(y, context), [y, context, *parameters])
    step = 1e-5
    with torch.no_grad():
        for tensor, grad in zip([y, context, *parameters], grads, strict=True):
            direction = torch.randn_like(tensor)
            tensor.add_(step * direction)
            above = loss(y, context)
            tensor.sub_(2.0 * step * direction)
            below = loss(y, context)
            tensor.add_(step * direction)
            expected = (above - below) / (2.0 * step)
            torch.testing.assert_close((grad * direction).sum(), expected, rtol=1e-5, atol=1e-6)


@every_case
def test_every_parameter_and_every_unit_gets_a_gradient(options: dict[str, object]) -> None:
    flow = make(3, 2, **options)
    y, log_det = flow.forward_and_log_det(torch.randn(50, 3).double(), torch.randn(50, 2).double())
    ((y - 0.3).pow(4).sum() - log_det.sum()).backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    first = flow.net.layers[0]
    assert isinstance(first, BlockLinear) and first.bias.grad is not None
    assert len(first.bias.grad.unique()) == len(first.bias)  # no two units alike


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes(options: dict[str, object], dtype: torch.dtype) -> None:
    flow = make(3, None, 0.3, **options)
    x = torch.randn(20, 3).double()
    exact, exact_log_det = flow.forward_and_log_det(x)
    y, log_det = flow.to(dtype).forward_and_log_det(x.to(dtype))
    assert y.dtype == log_det.dtype == dtype
    error = 1e-4 if dtype == torch.float32 else 0.3
    torch.testing.assert_close(y.double(), exact, rtol=error, atol=error)
    if options.get("activation") != "LeakyReLU":  # whose slope jumps where rounding crosses the kink
        torch.testing.assert_close(log_det.double(), exact_log_det, rtol=error, atol=error)


@every_case
def test_vmap(options: dict[str, object]) -> None:
    flow, x = make(3, None, 0.5, **options), torch.randn(4, 5, 3).double()
    for mapped, direct in zip(torch.func.vmap(flow.forward_and_log_det)(x), flow.forward_and_log_det(x), strict=True):
        torch.testing.assert_close(mapped, direct)


@pytest.mark.parametrize("case", ["tanh-gated", "ELU-None"])
def test_compiled_equals_eager(case: str) -> None:
    torch._dynamo.reset()  # all flows share the code at the door, and dynamo counts its versions
    flow, x = make(3, 2, 0.5, **CASES[case]), torch.randn(5, 3).double()
    context = torch.randn(5, 2).double()
    compiled = torch.compile(flow.forward_and_log_det, fullgraph=True, backend="aot_eager")
    for graph, eager in zip(compiled(x, context), flow.forward_and_log_det(x, context), strict=True):
        torch.testing.assert_close(graph, eager)


def test_the_first_coordinate_sees_the_context() -> None:
    flow, x = make(2, 3, 0.5), torch.zeros(2, 2).double()
    y = flow.forward_and_log_det(x, torch.randn(2, 3).double())[0]
    assert y[0, 0] != y[1, 0]


def test_factories_have_pyros_signatures() -> None:
    flow = block_autoregressive(3, hidden_factors=[2], activation="ELU", residual=None)
    assert (flow.hidden_factors, flow.activation, flow.residual) == ((2,), "ELU", None)
    assert block_autoregressive(3).residual == "gated"
    assert conditional_block_autoregressive(3, 2, activation="sigmoid").context_dim == 2


@pytest.mark.parametrize(
    "options", [{"activation": "relu"}, {"residual": "highway"}, {"hidden_factors": ()}, {"hidden_factors": (3, 0)}]
)
def test_bad_options(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        BlockAutoregressive(2, **options)  # type: ignore[arg-type]
