"""Image flows: the contract on small images, and what is special to each part."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pixel_unshuffle

from pyro_flows_vi import flows, testing
from pyro_flows_vi.nets.attention import CausalTransformer
from pyro_flows_vi.nets.conv import PointwiseConvNet
from pyro_flows_vi.nets.lipschitz import NORMS
from pyro_flows_vi.nets.lipschitz_conv import LipschitzConvNet, conv_norm
from pyro_flows_vi.transforms import ActNorm, Flow, LULinear
from pyro_flows_vi.transforms.act_norm import initialize_act_norms
from pyro_flows_vi.transforms.elementwise.affine import AffineMap
from pyro_flows_vi.transforms.image import (
    Conv1x1,
    ConvResidual,
    FlowPlusPlus,
    Glow,
    ImageCoupling,
    ImageRealNVP,
    ImageResidual,
    Multiscale,
    PatchAutoregressive,
    PerPixel,
    Squeeze,
    channel_mask,
    checkerboard_mask,
)

SHAPE = (2, 4, 4)
BOARD = (1, 4, 4)
RECIPES = ["glow", "realnvp-image", "flow++", "residual-image", "tarflow"]

#: context_dim -> a flow on images that have neighbours in both directions
CASES: dict[str, Callable[[int | None], Flow]] = {
    "squeeze": lambda c: Squeeze(SHAPE),
    "squeeze-back": lambda c: Squeeze(SHAPE, 4).inv,
    "act-norm": lambda c: PerPixel(ActNorm(2, c), SHAPE),
    "conv1x1-lu": lambda c: Conv1x1(SHAPE, c),
    "conv1x1-plain": lambda c: Conv1x1(SHAPE, c, form="plain"),
    "channel-coupling": lambda c: ImageCoupling(
        channel_mask(SHAPE), AffineMap(), partial(PointwiseConvNet, hidden_channels=8), c
    ),
    "checkerboard-coupling": lambda c: ImageCoupling(
        checkerboard_mask(BOARD, 1), AffineMap(), partial(PointwiseConvNet, hidden_channels=8), c
    ),
    "conv-residual": lambda c: ConvResidual(BOARD, c, (5, 5)),
    "conv-residual-inf": lambda c: ConvResidual(BOARD, c, (5,), norm="inf"),
    "patch-autoregressive": lambda c: PatchAutoregressive(16, c, BOARD, 2, 2, 4, 1),
    "patch-autoregressive-back": lambda c: PatchAutoregressive(16, c, BOARD, 2, 2, 4, 1, reverse=True),
    "glow": lambda c: Glow(16, c, 1, BOARD, hidden_channels=8),
    "realnvp": lambda c: ImageRealNVP(16, c, 1, BOARD, hidden_channels=4, blocks=1),
    "flow++": lambda c: FlowPlusPlus(16, c, 1, BOARD, components=3, heads=2, head_channels=2),
    "residual": lambda c: ImageResidual(16, c, 1, BOARD, hidden_channels=(4,)),
}
CHAINS = {"glow", "realnvp", "flow++", "residual"}


@pytest.mark.parametrize(
    ("name", "context_dim"), [(name, c) for name in CASES for c in (None, 3) if c or name not in CHAINS]
)
def test_check_flow(name: str, context_dim: int | None) -> None:
    testing.check_flow(CASES[name](context_dim), (0.2,) if name in CHAINS else (0.5, 2.0), ((2,),))


@pytest.mark.parametrize("name", ["glow", "realnvp", "flow++", "patch-autoregressive", "conv-residual"])
def test_an_image_flow_starts_near_the_identity(name: str) -> None:
    x = torch.randn(20, 16)
    y, log_det = CASES[name](None).eval().forward_and_log_det(x)
    assert (y - x).abs().max() < 0.6 and log_det.abs().max() < 3.0


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_see_an_image_or_a_vector(name: str) -> None:
    flow = flows.build(name, 32, 2, num_transforms=1, shape=(2, 4, 4)).eval()
    vector = flows.build(name, 5, num_transforms=1).eval()
    y, log_det = flow.forward_and_log_det(torch.randn(3, 32), torch.randn(2, 1, 2))
    assert y.shape == (2, 3, 32) and log_det.shape == (2, 3)
    assert vector.forward_and_log_det(torch.randn(3, 5))[0].shape == (3, 5)
    with pytest.raises(
        ValueError, match=r"expected a shape .* of 5 numbers, as input_dim says, got \(1, 2, 2\) with 4"
    ):
        flows.build(name, 5, shape=(1, 2, 2))
    for shape in ((), (5,), (1, 5, 0), (1, 1, 1, 5)):
        with pytest.raises(ValueError, match=r"expected shape to be \(channels, height, width\)"):
            flows.build(name, 5, shape=shape)
    with pytest.raises(ValueError, match=r"expected a context of shape \(\*batch, 2\), got none"):
        flow.forward_and_log_det(torch.randn(3, 32))


@pytest.mark.parametrize("name", ["glow", "realnvp-image", "residual-image"])
def test_what_cannot_be_squeezed(name: str) -> None:
    with pytest.raises(ValueError, match=r"levels to be an integer from 0 to 1, as often as .* can be halved, got 2"):
        flows.build(name, 36, shape=(1, 6, 6), levels=2)
    with pytest.raises(ValueError, match=r"multiples of 2 for squeezing, got 3 x 4"):
        Squeeze((1, 3, 4))
    with pytest.raises(ValueError, match=r"patch that divides the height and the width 3 x 4, got 2"):
        PatchAutoregressive(12, shape=(1, 3, 4), patch=2)


# -- parts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_squeeze_is_torchs_pixel_unshuffle(factor: int) -> None:
    x = torch.randn(3, 2, 8, 4)
    squeeze = Squeeze((2, 8, 4), factor)
    y = squeeze(x.flatten(1))
    assert torch.equal(y.reshape(3, *squeeze.out_shape), pixel_unshuffle(x, factor))
    assert torch.equal(squeeze.inv(y), x.flatten(1))


def test_masks() -> None:
    for mask in (checkerboard_mask, channel_mask):
        assert torch.equal(mask(SHAPE, 0), ~mask(SHAPE, 1)) and torch.equal(mask(SHAPE, 0), mask(SHAPE, 2))
        assert int(mask(SHAPE).sum()) == 16
    board = checkerboard_mask((1, 3, 3))[0]
    assert not (board[1:] & board[:-1]).any() and not (board[:, 1:] & board[:, :-1]).any()
    assert not channel_mask((1, 4, 4), 1).any() and int(channel_mask((3, 1, 1)).sum()) == 1
    with pytest.raises(ValueError, match="at least two pixels"):
        checkerboard_mask((3, 1, 1))
    with pytest.raises(ValueError, match="at least one pixel that is not given"):
        ImageCoupling(torch.ones(1, 2, 2, dtype=torch.bool), AffineMap(), PointwiseConvNet)


@pytest.mark.parametrize("mask", [channel_mask(SHAPE, 1), checkerboard_mask(SHAPE)])
def test_a_coupling_keeps_what_is_given_and_sees_nothing_else(mask: Tensor) -> None:
    flow = testing.randomize(ImageCoupling(mask, AffineMap(), PointwiseConvNet).double(), 0.3)
    x = torch.randn(32, dtype=torch.float64)
    jacobian = torch.func.jacrev(flow)(x)
    given = mask.flatten()
    assert torch.equal(flow(x)[given], x[given])
    among = jacobian[~given][:, ~given]
    assert torch.equal(among, among.diagonal().diag())
    assert (jacobian[~given][:, given] != 0).any()


@pytest.mark.parametrize("form", ["lu", "plain"])
def test_conv1x1_is_a_convolution_with_its_log_determinant(form: str) -> None:
    flow = testing.randomize(Conv1x1((3, 4, 5), form=form).double(), 0.7)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    y, log_det = flow.forward_and_log_det(x.flatten(1))
    zero = flow.flow.forward_and_log_det(torch.zeros(3, dtype=torch.float64))[0]
    matrix = torch.stack([flow.flow.forward_and_log_det(row)[0] - zero for row in torch.eye(3).double()], dim=1)
    torch.testing.assert_close(y, conv2d(x, matrix[..., None, None], zero).flatten(1))
    torch.testing.assert_close(log_det, (20 * torch.linalg.slogdet(matrix)[1]).expand(2))
    with pytest.raises(ValueError, match="expected form to be one of"):
        Conv1x1((3, 4, 5), form="qr")  # type: ignore[arg-type]


def test_per_pixel_wants_a_flow_on_the_channels() -> None:
    with pytest.raises(ValueError, match="a flow on the 2 channels"):
        PerPixel(LULinear(3), SHAPE)


# -- multi-scale ------------------------------------------------------------------------------------------


def test_multiscale_applies_each_level_to_half_of_the_rest() -> None:
    one, two, three = (Squeeze(s) for s in ((1, 8, 8), (2, 4, 4), (4, 2, 2)))
    shifts = []
    for squeeze in (one, two, three):
        norm = ActNorm(squeeze.out_shape[0])
        torch.nn.init.ones_(norm.params.get_parameter("shift"))
        shifts.append(PerPixel(norm, squeeze.out_shape))  # adds one at each level
    flow = Multiscale((1, 8, 8), [[a, b] for a, b in zip((one, two, three), shifts, strict=True)])
    levels = flow(torch.zeros(64)).reshape(8, 8)
    assert [int((levels == k).sum()) for k in (1, 2, 3)] == [32, 16, 16]
    # Of each block of 2 x 2 pixels the first row is done after the first level, wherever the block lies.
    assert bool((levels[::2] == 1).all()) and bool((levels[1::2] > 1).all())
    x = torch.randn(5, 64)
    torch.testing.assert_close(flow.inv(flow(x)), x)
    with pytest.raises(ValueError, match="even number of channels to split"):
        Multiscale((1, 2, 2), [[PerPixel(ActNorm(1), (1, 2, 2))], [Squeeze((1, 2, 2))]])
    with pytest.raises(ValueError, match="expected level 1 to be of dimension 32, got 64"):
        Multiscale((1, 8, 8), [[one], [one]])


def test_the_split_halves_of_noise_stay_noise() -> None:
    """At its start a multi-scale flow keeps the law of noise: mean 0, variance 1 and no correlation, at every pixel."""
    flow = flows.build("glow", 64, num_transforms=1, shape=(1, 8, 8), hidden_channels=4)
    y = flow(torch.randn(4000, 64)).detach()
    covariance = torch.cov(y.T)
    assert y.mean(0).abs().max() < 5 / 4000**0.5 and (covariance - torch.eye(64)).abs().max() < 0.12


# -- ActNorm from data ------------------------------------------------------------------------------------


def _outputs_of_norms(flow: Flow, y: Tensor) -> list[Tensor]:
    seen = []
    for module in flow.modules():
        if isinstance(module, PerPixel) and isinstance(module.flow, ActNorm):
            forward, shape = module.forward_and_log_det, module.shape

            def spy(x: Tensor, context: Tensor | None = None, forward=forward, shape=shape):  # type: ignore[no-untyped-def]
                out = forward(x, context)
                seen.append(out[0].detach().reshape(-1, shape[0], shape[1] * shape[2]))
                return out

            module.forward_and_log_det = spy  # type: ignore[method-assign]
    flow.inverse_and_log_det(y)
    return seen


def test_act_norms_start_from_data_with_mean_zero_and_variance_one() -> None:
    flow = flows.build("glow", 32, num_transforms=2, shape=SHAPE, hidden_channels=4).double()
    y = 3.0 * torch.randn(200, 32, dtype=torch.float64).exp() + 7.0
    assert initialize_act_norms(flow, y) == 4
    outputs = _outputs_of_norms(flow, y)
    assert len(outputs) == 4
    for out in outputs:
        torch.testing.assert_close(out.mean((0, 2)), torch.zeros(out.shape[1], dtype=torch.float64), atol=1e-9, rtol=0)
        variance = out.movedim(1, 0).flatten(1).var(1)
        torch.testing.assert_close(variance, torch.ones(out.shape[1], dtype=torch.float64), atol=1e-9, rtol=0)


def test_the_start_from_data_is_one_call_and_all_or_nothing() -> None:
    flow = flows.build("glow", 32, num_transforms=1, shape=SHAPE, hidden_channels=4)
    names = set(flow.state_dict())
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    y = torch.randn(50, 32)
    flow.inverse_and_log_det(y)  # a pass changes nothing
    dull = y.clone()
    dull[:, :16] = 1.0  # a channel that does not vary
    with pytest.raises(ValueError, match="vary in every coordinate"):
        initialize_act_norms(flow, torch.cat([dull[:, :16], dull[:, :16]], dim=1))
    assert all(torch.equal(value, before[name]) for name, value in flow.state_dict().items())
    initialize_act_norms(flow, 5.0 * y)
    assert set(flow.state_dict()) == names
    assert any(not torch.equal(value, before[name]) for name, value in flow.state_dict().items())
    fresh = flows.build("glow", 32, num_transforms=1, shape=SHAPE, hidden_channels=4)
    fresh.load_state_dict(flow.state_dict())
    assert torch.equal(fresh.inverse_and_log_det(y)[0], flow.inverse_and_log_det(y)[0])
    after = {name: value.clone() for name, value in flow.state_dict().items()}
    flow.inverse_and_log_det(y)
    flow.forward_and_log_det(y)
    assert all(torch.equal(value, after[name]) for name, value in flow.state_dict().items())


def test_act_norm_is_set_in_the_direction_in_which_it_is_met() -> None:
    y = 4.0 * torch.randn(100, 3) + 2.0
    for flow in (ActNorm(3), ActNorm(3).inv):
        assert initialize_act_norms(flow, y) == 1
        x = flow.inverse_and_log_det(y)[0]
        torch.testing.assert_close(x.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(x.std(0), torch.ones(3), atol=1e-5, rtol=0)
    assert initialize_act_norms(ActNorm(3, 2), y, torch.randn(100, 2)) == 0  # amortised: left as it is


# -- Lipschitz convolutions -------------------------------------------------------------------------------


def _matrix(weight: Tensor, size: tuple[int, int]) -> Tensor:
    """The convolution as a matrix of flat images."""
    images = torch.eye(weight.shape[1] * size[0] * size[1], dtype=weight.dtype).reshape(-1, weight.shape[1], *size)
    return conv2d(images, weight, padding=weight.shape[-1] // 2).flatten(1).T


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("size", "kernel"), [((1, 1), 3), ((2, 3), 3), ((6, 5), 3), ((4, 4), 1), ((5, 5), 5)])
def test_conv_norm_is_above_the_true_norm(norm: str, size: tuple[int, int], kernel: int) -> None:
    order = {"spectral": 2, "inf": torch.inf, "one": 1}[norm]
    for out_channels, in_channels in ((1, 1), (4, 2), (2, 5)):
        weight = torch.randn(out_channels, in_channels, kernel, kernel, dtype=torch.float64)
        true, bound = torch.linalg.matrix_norm(_matrix(weight, size), order), conv_norm(weight, size, norm)
        assert true <= bound * (1 + 1e-12)
        assert min(size) < 4 or bound <= (1.6 if norm == "spectral" else 1.3) * true


def test_conv_norm_is_tight_on_large_images() -> None:
    weight = torch.randn(3, 3, 3, 3, dtype=torch.float64)
    true = torch.linalg.matrix_norm(_matrix(weight, (16, 16)), 2)
    assert true <= conv_norm(weight, (16, 16)) <= 1.1 * true


@pytest.mark.parametrize("scale", [0.5, 5.0])
def test_the_convolutional_network_contracts_and_knows_its_jacobian(scale: float) -> None:
    net = testing.randomize(LipschitzConvNet((2, 3, 4), (5, 5), lipschitz=0.9).double(), scale)
    x = torch.randn(3, 24, dtype=torch.float64)
    linearisation = net.bind()(x)[1]
    true = torch.func.vmap(torch.func.jacrev(net))(x)
    torch.testing.assert_close(linearisation.jacobian(), true)
    v = torch.randn(2, 3, 24, dtype=torch.float64)
    torch.testing.assert_close(linearisation.vjp(v), (v[..., None, :] @ true).squeeze(-2))
    assert torch.linalg.matrix_norm(true, 2).max() <= 0.9


def test_the_convolutional_residual_estimates_its_log_determinant_without_bias() -> None:
    flow = ConvResidual(BOARD, None, (6,), lipschitz=0.8, log_det="roulette", num_probes=32).double()
    testing.randomize(flow, 1.0)
    assert not flow.exact_log_det
    x = torch.randn(1, 16, dtype=torch.float64)
    with torch.no_grad():  # every call draws a number of terms
        draws = torch.cat([flow.forward_and_log_det(x)[1] for _ in range(400)])
    assert flow.eval().exact_log_det
    exact = flow.forward_and_log_det(x)[1]
    assert (draws.mean() - exact).abs() < 4.0 * draws.std() / 400**0.5 < 0.1


# -- TarFlow ----------------------------------------------------------------------------------------------


def _naive_inverse(flow: PatchAutoregressive, y: Tensor, context: Tensor | None) -> Tensor:
    """T passes of the whole network, each of which makes one more patch right."""
    x = torch.zeros_like(y)
    for _ in range(flow.net.length):
        params = flow._params(flow.net(flow._tokens(x), context))
        x = flow._pixels(flow.map.inverse_and_log_slope(flow._tokens(y), params)[0])
    return x


@pytest.mark.parametrize("reverse", [False, True])
def test_the_cached_inverse_is_the_naive_one_and_computes_each_token_once(reverse: bool) -> None:
    flow = PatchAutoregressive(64, 3, (1, 8, 8), 2, heads=2, head_dim=4, depth=2, reverse=reverse).double()
    testing.randomize(flow, 0.5)
    y, context = torch.randn(5, 64, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    tokens = 0

    def count(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal tokens
        tokens += output.shape[:-1].numel()

    hook = flow.net.last.register_forward_hook(count)
    inner = flow.net.blocks[0].qkv.register_forward_hook(count)
    x = flow.inverse_and_log_det(y, context)[0]
    assert tokens == 2 * 5 * 16  # 16 patches of 5 images, each once, in both places that are counted
    flow.forward_and_log_det(x, context)
    assert tokens == 2 * (2 * 5 * 16)  # no more than one pass forward
    hook.remove()
    inner.remove()
    torch.testing.assert_close(x, _naive_inverse(flow, y, context), atol=1e-9, rtol=1e-9)


def test_a_patch_depends_on_those_before_it_only() -> None:
    net = testing.randomize(CausalTransformer(3, 5, torch.zeros(4), heads=2, head_dim=4).double(), 0.5)
    x = torch.randn(5, 3, dtype=torch.float64)
    jacobian = torch.func.jacrev(net)(x).abs().amax((1, 3))  # (5, 5): of the parameters of t by token s
    assert torch.equal(jacobian != 0, torch.ones(5, 5, dtype=torch.bool).tril(-1))


def test_the_recipe_of_tarflow_alternates_and_scores_in_one_pass() -> None:
    flow = flows.build("tarflow", 64, num_transforms=3, shape=(1, 8, 8))
    assert [step.flow.reverse for step in flow] == [False, True, False]  # type: ignore[attr-defined]
    assert (flow.fast_forward, flow.fast_inverse) == (False, True)
    assert [step.flow.patch for step in flow] == [2, 2, 2]  # type: ignore[attr-defined]


def test_options_of_the_log_determinant_arrive_at_every_step() -> None:
    options = {"num_terms": 2, "num_probes": 3, "tail": "poisson", "rate": 1.5, "eval_probes": 5, "tolerance": 0.2}
    flow = flows.build("residual-image", 64, shape=(1, 8, 8), num_transforms=2, hidden_channels=(4,), **options)
    steps = [step for step in flow.modules() if isinstance(step, ConvResidual)]
    assert len(steps) == 6
    for step in steps:
        assert (step.roulette.num_exact, step.roulette.tail, step.roulette.rate) == (2, "poisson", 1.5)
        assert (step.num_probes, step.eval_probes, step.tolerance) == (3, 5, 0.2)
