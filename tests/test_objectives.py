"""Objectives: gradients against closed forms and quadrature, their noise, tempering; and the stopping rule."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_flows_vi.infer import ELBO, IWELBO, DReG, LogDensity, PathELBO, Plateau, Renyi, linear_tempering
from pyro_flows_vi.infer.objectives import Objective
from pyro_flows_vi.transforms.affine import Affine


@pytest.fixture(autouse=True)
def double() -> None:
    torch.set_default_dtype(torch.float64)


class Gaussian(torch.nn.Module):
    """The guide N(m, L L^T), made of an affine flow."""

    def __init__(self, dim: int, loc: float = 0.4, scale: float = 0.7) -> None:
        super().__init__()
        self.flow = Affine(dim, loc, scale)

    def rsample_and_log_prob(self, num_particles: int) -> tuple[Tensor, Tensor]:
        latent, log_prob, _ = self.rsample_and_score(num_particles)
        return latent, log_prob

    def rsample_and_score(self, num_particles: int) -> tuple[Tensor, Tensor, Tensor]:
        x = torch.randn(num_particles, self.flow.input_dim)
        latent, log_det, score = self.flow.forward_and_score(x, -x)
        return latent, dist.Normal(0.0, 1.0).log_prob(x).sum(-1) - log_det, score


class Target:
    """A log density by a formula."""

    has_parameters = False

    def __init__(self, log_prob: Callable[[Tensor], Tensor]) -> None:
        self.log_prob = log_prob

    def __call__(self, latent: Tensor) -> Tensor:
        return self.log_prob(latent)

    def value_and_score(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        latent = latent.detach().requires_grad_()
        with torch.enable_grad():
            value = self.log_prob(latent)
        return value.detach(), torch.autograd.grad(value.sum(), latent)[0]


def logistic(latent: Tensor) -> Tensor:
    """Of one latent: skewed, and no Gaussian."""
    u = latent[..., 0]
    return -0.3 * (u - 1.0).square() - torch.nn.functional.softplus(-2.0 * u) - 1.3


PRECISION = torch.tensor([[2.0, 0.9, 0.0], [0.9, 1.5, -0.4], [0.0, -0.4, 0.7]], dtype=torch.float64)
MEAN = torch.tensor([1.0, -0.5, 0.3], dtype=torch.float64)


def gaussian(latent: Tensor) -> Tensor:
    return -0.5 * ((latent - MEAN) @ PRECISION * (latent - MEAN)).sum(-1)


def gradients(
    objective: Objective, guide: Gaussian, target: Target, particles: int, repeats: int, **kwargs: float
) -> Tensor:
    """Gradients of the loss, one row for each estimate."""
    parameters = list(guide.parameters())
    rows = []
    for _ in range(repeats):
        loss = objective(guide, target, particles, **kwargs).loss
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        rows.append(
            torch.cat(
                [
                    torch.zeros_like(p).view(-1) if g is None else g.view(-1)
                    for p, g in zip(parameters, found, strict=True)
                ]
            )
        )
    return torch.stack(rows)


def assert_mean(rows: Tensor, expected: Tensor, sigmas: float = 4.5) -> None:
    error = (rows.mean(0) - expected).abs()
    noise = rows.std(0) / math.sqrt(len(rows))
    assert bool((error <= sigmas * noise + 1e-9).all()), (rows.mean(0), expected, noise)


def flat(loss: Tensor, guide: Gaussian) -> Tensor:
    return torch.cat([g.view(-1) for g in torch.autograd.grad(loss, list(guide.parameters()))])


def nodes(count: int) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite quadrature for N(0, 1)."""
    x, w = np.polynomial.hermite_e.hermegauss(count)
    return torch.as_tensor(x), torch.as_tensor(w / w.sum())


# -- unbiased gradients ------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("objective", [ELBO(), PathELBO()], ids=["ELBO", "PathELBO"])
def test_elbo_gradients_have_the_mean_of_the_closed_form(objective: Objective, temperature: float) -> None:
    guide = Gaussian(3)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    loc, scale = guide.flow.location(), guide.flow.scale_tril()
    energy = 0.5 * ((loc - MEAN) @ PRECISION @ (loc - MEAN) + (PRECISION * (scale @ scale.T)).sum())
    exact = flat(temperature * energy - scale.diagonal().log().sum(), guide)
    rows = gradients(objective, guide, Target(gaussian), 64, 150, temperature=temperature)
    assert_mean(rows, exact)
    assert float(exact.abs().max()) > 10 * float(rows.std(0).max()) / 20.0  # the test can tell them from 0


def bound_by_quadrature(guide: Gaussian, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log weights of two independent draws on a grid, and the weights of the grid."""
    x, w = nodes(60)
    u = guide.flow.location() + guide.flow.scale_tril()[0, 0] * x[:, None]
    log_q = dist.Normal(0.0, 1.0).log_prob(x) - guide.flow.scale_tril()[0, 0].log()
    log_weight = temperature * logistic(u) - log_q
    pair = torch.stack(torch.broadcast_tensors(log_weight[:, None], log_weight))
    return pair, w[:, None] * w


@pytest.mark.parametrize("temperature", [1.0, 0.4])
@pytest.mark.parametrize("objective", [IWELBO(2), DReG(2)], ids=["IWELBO", "DReG"])
def test_importance_weighted_gradients_have_the_mean_of_a_quadrature(objective: Objective, temperature: float) -> None:
    guide = Gaussian(1)
    pair, w = bound_by_quadrature(guide, temperature)
    loss = -(w * (pair.logsumexp(0) - math.log(2.0))).sum()
    exact = torch.cat([g.view(-1) for g in torch.autograd.grad(loss, [guide.flow.loc, guide.flow.log_scale])])
    rows = gradients(objective, guide, Target(logistic), 128, 150, temperature=temperature)
    assert_mean(rows[:, :2], exact)


def test_the_values_of_the_bounds_have_the_means_of_a_quadrature() -> None:
    guide = Gaussian(1)
    pair, w = (t.detach() for t in bound_by_quadrature(guide))
    exact = {
        ELBO(): (w * pair[0]).sum(),
        IWELBO(2): (w * (pair.logsumexp(0) - math.log(2.0))).sum(),
        Renyi(0.5): (w * 2.0 * ((0.5 * pair).logsumexp(0) - math.log(2.0))).sum(),
        Renyi(-1.0): (w * 0.5 * ((2.0 * pair).logsumexp(0) - math.log(2.0))).sum(),
    }
    for objective, value in exact.items():
        losses = torch.stack([objective(guide, Target(logistic), 2).loss.detach() for _ in range(400)])
        assert_mean(losses[:, None], -value[None])


@pytest.mark.parametrize("alpha", [0.5, -1.0, 2.0])
def test_renyi_gradients_have_the_mean_of_a_quadrature(alpha: float) -> None:
    guide = Gaussian(1)
    pair, w = bound_by_quadrature(guide)
    power = 1.0 - alpha
    loss = -(w * ((power * pair).logsumexp(0) - math.log(2.0)) / power).sum()  # of two particles, bias included
    exact = torch.cat([g.view(-1) for g in torch.autograd.grad(loss, [guide.flow.loc, guide.flow.log_scale])])
    assert_mean(gradients(Renyi(alpha), guide, Target(logistic), 2, 500)[:, :2], exact)


def test_renyi_with_many_particles_is_the_bound() -> None:
    guide = Gaussian(1)
    pair, w = (t.detach() for t in bound_by_quadrature(guide))
    exact = 2.0 * (w * (0.5 * pair[0]).exp()).sum().log()
    found = -Renyi(0.5)(guide, Target(logistic), 50_000).loss
    assert abs(float((found - exact).detach())) < 0.02


def test_log_weights_are_those_of_the_untempered_target() -> None:
    for objective in (ELBO(), PathELBO(), IWELBO(4), Renyi(0.5)):
        torch.manual_seed(1)
        hot = objective(Gaussian(1), Target(logistic), 8, temperature=0.2).log_weights
        torch.manual_seed(1)
        cold = objective(Gaussian(1), Target(logistic), 8).log_weights
        torch.testing.assert_close(hot, cold, msg=type(objective).__name__)
        assert not hot.requires_grad


# -- noise -------------------------------------------------------------------------------------------


def matched() -> Gaussian:
    guide = Gaussian(3)
    guide.flow.reframe(MEAN, torch.linalg.cholesky(torch.linalg.inv(PRECISION)))
    return guide


def test_the_path_gradient_vanishes_where_the_guide_is_the_posterior() -> None:
    path = gradients(PathELBO(), matched(), Target(gaussian), 4, 20)
    plain = gradients(ELBO(), matched(), Target(gaussian), 4, 20)
    assert float(path.abs().max()) < 1e-12
    assert float(plain.std(0).max()) > 0.1
    doubly = gradients(DReG(4), matched(), Target(gaussian), 4, 20)
    assert float(doubly.abs().max()) < 1e-12


def test_the_path_gradient_is_less_noisy_near_the_optimum() -> None:
    guide = matched()
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    path = gradients(PathELBO(), guide, Target(gaussian), 16, 100).var(0).sum()
    plain = gradients(ELBO(), guide, Target(gaussian), 16, 100).var(0).sum()
    assert float(plain / path) > 20.0


def test_the_signal_of_dreg_does_not_drown_as_the_groups_grow() -> None:
    guide = Gaussian(1, scale=1.2)  # a little too wide, so that the weights are bounded

    def signal_to_noise(objective: Objective) -> float:
        rows = gradients(objective, guide, Target(logistic), 64, 60)[:, 0]
        return float(rows.mean().abs() / rows.std())

    assert signal_to_noise(DReG(64)) > 10.0 * signal_to_noise(IWELBO(64))


# -- parameters of the model -------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [ELBO(), PathELBO(), IWELBO(1)], ids=["ELBO", "PathELBO", "IWELBO"])
def test_gradients_of_the_models_parameters(objective: Objective) -> None:
    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.3))
        z = pyro.sample("z", dist.Normal(loc, 0.5))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    log_density = LogDensity(model, torch.tensor(0.5))
    (loc,) = log_density.parameters()
    guide = Gaussian(1, loc=0.9, scale=0.4)
    own, guides = [], []
    for _ in range(40):
        loss = objective(guide, log_density, 64, temperature=0.5).loss
        pieces = torch.autograd.grad(loss, [loc, guide.flow.loc])
        own.append(pieces[0][None])
        guides.append(pieces[1])
    # E_q[d/dloc log N(z; loc, 0.5)] = (m - loc) / 0.25; d/dm of the ELBO = -(m - loc) / 0.25 - (m - x)
    assert_mean(torch.stack(own), torch.tensor([-0.5 * (0.9 - 0.3) / 0.25]))
    assert_mean(torch.stack(guides), torch.tensor([0.5 * ((0.9 - 0.3) / 0.25 + (0.9 - 0.5))]))


def test_dreg_refuses_a_model_with_parameters() -> None:
    target = Target(logistic)
    target.has_parameters = True
    with pytest.raises(ValueError, match="DReG trains the guide only: use IWELBO"):
        DReG(2)(Gaussian(1), target, 4)


# -- settings ----------------------------------------------------------------------------------------


def test_particles_are_divided_into_whole_groups() -> None:
    assert len(IWELBO(16)(Gaussian(1), Target(logistic), 40).log_weights) == 32
    assert len(DReG(16)(Gaussian(1), Target(logistic), 3).log_weights) == 16


@pytest.mark.parametrize("wrong", [0, -1, 2.0, True])
def test_group_sizes_are_positive_integers(wrong: object) -> None:
    for objective in (IWELBO, DReG):
        with pytest.raises(ValueError, match="num_samples to be a positive integer"):
            objective(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [1.0, math.nan, math.inf])
def test_orders_of_renyi(wrong: float) -> None:
    with pytest.raises(ValueError, match="expected alpha to be a finite number other than 1"):
        Renyi(wrong)


def test_linear_tempering_rises_to_one() -> None:
    temperature = linear_tempering(0.2, until=0.4)
    found = [temperature(fraction) for fraction in np.linspace(0.0, 1.0, 11)]
    np.testing.assert_allclose(found, [0.2, 0.4, 0.6, 0.8, *[1.0] * 7])
    for first, until in ((0.0, 0.5), (0.5, 0.0), (1.5, 0.5), (0.5, 2.0)):
        with pytest.raises(ValueError, match="first and until"):
            linear_tempering(first, until)


# -- the stopping rule -------------------------------------------------------------------------------


def run(plateau: Plateau, elbos: np.ndarray) -> list[tuple[int, str]]:
    """What the rule says at the ends of windows, until it says to stop."""
    said = []
    for step, elbo in enumerate(elbos):
        word = plateau.update(float(elbo))
        if word != "go on":
            said.append((step, word))
        if word == "stop":
            break
    return said


@pytest.mark.parametrize("seed", range(5))
def test_a_sequence_that_improves_under_noise_is_not_stopped(seed: int) -> None:
    noise = np.random.default_rng(seed).normal(0.0, 5.0, 10_000)
    # per window of 100 steps it gains 2, and the standard error of a window's mean is 0.5
    said = run(Plateau(), np.arange(10_000) * 0.02 + noise)
    assert not {"stop", "collapse"} & {word for _, word in said}
    assert sum(word == "progress" for _, word in said) > 70


@pytest.mark.parametrize("noise", [0.0, 1e-3, 5.0])
def test_a_flat_sequence_is_stopped_after_its_cooldown(noise: float) -> None:
    said = run(Plateau(), np.random.default_rng(0).normal(-3.0, noise, 10_000))
    words = [word for _, word in said]
    assert words[-1] == "stop" and words.count("cooldown") == 1
    assert said[words.index("cooldown")][0] < 1000 and said[-1][0] < 2500


def test_the_step_size_falls_to_zero_over_the_cooldown() -> None:
    rule = Plateau(window=10, patience=1, cooldown=2.0, least_cooldown=5)
    sizes = []
    for _ in range(20):  # the first window is progress, the second is not
        sizes.append(rule.step_size())
        said = rule.update(0.0)
    assert said == "cooldown" and sizes == [1.0] * 20
    ahead = [rule.step_size(k) for k in range(45)]
    sizes = []
    while said != "stop":
        sizes.append(rule.step_size())
        said = rule.update(0.0)
    assert sizes == [(k / 40) ** 2 for k in range(40, 0, -1)] and ahead == [*sizes, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert {rule.update(0.0) for _ in range(100)} <= {"go on", "progress"}, "a schedule of one's own goes on after it"


def test_a_cooldown_ends_with_the_last_step() -> None:
    def length(most: int, gain: float) -> tuple[int, str]:
        rule, said = Plateau(), []
        for step in range(1, most + 1):
            said.append(rule.update(gain * step, most - step))
            if said[-1] == "stop":
                break
        assert rule.left == 0
        return rule.total, said[-1]

    assert length(2000, 0.0) == (1000, "stop")
    assert length(1100, 0.0) == (700, "stop"), "as many as are left"
    assert length(800, 0.0) == (500, "stop"), "one window short of a plateau"
    assert length(600, 0.0) == (400, "go on"), "two windows"
    for most in (200, 700, 2000, 4950):
        total, last = length(most, 1.0)
        assert 0.5 * most <= total <= 0.75 * most and last != "stop", "progress to the end is no convergence"


@pytest.mark.parametrize(
    "wrong",
    [
        {"window": 0},
        {"patience": 1.5},
        {"cooldown": -1.0},
        {"least_cooldown": -1},
        {"tolerance": math.nan},
        {"gap": -0.1},
        {"factor": 1.0},
    ],
    ids=str,
)
def test_a_rule_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"expected {next(iter(wrong))} to be"):
        Plateau(**wrong)


def cooled(gain: float, level: float = -1.0) -> Plateau:
    """A rule at the end of a cooldown of 20 steps that brought so much."""
    rule = Plateau(window=10, patience=1, least_cooldown=20)
    for _ in range(20):
        rule.update(level)
    while rule.update(level + gain) != "stop":
        pass
    assert rule.over and rule.converged and rule.steps == 40
    return rule


def test_another_cooldown_follows_one_that_brought_more_than_is_missing() -> None:
    for missing, remaining in ((0.04, 500), (0.31, 500), (math.nan, 500), (math.inf, 500), (0.2, 19), (0.2, 0)):
        rule = cooled(0.3)
        assert not rule.again(lambda gap=missing: gap, remaining) and rule.over  # type: ignore[misc]
    rule = cooled(0.3)
    assert rule.again(lambda: 0.2, 500) and not rule.over and rule.converged
    assert rule.total == 80 and rule.step_size() == 1.0
    while rule.update(-0.6) != "stop":
        pass
    assert rule.over and rule.steps == 120
    assert not rule.again(lambda: 0.15, 500), "the second one brought 0.1"
    assert rule.again(lambda: 0.09, 30) and rule.total == 30, "no more than there are"


def test_the_gap_is_measured_only_where_it_decides() -> None:
    def never() -> float:
        raise AssertionError

    assert not cooled(0.03).again(never, 500) and not cooled(0.3).again(never, 19)


@pytest.mark.parametrize("gain", [0.5, 3.0, 30.0])
def test_full_steps_after_a_cooldown_are_no_collapse_where_they_were_none_before_it(gain: float) -> None:
    rule = cooled(gain)
    assert rule.again(lambda: 0.2, 500)
    words = {rule.update(-1.1) for _ in range(50)}
    assert words == {"go on"} and rule.scale == 1.0 and rule.best == -1.0 + gain
    assert "collapse" in {rule.update(-3.0) for _ in range(10)}


def test_a_cooldown_that_is_called_off_does_not_count() -> None:
    rule = Plateau(window=10, patience=2, least_cooldown=20)
    for step in range(1, 31):
        rule.update(float(step), 60 - step)
    assert rule.hurried and rule.cooldowns == 1 and not rule.converged
    rule.extend(500)
    assert rule.total == rule.cooldowns == 0 and not rule.converged


def test_rules_at_their_limits() -> None:
    words = [word for _, word in run(Plateau(window=5, patience=1, cooldown=0.0, least_cooldown=0), np.zeros(50))]
    assert words[-1] == "stop" and len(words) < 50, "without a cooldown a plateau is the end"
    for gain in (0.0, 1.0):
        rule = Plateau(window=5, patience=1)
        said = [rule.update(gain * step, 5 - step) for step in range(1, 6)]
        assert said[-1] == "progress" and rule.total == 0, "no step is left to cool down in"


def test_nothing_is_judged_while_the_target_moves() -> None:
    rule = Plateau(window=10, patience=1, least_cooldown=20)
    falling = [rule.update(-10.0 * step, 900 - step, moving=True) for step in range(500)]
    assert set(falling) == {"go on", "progress"} and rule.steps == 0 and rule.best == -math.inf
    words = [word for _, word in run(rule, np.full(200, -9000.0))]
    assert words == ["progress", "cooldown", "stop"]


def test_a_sequence_that_levels_off_is_stopped_there() -> None:
    steps = np.arange(20_000)
    noise = np.random.default_rng(1).normal(0.0, 1.0, len(steps))
    (*_, (last, word)) = run(Plateau(), -100.0 * np.exp(-steps / 300.0) + noise)
    assert word == "stop" and 1000 < last < 6000


def test_gains_below_the_tolerance_are_no_progress() -> None:
    slow = np.arange(10_000) * 1e-6
    assert run(Plateau(), slow)[-1][1] == "stop"
    assert run(Plateau(tolerance=1e-6), slow)[-1][1] != "stop"


def test_steps_that_are_left_out_are_part_of_a_cooldown_but_not_its_end() -> None:
    rule = Plateau(window=10, patience=1, cooldown=0.0, least_cooldown=30)
    said = [rule.update(0.0) for _ in range(20)]
    assert said[-1] == "cooldown"
    for _ in range(100):
        rule.skip()
    assert rule.step_size() == pytest.approx(1 / 30**2) and rule.update(0.0) == "stop"
    rule = Plateau()
    rule.skip()
    assert rule.step_size() == 1.0


def test_a_collapse_is_seen_and_lowers_the_step() -> None:
    rng = np.random.default_rng(0)
    elbos = np.concatenate([rng.normal(-10.0, 1.0, 200), rng.normal(-1000.0, 200.0, 100), rng.normal(-10.0, 1.0, 100)])
    plateau = Plateau()
    words = dict(run(plateau, elbos))
    assert words[299] == "collapse" and list(words.values()).count("collapse") == 1
    assert plateau.scale == pytest.approx(0.3) and plateau.total == 0


def test_a_dip_within_the_noise_is_no_collapse() -> None:
    rng = np.random.default_rng(0)
    elbos = np.concatenate([rng.normal(-10.0, 20.0, 300), rng.normal(-14.0, 20.0, 100)])
    assert "collapse" not in dict(run(Plateau(), elbos)).values()


def test_a_rule_goes_on_from_its_state() -> None:
    elbos = np.random.default_rng(0).normal(0.0, 1.0, 3000)
    whole, first = Plateau(), Plateau()
    expected = [whole.update(float(e)) for e in elbos]
    found = [first.update(float(e)) for e in elbos[:730]]
    second = Plateau(**first.state())
    found += [second.update(float(e)) for e in elbos[730:]]
    assert found == expected and second == whole
