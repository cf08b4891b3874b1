"""Every property of the contract over every case, and over shapes, scales and options that hypothesis draws."""

from __future__ import annotations

import copy

import pytest
import strategies
import torch
from cases import CASES, LAYERS, RECIPES, SLOW
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_flows_vi import flows, testing

#: chains of two random maps are too ill-conditioned at N(0, 2^2), and wide ones at N(0, 0.5^2), for the Jacobian
#: itself to be known
CHAINS = {"compose", *(f"recipe-{name}" for name in RECIPES)}


@pytest.mark.parametrize("context_dim", [None, 3])
@pytest.mark.parametrize("input_dim", [1, 2, 5])
@pytest.mark.parametrize("name", CASES)
def test_check_flow(name: str, input_dim: int, context_dim: int | None) -> None:
    scales = (None, 0.2) if name in CHAINS else (None, 0.5, 2.0)
    batch_shapes = ((2, 3),) if name in SLOW else testing.BATCH_SHAPES
    testing.check_flow(CASES[name](input_dim, context_dim), scales=scales, batch_shapes=batch_shapes)


@settings(max_examples=120)
@given(
    name=st.sampled_from(sorted(LAYERS)),
    input_dim=st.integers(1, 6),
    context_dim=st.sampled_from([None, 1, 4]),
    batch=st.lists(st.integers(1, 3), max_size=3),
    dropped=st.integers(0, 2),
    scale=st.floats(0.05, 1.5),
    seed=st.integers(0, 2**31),
)
def test_log_det_and_inverse_anywhere(
    name: str, input_dim: int, context_dim: int | None, batch: list[int], dropped: int, scale: float, seed: int
) -> None:
    torch.manual_seed(seed)
    flow = testing.randomize(LAYERS[name](input_dim, context_dim).double().eval(), scale)
    x = 3.0 * torch.randn(*batch, input_dim, dtype=torch.float64)
    context = None
    if flow.context_dim is not None:
        rest = [1 if i % 2 else n for i, n in enumerate(batch)][dropped:]  # fewer dimensions, some of size 1
        context = torch.randn(*rest, flow.context_dim, dtype=torch.float64)
    testing.check_log_det(flow, x, context)
    testing.check_inverse(flow, x, context)
    testing.check_inverse_gradients(flow, x, context)


@settings(max_examples=40)
@given(
    name=st.sampled_from(flows.names()),
    input_dim=st.integers(1, 5),
    num_transforms=st.integers(1, 4),
    context_dim=st.sampled_from([None, 2]),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_recipes_start_near_the_identity_whatever_the_options(
    name: str, input_dim: int, num_transforms: int, context_dim: int | None, seed: int, data: st.DataObject
) -> None:
    torch.manual_seed(seed)
    options = data.draw(strategies.options(name, input_dim), label="options")
    flow = flows.build(name, input_dim, context_dim, num_transforms, **options).eval()
    x = torch.randn(50, input_dim).clamp(-2.5, 2.5)  # a gate scales, and would a rare point far
    y, log_det = flow.forward_and_log_det(x, None if context_dim is None else torch.randn(50, context_dim))
    assert (y - x).abs().max() < 2.0
    assert log_det.abs().max() < 1.0 * num_transforms * input_dim


@pytest.mark.parametrize("name", CASES)
def test_repr_tells_the_dimensions(name: str) -> None:
    assert "input_dim=4" in repr(CASES[name](4, 3))


@pytest.mark.parametrize("context_dim", [None, 3])
@pytest.mark.parametrize("name", CASES)
def test_float32_is_close_to_float64(name: str, context_dim: int | None) -> None:
    single = testing.randomize(CASES[name](4, context_dim).eval(), 0.3)
    double = copy.deepcopy(single).double()
    x = torch.randn(20, 4)
    context = None if single.context_dim is None else torch.randn(20, single.context_dim)
    for method in ("forward_and_log_det", "inverse_and_log_det"):
        got = getattr(single, method)(x, context)
        want = getattr(double, method)(x.double(), None if context is None else context.double())
        for a, b in zip(got, want, strict=True):
            assert a.dtype == torch.float32
            assert (a - b).abs().max() <= 2e-3 * (1.0 + b.abs().max())


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_forward(name: str) -> None:
    flow = CASES[name](4, None).eval().bfloat16()
    if not flow.fast_forward:
        pytest.skip("forward of this chain is a sequential inverse")
    y, log_det = flow.forward_and_log_det(torch.randn(10, 4, dtype=torch.bfloat16))
    assert y.dtype == log_det.dtype == torch.bfloat16
    assert y.isfinite().all() and log_det.isfinite().all()


@pytest.mark.parametrize("name", CASES)
def test_forward_on_the_meta_device(name: str) -> None:
    if name == "recipe-maf-mog":
        pytest.skip("the forward of this case is a search, which looks at values")
    flow = CASES[name](4, 3).eval().to("meta")
    context = None if flow.context_dim is None else torch.randn(10, 3, device="meta")
    y, log_det = flow.forward_and_log_det(torch.randn(10, 4, device="meta"), context)
    assert y.device.type == log_det.device.type == "meta"
    assert y.shape == (10, 4) and log_det.shape == (10,)


@pytest.mark.parametrize("name", LAYERS)
def test_compiled_without_a_graph_break_equals_eager(name: str) -> None:
    torch._dynamo.reset()
    flow = testing.randomize(LAYERS[name](4, 3).double().eval(), 0.5)
    if not flow.fast_forward or name == "inverse-of-sylvester":
        pytest.skip("the forward of this case is a search")
    x = torch.randn(10, 4, dtype=torch.float64)
    context = None if flow.context_dim is None else torch.randn(10, 3, dtype=torch.float64)
    compiled = torch.compile(flow.forward_and_log_det, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(x, context), flow.forward_and_log_det(x, context), strict=True):
        torch.testing.assert_close(a, b)


def _passes(flow: torch.nn.Module, call) -> int:  # type: ignore[no-untyped-def]
    """How many passes of the conditioner a call makes: the work in its first layer, over that of one pass."""
    from pyro_flows_vi.nets.masked import MADE

    nets = [m for m in flow.modules() if isinstance(m, MADE)]
    counted = 0

    def count(*_: object) -> None:
        nonlocal counted
        counted += 1

    hooks = [net.register_forward_hook(count) for net in nets]
    call()
    for hook in hooks:
        hook.remove()
    return counted


@pytest.mark.parametrize("name", ["iaf", "naf", "maf"])
def test_declared_costs_are_the_passes_made(name: str) -> None:
    import pyro.distributions as dist

    flow = flows.build(name, 4, num_transforms=1)
    base = dist.Normal(torch.zeros(4), 1.0).to_event(1)
    law = dist.TransformedDistribution(base, [flow])
    cheap = (lambda: law.log_prob(torch.randn(10, 4))) if name == "maf" else (lambda: law.rsample((10,)))
    assert _passes(flow, cheap) == 1

    def sample_and_score() -> None:
        law.log_prob(law.rsample((10,)))

    assert _passes(flow, sample_and_score) == (0 if name == "maf" else 1)  # never a second pass
    assert (flow.fast_forward, flow.fast_inverse) == ((False, True) if name == "maf" else (True, False))
