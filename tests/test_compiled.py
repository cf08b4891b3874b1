"""Compiled steps of a fit against the eager loop: the same numbers from the same seed, whatever happens on the way."""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from cuda_graphs import CUDAGraph
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from test_fit import Interrupting
from torch import Tensor, nn

from pyro_flows_vi.guides import AutoFlow
from pyro_flows_vi.infer import (
    ELBO,
    IWELBO,
    DReG,
    FitResult,
    LogDensity,
    PathELBO,
    Plateau,
    Renyi,
    compile_mode,
    compiled,
    fit,
    linear_tempering,
    problems,
)
from pyro_flows_vi.infer._step_graph import Untraceable, put_in_place
from pyro_flows_vi.infer.compile_mode import Driver, require_mode
from pyro_flows_vi.infer.fit_steps import FitSteps, Outcome
from pyro_flows_vi.infer.problems import FlowProblem
from pyro_flows_vi.infer.training import Training

X = torch.tensor([[1.0, 0.5, 0.1], [1.0, -1.0, 0.4], [1.0, 2.0, -0.3], [1.0, 0.3, 0.9]], dtype=torch.float64)
Y = torch.tensor([1.2, -0.8, 3.1, 0.9], dtype=torch.float64)
LOGGER = "pyro_flows_vi.infer.compile_mode"

Model = Callable[..., None]
Pair = tuple[Model, Any]


@pytest.fixture(autouse=True)
def quick_and_double(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(problems, "FINAL_DRAWS", 1024)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == LOGGER]


def regression(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[1]), 2.0).to_event(1))
    pyro.sample("y", dist.StudentT(4.0, x @ w, 0.7).to_event(1), obs=y)


def brittle(x: Tensor, y: Tensor) -> None:
    """Not a number in a corner that some draws of sixteen reach, and others do not."""
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    pyro.factor("corner", torch.where(w[0] > 1.5, torch.nan, 0.0))


def noisy(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    pyro.factor("noise", torch.randn(()) * w[0])


def with_parameters(x: Tensor, y: Tensor) -> None:
    scale = pyro.param("scale", torch.tensor(1.0))
    pyro.sample("w", dist.Normal(torch.zeros(3), scale.exp()).to_event(1))


def run(
    mode: str | bool, steps: int = 20, model: Model = regression, flow: str = "realnvp", **options: Any
) -> tuple[FitResult, Tensor]:
    """A short fit, and the guide's parameters after it."""
    pyro.clear_param_store()
    pyro.set_rng_seed(7)
    depth, scale = options.pop("num_transforms", 1), options.pop("init_scale", 0.3)
    guide = AutoFlow(model, flow, depth, init_scale=scale).setup(X, Y)
    settings = {"num_particles": 16, "plateau": Plateau(window=5), "start": "guide", "seed": 0, "progress": False}
    result = fit(model, guide, X, Y, max_steps=steps, compile=mode, **{**settings, **options})
    return result, torch.cat([p.detach().reshape(-1) for p in guide.parameters()])


def require_same(first: tuple[FitResult, Tensor], second: tuple[FitResult, Tensor], tolerance: float = 1e-8) -> None:
    torch.testing.assert_close(first[1], second[1], rtol=0.0, atol=tolerance)
    assert first[0].history.keys() == second[0].history.keys()
    for name, curve in first[0].history.items():
        assert curve == pytest.approx(second[0].history[name], abs=10 * tolerance)
    for name in ("steps", "skipped_steps", "kept", "stop_reason"):
        assert getattr(first[0], name) == getattr(second[0], name)
    assert first[0].elbo == pytest.approx(second[0].elbo, abs=10 * tolerance)


def training(mode: str | bool = "trace", steps: int = 1000, **options: Any) -> Training:
    pyro.set_rng_seed(7)
    guide = AutoFlow(regression, "realnvp", 1).setup(X, Y)
    problem = FlowProblem(guide, LogDensity(regression, X, Y), PathELBO(), 8, None)
    result = Training(problem)
    settings = {"optimizer": None, "learning_rate": None, "schedule": None, "clip_norm": 10.0}
    rules = {"plateau": Plateau(), "max_steps": steps, "max_skipped": 5}
    result.configure(**{**settings, **rules, **options}, compile=mode)
    return result


# -- the same numbers --------------------------------------------------------------------------------


FITS = pytest.mark.parametrize(
    ("flow", "options"),
    [
        ("realnvp", {"num_transforms": 2}),
        ("iaf", {"objective": ELBO(), "clip_norm": 0.05}),
        ("planar", {"objective": IWELBO(5), "schedule": lambda fraction: 1.0 - fraction}),
        ("radial", {"objective": DReG(4), "tempering": linear_tempering(0.2)}),
        ("realnvp", {"objective": Renyi(0.3), "tempering": linear_tempering(0.2), "learning_rate": 0.01}),
        ("realnvp", {"optimizer": pyro.optim.Adam({"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-4})}),
    ],
    ids=["path", "elbo", "iwelbo", "dreg", "renyi", "adam"],
)


@FITS
def test_a_traced_fit_is_the_eager_fit(flow: str, options: dict[str, Any]) -> None:
    require_same(run("trace", flow=flow, **options), run(False, flow=flow, **options))


@FITS
def test_a_captured_fit_is_the_eager_fit(flow: str, options: dict[str, Any], cuda_graphs: type[CUDAGraph]) -> None:
    """By a stand-in for CUDA graphs, which shows that a replay needs no Python and waits for no value."""
    require_same(run("cudagraph", flow=flow, **options), run(False, flow=flow, **options))
    assert cuda_graphs.captured == 1


def test_a_captured_fit_skips_what_is_not_finite(cuda_graphs: type[CUDAGraph]) -> None:
    options = {"model": brittle, "max_skipped": 100, "init_scale": 0.6}
    captured, eager = run("cudagraph", **options), run(False, **options)
    assert eager[0].skipped_steps > 0
    require_same(captured, eager)


def test_the_stand_in_refuses_what_waits(cuda_graphs: type[CUDAGraph]) -> None:
    graph, x = cuda_graphs(), torch.tensor([1.0, -2.0])
    with torch.cuda.graph(graph):
        y = x * 2.0 if x.shape else x
        y.add_(1.0)
    x.copy_(torch.tensor([5.0, 6.0]))
    graph.replay()
    assert y.tolist() == [11.0, 13.0]
    for waiting in (lambda: float(x[0]), lambda: x[x > 0.0], lambda: torch.randn(2)):
        with torch.cuda.graph(cuda_graphs()), pytest.raises(RuntimeError, match="not permitted"):
            waiting()


def test_cooldowns_and_collapses_happen_at_the_same_steps() -> None:
    options = {"plateau": Plateau(window=4, patience=1, least_cooldown=22), "learning_rate": 1.0, "max_skipped": 200}
    eager = run(False, 60, **options)
    rates = eager[0].history["learning_rate"]
    assert any(later < earlier for earlier, later in pairwise(rates))
    require_same(run("trace", 60, **options), eager, 1e-6)


def test_frozen_parameters_stay() -> None:
    def frozen(mode: str | bool) -> tuple[Tensor, list[Tensor]]:
        fitted = training(mode)
        fitted.problem.guide.affine.loc.requires_grad_(False)  # type: ignore[attr-defined]
        torch.manual_seed(0)
        while fitted.step < 6:
            fitted.advance(6)
        return fitted.problem.guide.affine.loc.detach(), [p.detach() for p in fitted.parameters]  # type: ignore

    eager, traced = frozen(False), frozen("trace")
    assert torch.equal(eager[0], traced[0])
    for p, q in zip(eager[1], traced[1], strict=True):
        torch.testing.assert_close(p, q, rtol=0.0, atol=1e-10)


def test_single_precision_stays_single() -> None:
    torch.set_default_dtype(torch.float32)
    pyro.set_rng_seed(7)
    guide = AutoFlow(regression, "realnvp", 1)
    fit(regression, guide, X.float(), Y.float(), max_steps=3, compile="trace", start="guide", progress=False, seed=0)
    assert {p.dtype for p in guide.parameters()} == {torch.float32}


# -- Pyro's handlers ---------------------------------------------------------------------------------


def regression_in_pyro() -> Pair:
    return regression, AutoMultivariateNormal(regression)


def amortised() -> Pair:
    """Networks in model and guide, a parameter with a constraint, and minibatches by Pyro's plates."""
    encoder, decoder = nn.Linear(3, 4), nn.Linear(2, 3)

    def model(x: Tensor, y: Tensor) -> None:
        pyro.module("decoder", decoder)
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("rows", 4, subsample_size=3) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), scale).to_event(1), obs=x[rows])

    def guide(x: Tensor, y: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("rows", 4, subsample_size=3) as rows:
            loc, log_scale = encoder(x[rows]).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide


@pytest.mark.filterwarnings("ignore:the model and the guide cannot run for all particles at once")
@pytest.mark.parametrize(("make", "particles"), [(regression_in_pyro, 2), (amortised, 1)])
def test_a_traced_pyro_pair_is_the_eager_one(make: Callable[[], Pair], particles: int) -> None:
    def run(mode: str | bool) -> tuple[FitResult, Tensor]:
        pyro.clear_param_store()
        pyro.set_rng_seed(7)
        model, guide = make()
        options: dict[str, Any] = {"num_particles": particles, "max_steps": 15, "seed": 0, "progress": False}
        result = fit(model, guide, X, Y, compile=mode, plateau=Plateau(window=5), **options)
        leaves = guide.parameters() if isinstance(guide, nn.Module) else pyro.get_param_store().values()
        return result, torch.cat([leaf.detach().reshape(-1) for leaf in leaves])

    require_same(run("trace"), run(False))


def test_another_cooldown_is_the_eager_one() -> None:
    rule = {"window": 5, "patience": 1, "least_cooldown": 20, "gap": 0.0}
    eager, traced = (run(mode, 160, plateau=Plateau(**rule), learning_rate=0.3) for mode in (False, "trace"))
    assert eager[0].steps >= 90, "the first one ends after 30 steps or so"
    require_same(eager, traced)


# -- steps that are not finite -----------------------------------------------------------------------


def test_steps_that_are_not_finite_are_skipped_alike() -> None:
    options = {"model": brittle, "max_skipped": 100, "init_scale": 0.6}
    eager = run(False, 30, **options)
    assert 5 < eager[0].skipped_steps < 25
    require_same(run("trace", 30, **options), eager)


def test_too_many_in_a_row_are_an_error_and_the_best_is_kept() -> None:
    def best(mode: str | bool) -> Tensor:
        pyro.set_rng_seed(7)
        guide = AutoFlow(brittle, "realnvp", 1, init_scale=0.6).setup(X, Y)
        options: dict[str, Any] = {"num_particles": 16, "plateau": Plateau(window=2), "start": "guide", "seed": 0}
        with pytest.raises(ValueError, match="not finite in 2 steps in a row"):
            fit(brittle, guide, X, Y, max_steps=60, max_skipped=2, compile=mode, progress=False, **options)
        return torch.cat([p.detach().reshape(-1) for p in guide.parameters()])

    torch.testing.assert_close(best("trace"), best(False), rtol=0.0, atol=1e-8)


# -- traces ------------------------------------------------------------------------------------------


def test_only_another_shape_is_traced_again() -> None:
    fitted = training()
    steps = fitted.driver.steps
    assert steps is not None and steps.traces == 0
    problem: Any = fitted.problem
    while fitted.step < 60:
        fitted.advance(min(60, fitted.step + 7))
    assert steps.traces == 1
    problem.log_density.rebind(X, Y + 100.0)
    torch.manual_seed(1)
    moved = fitted.driver.run(1)[0].elbo
    assert steps.traces == 1 and moved < -20.0  # the data are an input of the graph, and not a constant in it
    problem.log_density.rebind(X[:3], Y[:3])
    fitted.driver.run(1)
    assert steps.traces == 2


def test_a_trace_leaves_the_generator_alone() -> None:
    fitted = training()
    assert fitted.driver.steps is not None
    state = torch.get_rng_state()
    fitted.driver.steps.prepare()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_run_ends_where_it_is_told_to_and_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = training()
    fitted.driver.run(1)
    assert len(fitted.driver.run(3)) == 3
    monkeypatch.setattr(compiled, "PATIENCE", 0.0)
    assert len(fitted.driver.run(3)) == 1


def test_parameters_with_two_names_are_put_in_place_and_back() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(2, 2)
            self.same, self.tied = self.first, nn.Linear(2, 2)
            self.tied.weight = self.first.weight

    module = Twice()
    parameters = list(module.parameters())
    pieces = [torch.full_like(p, 3.0) for p in parameters]
    with pytest.raises(KeyError), put_in_place(module, parameters, pieces):
        assert module.same.weight is module.tied.weight is pieces[0]
        raise KeyError
    assert all(now is before for now, before in zip(module.parameters(), parameters, strict=True))
    assert module.tied.weight is module.same.weight is parameters[0]


# -- checkpoints -------------------------------------------------------------------------------------


def test_a_traced_fit_goes_on_bit_for_bit(tmp_path: Path) -> None:
    file = tmp_path / "fit.ckpt"
    whole = run("trace", 30, schedule=lambda fraction: 1.0)
    run("trace", 16, checkpoint=file, checkpoint_every=8, schedule=lambda fraction: 1.0)
    resumed = run("trace", 30, checkpoint=file, resume=True, checkpoint_every=8, schedule=lambda fraction: 1.0)
    assert torch.equal(resumed[1], whole[1]) and resumed[0].history == whole[0].history
    assert resumed[0].elbo == whole[0].elbo


def test_modes_go_on_from_each_others_checkpoints(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "fit.ckpt"
    whole = run(False, 30)
    run("trace", 30, checkpoint=file, checkpoint_every=8, plateau=Interrupting(window=5, at=16))
    require_same(run(False, 30, checkpoint=shutil.copy(file, tmp_path / "eager.ckpt"), resume=True), whole)
    with caplog.at_level(logging.INFO, LOGGER):
        require_same(run("auto", 30, checkpoint=file, resume=True), whole)
    assert "compile='trace': so does the checkpoint" in caplog.text


def test_a_trace_that_another_machine_had_is_not_demanded_of_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def prepare(self: FitSteps, deadline: float = 0.0, calls: float = 0.0) -> Any:
        raise Untraceable("too old")

    file = tmp_path / "fit.ckpt"
    run("trace", 30, checkpoint=file, plateau=Interrupting(window=5, at=16))
    monkeypatch.setattr(FitSteps, "prepare", prepare)
    with pytest.raises(ValueError, match="compile='trace' cannot be had: too old"):
        run("trace", 30, checkpoint=file, resume=True)
    with caplog.at_level(logging.INFO, LOGGER):
        require_same(run(True, 30, checkpoint=file, resume=True), run(False, 30))
    assert "compile=False: there is no trace: too old" in caplog.text


# -- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": lambda p: torch.optim.SGD(p, lr=0.01)}, "the optimiser is SGD, not one plain Adam"),
        ({"optimizer": lambda p: torch.optim.Adam(p, weight_decay=0.1)}, "of Adam's options, weight_decay"),
        ({"objective": lambda *args: ELBO()(*args)}, "objective function is not one of this package"),
        ({"model": with_parameters}, "the model has parameters of its own"),
        ({"model": noisy}, "the model draws random numbers"),
        ({"flow": "bnaf"}, "it goes on by values that it computes"),
    ],
    ids=["optimiser", "decay", "objective", "parameters", "noise", "solver"],
)
def test_fits_that_are_no_graph(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compile_mode, "STEPS_OF_A_TRACE", 0.0)
    monkeypatch.setattr(compile_mode, "SAVED_BY_TRACE", 1e6)
    monkeypatch.setattr(compile_mode, "TRIAL", 2)
    with pytest.raises(ValueError, match=f"compile='trace' cannot be had: .*{message}.*'auto' or False"):
        run("trace", 4, **options)
    eager = run(False, 4, **options)
    with caplog.at_level(logging.INFO, LOGGER):
        auto = run("auto", 4, **options)
    assert torch.equal(auto[1], eager[1]) and auto[0].elbo == eager[0].elbo
    (line,) = said(caplog)
    assert message in line and "compile=False" in line


def test_an_optimiser_of_some_parameters_moves_no_others() -> None:
    with pytest.raises(ValueError, match="Adam has other parameters than those that are trained"):
        training("trace", optimizer=lambda p: torch.optim.Adam(p[:2], lr=0.01))


def not_reparametrised() -> Pair:
    def model() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide() -> None:
        pyro.sample("z", NonreparameterizedNormal(pyro.param("loc", torch.tensor(0.3)), 1.0))

    return model, guide


def gamma() -> Pair:
    def model() -> None:
        pyro.sample("z", dist.Gamma(2.0, 1.0))

    def guide() -> None:
        pyro.sample("z", dist.Gamma(pyro.param("shape", torch.tensor(2.0)), 1.0))

    return model, guide


def reading() -> Pair:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("corner", torch.tensor(1.0 if z > 0.0 else 0.0))

    return model, AutoNormal(model)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (not_reparametrised, "the guide's draws of 'z' are not reparametrised"),
        (gamma, "random numbers of aten._standard_gamma.default depend on what the step computes"),
        (reading, "it goes on by values that it computes"),
    ],
)
def test_pyro_pairs_that_are_no_graph(make: Callable[[], Pair], message: str) -> None:
    pyro.clear_param_store()
    with pytest.raises(ValueError, match=f"compile='trace' cannot be had: {message}"):
        fit(*make(), compile="trace", num_particles=1, max_steps=2, progress=False)


def test_modes_that_do_not_exist_or_cannot_be_had_here(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("jit", 2, None):
        with pytest.raises(ValueError, match="compile to be 'auto', 'trace', 'inductor', 'cudagraph', True or False"):
            require_mode(wrong)  # type: ignore[arg-type]
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="expected a C\\+\\+ compiler"):
        run("inductor")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="expected a GPU"):
            run("cudagraph")


# -- what is done if nothing is said -----------------------------------------------------------------


def test_long_runs_are_traced_from_the_first_step_and_short_ones_are_not(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, LOGGER):
        by_default = run(True, 310, schedule=lambda fraction: 0.1)
        traced = run("trace", 310, schedule=lambda fraction: 0.1)
        require_same(run(True, 40), run(False, 40), 0.0)
    assert torch.equal(by_default[1], traced[1])
    assert "compile='trace': a step is one graph" in caplog.text
    assert "compile=False: only 40 steps are expected" in caplog.text


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"model": with_parameters}, "the model has parameters"),
        ({"model": noisy}, "draws random numbers"),
    ],
)
def test_what_cannot_be_traced_goes_step_by_step(
    options: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compile_mode, "LEAST_STEPS", 3)
    with caplog.at_level(logging.INFO, LOGGER):
        by_default = run(True, 4, max_skipped=10**6, **options)
    assert why in caplog.text and by_default[0].steps == 4


def test_a_trace_of_many_more_calls_than_a_step_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compile_mode, "LEAST_STEPS", 3)
    eager = run(False, 4)
    for most, mode in ((2.0, "'trace'"), (0.5, "False")):
        monkeypatch.setattr(compile_mode, "MOST_CALLS", most)
        monkeypatch.setattr(compile_mode, "MORE_CALLS", 0)
        caplog.clear()
        with caplog.at_level(logging.INFO, LOGGER):
            require_same(run(True, 4), eager)
        assert f"compile={mode}" in caplog.text
    assert "so many more calls of kernels" in caplog.text


def test_a_step_is_counted_with_loops_that_end_when_they_are_done_and_a_trace_with_whole_ones() -> None:
    def wide() -> None:
        pyro.sample("x", dist.Normal(torch.zeros(40), 1.0).to_event(1))

    guide = AutoFlow(wide, "iaf", 1, hidden_dims=[40]).setup()
    result = Training(FlowProblem(guide, LogDensity(wide), PathELBO(), 4, None))
    result.configure(None, None, None, 10.0, Plateau(), 300, 5)
    steps, state = result.compiled_steps("trace"), torch.get_rng_state()
    calls = steps.count_calls()  # near the identity the score takes few rounds, and 40 at most
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(Untraceable, match="so many more calls"):
        steps.prepare(calls=3 * calls // 2)
    steps.prepare()


def test_a_fit_goes_on_from_a_checkpoint_in_its_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_mode, "LEAST_STEPS", 10)
    file, schedule = tmp_path / "fit.ckpt", {"schedule": lambda fraction: 1.0}
    whole = run(True, 30, **schedule)
    run(True, 16, checkpoint=file, checkpoint_every=8, **schedule)
    monkeypatch.setattr(compile_mode, "LEAST_STEPS", 100)  # the checkpoint knows better
    resumed = run(True, 30, checkpoint=file, resume=True, checkpoint_every=8, **schedule)
    assert torch.equal(resumed[1], whole[1])


def test_a_script_that_cannot_be_made_is_run_as_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise RuntimeError("not on this version of Python")

    script = run("trace")
    with monkeypatch.context() as patched:
        patched.setattr(torch.jit, "trace", refuse)
        require_same(script, run("trace"))
    monkeypatch.delattr(torch.jit, "optimized_execution")
    require_same(script, run("trace"))


# -- the choice --------------------------------------------------------------------------------------


@pytest.fixture
def eager_for_choice(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Costs of nothing, so that the choice goes as far as it can."""
    for name, value in (("TRIAL", 3), ("STEPS_OF_A_TRACE", 0.0), ("INDUCTOR_PER_TRACE", 0.0), ("INDUCTOR_LEAST", 0.0)):
        monkeypatch.setattr(compile_mode, name, value)
    monkeypatch.setattr(compile_mode, "SAVED_BY_TRACE", 1e6)
    monkeypatch.setattr(compiled, "PATIENCE", 0.0)
    return monkeypatch


def slow_eager(fitted: Training, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.1) -> None:
    step = fitted.eager_step

    def slow() -> Outcome:
        time.sleep(seconds)
        return step()

    monkeypatch.setattr(fitted, "eager_step", slow)


def test_short_runs_stay_eager(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, LOGGER):
        auto = run("auto", 40)
    assert torch.equal(auto[1], run(False, 40)[1])
    (line,) = said(caplog)
    assert "compile=False: a step takes" in line and "at a cost of" in line


def test_long_runs_go_from_eager_to_a_graph_to_the_compiler(
    eager_for_choice: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    finished: list[str] = []

    def finish(graph: Any, inputs: Any, size: int, mode: str, without_python: bool) -> Any:
        finished.append(mode)

        def slow(*values: Tensor) -> Any:
            time.sleep(0.2 if mode == "trace" else 0.0)
            (report,) = graph.forward(*values)
            return values[:size], report

        return slow

    eager_for_choice.setattr(compiled, "finish", finish)
    eager_for_choice.setattr(compile_mode, "has_compiler", lambda: True)
    fitted = training("auto")
    slow_eager(fitted, eager_for_choice, 0.5)
    modes = []
    with caplog.at_level(logging.INFO, LOGGER):
        while fitted.step < 12:
            fitted.advance(12)
            modes.append(fitted.driver.mode)
    assert modes == [False] * 3 + ["trace"] * 3 + ["inductor"] * 6 and finished == ["trace", "inductor"]
    assert not fitted.driver.undecided
    assert "fit tries compile='trace'" in caplog.text and "fit tries compile='inductor'" in caplog.text


def test_without_a_compiler_the_graph_is_the_end(
    eager_for_choice: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    eager_for_choice.setattr(shutil, "which", lambda name: None)
    fitted = training("auto")
    slow_eager(fitted, eager_for_choice)
    with caplog.at_level(logging.INFO, LOGGER):
        while fitted.step < 8:
            fitted.advance(8)
    assert fitted.driver.mode == "trace" and "there is no C++ compiler" in caplog.text


def test_a_graph_that_is_no_faster_is_given_up(
    eager_for_choice: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run_steps = FitSteps.run

    def slow(self: FitSteps, most: int) -> list[Outcome]:
        time.sleep(0.2)
        return run_steps(self, most)

    eager_for_choice.setattr(FitSteps, "run", slow)
    fitted = training("auto")
    with caplog.at_level(logging.INFO, LOGGER):
        while fitted.step < 8:
            fitted.advance(8)
    assert fitted.driver.mode is False and fitted.driver.steps is None and not fitted.driver.undecided
    first, second = said(caplog)
    assert "fit tries compile='trace'" in first and "fit goes on with compile=False" in second


def test_a_trace_that_takes_too_long_is_given_up(
    eager_for_choice: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    eager_for_choice.setattr(compile_mode, "SAVED_BY_TRACE", 1e-9)
    fitted = training("auto")
    with caplog.at_level(logging.INFO, LOGGER):
        while fitted.step < 5:
            fitted.advance(5)
    assert fitted.driver.mode is False and "takes longer than it can save" in caplog.text


def test_expected_steps() -> None:
    assert training(False, steps=500).expected_steps() == 500
    assert training(False, steps=3000).expected_steps() == 1300
    assert training(False, steps=3000, schedule=lambda fraction: 1.0).expected_steps() == 3000
    cooling = Plateau(steps=500, total=900, left=300)
    assert training(False, steps=3000, plateau=cooling).expected_steps() == 300
    late = Plateau(steps=1000, window=50)
    assert training(False, steps=3000, plateau=late).expected_steps() == 150 + 1150
    assert isinstance(training(False).driver, Driver)


# -- compilers ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*deprecated")  # torch's inductor uses what torch has deprecated
@pytest.mark.skipif(
    not (compile_mode.has_compiler() and os.environ.get("PYRO_FLOWS_VI_COMPILE")),
    reason="takes a C++ compiler and a minute: set PYRO_FLOWS_VI_COMPILE=1",
)
def test_the_inductor_gives_the_eager_fit() -> None:
    options = {"model": brittle, "max_skipped": 100, "init_scale": 0.6}
    require_same(run("inductor", 20, **options), run(False, 20, **options))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="takes a GPU")
def test_a_cuda_graph_gives_the_eager_fit() -> None:
    def on_gpu(mode: str | bool) -> tuple[float, Tensor]:
        pyro.set_rng_seed(7)
        torch.set_default_device("cuda")
        try:
            guide = AutoFlow(regression, "realnvp", 2)
            result = fit(
                regression, guide, X.cuda(), Y.cuda(), max_steps=20, compile=mode, start="guide", seed=0, progress=False
            )
        finally:
            torch.set_default_device("cpu")
        return result.elbo, torch.cat([p.detach().reshape(-1) for p in guide.parameters()])

    (elbo, parameters), (expected, whole) = on_gpu("cudagraph"), on_gpu(False)
    torch.testing.assert_close(parameters, whole, rtol=0.0, atol=1e-8)
    assert math.isclose(elbo, expected, abs_tol=1e-6)
