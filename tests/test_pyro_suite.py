"""Pyro's own tests of its transforms, run on our factories: an external check, optional.

``PYRO_SOURCE`` names the folder of a Pyro checkout, the one that holds its ``tests`` package; without it all is
skipped. Nothing of Pyro's tests is kept here: the module is imported from that folder and its helpers are called.

Every parameter of a flow that was just built is multiplied by 1, 3 or 10, the networks that amortise included, and
every family is tested with ``inverse=True``, which also sends the training steps of Pyro's test through the inverse.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pyro
import pytest
import torch

from pyro_flows_vi import transforms as ours
from pyro_flows_vi.transforms import Flow

SOURCE = os.environ.get("PYRO_SOURCE")
pytestmark = pytest.mark.skipif(not SOURCE, reason="PYRO_SOURCE does not name the folder of a Pyro checkout")

SCALES = (1, 3, 10)
ACTIVATIONS = ("ELU", "LeakyReLU", "sigmoid", "tanh")
Factory = Callable[..., Flow]

#: what Pyro's class tests of its own, by test and option, and our families that Pyro lacks
FACTORIES: dict[str, Factory] = {
    "planar": ours.planar,
    "radial": ours.radial,
    "sylvester": ours.sylvester,
    "householder": partial(ours.householder, count_transforms=2),
    "residual": ours.residual,
    "spline": ours.spline,
    "spline_coupling": ours.spline_coupling,
    "spline_autoregressive": ours.spline_autoregressive,
    **{f"affine_autoregressive-{s}": partial(ours.affine_autoregressive, stable=s) for s in (True, False)},
    **{f"neural_autoregressive-{a}": partial(ours.neural_autoregressive, activation=a) for a in ACTIVATIONS},
    **{f"block_autoregressive-{a}": partial(ours.block_autoregressive, activation=a) for a in ACTIVATIONS},
    **{f"block_autoregressive-{r}": partial(ours.block_autoregressive, residual=r) for r in (None, "normal", "gated")},
}
CONDITIONAL: dict[str, Factory] = {
    "planar": ours.conditional_planar,
    "radial": ours.conditional_radial,
    "sylvester": ours.conditional_sylvester,
    "householder": ours.conditional_householder,
    "householder-2": partial(ours.conditional_householder, count_transforms=2),
    "residual": ours.conditional_residual,
    "affine_autoregressive": ours.conditional_affine_autoregressive,
    "neural_autoregressive": ours.conditional_neural_autoregressive,
    "block_autoregressive": ours.conditional_block_autoregressive,
    "spline": ours.conditional_spline,
    "spline_coupling": ours.conditional_spline_coupling,
    "spline_autoregressive": ours.conditional_spline_autoregressive,
}


@pytest.fixture(scope="module")
def theirs(pytestconfig: pytest.Config) -> Iterator[ModuleType]:
    """Pyro's test module. The name ``tests`` is lent to Pyro's package for the import only."""
    folder = Path(str(SOURCE)).resolve()
    if not (folder / "tests" / "distributions" / "test_transforms.py").is_file():
        pytest.fail(f"PYRO_SOURCE={SOURCE}: expected a folder with tests/distributions/test_transforms.py in it")

    def take() -> dict[str, ModuleType]:
        names = [name for name in sys.modules if name == "tests" or name.startswith("tests.")]
        return {name: sys.modules.pop(name) for name in names}

    pytestconfig.addinivalue_line("markers", "init(rng_seed): the seed of Pyro's tests, which its module names")
    path, own, bytecode = list(sys.path), take(), sys.dont_write_bytecode
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True  # the checkout stays as it is
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = importlib.import_module("tests.distributions.test_transforms")
    finally:
        take()
        sys.modules.update(own)
        sys.path[:], sys.dont_write_bytecode = path, bytecode
    yield module


@pytest.fixture
def suite(theirs: ModuleType) -> Any:
    """Pyro's test class with one more check, in the state that Pyro's conftest makes: float64 and its seed."""

    class Suite(theirs.TransformTests):  # type: ignore[name-defined, misc]
        def _test_jacobian(self, input_dim: int, transform: Flow) -> None:
            if transform.triangular:
                transform.autoregressive = True  # Pyro then wants exact zeros on one side of the diagonal
            super()._test_jacobian(input_dim, transform)
            x = torch.randn(input_dim)
            jacobian = torch.autograd.functional.jacobian(lambda v: transform.forward_and_log_det(v)[0], x)
            exact, claimed = torch.linalg.slogdet(jacobian)[1], transform.forward_and_log_det(x)[1]
            assert (exact - claimed).abs() < 1e-9

    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(123)
    tests = Suite()
    tests.setUp()
    return tests


def scaled(factory: Factory, scale: float) -> Factory:
    """The factory, with every parameter of what it builds multiplied by ``scale``."""

    def build(*dims: int) -> Flow:
        flow = factory(*dims)
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.mul_(scale)
        return flow

    return build


class OneContext:
    """A conditional flow that takes the single row of Pyro's context ``(1, C)`` as a context without a batch.

    Pyro's shape test wants a flow conditioned on it to have the shapes of a flow without a context. Our shapes are
    those of the values, and the batch ``(1,)`` is a part of them (see ``test_flows.py``).
    """

    def __init__(self, flow: Flow) -> None:
        self.flow, self.parameters = flow, flow.parameters

    def condition(self, context: torch.Tensor) -> Flow:
        return self.flow.condition(context.squeeze(0))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", FACTORIES)
def test_factory(suite: Any, name: str, scale: float) -> None:
    if name == "block_autoregressive-None" and scale == 10:
        # Without a residual the slopes at ten times the weights are down to 1e-7. With Pyro's step h = 1e-4 the
        # rounding of y alone is then 1e-16 / (h * 1e-7) = 1e-5 of a slope and more, and a smaller h makes it
        # worse: at seed 124 the differences are off by 6e-6, 1.3e-4, 3e-4 and 9e-4 for h = 1e-3 to 1e-6, autograd
        # by 2e-12. Pyro's epsilon is step and tolerance in one, so both are 1e-3 here; the check against autograd
        # keeps its 1e-9.
        suite.epsilon = 1e-3
    suite._test(scaled(FACTORIES[name], scale), inverse=True)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", CONDITIONAL)
def test_conditional_factory(suite: Any, name: str, scale: float) -> None:
    factory = scaled(CONDITIONAL[name], scale)
    suite._test_conditional(factory, inverse=True, shape=False)
    shapes_only = {"inverse": False, "jacobian": False, "autodiff": False}
    suite._test_conditional(lambda *dims: OneContext(factory(*dims)), **shapes_only)


def test_permute(suite: Any) -> None:
    suite._test(ours.permute, inverse=True, autodiff=False)  # no parameters: nothing to scale, nothing to train


def test_the_checks_can_fail(suite: Any) -> None:
    class Wrong(ours.Planar):
        def forward_and_log_det(self, x, context=None):  # type: ignore[no-untyped-def]
            y, log_det = super().forward_and_log_det(x, context)
            return y, log_det + 2e-4

    with pytest.raises(AssertionError):
        suite._test(Wrong, inverse=True)


def test_our_own_tests_are_left_alone(theirs: ModuleType) -> None:
    folder = Path(str(SOURCE)).resolve()
    assert Path(str(theirs.__file__)).is_relative_to(folder)
    assert str(folder) not in sys.path
    assert not any(Path(str(m.__file__)).is_relative_to(folder) for n, m in sys.modules.items() if n == "tests")
