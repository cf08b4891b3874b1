"""Densities fitted by KL(q‖p): closed forms, resumption, records and tables."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from pyro_flows_vi.cli import main
from pyro_flows_vi.density import (
    Evaluation,
    FlowDensity,
    ReverseSettings,
    fit_reverse,
    load_problem,
    load_record,
    load_run,
    render_tables,
    reverse_density,
    target,
)
from pyro_flows_vi.infer.interruption import TrainingInterrupted
from pyro_flows_vi.infer.training import Training

QUIET: dict[str, Any] = {"progress": False, "seed": 0}
SHIFT, SCALE = torch.tensor([3.0, -1.0]), torch.tensor([[1.0, 0.0], [0.8, 0.5]])


def log_gaussian(z: Tensor) -> Tensor:
    """Without its constant: log Z = log 2π + log det SCALE."""
    return -0.5 * torch.linalg.solve_triangular(SCALE, (z - SHIFT)[..., None], upper=False).square().sum((-2, -1))


def test_the_bound_of_a_family_that_reaches_the_target_is_log_z() -> None:
    density = reverse_density("lu", 2, num_transforms=1)
    result = fit_reverse(density, log_gaussian, max_steps=500, num_particles=64, learning_rate=0.05, **QUIET)
    assert result.elbo == pytest.approx(math.log(2 * math.pi * 0.5), abs=0.01)
    draws = density.sample(20_000)
    torch.testing.assert_close(draws.mean(0), SHIFT, rtol=0, atol=0.05)
    torch.testing.assert_close(torch.cov(draws.T), SCALE @ SCALE.T, rtol=0.05, atol=0.03)


@pytest.mark.parametrize("name", ["maf", "iaf", "realnvp", "planar"])
def test_it_draws_in_the_cheap_direction(name: str) -> None:
    options = {} if name == "planar" else {"hidden_dims": (4,)}
    density = reverse_density(name, 2, num_transforms=2, init_scale=3.0, **options).double()
    assert density.flow.fast_forward and float(density.scaling.scale.min()) == 3.0
    for parameter in density.parameters():
        parameter.data.normal_(0.0, 0.5)
    x, log_prob = density.rsample_and_log_prob(7)
    torch.testing.assert_close(density.log_prob(x.detach()), log_prob)
    x, log_prob, score = density.rsample_and_score(7)
    torch.testing.assert_close(density.log_prob(x.detach()), log_prob)
    point = x.detach().requires_grad_()
    (expected,) = torch.autograd.grad(density.log_prob(point).sum(), point)
    torch.testing.assert_close(score, expected)


def test_an_interrupted_fit_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, plain = 0, Training.eager_step

    def stepped(training: Training) -> Any:
        nonlocal calls
        calls += 1
        if calls == 20:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(training)

    def made() -> FlowDensity:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return reverse_density("radial", 2, num_transforms=1)

    options = {"max_steps": 60, "num_particles": 8, "checkpoint": tmp_path / "fit.ckpt", **QUIET}
    whole, resumed = made(), made()
    fit_reverse(whole, log_gaussian, **{**options, "checkpoint": None})
    with monkeypatch.context() as patch:
        patch.setattr(Training, "eager_step", stepped)
        with pytest.raises(TrainingInterrupted, match=r"interrupted in step 20; .*fit\.ckpt.*resume"):
            fit_reverse(made(), log_gaussian, **options)
    result = fit_reverse(resumed, log_gaussian, resume=True, **options)
    assert result.steps == 60
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown setting epochs: expected one of num_particles, max_steps"):
        fit_reverse(reverse_density("lu", 2), log_gaussian, epochs=3)
    for name, value in (("max_steps", 1.5), ("learning_rate", 0), ("num_particles", True), ("init_scale", math.nan)):
        with pytest.raises(ValueError, match=f"expected {name} to be a"):
            ReverseSettings.make(**{name: value})
    with pytest.raises(ValueError, match="1000 of 1000 values that are not"):
        fit_reverse(reverse_density("lu", 2), lambda z: z.sum(-1) * math.nan, max_steps=2, **QUIET)


def run(*words: object) -> Any:
    return CliRunner().invoke(main, [str(w) for w in ("density", *words)])


def test_records_and_tables_of_their_own(tmp_path: Path) -> None:
    settings = ("--set", "max_steps=30", "--set", "num_particles=32", "--device", "cpu", "--out", tmp_path)
    result = run("train", "u1", "--flow", "radial", "--num-transforms", 2, "--objective", "reverse-kl", *settings)
    assert result.exit_code == 0, result.output
    path = tmp_path / "u1-radial-reverse-kl-seed0.json"
    result = run("evaluate", path, "--plot", "--device", "cpu")
    assert result.exit_code == 0 and path.with_suffix(".png").exists(), result.output
    record = load_record(path)
    assert record["objective"] == "reverse-kl" and record["training"]["steps"] == 30
    assert record["overrides"] == {"max_steps": 30, "num_particles": 32}
    results, training = record["results"], record["training"]
    noise = math.hypot(results["kl_reverse_se"], training["elbo_se"])
    assert abs(results["kl_reverse"] + training["elbo"]) < 5.0 * noise  # log p has its constant: it is one number
    assert results["kl_reverse_most"] < results["kl_reverse"] and results["kl_forward_most"] < results["kl_forward"]
    assert load_run(path, load_problem("u1")).flow.fast_forward
    table = render_tables(tmp_path)
    assert "**u1 by KL(q‖p), from no data**" in table and f"| radial | {results['kl_reverse']:.3f} ±" in table
    for words, message in (
        (("pinwheel",), "reverse-kl needs a known density, and 'pinwheel' has none"),
        (("digits",), "reverse-kl needs a known density, and 'digits' has none"),
        (("u1", "--set", "max_epochs=3"), "unknown setting max_epochs"),
    ):
        refused = run("train", *words, "--flow", "radial", "--objective", "reverse-kl", "--out", tmp_path)
        assert refused.exit_code == 2 and message in " ".join(refused.stderr.split())


def test_the_mean_without_the_rows_far_out() -> None:
    values = torch.cat([torch.full((999,), -2.0), torch.tensor([-1e20])])
    found = Evaluation.of(values)
    assert found.mean < -1e16 and found.without_lowest(1e-3) == -2.0 and found.without_lowest(0.0) == found.mean


def test_a_target_that_vanishes_where_the_flow_draws_is_refused() -> None:
    log_prob = target("checkerboard").log_prob
    assert log_prob is not None
    with pytest.raises(ValueError, match=r"got \d+ of 1000 values that are not"):
        fit_reverse(reverse_density("realnvp", 2), log_prob, max_steps=20, seed=0, progress=False)


def test_options_of_the_dimension_that_is_asked_for() -> None:
    assert reverse_density("sylvester", 5, rank=3).input_dim == 5
    assert reverse_density("glow", 16, shape=(1, 4, 4)).input_dim == 16
