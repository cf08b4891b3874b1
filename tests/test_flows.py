"""The registry, and what the door of every flow refuses."""

from __future__ import annotations

import inspect
import math
import re
import sys
from typing import Any

import pytest
import torch

from pyro_flows_vi import flows
from pyro_flows_vi.transforms import (
    ActNorm,
    AffineAutoregressive,
    Compose,
    Flow,
    Inverse,
    LULinear,
    Permute,
    Planar,
    Radial,
    Reverse,
    Sylvester,
    permute,
    reverse,
)

# -- registry ---------------------------------------------------------------------------------------------


def test_names_are_sorted_and_all_are_built() -> None:
    names = flows.names()
    assert names == sorted(names) and {"planar", "sylvester", "iaf", "maf", "naf", "bnaf", "residual"} <= set(names)
    for name in names:
        flow = flows.build(name, 3, 2, num_transforms=3)
        assert (flow.input_dim, flow.context_dim) == (3, 2)
        assert "arXiv:" in flows.describe(name).source


def test_options_are_those_of_the_layer() -> None:
    assert flows.options("sylvester") == ["hidden_dims", "form", "rank", "num_reflections", "reverse"]
    assert flows.options("actnorm") == []
    assert "num_transforms" not in flows.options("planar")
    flow = flows.build("naf", 3, num_transforms=2, width=5, hidden_dims=(9,))
    assert [f.width for f in flow if hasattr(f, "width")] == [5, 5]


def test_options_override_the_recipe() -> None:
    assert [f.reverse for f in flows.build("sylvester", 3, form="triangular")] == [False, True, False, True]
    assert [f.reverse for f in flows.build("sylvester", 3, form="triangular", reverse=True)] == [True] * 4
    assert {f.depth for f in flows.build("ddsf", 3) if hasattr(f, "depth")} == {2}


@pytest.mark.parametrize("call", [flows.describe, flows.options, lambda name: flows.build(name, 2)])
def test_unknown_names_get_a_suggestion(call: Any) -> None:
    with pytest.raises(
        ValueError, match=r"unknown flow 'sylvestre' \(did you mean 'sylvester'\?\); expected one of .*iaf"
    ):
        call("sylvestre")
    with pytest.raises(ValueError, match=r"unknown flow 'xyz'; expected"):
        call("xyz")


def test_unknown_options_get_a_suggestion() -> None:
    with pytest.raises(ValueError, match=r"unknown option 'hidden_dim' of flow 'iaf' \(did you mean 'hidden_dims'\?\)"):
        flows.build("iaf", 2, hidden_dim=(3,))
    with pytest.raises(ValueError, match=r"unknown option 'width' of flow 'actnorm'; expected one of none"):
        flows.build("actnorm", 2, width=3)


@pytest.mark.parametrize(
    ("name", "option", "value", "expected"),
    [
        ("naf", "width", "abc", "int"),
        ("naf", "width", True, "int"),
        ("bnaf", "hidden_factors", 8, r"a sequence \(list or tuple\) of int"),
        ("bnaf", "hidden_factors", (2.5,), r"a sequence \(list or tuple\) of int"),
        ("bnaf", "hidden_factors", "88", r"a sequence \(list or tuple\) of int"),
        ("bnaf", "residual", 3, "text or None"),
        ("residual", "num_terms", 2.5, "int or None"),
        ("residual", "tolerance", math.nan, "a finite number"),
        ("residual", "rate", "fast", "a finite number or None"),
        ("iaf", "gated", "yes", "True or False"),
        ("iaf", "gated", 1, "True or False"),
        ("planar", "hidden_dims", None, r"a sequence \(list or tuple\) of int"),
        ("sylvester", "form", ["householder"], "one of 'orthogonal', 'householder', 'triangular'"),
    ],
)
def test_values_of_another_type_are_refused(name: str, option: str, value: Any, expected: str) -> None:
    got = re.escape(repr(value))
    with pytest.raises(ValueError, match=rf"option '{option}' of flow '{name}': expected {expected}, got {got}"):
        flows.build(name, 3, **{option: value})


ODD = [
    "abc",
    "",
    2.5,
    -1,
    0,
    True,
    None,
    math.nan,
    math.inf,
    (),
    (0,),
    (2.5,),
    ("a",),
    {"a": 1},
    torch.ones(2),
    ((3,),),
]


@pytest.mark.parametrize(
    ("name", "option"), [(name, option) for name in flows.names() for option in flows.options(name)]
)
def test_no_option_ends_in_another_error(name: str, option: str) -> None:
    """An odd value is refused as such at once, or it makes a flow that works."""
    for value in ODD:
        try:
            flow = flows.build(name, 3, 2, num_transforms=1, **{option: value}).eval()
        except ValueError:
            continue
        for part in flow.forward_and_log_det(torch.randn(4, 3), torch.randn(4, 2)):
            assert part.isfinite().all(), value


@pytest.mark.parametrize("name", flows.names())
def test_defaults_are_of_the_types_that_are_asked_for(name: str) -> None:
    parameters = inspect.signature(flows.describe(name).layer).parameters
    for option in flows.options(name):
        flows.build(name, 3, num_transforms=1, **{option: parameters[option].default})


@pytest.mark.parametrize("count", [0, -1, 1.5, True])
@pytest.mark.parametrize("name", ["planar", "iaf"])
def test_num_transforms_is_a_positive_integer(name: str, count: Any) -> None:
    with pytest.raises(ValueError, match=r"num_transforms to be a positive integer, got"):
        flows.build(name, 2, num_transforms=count)


@pytest.mark.parametrize("dim", [0, -2, 2.0])
def test_dimensions_are_positive_integers(dim: Any) -> None:
    with pytest.raises(ValueError, match="input_dim to be a positive integer"):
        AffineAutoregressive(dim)
    with pytest.raises(ValueError, match="context_dim to be a positive integer"):
        LULinear(3, dim)


@pytest.mark.parametrize("name", ["iaf", "maf", "naf", "bnaf"])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_reversals_come_in_pairs(name: str, count: int) -> None:
    flow = flows.build(name, 3, num_transforms=count).eval()
    steps = [f for f in flow if not isinstance(f, Reverse)]
    assert len(steps) == count
    assert (len(flow) - count) % 2 == 0 and (len(flow) > count) == (count > 1)
    x = torch.randn(20, 3)
    # An odd reversal would move the points by about as much as they are large.
    assert (flow(x) - x).abs().max() < 0.4 * (x.flip(-1) - x).abs().max()
    assert len(flows.build(name, 1, num_transforms=count)) == count  # nothing to reverse


def test_maf_is_iaf_turned_round() -> None:
    maf, iaf = flows.build("maf", 3, num_transforms=1), flows.build("iaf", 3, num_transforms=1)
    assert isinstance(maf[0], Inverse) and isinstance(maf[0].inv, AffineAutoregressive)
    assert (maf.fast_forward, maf.fast_inverse) == (iaf.fast_inverse, iaf.fast_forward) == (False, True)
    maf[0].inv.load_state_dict(iaf[0].state_dict())
    x = torch.randn(5, 3)
    for a, b in zip(maf.inverse_and_log_det(x), iaf.forward_and_log_det(x), strict=True):
        torch.testing.assert_close(a, -b if b.dim() == 1 else b)


# -- chains -----------------------------------------------------------------------------------------------


def test_a_chain_is_a_sequence() -> None:
    parts = [Planar(3), reverse(3), Radial(3), LULinear(3)]
    chain = Compose(parts)
    assert list(chain) == parts and chain[-1] is parts[-1] and len(chain) == 4
    middle = chain[1:3]
    assert isinstance(middle, Compose) and list(middle) == parts[1:3]
    x = torch.randn(5, 3)
    y, log_det = chain[:2].forward_and_log_det(x)
    z, rest = chain[2:].forward_and_log_det(y)
    whole = chain.forward_and_log_det(x)
    torch.testing.assert_close((z, log_det + rest), whole)
    with pytest.raises(IndexError):
        chain[4]
    with pytest.raises(ValueError, match="at least one flow"):
        chain[4:]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], r"at least one flow"),
        ([Planar(2), Planar(3)], r"2 flows with input_dim \[2, 3\]"),
        ([Planar(2, 4), Planar(2, 5)], r"context_dim \[4, 5\]"),
        ([Planar(2), torch.nn.Linear(2, 2)], r"expected flows of type Flow, got Linear"),
    ],
)
def test_what_is_no_chain(parts: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Compose(parts)


def test_only_those_with_a_context_get_it() -> None:
    chain = Compose([Planar(3), Planar(3, 2)])
    assert chain.context_dim == 2
    assert chain.forward_and_log_det(torch.randn(5, 3), torch.randn(5, 2))[0].shape == (5, 3)


# -- the door ---------------------------------------------------------------------------------------------

FREE = [
    Planar(3),
    Sylvester(3),
    AffineAutoregressive(3),
    AffineAutoregressive(3).inv,
    flows.build("naf", 3),
    reverse(3),
]
GIVEN = [Planar(3, 2), AffineAutoregressive(3, 2), flows.build("maf", 3, 2), Compose([reverse(3), Planar(3, 2)])]
PAIR = ("forward_and_log_det", "inverse_and_log_det")


def name_of(value: object) -> str | None:
    return type(value).__name__ if isinstance(value, Flow) else None


@pytest.mark.parametrize("method", PAIR)
@pytest.mark.parametrize("flow", FREE, ids=name_of)
def test_shapes_and_contexts_that_do_not_fit(flow: Flow, method: str) -> None:
    call = getattr(flow, method)
    name = type(flow).__name__
    for shape in ((4,), (5, 2), (3, 1), ()):
        with pytest.raises(ValueError, match=rf"{name}: expected shape \(\*batch, 3\), got"):
            call(torch.randn(shape))
    for shape in ((0, 3), (5, 0, 3)):
        with pytest.raises(ValueError, match=rf"{name}: expected at least one point, got an empty batch"):
            call(torch.randn(shape))
    with pytest.raises(ValueError, match=rf"{name}: got a context of shape \(5, 2\), but .* without context_dim"):
        call(torch.randn(5, 3), torch.randn(5, 2))


@pytest.mark.parametrize("method", PAIR)
@pytest.mark.parametrize("flow", GIVEN, ids=name_of)
def test_contexts_that_are_missing_or_misshapen(flow: Flow, method: str) -> None:
    call = getattr(flow, method)
    with pytest.raises(ValueError, match=r"expected a context of shape \(\*batch, 2\), got none; pass context="):
        call(torch.randn(5, 3))
    with pytest.raises(ValueError, match=r"expected context of shape \(\*batch, 2\), got \(5, 4\)"):
        call(torch.randn(5, 3), torch.randn(5, 4))
    with pytest.raises(ValueError, match=r"batch \(4,\) does not broadcast against the batch \(5,\)"):
        call(torch.randn(5, 3), torch.randn(4, 2))
    with pytest.raises(ValueError, match=r"expected context of shape \(\*batch, 2\), got \(5, 4\)"):
        flow.condition(torch.randn(5, 4))


@pytest.mark.parametrize("context_shape", [(2,), (1, 2), (5, 2), (4, 1, 2)])
@pytest.mark.parametrize("flow", GIVEN, ids=name_of)
def test_declared_shapes_are_those_of_the_values(flow: Flow, context_shape: tuple[int, ...]) -> None:
    bound = flow.condition(torch.randn(context_shape))
    for shape in ((3,), (5, 3), (4, 5, 3)):
        assert bound.forward_shape(shape) == bound(torch.zeros(shape)).shape
        assert bound.inverse_shape(shape) == bound.inv(torch.zeros(shape)).shape


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("flow", FREE, ids=name_of)
def test_points_that_are_not_finite(flow: Flow, bad: float) -> None:
    x = torch.zeros(5, 3)
    x[1, 2] = x[4, 0] = bad
    for call in (flow, flow.inv, flow._inverse):
        with pytest.raises(ValueError, match=r"holds 2 values that are NaN or infinite"):
            call(x)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("make", "parameter"),
    [
        (lambda: Planar(3), "params.u"),
        (lambda: Radial(3), "params.centre"),
        (lambda: LULinear(3), "params.bias"),
        (lambda: AffineAutoregressive(3), "net.last.bias"),
        (lambda: Compose([reverse(3), Planar(3)]), "flows.1.params.u"),
    ],
)
def test_parameters_that_are_not_finite_are_named(make: Any, parameter: str, bad: float) -> None:
    flow = make()
    with torch.no_grad():
        flow.get_parameter(parameter).flatten()[0] = bad
    for call in (flow, flow.inv):
        with pytest.raises(ValueError, match=rf"parameter '{parameter}' holds NaN or infinite values"):
            call(torch.randn(5, 3))


# -- families ---------------------------------------------------------------------------------------------


def test_actnorm_is_initialised_from_data() -> None:
    flow = ActNorm(3)
    x = torch.randn(4, 50, 3) * torch.tensor([1e-4, 1.0, 300.0]) + torch.tensor([0.0, 5.0, -2.0])
    y = flow.initialize(x)
    torch.testing.assert_close(y, flow(x))
    torch.testing.assert_close(y.reshape(-1, 3).mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(y.reshape(-1, 3).std(0), torch.ones(3), atol=1e-4, rtol=0)
    assert not y.requires_grad and all(p.requires_grad for p in flow.parameters())


def test_actnorm_refuses_what_gives_no_scale() -> None:
    with pytest.raises(ValueError, match="at least 2 points that vary"):
        ActNorm(3).initialize(torch.ones(10, 3))
    with pytest.raises(ValueError, match="without a context"):
        ActNorm(3, 2).initialize(torch.randn(10, 3))


@pytest.mark.filterwarnings("default")
def test_actnorm_refuses_a_single_point() -> None:
    with pytest.raises(ValueError, match="at least 2 points"):
        ActNorm(3).initialize(torch.randn(1, 3))


@pytest.mark.parametrize("context_dim", [None, 2])
@pytest.mark.parametrize("form", ["orthogonal", "householder", "triangular"])
def test_sylvester_roots_found_together_are_those_found_in_sequence(
    form: str, context_dim: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyro_flows_vi.testing import randomize
    from pyro_flows_vi.transforms import Sylvester

    flow = randomize(Sylvester(9, context_dim, form=form).double(), 0.3)
    y = torch.randn(2, 4, 9, dtype=torch.float64)
    context = None if context_dim is None else torch.randn(4, 2, dtype=torch.float64)
    in_sequence = flow.inverse_and_log_det(y, context)
    with torch.no_grad(), monkeypatch.context() as patch:
        patch.setattr(Sylvester, "_substitute", None)  # which settling leaves alone
        together = flow.inverse_and_log_det(y, context)
    module = sys.modules[Sylvester.__module__]
    with torch.no_grad(), monkeypatch.context() as patch:
        patch.setattr(module, "ROUNDS", 1)
        given_up = flow.inverse_and_log_det(y, context)
    for a, b, c in zip(in_sequence, together, given_up, strict=True):
        torch.testing.assert_close(b, a)
        assert torch.equal(c, a)


@pytest.mark.parametrize("values", [[0, 0, 1], [1, 2, 3], [[0, 1], [1, 0]], [0, 1, 3]])
def test_what_is_no_permutation(values: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"expected a permutation of 0, \.\.\., D - 1"):
        Permute(torch.tensor(values))


@pytest.mark.parametrize(
    "values", [[1.0, 0.0], torch.tensor([1.0, 0.0]), [True, False], ["b", "a"], 3, None, [[0], [1, 0]]]
)
def test_what_is_no_permutation_of_integers(values: Any) -> None:
    with pytest.raises(ValueError, match=r"expected a permutation of 0, \.\.\., D - 1"):
        Permute(values)
    if values is not None:
        with pytest.raises(ValueError, match=r"expected a permutation of 0, \.\.\., D - 1"):
            permute(2, values)


def test_permute_with_pyros_signature() -> None:
    given = permute(3, torch.tensor([2, 0, 1]))
    assert given(torch.tensor([10.0, 20.0, 30.0])).tolist() == [30.0, 10.0, 20.0]
    assert permute(2, [1, 0])(torch.tensor([10.0, 20.0])).tolist() == [20.0, 10.0]
    assert permute(2, (1, 0)).state_dict()["permutation"].dtype == torch.int64
    assert Permute(torch.tensor([1, 0], dtype=torch.int32))(torch.tensor([10.0, 20.0])).tolist() == [20.0, 10.0]
    with pytest.raises(ValueError, match="a permutation of 4 coordinates, got 3"):
        permute(4, torch.tensor([2, 0, 1]))
    with pytest.raises(ValueError, match="expected dim=-1"):
        permute(3, dim=-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "cholesky"}, r"form to be one of orthogonal, householder, triangular; got 'cholesky'"),
        ({"rank": 0}, r"rank to be a positive integer, got 0"),
        ({"rank": 5}, r"rank to be at most input_dim=4, got 5"),
        ({"form": "householder", "num_reflections": 0}, r"num_reflections to be a positive integer"),
    ],
)
def test_sylvester_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sylvester(4, **options)
