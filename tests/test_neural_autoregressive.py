"""The neural autoregressive flow and the scalar maps behind it, against autograd and closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyro_flows_vi.transforms.monotone import MIXTURES, dense_sigmoidal, sigmoid_mixture, tanh_mixture
from pyro_flows_vi.transforms.neural_autoregressive import (
    NeuralAutoregressive,
    conditional_neural_autoregressive,
    neural_autoregressive,
)

CASES = {
    "dsf": {},
    "dsf-tanh": {"activation": "tanh"},
    "dsf-elu": {"activation": "ELU"},
    "dsf-leaky": {"activation": "LeakyReLU"},
    "ddsf-2": {"depth": 2},
    "ddsf-3": {"depth": 3, "width": 5},
}
every_case = pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
every_map = pytest.mark.parametrize("name", MIXTURES)


def make(
    input_dim: int, context_dim: int | None = None, scale: float | None = None, **options: object
) -> NeuralAutoregressive:
    flow = NeuralAutoregressive(input_dim, context_dim, (12,), **{"width": 8, **options}).double()  # type: ignore[arg-type]
    if scale is not None:
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.normal_(0.0, scale)
    return flow


def diagonal(flow: NeuralAutoregressive, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """The diagonal of the autograd Jacobian, and its largest entry above the diagonal."""
    x = x.detach().requires_grad_()
    y = flow.forward_and_log_det(x, context)[0]
    rows = [torch.autograd.grad(y[..., i].sum(), x, retain_graph=True)[0] for i in range(flow.input_dim)]
    jacobian = torch.stack(rows, -2)
    return jacobian.diagonal(dim1=-2, dim2=-1), jacobian.triu(1).abs().max()


# -- the scalar maps ---------------------------------------------------------------------------------


def test_sigmoid_mixture_is_the_formula() -> None:
    x, (slope, shift, weight) = torch.randn(50, 1).double(), torch.randn(3, 4, 1).double()
    a = slope.exp()
    p = (weight.softmax(-2) * torch.sigmoid(a * x[..., None] + shift)).sum(-2)
    torch.testing.assert_close(sigmoid_mixture(x, slope, shift, weight)[0], torch.logit(p))


def test_tanh_mixture_is_the_formula() -> None:
    x, (slope, shift, weight) = torch.randn(50, 1).double(), 0.3 * torch.randn(3, 4, 1).double()
    a = slope.exp()
    t = (weight.softmax(-2) * torch.tanh(a * x[..., None] + shift)).sum(-2)
    torch.testing.assert_close(tanh_mixture(x, slope, shift, weight)[0], torch.atanh(t))


@pytest.mark.parametrize("name, inner", [("ELU", torch.nn.ELU()), ("LeakyReLU", torch.nn.LeakyReLU(0.01))])
def test_rectifier_mixtures_are_the_formula(name: str, inner: torch.nn.Module) -> None:
    x, (slope, shift, weight) = torch.randn(200, 1).double(), torch.randn(3, 4, 1).double()
    a = slope.exp()
    y = MIXTURES[name](x, slope, shift, weight)[0]
    assert (y < 0).any() and (y > 0).any()
    torch.testing.assert_close(inner(y), (weight.softmax(-2) * inner(a * x[..., None] + shift)).sum(-2))


def test_dense_sigmoidal_is_the_formula() -> None:
    x, width = torch.randn(20, 1).double(), 4
    layers = [torch.randn(3, width, 1).double(), torch.randn(4, width, 1).double()]
    mixers = [torch.randn(width, width).double() for _ in range(2)]
    h = x[..., None]
    for i, (slope, shift, weight, *inner) in enumerate(layers):
        if inner:
            h = torch.softmax(mixers[1] + inner[0].mT, -1) @ h
        mix = torch.softmax((mixers[0] if i == 0 else torch.zeros(1, width)) + weight.mT, -1)
        h = torch.logit(mix @ torch.sigmoid(slope.exp() * h + shift))
    torch.testing.assert_close(dense_sigmoidal(x, layers, mixers)[0], h.squeeze(-2))


def test_one_dense_layer_is_the_sigmoid_mixture() -> None:
    x, layer = torch.randn(7, 3).double(), torch.randn(3, 5, 3).double()
    for a, b in zip(dense_sigmoidal(x, [layer], []), sigmoid_mixture(x, *layer), strict=True):
        torch.testing.assert_close(a, b)


@every_map
@pytest.mark.parametrize("scale", [0.5, 2.0, 10.0])
def test_maps_are_increasing_onto_and_exact_far_out(name: str, scale: float) -> None:
    slope, shift, weight = scale * torch.randn(3, 8, 40)
    x = torch.cat([-torch.logspace(4, -1, 40), torch.logspace(-1, 4, 40)])[:, None].expand(-1, 40)
    y, log_slope = MIXTURES[name](x, slope, shift, weight)
    assert y.isfinite().all() and log_slope.isfinite().all()
    assert scale == 10.0 or (y.diff(dim=0) > 0).all()  # a map can be flat to the precision of float32
    wide = x.double().requires_grad_()
    exact = MIXTURES[name](wide, slope.double(), shift.double(), weight.double())[0]
    (derivative,) = torch.autograd.grad(exact.sum(), wide)
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)
    # Between two steep parts the rounding of a x + b is what remains.
    limit = 1e-5 + 4e-7 * scale * float(slope.exp().max())
    far = x.abs() > 1e3
    assert (log_slope - derivative.log())[far].abs().max() < limit


@every_map
def test_slopes_that_underflow_keep_a_finite_logarithm(name: str) -> None:
    slope = torch.full((4, 1), -300.0)
    y, log_slope = MIXTURES[name](torch.ones(1), slope, torch.linspace(-1.0, 1.0, 4)[:, None], torch.zeros(4, 1))
    assert y.isfinite().all()
    assert -301.0 < float(log_slope) < -295.0


# -- the flow ----------------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("scale", [None, 0.5, 2.0])
@pytest.mark.parametrize("input_dim", [1, 2, 5])
@pytest.mark.parametrize("context_dim", [None, 3])
def test_log_det_is_that_of_the_jacobian(
    options: dict[str, object], scale: float | None, input_dim: int, context_dim: int | None
) -> None:
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
    for scale in (None, 0.5):
        flow = make(4, context_dim, scale, **options)
        x = 2.0 * torch.randn(*batch, 4).double()
        context = None if context_dim is None else torch.randn(*batch[1:], context_dim).double()
        y, log_det = flow.forward_and_log_det(x, context)
        back, log_det_back = flow.inverse_and_log_det(y, context)
        assert log_det.shape == log_det_back.shape == batch
        torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(log_det_back, log_det, rtol=1e-9, atol=1e-9)


@every_case
def test_round_trip_of_any_target(options: dict[str, object]) -> None:
    # From y, not from x: at large parameters the map has flat places, where only y is determined.
    flow = make(1, None, 2.0, **options)
    y = torch.cat([torch.linspace(-20.0, 20.0, 41), torch.tensor([-1e4, 1e4])]).double()[:, None]
    x = flow.inverse_and_log_det(y)[0]
    again = flow.forward_and_log_det(x)[0]
    slopes, _ = diagonal(flow, x, None)
    reach = 1e-12 * (1.0 + y.abs()) + 4.0 * torch.finfo(y.dtype).eps * x.abs() * slopes  # what moving x by a float does
    assert ((again - y).abs() <= reach).all()


@every_case
def test_far_points(options: dict[str, object]) -> None:
    flow = make(2, None, 0.3, **options)
    x = torch.tensor([[0.3, -1e4], [-1.0, 1e4], [2.0, 1e-8]]).double()
    y, log_det = flow.forward_and_log_det(x)
    back, log_det_back = flow.inverse_and_log_det(y)
    torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(log_det_back, log_det, rtol=1e-8, atol=1e-8)


@every_case
def test_near_the_identity_at_the_start(options: dict[str, object]) -> None:
    flow = make(3, 2, **options)
    x = torch.randn(100, 3).double()
    y, log_det = flow.forward_and_log_det(x, torch.randn(100, 2).double())
    bend = 0.6 if options.get("activation") == "LeakyReLU" else 0.15  # its kinks are at the origin
    assert (y - x).abs().max() < bend
    assert log_det.abs().mean() < 3 * bend


@every_case
def test_gradients_of_the_inverse(options: dict[str, object]) -> None:
    flow = make(3, 2, 0.3, **options)
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
    (y.square().sum() - log_det.sum()).backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert flow.net.last is not None and flow.net.last.bias.grad is not None
    shifts = flow.net.last.bias.grad.view(-1, 3)[1:].view(-1, flow.width, 3)[1]
    assert len(shifts[:, 0].unique()) == flow.width  # no two units alike


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
    torch.testing.assert_close(log_det.double(), exact_log_det, rtol=error, atol=error)


@every_case
def test_vmap(options: dict[str, object]) -> None:
    flow, x = make(3, None, 0.5, **options), torch.randn(4, 5, 3).double()
    for mapped, direct in zip(torch.func.vmap(flow.forward_and_log_det)(x), flow.forward_and_log_det(x), strict=True):
        torch.testing.assert_close(mapped, direct)


@pytest.mark.parametrize("case", ["dsf", "ddsf-2"])
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
    flow = neural_autoregressive(3, [7], "tanh", 4)
    assert (flow.width, flow.activation, flow.net.last.in_features) == (4, "tanh", 7)  # type: ignore[union-attr]
    conditional = conditional_neural_autoregressive(3, 2, hidden_dims=[7], activation="ELU", width=4)
    assert (conditional.context_dim, conditional.width, conditional.activation) == (2, 4, "ELU")


@pytest.mark.parametrize(
    "options", [{"activation": "relu"}, {"width": 0}, {"depth": 0}, {"depth": 2, "activation": "ELU"}]
)
def test_bad_options(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        NeuralAutoregressive(2, **options)  # type: ignore[arg-type]
