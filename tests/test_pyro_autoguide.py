"""Pyro's own tests of its autoguides, run on ours: an external check, optional.

``PYRO_SOURCE`` names the folder of a Pyro checkout, the one that holds its ``tests`` package; without it all is
skipped. Nothing of Pyro's tests is kept here: the module is imported from that folder and its functions are called
with our guides in the place of Pyro's, among them all those that leave Pyro's own flow guide out.
"""

from __future__ import annotations

import functools
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
from pyro import poutine
from pyro.infer import (
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
)
from pyro.infer.autoguide import (
    AutoDelta,
    AutoGuideList,
    init_to_feasible,
    init_to_mean,
    init_to_median,
    init_to_sample,
)

from pyro_flows_vi import guides
from pyro_flows_vi.guides import AutoAmortizedFlow, AutoFlow

SOURCE = os.environ.get("PYRO_SOURCE")
pytestmark = pytest.mark.skipif(not SOURCE, reason="PYRO_SOURCE does not name the folder of a Pyro checkout")

EAGER = (Trace_ELBO, TraceGraph_ELBO, TraceEnum_ELBO)
INITS = (init_to_feasible, init_to_mean, init_to_median, init_to_sample)
FAMILIES = [getattr(guides, name) for name in guides.__all__ if name not in ("AutoAmortizedFlow", "AutoRealNVP")]
TWO = (AutoFlow, guides.AutoIAF)
Guide = Callable[..., Any]

families = pytest.mark.parametrize("guide", FAMILIES)
two = pytest.mark.parametrize("guide", TWO)
elbos = pytest.mark.parametrize("elbo", EAGER)
inits = pytest.mark.parametrize("init", INITS)
#: torch.jit asks every module for every attribute, and takes an AttributeError only for "no"


@pytest.fixture(scope="module")
def loaded(pytestconfig: pytest.Config) -> ModuleType:
    """Pyro's test module. The name ``tests`` is lent to Pyro's package for the import only."""
    folder = Path(str(SOURCE)).resolve()
    if not (folder / "tests" / "infer" / "test_autoguide.py").is_file():
        pytest.fail(f"PYRO_SOURCE={SOURCE}: expected a folder with tests/infer/test_autoguide.py in it")

    def take() -> dict[str, ModuleType]:
        names = [name for name in sys.modules if name == "tests" or name.startswith("tests.")]
        return {name: sys.modules.pop(name) for name in names}

    pytestconfig.addinivalue_line("markers", "stage(NAME): a stage of Pyro's tests, which its module names")
    pytestconfig.addinivalue_line("markers", "init(rng_seed): the seed of Pyro's tests, which its module names")
    path, own, bytecode = list(sys.path), take(), sys.dont_write_bytecode
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True  # the checkout stays as it is
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("tests.infer.test_autoguide")
    finally:
        take()
        sys.modules.update(own)
        sys.path[:], sys.dont_write_bytecode = path, bytecode


@pytest.fixture
def theirs(loaded: ModuleType) -> Iterator[ModuleType]:
    """The module in the state that Pyro's conftest makes: float64, and all arguments checked."""
    torch.set_default_dtype(torch.float64)
    with pyro.validation_enabled(True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield loaded


def x_and_the_rest(guide: Guide) -> Guide:
    """A list of a point guide for the site x and ours for the rest."""

    def build(model: Callable[..., Any]) -> AutoGuideList:
        parts = AutoGuideList(model)
        parts.append(AutoDelta(poutine.block(model, expose=["x"])))
        parts.append(guide(poutine.block(model, hide=["x"])))
        return parts

    return build


@families
def test_scores(theirs: ModuleType, guide: Guide) -> None:
    theirs.test_scores(guide)


@elbos
@families
def test_factor(theirs: ModuleType, guide: Guide, elbo: type) -> None:
    if guide is guides.AutoResidual:
        pytest.skip("the test counts on two losses from the same random numbers, and the log-determinant draws some")
    theirs.test_factor(guide, elbo)


@pytest.mark.parametrize("num_particles", [1, 10])
@elbos
@inits
@two
def test_shapes(theirs: ModuleType, guide: Guide, init: Any, elbo: type, num_particles: int) -> None:
    theirs.test_shapes(guide, init, elbo, num_particles)


@families
def test_shapes_of_every_family(theirs: ModuleType, guide: Guide) -> None:
    theirs.test_shapes(guide, init_to_median, Trace_ELBO, 10)


@pytest.mark.parametrize("elbo", [JitTrace_ELBO, JitTraceGraph_ELBO, JitTraceEnum_ELBO])
@pytest.mark.parametrize(
    "guide",
    [guides.AutoIAF, partial(AutoFlow, num_transforms=4), partial(guides.AutoPlanar, num_transforms=4)],
    ids=["iaf", "realnvp", "planar"],
)
def test_median(theirs: ModuleType, guide: Guide, elbo: type) -> None:
    theirs.test_median(guide, elbo)


@families
def test_serialization(theirs: ModuleType, guide: Guide) -> None:
    theirs.test_serialization(guide, False)


@two
def test_serialization_of_a_list(theirs: ModuleType, guide: Guide) -> None:
    theirs.test_serialization(x_and_the_rest(guide), False)


@two
def test_serialization_by_jit(theirs: ModuleType, guide: Guide) -> None:
    theirs.test_serialization(guide, True)


@elbos
@pytest.mark.parametrize("name", ["AutoFlow", "AutoIAF", "AutoSylvester"])
def test_quantiles(theirs: ModuleType, name: str, elbo: type) -> None:
    # A partial has no get_posterior, from which Pyro's test would read the variance of a Gaussian.
    theirs.test_quantiles(partial(getattr(guides, name)), elbo)


@families
def test_discrete_parallel(theirs: ModuleType, guide: Guide) -> None:
    theirs.test_discrete_parallel(guide)


@families
def test_guide_list(theirs: ModuleType, guide: Guide) -> None:
    theirs.test_guide_list(guide)


@two
def test_callable(theirs: ModuleType, guide: Guide) -> None:
    theirs.test_callable(guide)
    theirs.test_callable_return_dict(guide)


@families
def test_init_loc_fn(theirs: ModuleType, guide: Guide) -> None:
    theirs.test_init_loc_fn(guide)


@elbos
@pytest.mark.parametrize("guide", [*TWO, x_and_the_rest(AutoFlow)], ids=["realnvp", "iaf", "list"])
def test_median_module(theirs: ModuleType, guide: Guide, elbo: type) -> None:
    theirs.test_median_module(guide, elbo)


@elbos
@two
def test_linear_regression_smoke(theirs: ModuleType, guide: Guide, elbo: type) -> None:
    theirs.test_linear_regression_smoke(guide, elbo)


@two
def test_predictive(theirs: ModuleType, guide: Guide) -> None:
    theirs.test_predictive(guide)


@pytest.mark.parametrize("sample_shape", [(), (6,), (5, 4)], ids=str)
@families
def test_replay_plates(theirs: ModuleType, guide: Guide, sample_shape: tuple[int, ...]) -> None:
    theirs.test_replay_plates(guide, sample_shape)


@inits
@two
def test_helpful_errors_and_their_advice(theirs: ModuleType, guide: Guide, init: Any) -> None:
    theirs.test_discrete_helpful_error(guide, init)
    theirs.test_sphere_helpful_error(guide, init)
    theirs.test_sphere_reparam_ok(guide, init)


exactly = pytest.mark.parametrize(
    "guide",
    [partial(AutoFlow, num_transforms=2), partial(guides.AutoIAF, num_transforms=1), guides.AutoSylvester],
    ids=["realnvp", "iaf", "sylvester"],
)


@pytest.mark.parametrize("name", ["test_exact", "test_exact_batch", "test_exact_tree"])
@exactly
def test_exact(theirs: ModuleType, guide: Guide, name: str) -> None:
    getattr(theirs, name)(guide)


# -- subsampling: with an encoder, which looks at the rows -------------------------------------------------


def test_subsample_model(theirs: ModuleType) -> None:
    def encoder(x: Any, y: Any = None, batch_size: Any = None, *, indices: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[indices], y[indices]], dim=-1)

    theirs.test_subsample_model(functools.partial(AutoAmortizedFlow, encoder=encoder, context_dim=2))


@pytest.mark.parametrize("init", [init_to_mean, init_to_median])
def test_subsample_guide(theirs: ModuleType, init: Any) -> None:
    def encoder(batch: Any, subsample: Any, full_size: int, indices: torch.Tensor) -> torch.Tensor:
        assert torch.equal(subsample, indices)
        return torch.stack(list(batch), dim=-1)

    build = functools.partial(AutoAmortizedFlow, encoder=encoder, context_dim=8, init_loc_fn=init)
    theirs.test_subsample_guide(build, init)


def test_subsample_guide_2_has_no_latents(theirs: ModuleType) -> None:
    with pytest.raises(ValueError, match="no latent sites"):  # Pyro's AutoDelta and AutoNormal take it as nothing to do
        theirs.test_subsample_guide_2(lambda model, create_plates: AutoFlow(model), True)
