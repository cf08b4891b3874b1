"""Fits of small models with known posteriors, and everything that may happen on the way."""

from __future__ import annotations

import math
import os
import random
import signal
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import Tensor
from torch.distributions import constraints

from pyro_flows_vi.guides import AutoFlow
from pyro_flows_vi.infer import ELBO, FitResult, LogDensity, PathELBO, Plateau, Renyi, fit, linear_tempering
from pyro_flows_vi.infer._particles import particle_elbo
from pyro_flows_vi.infer.interruption import Interruption, TrainingInterrupted
from pyro_flows_vi.infer.objectives import Estimate, FlowGuide, Target
from pyro_flows_vi.infer.problems import FlowProblem, PyroProblem
from pyro_flows_vi.infer.training import Training

X = torch.tensor([[1.0, 0.5], [1.0, -1.0], [1.0, 2.0], [1.0, 0.3], [1.0, -0.4]])
Y = torch.tensor([1.2, -0.8, 3.1, 0.9, 0.1])


def regression(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[1]), 2.0).to_event(1))
    pyro.sample("y", dist.Normal(x @ w, 0.7).to_event(1), obs=y)


def posterior() -> tuple[Tensor, Tensor, float]:
    x, y = X.double(), Y.double()
    covariance = torch.linalg.inv(x.T @ x / 0.49 + torch.eye(2) / 4.0)
    marginal = 4.0 * x @ x.T + 0.49 * torch.eye(5, dtype=x.dtype)
    evidence = dist.MultivariateNormal(torch.zeros(5, dtype=x.dtype), marginal).log_prob(y)
    return covariance @ (x.T @ y) / 0.49, covariance, float(evidence)


def make_guide(flow: str = "realnvp", **options: Any) -> AutoFlow:
    pyro.set_rng_seed(7)
    return AutoFlow(regression, flow, 2, hidden_dims=[8], **options).setup(X, Y)


SMALL: dict[str, Any] = {"num_particles": 16, "restarts": 1, "progress": False, "seed": 0, "start": "guide"}


def small_fit(guide: Any, max_steps: int = 40, **options: Any) -> FitResult:
    return fit(regression, guide, X, Y, max_steps=max_steps, **{**SMALL, **options})


def same(first: AutoFlow, second: AutoFlow) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


# -- results -----------------------------------------------------------------------------------------


def test_defaults_recover_a_conjugate_posterior() -> None:
    mean, covariance, evidence = posterior()
    guide = AutoFlow(regression)
    result = fit(regression, guide, X, Y, seed=1, progress=False)
    draws = guide.sample_posterior(8192, X, Y)["w"].double()
    error = (draws.mean(0) - mean) / covariance.diagonal().sqrt()
    assert float(error.abs().max()) < 0.05
    torch.testing.assert_close(draws.T.cov(), covariance, rtol=0.1, atol=0.005)
    assert abs(result.elbo - evidence) < 0.02
    assert result.converged and result.stop_reason == "no more progress"
    assert len(result.restart_elbos) == 3 and result.skipped_steps == 0
    lengths = {name: len(curve) for name, curve in result.history.items()}
    assert set(lengths) == {"step", "elbo", "elbo_se", "learning_rate"} and len(set(lengths.values())) == 1
    assert "converged" in str(result) and "ELBO" in str(result)


def test_a_posterior_that_is_not_gaussian() -> None:
    def model() -> None:
        pyro.sample("rate", dist.Gamma(1.5, 2.0))

    guide = AutoFlow(model, "naf", 2)
    result = fit(model, guide, seed=0, progress=False, max_steps=400, num_particles=64)
    assert abs(result.elbo) < 0.01  # the evidence is 1, and the best Gaussian falls short of it by 0.05
    draws = guide.sample_posterior(8192)["rate"]
    assert abs(float(draws.mean()) - 0.75) < 0.05


@pytest.mark.parametrize("start", ["laplace", "gaussian"])
@pytest.mark.parametrize("dense", [True, False])
def test_starts_are_at_the_posterior(start: str, dense: bool) -> None:
    mean, covariance, _ = posterior()
    guide = make_guide(dense=dense)
    small_fit(guide, 1, start=start, learning_rate=1e-9, num_particles=256)
    torch.testing.assert_close(
        guide.affine.location().detach().double(), mean, atol=0.1 if not dense else 1e-3, rtol=0.0
    )
    scale = guide.affine.scale_tril().detach().double()
    if dense:
        torch.testing.assert_close(scale @ scale.T, covariance, atol=1e-3, rtol=1e-2)
    else:
        assert scale.shape == (2,) and bool((scale > 0).all())


def test_the_start_may_be_left_to_the_guide() -> None:
    guide = make_guide(init_scale=0.05)
    before = guide.affine.location().detach().clone()
    result = small_fit(guide, 1, learning_rate=1e-12)
    torch.testing.assert_close(guide.affine.location().detach(), before)
    assert result.restart_elbos == [] and not result.converged and result.stop_reason == "max_steps reached"


def test_the_kept_parameters_are_not_worse_than_the_start() -> None:
    mean, covariance, evidence = posterior()
    guide = make_guide()
    guide.affine.reframe(mean.float(), torch.linalg.cholesky(covariance).float())
    result = small_fit(guide, 30, optimizer=lambda p: torch.optim.SGD(p, lr=3.0))  # steps much too large
    assert result.kept == "start" and result.elbo > evidence - 0.5


# -- optimisers, schedules, objectives ---------------------------------------------------------------


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda parameters: torch.optim.RMSprop(parameters, lr=0.01),
        lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
        pyro.optim.Adam({"lr": 0.02}),
        pyro.optim.ClippedAdam({"lr": 0.02}),
    ],
    ids=["RMSprop", "SGD", "pyro Adam", "pyro ClippedAdam"],
)
def test_optimisers_of_torch_and_pyro(optimizer: Any) -> None:
    guide = make_guide(init_scale=0.3)
    start = small_fit(make_guide(init_scale=0.3), 1, learning_rate=1e-9).elbo
    result = small_fit(guide, 80, optimizer=optimizer)
    assert result.elbo > start + 1.0


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (torch.optim.LBFGS, "stochastic optimiser"),
        (lambda parameters: object(), "it made a object"),
        (pyro.optim.Adam({"lr": 0.1}, {"clip_norm": 1.0}), "clip_norm"),
        (pyro.optim.Adam(lambda name: {"lr": 0.1}), "one dict of arguments"),
        (
            pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.1}),
            "schedule",
        ),
    ],
    ids=["LBFGS", "object", "clip", "function", "scheduler"],
)
def test_optimisers_that_would_be_misunderstood(optimizer: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_fit(make_guide(), 2, optimizer=optimizer)


def test_a_schedule_sets_the_step_sizes_and_is_done_to_its_end() -> None:
    rates: list[float] = []

    def schedule(fraction: float) -> float:
        rates.append(fraction)
        return 1.0 - fraction

    result = small_fit(make_guide(), 120, schedule=schedule, plateau=Plateau(window=5), learning_rate=0.01)
    assert rates == [step / 120 for step in range(120)]
    assert result.converged and result.stop_reason == "the schedule is over" and result.steps == 120
    expected = [0.01 * min(1.0, step / 50) * (1.0 - (step - 1) / 120) for step in range(5, 121, 5)]
    assert result.history["learning_rate"] == pytest.approx(expected)


def test_a_tempered_fit_is_judged_by_what_comes_after_the_tempering() -> None:
    rule = Plateau(window=10, patience=2, least_cooldown=20)
    result = small_fit(make_guide(), 400, tempering=linear_tempering(until=0.25), plateau=rule)
    assert result.converged and 100 < result.steps < 400
    still = small_fit(make_guide(), 400, tempering=lambda fraction: 0.5, plateau=rule)
    assert still.converged, "a power that stays as it is moves nothing"
    rates = small_fit(make_guide(), 100, tempering=linear_tempering(until=1.0), plateau=rule).history["learning_rate"]
    assert rates[-1] < 0.5 * max(rates), "the step size falls in time all the same"


def test_tempering_reaches_the_objective() -> None:
    seen: list[float] = []

    class Spy(PathELBO):
        def __call__(self, guide: FlowGuide, target: Target, num_particles: int, temperature: float = 1.0) -> Estimate:
            seen.append(temperature)
            return super().__call__(guide, target, num_particles, temperature)

    small_fit(make_guide(), 10, objective=Spy(), tempering=linear_tempering(0.5, until=0.5))
    assert seen == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0, 1.0, 1.0, 1.0])


def test_flows_with_an_estimated_log_determinant_take_the_plain_elbo() -> None:
    result = small_fit(make_guide("residual"), 3)
    assert math.isfinite(result.elbo) and result.steps == 3


def test_parameters_of_the_model_are_learned() -> None:
    def model(y: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        loc = pyro.sample("loc", dist.Normal(0.0, scale))
        pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    guide = AutoFlow(model, num_transforms=1)
    fit(model, guide, torch.tensor(3.0), seed=0, progress=False, learning_rate=0.05, max_steps=400, num_particles=64)
    # y ~ N(0, scale^2 + 1): the evidence is largest at scale^2 = y^2 - 1
    assert abs(pyro.param("scale").item() - math.sqrt(8.0)) < 0.15


# -- randomness and dtype ----------------------------------------------------------------------------


def test_a_seed_makes_fits_equal_and_leaves_the_generators_alone() -> None:
    first, second, third = make_guide(), make_guide(), make_guide()
    state, numpys, pythons = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    results = [small_fit(guide, 20, start="gaussian") for guide in (first, second)]
    assert torch.equal(torch.get_rng_state(), state)
    assert np.random.get_state()[1].tolist() == numpys and random.getstate() == pythons
    assert same(first, second) and results[0].elbo == results[1].elbo
    small_fit(third, 20, start="gaussian", seed=1)
    assert not same(first, third)


def test_double_precision() -> None:
    guide = AutoFlow(regression, num_transforms=1)
    result = fit(regression, guide, X, Y, **{**SMALL, "start": "gaussian", "dtype": torch.float64, "max_steps": 5})
    assert {p.dtype for p in guide.parameters()} == {torch.float64}
    assert torch.get_default_dtype() == torch.float32 and X.dtype == torch.float32
    mean, _, _ = posterior()
    torch.testing.assert_close(guide.affine.location().detach(), mean, atol=0.01, rtol=0.0)
    assert math.isfinite(result.elbo)


# -- checkpoints and interruptions -------------------------------------------------------------------


def interrupt_at(step: int, total: int, number: int = signal.SIGINT) -> Callable[[float], float]:
    """A schedule that presses Ctrl-C, or sends another signal."""

    def schedule(fraction: float) -> float:
        if round(fraction * total) == step:
            os.kill(os.getpid(), number)
        return 1.0

    return schedule


@dataclass
class Interrupting(Plateau):
    """The rule, and Ctrl-C after so many steps."""

    at: int = 0

    def update(self, elbo: float, remaining: float = math.inf, moving: bool = False) -> str:
        said = super().update(elbo, remaining, moving)
        if self.steps == self.at:
            os.kill(os.getpid(), signal.SIGINT)
        return said

    def state(self) -> dict[str, Any]:
        return {name: value for name, value in super().state().items() if name != "at"}


def test_a_fit_goes_on_bit_for_bit_after_ctrl_c(tmp_path: Path) -> None:
    whole, cut, resumed = make_guide(), make_guide(), make_guide()
    options: dict[str, Any] = {"plateau": Plateau(window=5), "start": "gaussian"}
    expected = small_fit(whole, 40, schedule=lambda fraction: 1.0, **options)
    file = tmp_path / "fit.ckpt"
    options |= {"checkpoint": file, "resume": True}
    partial = small_fit(cut, 40, schedule=interrupt_at(22, 40), **options)
    assert partial.stop_reason == "interrupted" and not partial.converged and partial.steps == 23
    assert math.isfinite(partial.elbo)
    found = small_fit(resumed, 40, schedule=lambda fraction: 1.0, **options)
    assert same(resumed, whole) and found.steps == 40
    assert found.history == expected.history and found.restart_elbos == expected.restart_elbos
    assert (found.elbo, found.elbo_se, found.kept) == (expected.elbo, expected.elbo_se, expected.kept)


def test_periodic_checkpoints_and_the_stopping_rule_go_on_bit_for_bit(tmp_path: Path) -> None:
    whole, cut, resumed = make_guide(), make_guide(), make_guide()
    rule = {"window": 4, "patience": 1, "least_cooldown": 25}
    options: dict[str, Any] = {"start": "gaussian", "max_steps": 60}
    expected = small_fit(whole, plateau=Plateau(**rule), **options)
    file = tmp_path / "fit.ckpt"
    small_fit(cut, plateau=Interrupting(**rule, at=14), checkpoint=file, checkpoint_every=7, **options)
    found = small_fit(resumed, plateau=Plateau(**rule), checkpoint=file, resume=True, **options)
    assert expected.stop_reason == found.stop_reason and found.steps == expected.steps > 14
    assert same(resumed, whole) and found.history == expected.history


def test_a_fit_whose_cooldown_shows_that_noise_was_the_obstacle_has_another(tmp_path: Path) -> None:
    rule = {"window": 5, "patience": 1, "least_cooldown": 20, "gap": 0.0}
    options: dict[str, Any] = {"start": "guide", "learning_rate": 0.3, "max_steps": 400}
    once, whole, cut, resumed = make_guide(), make_guide(), make_guide(), make_guide()
    short = small_fit(once, plateau=Plateau(**{**rule, "gap": math.inf}), **options)
    expected = small_fit(whole, plateau=Plateau(**rule), **options)
    assert short.converged and expected.converged and 3 * short.steps <= expected.steps <= 400
    rates = expected.history["learning_rate"]
    assert rates[: len(short.history["step"])] == short.history["learning_rate"]
    assert rates[len(short.history["step"])] > 0.1, "it begins with full steps"
    assert expected.elbo > short.elbo - 2.0 * short.elbo_se
    options["checkpoint"] = tmp_path / "fit.ckpt"
    small_fit(cut, plateau=Interrupting(**rule, at=short.steps + 7), **options)
    found = small_fit(resumed, plateau=Plateau(**rule), resume=True, **options)
    assert same(resumed, whole) and found.history == expected.history and found.kept == expected.kept
    interrupted = Interrupting(**rule, at=short.steps + 1)
    again = small_fit(make_guide(), plateau=interrupted, **{**options, "checkpoint": None})
    assert again.converged and again.stop_reason == "interrupted", "its criterion was met before"
    assert again.kept in ("best", "earlier", "average") and again.elbo > short.elbo - 2.0 * short.elbo_se


def test_the_end_of_an_earlier_cooldown_is_a_candidate() -> None:
    guide = make_guide()
    small_fit(guide, 60, learning_rate=0.05)
    training = Training(FlowProblem(guide, LogDensity(regression, X, Y), PathELBO(), 16, None))
    training.configure(None, None, None, 10.0, Plateau(), 10, 5)
    training.earlier = training._copy()
    with torch.no_grad():
        for parameter, value in zip(training.parameters, training.start, strict=True):
            value.copy_(parameter.add_(1.0))
    training.best = training.start
    assert training.keep_the_best()[0] == "earlier"
    assert all(map(torch.equal, training.parameters, training.earlier))


def test_a_schedule_of_ones_own_has_no_other_cooldown() -> None:
    guides = [make_guide(), make_guide()]
    rule = {"window": 5, "patience": 1, "least_cooldown": 20}
    options: dict[str, Any] = {"schedule": lambda fraction: 1.0 - fraction, "learning_rate": 0.3}
    for guide, gap in zip(guides, (0.0, math.inf), strict=True):
        small_fit(guide, 200, plateau=Plateau(**rule, gap=gap), **options)
    assert same(*guides)


def test_another_cooldown_is_for_the_elbo_of_a_flow_only() -> None:
    log_density = LogDensity(regression, X, Y)
    guide = make_guide().setup(X, Y)

    def gap(objective: Any, tempering: Any = None) -> float:
        torch.manual_seed(0)
        return FlowProblem(guide, log_density, objective, 64, tempering).gap()

    mean, covariance, evidence = posterior()
    guide.affine.reframe((mean + 0.05).float(), 1.1 * torch.linalg.cholesky(covariance).float())  # a little off
    torch.manual_seed(0)
    weights = FlowProblem(guide, log_density, None, 64, None).log_weights()
    assert gap(PathELBO()) == pytest.approx(evidence - float(weights.mean()), abs=0.03) and gap(PathELBO()) > 0.05
    assert gap(ELBO(), linear_tempering()) == gap(PathELBO())
    assert gap(Renyi(0.5)) == gap(PathELBO(), lambda fraction: 0.5) == 0.0
    assert PyroProblem(regression, AutoNormal(regression), (X, Y), {}, 1).gap() == 0.0


def test_ctrl_c_in_the_last_step_of_a_cooldown_comes_too_late(tmp_path: Path) -> None:
    rule = {"window": 4, "patience": 1, "least_cooldown": 25}
    options: dict[str, Any] = {"start": "gaussian", "max_steps": 60, "checkpoint": tmp_path / "fit.ckpt"}
    whole, cut, resumed = make_guide(), make_guide(), make_guide()
    expected = small_fit(whole, plateau=Plateau(**rule), **options)
    assert expected.converged and expected.steps < 60 and not options["checkpoint"].exists()
    for guide, at in ((cut, expected.steps), (resumed, 0)):
        found = small_fit(guide, plateau=Interrupting(**rule, at=at), resume=True, **options)
        assert found.converged and same(guide, whole) and found.history == expected.history


def test_a_fit_that_gets_more_steps_goes_back_to_long_ones(tmp_path: Path) -> None:
    guide, options = make_guide(), {"checkpoint": tmp_path / "fit.ckpt", "resume": True, "start": "gaussian"}
    rule = Plateau(window=4, patience=1000)
    short = small_fit(guide, 20, plateau=rule, **options)
    assert short.history["learning_rate"][-1] < 0.3 * max(short.history["learning_rate"]) and not short.converged
    longer = small_fit(guide, 60, plateau=rule, **options)
    rates = longer.history["learning_rate"]
    assert longer.steps == 60 and rates[:5] == short.history["learning_rate"]
    assert rates[6] > 4.0 * rates[4] and rates[-1] < 0.3 * max(rates)


def test_checkpoints_of_other_guides(tmp_path: Path) -> None:
    file = tmp_path / "fit.ckpt"

    def run(stop: int, **options: Any) -> tuple[FitResult, dict[str, Tensor]]:
        pyro.clear_param_store()
        guide = AutoNormal(plated)
        settings = {**SMALL, "plateau": Interrupting(window=5, at=stop), **options}
        result = fit(plated, guide, Y, max_steps=20, **settings)
        return result, {name: p.detach().clone() for name, p in guide.named_parameters()}

    expected, whole = run(0)
    run(10, checkpoint=file, checkpoint_every=10)
    found, resumed = run(0, checkpoint=file, resume=True)
    assert found.history == expected.history
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_ctrl_c_without_a_checkpoint_returns_the_best() -> None:
    guide = make_guide(init_scale=0.3)
    before = signal.getsignal(signal.SIGINT)
    result = small_fit(guide, 500, schedule=interrupt_at(60, 500), learning_rate=0.05, compile=False)
    assert signal.getsignal(signal.SIGINT) is before
    assert result.stop_reason == "interrupted" and result.steps == 61
    assert result.elbo > small_fit(make_guide(init_scale=0.3), 1, learning_rate=1e-9).elbo + 1.0
    assert "not converged (interrupted)" in str(result)


def test_a_termination_signal_ends_the_program_and_loses_nothing(tmp_path: Path) -> None:
    whole, cut = make_guide(), make_guide()
    expected = small_fit(whole, 40, schedule=lambda fraction: 1.0)
    file = tmp_path / "fit.ckpt"
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TrainingInterrupted, match="termination signal"):
        small_fit(cut, 40, schedule=interrupt_at(22, 40, signal.SIGTERM), checkpoint=file)
    assert signal.getsignal(signal.SIGTERM) is before
    found = small_fit(cut, 40, schedule=lambda fraction: 1.0, checkpoint=file, resume=True)
    assert same(cut, whole) and found.history == expected.history


def test_ctrl_c_after_a_termination_signal_is_no_pardon() -> None:
    with pytest.raises(TrainingInterrupted), Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.requested


def test_checkpoints_that_do_not_belong_here(tmp_path: Path) -> None:
    file = tmp_path / "fit.ckpt"
    small_fit(make_guide(), 2, checkpoint=file, checkpoint_every=1)
    content = file.read_bytes()
    with pytest.raises(ValueError, match=r"other settings.*flow: expected 'planar', got 'realnvp'"):
        small_fit(AutoFlow(regression, "planar"), 2, checkpoint=file, resume=True)
    with pytest.raises(ValueError, match=r"other settings.*particles"):
        small_fit(make_guide(), 2, checkpoint=file, resume=True, num_particles=8)
    file.write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])
    with pytest.raises(ValueError, match="the content was altered"):
        small_fit(make_guide(), 2, checkpoint=file, resume=True)
    file.write_bytes(content[:-100])
    with pytest.raises(ValueError, match="truncated"):
        small_fit(make_guide(), 2, checkpoint=file, resume=True)
    file.write_bytes(b"something else\n")
    with pytest.raises(ValueError, match=r"fit.ckpt: expected a file that starts with the header"):
        small_fit(make_guide(), 2, checkpoint=file, resume=True)


def test_without_resume_an_old_checkpoint_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "fit.ckpt"
    file.write_bytes(b"something else\n")
    assert small_fit(make_guide(), 2, checkpoint=file, checkpoint_every=1).steps == 2
    assert small_fit(make_guide(), 3, checkpoint=file, resume=True).steps == 3


# -- steps that are not finite -----------------------------------------------------------------------


class Flaky:
    """An objective that is not a number at some calls."""

    def __init__(self, bad: Callable[[int], bool]) -> None:
        self.bad, self.calls, self.inner = bad, 0, ELBO()

    def __call__(self, guide: FlowGuide, target: Target, num_particles: int, temperature: float = 1.0) -> Estimate:
        estimate = self.inner(guide, target, num_particles, temperature)
        self.calls += 1
        return Estimate(estimate.loss * torch.nan, estimate.log_weights) if self.bad(self.calls) else estimate


def test_steps_that_are_not_finite_are_skipped_and_counted() -> None:
    guide = make_guide()
    result = small_fit(guide, 40, objective=Flaky(lambda call: call % 4 == 0), max_skipped=2)
    assert result.skipped_steps == 10 and result.steps == 40
    assert all(bool(p.isfinite().all()) for p in guide.parameters())
    assert "10 steps skipped" in str(result)


def test_too_many_in_a_row_are_an_error_and_the_best_is_kept() -> None:
    guide, until = make_guide(init_scale=0.3), make_guide(init_scale=0.3)
    options: dict[str, Any] = {"plateau": Plateau(window=5), "learning_rate": 0.05, "schedule": lambda fraction: 1.0}
    with pytest.raises(ValueError, match=r"not finite in 3 steps in a row.*holds the best parameters.*float64"):
        small_fit(guide, 40, objective=Flaky(lambda call: call > 22), max_skipped=3, **options)
    assert all(bool(p.isfinite().all()) for p in guide.parameters())
    # the best are those at the end of one of the windows
    windows: list[list[Tensor]] = []

    def look(call: int) -> bool:
        if call % 5 == 1:
            windows.append([p.detach().clone() for p in until.parameters()])
        return False

    small_fit(until, 22, objective=Flaky(look), **options)
    kept = [all(map(torch.equal, guide.parameters(), window)) for window in windows[1:]]
    assert kept.count(True) == 1


def test_the_window_before_a_cooldown_can_be_the_best() -> None:
    """All is well until the step size begins to fall, and from then on the loss is NaN."""
    guide = make_guide(init_scale=0.3)
    before: list[list[Tensor]] = []

    def look(call: int) -> bool:
        before.append([p.detach().clone() for p in guide.parameters()])
        return call > 10

    options: dict[str, Any] = {"plateau": Plateau(window=10, patience=100), "learning_rate": 0.05, "max_skipped": 3}
    with pytest.raises(ValueError, match="best parameters"):
        small_fit(guide, 20, objective=Flaky(look), **options)
    assert all(map(torch.equal, guide.parameters(), before[10]))


# -- other guides ------------------------------------------------------------------------------------


def plated(y: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(loc, 1.0), obs=y)


def blind(y: Tensor) -> None:
    """Sums over whatever dimensions there are, without an error."""
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(w.sum(), 1.0), obs=y)


def test_particles_share_a_run_only_where_that_is_right() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert particle_elbo(plated, AutoNormal(plated), (Y,), {}, 16).vectorize_particles
        assert not particle_elbo(blind, AutoNormal(blind), (Y,), {}, 1).vectorize_particles
    for guide in (AutoNormal, AutoMultivariateNormal):
        with pytest.warns(UserWarning, match=r"once for each, which is slow: their log densities are"):
            assert not particle_elbo(blind, guide(blind), (Y,), {}, 16).vectorize_particles
    with pytest.warns(UserWarning, match="once for each, which is slow: "):
        assert not particle_elbo(regression, AutoNormal(regression), (X, Y), {}, 16).vectorize_particles


def test_a_model_that_is_blind_to_particles_is_fitted_right() -> None:
    guide = AutoNormal(blind)
    with pytest.warns(UserWarning, match="once for each"):
        fit(blind, guide, Y, seed=0, progress=False, max_steps=200, learning_rate=0.03, num_particles=4)
    precision = torch.eye(2) + len(Y)
    mean = torch.linalg.solve(precision, torch.full((2,), float(Y.sum())))
    assert float((guide.median()["w"] - mean).abs().max()) < 0.15
    # the best factorised Gaussian has one over the diagonal of the precision
    spread = guide.quantiles([0.1587, 0.8413])["w"]
    torch.testing.assert_close((spread[1] - spread[0]) / 2, precision.diagonal().rsqrt(), rtol=0.4, atol=0.0)


def test_autonormal() -> None:
    guide = AutoNormal(plated)
    result = fit(plated, guide, Y, seed=0, progress=False, max_steps=300, learning_rate=0.03)
    assert abs(float(guide.median()["loc"]) - float(Y.sum()) / 6.0) < 0.05
    evidence = float(dist.MultivariateNormal(torch.zeros(5), torch.eye(5) + 1.0).log_prob(Y))
    assert abs(result.elbo - evidence) < 0.02 + 4.0 * result.elbo_se


def test_a_guide_written_by_hand() -> None:
    def guide(y: Tensor) -> None:
        loc = pyro.param("mean", torch.tensor(0.0))
        scale = pyro.param("sd", torch.tensor(0.1), constraint=constraints.positive)
        pyro.sample("loc", dist.Normal(loc, scale))

    result = fit(plated, guide, Y, seed=0, progress=False, max_steps=300, learning_rate=0.03)
    assert abs(pyro.param("mean").item() - float(Y.sum()) / 6.0) < 0.05
    assert abs(pyro.param("sd").item() - 6.0**-0.5) < 0.05
    assert result.skipped_steps == 0
    for option in ({"objective": ELBO()}, {"tempering": linear_tempering()}):
        with pytest.raises(ValueError, match="for flow guides"):
            fit(plated, guide, Y, progress=False, **option)


# -- bad input ---------------------------------------------------------------------------------------


def test_a_guide_that_was_set_up_for_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"set up for 'w' of shape \(2,\).*'w' of shape \(3,\).*new guide"):
        fit(regression, make_guide(), torch.randn(4, 3), torch.randn(4), progress=False)


def test_a_start_without_density_names_the_site() -> None:
    def model() -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.sample("height", dist.Exponential(loc.square() + 1.0), obs=torch.tensor(-torch.inf))

    with pytest.raises(ValueError, match=r"'height' is not finite at 50 different starts.*init_loc_fn"):
        fit(model, AutoFlow(model), progress=False)


def test_observed_nan_names_the_site() -> None:
    with pytest.raises(ValueError, match="'y' holds 1 NaN"):
        fit(regression, AutoFlow(regression), X, Y.clone().index_fill_(0, torch.tensor([1]), torch.nan), progress=False)


def test_a_fit_that_ends_in_a_bad_stretch_keeps_its_best_window() -> None:
    """The step size explodes after ten windows: the last parameters and the average of all steps are both ruined."""
    rule, steps = Plateau(window=4), 43
    calm = small_fit(make_guide(), 40, plateau=rule, schedule=lambda done: 1.0)
    result = small_fit(make_guide(), steps, plateau=rule, schedule=lambda done: 1.0 if done < 39.5 / steps else 1e4)
    assert result.kept == "best"
    assert result.elbo > calm.elbo - 3.0 and result.elbo > result.history["elbo"][0] + 3.0


def test_an_unknown_start() -> None:
    with pytest.raises(ValueError, match="one of gaussian, laplace, guide, got 'mode'"):
        small_fit(make_guide(), 1, start="mode")


def test_a_step_has_256_particles_or_as_many_as_large_data_leave_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def counts(**options: Any) -> set[int]:
        seen: list[int] = []

        class Counting(PathELBO):
            def __call__(self, guide: FlowGuide, target: Target, num_particles: int, temperature: float = 1.0) -> Any:
                seen.append(num_particles)
                return super().__call__(guide, target, num_particles, temperature)

        small_fit(make_guide(), 2, objective=Counting(), **options)
        return set(seen)

    assert counts(num_particles=None) == {256} and counts(num_particles=8) == {8}
    numbers = X.numel() + Y.numel()
    for room, expected in ((256 * numbers, 256), (256 * numbers - 1, 128), (50 * numbers, 32), (1, 16)):
        monkeypatch.setattr(sys.modules["pyro_flows_vi.infer.fit"], "LARGE", room)
        assert counts(num_particles=None) == {expected}


def test_parameters_that_the_optimiser_does_not_have_stay_and_gather_no_gradients() -> None:
    def some(parameters: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters[:2], lr=0.01)

    guides = [make_guide(), make_guide(), make_guide()]
    for guide, steps in zip(guides, (3, 3, 1), strict=True):
        small_fit(guide, steps, optimizer=some, clip_norm=0.01, schedule=lambda fraction: 1.0)
    before, *rest = (list(guide.parameters()) for guide in (make_guide(), *guides))
    assert same(guides[0], guides[1])
    for parameters in rest:
        assert all(torch.equal(p, q) for p, q in zip(parameters[2:], before[2:], strict=True))
    once = [p.grad.norm() for p in guides[2].parameters() if p.grad is not None]
    thrice = [p.grad.norm() for p in guides[0].parameters() if p.grad is not None]
    # gathered over three steps they would be three times as long
    assert float(torch.stack(thrice).norm()) < 2.0 * float(torch.stack(once).norm())
