"""The numerical core: scalar roots over all magnitudes, stable elementary functions, batched products, masks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pyro_flows_vi.nets import masked
from pyro_flows_vi.nets.masked import MADE
from pyro_flows_vi.numerics.linear import matvec, reflect, unit, vecmat
from pyro_flows_vi.numerics.roots import solve_monotone, solve_tanh
from pyro_flows_vi.numerics.stable import log_softplus, sech2, slope_from, softplus_one
from pyro_flows_vi.numerics.tempered import scale_shift, temper, unscale_unshift

F64 = torch.float64


def grid(*bounds: float, count: int = 57) -> Tensor:
    return torch.logspace(*bounds, count, dtype=F64)


# -- roots ------------------------------------------------------------------------------------------------


def test_solve_tanh_over_all_magnitudes() -> None:
    sizes = grid(-7, 7)
    target, gain = torch.meshgrid(torch.cat([-sizes, torch.zeros(1, dtype=F64), sizes]), sizes, indexing="ij")
    s = solve_tanh(target, gain)
    residual = s + (gain - 1) * torch.tanh(s) - target
    # The sum has terms up to the size of target and gain: what cancels there is rounding.
    size = target.abs() + s.abs() + (gain - 1).abs() * s.abs().clamp(max=1)
    assert (residual.abs() <= 8e-16 * size).all()
    assert torch.equal(s.sign(), target.sign())
    assert torch.equal(solve_tanh(-target, gain), -s)


def test_solve_tanh_gradients_are_implicit() -> None:
    sizes = grid(-4, 4, count=17)
    target, gain = torch.meshgrid(torch.cat([-sizes, sizes]), sizes, indexing="ij")
    target, gain = target.clone().requires_grad_(), gain.clone().requires_grad_()
    s = solve_tanh(target, gain)
    to_target, to_gain = torch.autograd.grad(s.sum(), [target, gain])
    slope = torch.tanh(s).square() + gain * (1 - torch.tanh(s).square())
    torch.testing.assert_close(to_target, (1 / slope).detach(), rtol=1e-9, atol=0)
    torch.testing.assert_close(to_gain, (-torch.tanh(s) / slope).detach(), rtol=1e-9, atol=0)


def test_solve_tanh_in_float32() -> None:
    target, gain = torch.meshgrid(grid(-6, 6).float(), grid(-6, 6).float(), indexing="ij")
    s, exact = solve_tanh(target, gain), solve_tanh(target.double(), gain.double())
    slope = torch.tanh(exact).square() + gain * sech2(exact)
    allowed = 1e-6 * (exact + (target + (gain - 1).abs() * exact.clamp(max=1)) / slope)
    assert s.dtype == torch.float32 and s.isfinite().all()
    assert ((s - exact).abs() <= allowed).all()


def test_solve_tanh_has_second_derivatives() -> None:
    target = torch.tensor([-8.0, -0.3, 0.0, 0.7, 5.0], dtype=F64, requires_grad=True)
    gain = torch.tensor([[0.05], [1.0], [6.0]], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(solve_tanh, (target, gain), check_batched_grad=True)
    assert torch.autograd.gradgradcheck(solve_tanh, (target, gain))


Function = Callable[[Tensor], tuple[Tensor, Tensor]]

HARD: dict[str, Function] = {
    "cube": lambda x: (x**3, (3 * x.square()).log()),
    "cube-flat-beside-the-root": lambda x: ((x - 1) ** 3 + 1e-3 * x, (3 * (x - 1).square() + 1e-3).log()),
    "flat-middle": lambda x: (
        torch.where(x.abs() < 5, 1e-9 * x, x - x.sign() * (5 - 5e-9)),
        torch.where(x.abs() < 5, 1e-9, 1.0).log(),
    ),
    "steep": lambda x: (1e9 * x, torch.full_like(x, math.log(1e9))),
    "step": lambda x: (x + 1e3 * torch.tanh(1e6 * x), (1 + 1e9 * sech2(1e6 * x)).log()),
    "logarithmic": lambda x: (torch.asinh(x), -0.5 * torch.log1p(x.square())),
}


@pytest.mark.parametrize("name", HARD)
def test_solve_monotone_on_hard_functions(name: str) -> None:
    function = HARD[name]
    x = torch.tensor([-30.0, -7.0, -1.3, -1e-3, 1e-4, 0.5, 0.999, 2.0, 6.0, 25.0], dtype=F64)
    target, log_slope = function(x)
    root = solve_monotone(function, target)
    # Neighbouring floats have values that differ by slope * ulp, so the root is known to the rounding of the target.
    known = 4e-15 * (1e-3 + x.abs() + target.abs() * torch.exp(-log_slope))
    assert ((root - x).abs() <= known).all()


def test_an_exponential_function_needs_a_start() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sinh(x), torch.cosh(x.clamp(-700, 700)).log()

    x = torch.tensor([-30.0, -7.0, 0.5, 25.0], dtype=F64)
    torch.testing.assert_close(solve_monotone(function, torch.sinh(x), start=torch.zeros_like(x)), x)
    with pytest.raises(ValueError, match="NaN or infinite values"):
        solve_monotone(function, torch.sinh(x))  # sinh of the target overflows


def test_a_root_very_far_away() -> None:
    target = torch.tensor([1e12, -1e12, 3.0], dtype=F64)
    root = solve_monotone(lambda x: (x + torch.tanh(x), torch.log1p(sech2(x))), target)
    torch.testing.assert_close(root + torch.tanh(root), target, rtol=1e-15, atol=0)
    slow = solve_monotone(lambda x: (1e-12 * x, torch.full_like(x, math.log(1e-12))), torch.ones(1, dtype=F64))
    torch.testing.assert_close(slow, torch.tensor([1e12], dtype=F64), rtol=1e-14, atol=0)


def test_solve_monotone_gradients_are_implicit() -> None:
    a = torch.tensor([0.1, 1.0, 7.0], dtype=F64, requires_grad=True)
    target = torch.tensor([-4.0, 0.3, 50.0], dtype=F64, requires_grad=True)
    x = solve_monotone(lambda x: (x + a * x**3, torch.log1p(3 * a.detach() * x.square())), target)
    to_target, to_a = torch.autograd.grad(x.sum(), [target, a])
    slope = (1 + 3 * a * x.square()).detach()
    torch.testing.assert_close(to_target, 1 / slope, rtol=1e-12, atol=0)
    torch.testing.assert_close(to_a, -(x.detach() ** 3) / slope, rtol=1e-12, atol=0)


def test_solve_monotone_refuses_second_derivatives() -> None:
    target = torch.tensor([-4.0, 0.3], dtype=F64, requires_grad=True)
    x = solve_monotone(lambda x: (x + x**3, torch.log1p(3 * x.square())), target)
    (slope,) = torch.autograd.grad(x.sum(), target, create_graph=True)
    torch.testing.assert_close(slope, 1 / (1 + 3 * x.square()))
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(slope.sum(), target)


@pytest.mark.parametrize("bounded", [torch.tanh, torch.sigmoid])
def test_solve_monotone_raises_for_a_bounded_function(bounded: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(RuntimeError, match="not increasing and onto"):
        solve_monotone(lambda x: (bounded(x), torch.log(sech2(x) + 1e-300)), torch.tensor([0.5, 2.0], dtype=F64))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_solve_monotone_refuses_what_is_not_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="1 target values are NaN or infinite"):
        solve_monotone(lambda x: (x, torch.zeros_like(x)), torch.tensor([0.0, bad]))
    with pytest.raises(ValueError, match="check its parameters"):
        solve_monotone(lambda x: (x * bad, torch.zeros_like(x)), torch.ones(2))


# -- elementary functions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (F64, 2e-10)])
def test_log_softplus_has_neither_floor_nor_ceiling(dtype: torch.dtype, tolerance: float) -> None:
    x = torch.linspace(-40, 40, 4001, dtype=dtype)
    exact = torch.log1p((x.double() + math.log(math.e - 1)).exp()).log()
    # torch's softplus is the identity from 20 on, where it lacks e^-20 = 2e-9: 1e-10 of its logarithm
    torch.testing.assert_close(log_softplus(x).double(), exact, rtol=tolerance, atol=tolerance)
    far = torch.tensor([-1e4, -300.0], dtype=dtype, requires_grad=True)
    torch.testing.assert_close(log_softplus(far), far + math.log(math.e - 1), rtol=1e-6, atol=0)
    assert torch.equal(torch.autograd.grad(log_softplus(far).sum(), far)[0], torch.ones(2, dtype=dtype))
    assert softplus_one(torch.zeros(1, dtype=F64)).item() == pytest.approx(1.0, rel=1e-15)


def test_sech2_keeps_its_digits_in_the_tails() -> None:
    x = torch.tensor([0.0, 0.1, 3.0, 20.0, -20.0, 300.0], dtype=F64)
    torch.testing.assert_close(sech2(x), torch.cosh(x).pow(-2), rtol=1e-13, atol=0)
    assert sech2(torch.tensor([1e5])).item() == 0.0
    y = torch.tensor([0.4, -2.0], dtype=F64, requires_grad=True)
    torch.testing.assert_close(torch.autograd.grad(torch.tanh(y).sum(), y)[0], sech2(y.detach()))


def test_slope_from_is_the_logarithm_of_the_ridge() -> None:
    s, gain = torch.meshgrid(torch.linspace(-3, 3, 31, dtype=F64), grid(-8, 8), indexing="ij")
    got = slope_from(torch.tanh(s), gain)
    torch.testing.assert_close(got, torch.log1p((gain - 1) * sech2(s)), rtol=1e-7, atol=1e-12)
    assert slope_from(torch.zeros(1), torch.zeros(1)).isfinite().all()  # held where the gain underflows


@pytest.mark.parametrize("k", [2.0, 4.0])
def test_temper_is_asinh(k: float) -> None:
    sizes = torch.cat([torch.zeros(1, dtype=F64), grid(-12, 38, count=501)])
    x = torch.cat([-sizes, sizes])
    torch.testing.assert_close(temper(x, k), k * torch.asinh(x / k), rtol=4e-16, atol=k * 4e-16)
    single = x[x.abs() < 1e19].float()
    assert single.isfinite().all()
    torch.testing.assert_close(temper(single, k).double(), temper(single.double(), k), rtol=2e-7, atol=k * 2e-7)
    assert torch.equal(temper(-single, k), -temper(single, k))
    assert temper(torch.tensor(1e6), k).exp() < 1e24  # a power of x, where the exponential would overflow


@pytest.mark.parametrize("k", [2.0, 4.0])
def test_temper_is_smooth_at_zero_too(k: float) -> None:
    x = torch.tensor([-1e9, -3.0, -0.0, 0.0, 1e-9, 0.2, 1e9], dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(temper(x, k).sum(), x, create_graph=True)
    torch.testing.assert_close(slope, torch.rsqrt(1 + (x / k).square()))
    assert torch.equal(slope[2:4], torch.ones(2, dtype=F64))
    (bend,) = torch.autograd.grad(slope.sum(), x)
    torch.testing.assert_close(bend, -(x / k**2) * (1 + (x / k).square()).pow(-1.5))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_temper_is_one_graph_and_maps() -> None:
    x = torch.randn(4, 3, dtype=F64)
    x[0, 0] = 0.0
    y = temper(x, 2.0)
    torch.testing.assert_close(torch.func.vmap(lambda v: temper(v, 2.0))(x), y)
    torch.testing.assert_close(torch.compile(temper, fullgraph=True, backend="aot_eager")(x, 2.0), y)
    torch.testing.assert_close(torch.jit.trace(lambda v: temper(v, 2.0), (x,))(x), y)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, in jacfwd
def test_temper_has_all_derivatives() -> None:
    x = torch.tensor([-3.0, 0.0, 0.4, 20.0], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(temper, x, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(temper, x)

    def cubed(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda v: f(v).pow(3).sum()

    exact = torch.func.hessian(cubed(lambda v: 4 * torch.asinh(v / 4)))(x.detach())
    for hessian in (
        torch.func.hessian,
        lambda f: torch.func.jacfwd(torch.func.jacfwd(f)),
        lambda f: lambda v: torch.autograd.functional.hessian(f, v),
    ):
        torch.testing.assert_close(hessian(cubed(temper))(x.detach()), exact)


@pytest.mark.parametrize(
    ("batch", "matrix_batch"),
    [
        ((), ()),
        ((5,), ()),
        ((5,), (5,)),
        ((5,), (1,)),
        ((4, 5), (5,)),
        ((2, 4, 5), (5,)),
        ((2, 4, 5), (4, 1)),
        ((4, 5), ()),
    ],
)
def test_products_broadcast_like_einsum(batch: tuple[int, ...], matrix_batch: tuple[int, ...]) -> None:
    matrix, v = torch.randn(*matrix_batch, 3, 7, dtype=F64), torch.randn(*batch, 3, dtype=F64)
    torch.testing.assert_close(vecmat(v, matrix), torch.einsum("...n,...nm->...m", v, matrix))
    w = torch.randn(*batch, 7, dtype=F64)
    torch.testing.assert_close(matvec(matrix, w), torch.einsum("...nm,...m->...n", matrix, w))


@pytest.mark.parametrize("v_batch", [(), (6,), (1,)])
def test_reflections_are_orthogonal(v_batch: tuple[int, ...]) -> None:
    v = unit(torch.randn(*v_batch, 3, 5, dtype=F64))
    x = torch.randn(4, 6, 5, dtype=F64)
    y = reflect(x, v)
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(reflect(y, v, reverse=True), x)
    assert not torch.allclose(reflect(y, v), x)
    if not v_batch:
        matrix = reflect(torch.eye(5, dtype=F64), v)
        torch.testing.assert_close(matrix @ matrix.mT, torch.eye(5, dtype=F64))
        assert torch.linalg.det(matrix).item() == pytest.approx(-1.0)


def test_a_zero_vector_reflects_nothing() -> None:
    x = torch.randn(4, 5)
    assert torch.equal(reflect(x, unit(torch.zeros(2, 5))), x)


# -- masks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context_dim", [None, 2])
@pytest.mark.parametrize("hidden_dims", [(3,), (16,), (5, 20), (9, 4, 11)])
@pytest.mark.parametrize("input_dim", [1, 2, 6])
@pytest.mark.parametrize("least", [2**18, 4])
def test_made_is_autoregressive_and_sequential_is_the_same(
    least: int, input_dim: int, hidden_dims: tuple[int, ...], context_dim: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masked, "LEAST", least)  # layers in one piece, and in strips
    monkeypatch.setattr(masked, "POINTS", 1)
    net = MADE(input_dim, torch.tensor([0.5, -1.0]), hidden_dims, context_dim).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_()
    context = None if context_dim is None else torch.randn(4, context_dim, dtype=F64)
    x = torch.randn(3, 4, input_dim, dtype=F64)
    params = net(x, context)
    assert params.shape == (3, 4, 2, input_dim)
    point = None if context is None else context[0]
    jacobian = torch.autograd.functional.jacobian(lambda v: net(v, point), x[0, 0])
    assert torch.equal(jacobian, torch.tril(jacobian, -1))  # exact zeros at and above the diagonal
    seen = []

    def step(part: slice, values: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(values)
        return x[..., part], 2.0 * x[..., part]

    found, doubled = net.sequential(x.shape[:-1], step, context)
    assert torch.equal(found, x)
    assert torch.equal(doubled, 2.0 * x)
    torch.testing.assert_close(torch.cat([s.expand(3, 4, 2, -1) for s in seen], -1), params)


@pytest.mark.parametrize("context_dim", [None, 2])
def test_strips_leave_out_nothing_but_zeros(context_dim: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> MADE:
        torch.manual_seed(0)
        return MADE(7, torch.zeros(3), (30, 12), context_dim, torch.tanh).double()

    whole = make()
    monkeypatch.setattr(masked, "LEAST", 20)
    monkeypatch.setattr(masked, "POINTS", 1)
    strips = make()
    assert [len(layer) for layer in whole.strips] == [1, 1, 1]
    assert [len(layer) for layer in strips.strips] == [4, 4, 4]
    for i, mask in enumerate([strips.mask_0, strips.mask_1, strips.mask_2[-7:]]):
        kept = sum(rows * columns for rows, columns in strips.strips[i])
        assert mask.count_nonzero() <= kept < 0.8 * mask.numel()
    with torch.no_grad():
        for a, b in zip(whole.parameters(), strips.parameters(), strict=True):
            b.copy_(a.normal_())
    x, context = torch.randn(5, 7, dtype=F64), None if context_dim is None else torch.randn(5, 2, dtype=F64)
    found = [net(x, context) for net in (whole, strips)]
    torch.testing.assert_close(*found)
    weights = torch.randn_like(found[0])
    slopes = [
        torch.autograd.grad((y * weights).sum(), list(n.parameters()))
        for n, y in zip((whole, strips), found, strict=True)
    ]
    torch.testing.assert_close(*slopes)
    each = torch.func.vmap(strips)(x, context) if context_dim else torch.func.vmap(strips)(x)
    torch.testing.assert_close(each, found[0])


@pytest.mark.parametrize("spread", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("hidden_dims", [(200,), (30, 170), (170, 30)])
def test_settling_gives_what_substitution_gives(hidden_dims: tuple[int, ...], spread: float) -> None:
    net = MADE(150, torch.zeros(1), hidden_dims, 2, torch.tanh).double()  # three blocks of coordinates
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_().mul_(spread)
    y, context = torch.randn(2, 3, 150, dtype=F64), torch.randn(3, 2, dtype=F64)
    calls = 0

    def step(part: slice, params: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        shift = params.squeeze(-2)
        return y[..., part] - shift, shift

    one_by_one, _ = net.sequential(y.shape[:-1], step, context, settle=False)
    assert calls == len(net.groups) - 1
    torch.testing.assert_close(one_by_one + net(one_by_one, context).squeeze(-2), y)
    calls = 0
    with torch.no_grad():
        together, shift = net.sequential(y.shape[:-1], step, context)
    torch.testing.assert_close(together, one_by_one)
    torch.testing.assert_close(together + shift, y)
    blocks = math.ceil((len(net.groups) - 1) / masked.BLOCK)
    assert calls < len(net.groups) - 1 if spread == 0.1 else calls <= masked.ROUNDS * blocks + len(net.groups) - 1


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("dim", [3, 40, 150])
def test_the_round_that_is_left_out_would_change_rounding_only(dim: int, spread: float, dtype: torch.dtype) -> None:
    net = MADE(dim, torch.zeros(1), (2 * dim, 2 * dim)).to(dtype)
    y, rounds = torch.randn(20, dim, dtype=dtype), []
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
                layer.weight.mul_(spread)

        def step(part: slice, params: Tensor) -> tuple[Tensor, Tensor]:
            rounds.append(params.shape)
            shift = params.squeeze(-2)
            return y[..., part] - shift, shift.expand(20, -1)

        x, shift = net.sequential(y.shape[:-1], step)
        wanted = net(x).squeeze(-2)
        assert rounds[0] == (1, 1, min(dim, masked.BLOCK))  # zeros lead all points to the same parameters
        size = 1.0 + y.abs() + wanted.abs()
        rounding = 32.0 * torch.finfo(dtype).eps
        assert float(((x + wanted - y).abs() / size).max()) < rounding
        assert float(((shift - wanted).abs() / size).max()) < rounding


def test_rounds_that_overflow_do_no_harm() -> None:
    net = MADE(40, torch.zeros(1), (40,), activation=torch.square).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_()
        x = 0.1 * torch.randn(40, dtype=F64)
        y = x + net(x).squeeze(0)
        values = []

        def step(part: slice, params: Tensor) -> tuple[Tensor, Tensor]:
            values.append(y[part] - params.squeeze(-2))
            return values[-1], values[-1]

        found, _ = net.sequential(torch.Size([]), step)
        assert not all(value.isfinite().all() for value in values)  # a wrong guess is squared again and again
        one_by_one, _ = net.sequential(torch.Size([]), step, settle=False)
    assert len(values) >= masked.ROUNDS + 2 * 39  # the rounds are given up
    assert torch.equal(found, one_by_one)
    assert (found - x)[:10].abs().max() < 1e-9  # the rounding of y grows further on


def test_a_wide_enough_made_uses_every_coordinate_before() -> None:
    net = MADE(5, torch.zeros(1), (40,)).double()
    jacobian = torch.autograd.functional.jacobian(net, torch.randn(5, dtype=F64))[0]
    assert (jacobian[torch.ones(5, 5).tril(-1).bool()] != 0).all()


@pytest.mark.parametrize("hidden_dims", [(), (0,), (4, -1)])
def test_made_refuses_bad_widths(hidden_dims: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"at least one positive width|positive integers"):
        MADE(3, torch.zeros(2), hidden_dims)


@pytest.mark.parametrize("reverse", [False, True])
def test_shared_reflections_agree_with_those_of_each_point(reverse: bool) -> None:
    units = unit(torch.randn(6, 4, dtype=torch.float64))
    units[2] = 0.0
    x = torch.randn(5, 4, dtype=torch.float64)
    one_by_one = reflect(x, units.expand(5, 6, 4), reverse)
    torch.testing.assert_close(reflect(x, units, reverse), one_by_one)
    torch.testing.assert_close(reflect(one_by_one, units, not reverse), x)


@pytest.mark.parametrize("inverse", [False, True])
def test_scale_shift_and_its_derivatives(inverse: bool) -> None:
    def plain(x: Tensor, shift: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        log_scale = 4.0 * torch.asinh(raw / 4.0)
        y = (x - shift) * torch.exp(-log_scale) if inverse else log_scale.exp() * x + shift
        return y, log_scale.expand(y.shape)

    apply = unscale_unshift if inverse else scale_shift
    x, shift, raw = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((5, 3), (3,), (3,)))
    given = x, shift, raw
    cotangents = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    for got, want in zip(apply(*given), plain(*given), strict=True):
        torch.testing.assert_close(got, want)
    got = torch.autograd.grad(apply(*given), given, cotangents)
    for a, b in zip(got, torch.autograd.grad(plain(*given), given, cotangents), strict=True):
        torch.testing.assert_close(a, b)
    assert torch.autograd.gradcheck(apply, given)
    for needed in itertools.product([False, True], repeat=3):
        if any(needed):  # a map whose network is frozen has no graph of its scale
            some = [value.detach().requires_grad_(need) for value, need in zip(given, needed, strict=True)]
            assert torch.autograd.gradgradcheck(apply, some)
    assert torch.autograd.gradgradcheck(lambda x, s: apply(x, s * x, s + x), (x, raw))  # parameters that depend on x
    with torch.no_grad():
        torch.testing.assert_close(apply(*given), plain(*given))
    torch.testing.assert_close(
        torch.func.vmap(apply)(x, shift.expand(5, 3), raw.expand(5, 3)), plain(x, shift.expand(5, 3), raw)
    )
