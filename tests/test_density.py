"""Densities: what a fit finds, what it refuses, and that nothing is lost on the way."""

from __future__ import annotations

import copy
import math
import os
import pickle
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_flows_vi import flows, testing
from pyro_flows_vi.density import FitSettings, FlowDensity, ImageDensity
from pyro_flows_vi.density.scaling import Scaling
from pyro_flows_vi.infer import LogDensity
from pyro_flows_vi.infer.interruption import TrainingInterrupted
from pyro_flows_vi.testing import check_flow
from pyro_flows_vi.transforms import AffineAutoregressive, AffineCoupling, Flow
from pyro_flows_vi.vae import VAE, FlowPosterior

QUIET: dict[str, Any] = {"progress": False, "seed": 0}


def gaussian(count: int = 400, dim: int = 2) -> Tensor:
    torch.manual_seed(1)
    return 50.0 + 10.0 * (torch.randn(count, 1) + 0.3 * torch.randn(count, dim))


def same(a: FlowDensity, b: FlowDensity) -> bool:
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    return all(n == m and torch.equal(x, y) for (n, x), (m, y) in pairs)


class Frame:
    """As pandas and polars data frames are for NumPy."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self.values, dtype=dtype)


# -- the density -----------------------------------------------------------------------------------------


def test_a_linear_flow_finds_the_maximum_likelihood() -> None:
    """The best Gaussian has the sample's moments, and a known likelihood."""
    x = gaussian(600, 3).double()
    density = FlowDensity("lu", 3, num_transforms=1).double()
    density.fit(x, validation=None, max_epochs=120, batch_size=600, learning_rate=0.05, schedule="cosine", **QUIET)
    covariance = torch.cov(x.T, correction=0)
    best = -0.5 * (3 * math.log(2 * math.pi) + torch.linalg.slogdet(covariance)[1] + 3)
    found = density.evaluate(x)
    # the LU flow has no location of its own, and needs none: the scale has the mean
    assert float(best) - 0.02 < found.mean <= float(best) + 1e-9
    assert found.se == pytest.approx(float(density.log_prob(x).detach().std() / math.sqrt(600)), rel=1e-6)


def test_log_prob_is_in_the_units_of_the_data() -> None:
    """It integrates to one there, and agrees with autograd through the whole map."""
    x = 300.0 + 20.0 * torch.randn(300, 1).double()
    density = FlowDensity("maf", 1, num_transforms=1).double()
    density.fit(x, max_epochs=2, **QUIET)
    grid = torch.linspace(100.0, 500.0, 4001, dtype=torch.float64)
    assert float(torch.trapezoid(density.log_prob(grid[:, None]).detach().exp(), grid)) == pytest.approx(1.0, abs=1e-4)
    two = FlowDensity("realnvp", 2, num_transforms=2).double()
    two.scaling.measure(torch.tensor([5.0, -3.0]), torch.tensor([2.0, 10.0]))
    z = torch.randn(2, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda z: two.chain.forward_and_log_det(z)[0], z)
    y = two.chain.forward_and_log_det(z)[0]
    expected = dist.Normal(torch.zeros(2), 1.0).to_event(1).log_prob(z) - torch.linalg.slogdet(jacobian)[1]
    torch.testing.assert_close(two.log_prob(y), expected)


def test_the_scale_keeps_the_contract_of_a_flow() -> None:
    scaling = Scaling(3)
    scaling.measure(torch.tensor([1.0, -2.0, 0.0]), torch.tensor([0.5, 3.0, 1.0]))
    assert not list(scaling.parameters()) and scaling.triangular
    check_flow(scaling)


@pytest.mark.parametrize(
    ("name", "turned"), [("iaf", True), ("naf", True), ("residual", True), ("maf", False), ("realnvp", False)]
)
def test_named_flows_are_turned_so_that_scoring_is_cheap(name: str, turned: bool) -> None:
    options = {"hidden_dims": (8,)} if name in ("iaf", "naf", "maf") else {}
    density = FlowDensity(name, 2, num_transforms=1, **options)
    assert density.flow.fast_inverse
    assert flows.build(name, 2, num_transforms=1, **options).fast_inverse is not turned
    assert not FlowDensity("iaf", 2, turn=False).flow.fast_inverse


def test_a_flow_of_ones_own_is_used_as_it_is() -> None:
    flow = flows.build("iaf", 2, num_transforms=1)
    assert FlowDensity(flow).flow is flow
    assert FlowDensity(flow, turn=True).flow is flow.inv
    with pytest.raises(ValueError, match=r"takes no options here, got hidden_dims"):
        FlowDensity(flow, hidden_dims=(8,))
    with pytest.raises(ValueError, match=r"expected input_dim to be that of the flow, 2, got 3"):
        FlowDensity(flow, 3)
    with pytest.raises(ValueError, match=r"unknown flow 'mfa'.*did you mean 'maf'"):
        FlowDensity("mfa")


def test_every_kind_of_data_gives_the_same_fit() -> None:
    x = gaussian()
    fits = []
    for values in (x, x.numpy(), Frame(x.numpy()), Frame(x.numpy().astype(object)), x.double().numpy().tolist()):
        density = FlowDensity("maf", num_transforms=1, hidden_dims=(8,))
        density.fit(values, max_epochs=2, **QUIET)
        fits.append(density)
    assert all(same(fits[0], other) for other in fits[1:])
    torch.testing.assert_close(fits[0].log_prob(Frame(x.numpy())), fits[0].log_prob(x))


def test_a_loader_is_fitted_with_its_own_batches() -> None:
    x, c = gaussian(), torch.randn(400, 3)
    loader = DataLoader(TensorDataset(x, c), batch_size=50, shuffle=True)
    density = FlowDensity("realnvp", 2, 3, num_transforms=2, hidden_dims=(8,))
    result = density.fit(loader, validation=(x[:50], c[:50]), max_epochs=3, **QUIET)
    assert result.epochs == 3 and math.isfinite(result.best)
    torch.testing.assert_close(density.scaling.loc, x.mean(0))
    torch.testing.assert_close(density.scaling.scale, x.std(0))
    with pytest.raises(ValueError, match=r"validation rows of their own.*cannot be split; got 0\.1"):
        density.fit(loader, **QUIET)
    with pytest.raises(ValueError, match=r"pairs .x, context., got 1 part"):
        density.fit(DataLoader(TensorDataset(x), batch_size=50), validation=None, **QUIET)


def test_a_conditional_density_follows_its_context() -> None:
    torch.manual_seed(0)
    c = 1000.0 + 200.0 * torch.randn(600, 1)
    y = 0.01 * c + 0.5 * torch.randn(600, 1)
    density = FlowDensity("maf", num_transforms=2, hidden_dims=(16,))
    density.fit(y, c, max_epochs=60, learning_rate=1e-2, **QUIET)
    low, high = density.sample(2000, torch.tensor([[800.0], [1200.0]])).mean(0)[:, 0].tolist()
    assert low == pytest.approx(8.0, abs=0.3) and high == pytest.approx(12.0, abs=0.3)
    at = density.distribution(torch.tensor([[800.0], [1200.0]]))
    assert at.batch_shape == (2,) and at.event_shape == (1,)
    points = torch.tensor([[8.0], [12.0]])
    torch.testing.assert_close(at.log_prob(points), density.log_prob(points, torch.tensor([[800.0], [1200.0]])))
    context = torch.tensor([[900.0]], requires_grad=True)
    density.rsample((4,), context).sum().backward()
    assert context.grad is not None and float(context.grad.abs()) > 0
    with pytest.raises(ValueError, match=r"expected a context"):
        density.log_prob(points)
    with pytest.raises(ValueError, match=r"expected a context"):
        density.distribution()
    with pytest.raises(ValueError, match=r"expected context of shape \(\*batch, 1\)"):
        density.sample(3, torch.zeros(2, 4))


# -- the distribution ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted() -> FlowDensity:
    density = FlowDensity("realnvp", num_transforms=2, hidden_dims=(16,))
    density.fit(gaussian(), max_epochs=5, progress=False, seed=0)
    return density


def test_shapes_of_the_distribution(fitted: FlowDensity) -> None:
    q = fitted.distribution()
    assert q.batch_shape == () and q.event_shape == (2,)
    x = q.rsample((5, 3))
    assert x.shape == (5, 3, 2) and x.requires_grad
    torch.testing.assert_close(q.log_prob(x), fitted.log_prob(x))
    wide = q.expand([4])
    assert wide.batch_shape == (4,) and wide.sample().shape == (4, 2) and wide.log_prob(x[0, :1]).shape == (4,)
    assert (
        fitted.sample().shape == (2,) and fitted.sample(3).shape == (3, 2) and fitted.sample((2, 3)).shape == (2, 3, 2)
    )
    assert not fitted.sample(3).requires_grad and fitted.rsample(3).requires_grad


def test_it_is_a_prior_in_a_model(fitted: FlowDensity) -> None:
    """The posterior of the prior's own mean, given one precise look at it, moves there."""

    def model() -> None:
        with pyro.plate("points", 3):
            z = pyro.sample("z", fitted.distribution().expand([3]))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=torch.full((3, 2), 55.0))

    def guide() -> None:
        loc = pyro.param("loc", torch.full((3, 2), 50.0))
        with pyro.plate("points", 3):
            pyro.sample("z", dist.Normal(loc, 0.1).to_event(1))

    svi = SVI(model, guide, Adam({"lr": 0.2}), Trace_ELBO())
    for _ in range(60):
        svi.step()
    assert float((pyro.param("loc").detach() - 55.0).abs().max()) < 1.0


def test_it_is_a_prior_of_a_vae(fitted: FlowDensity) -> None:
    vae = VAE(FlowPosterior(nn.Linear(4, 8), 8, 2), nn.Linear(2, 4), prior=fitted.distribution())
    assert set(map(id, fitted.parameters())) <= set(map(id, vae.parameters()))
    terms = vae.elbo(torch.zeros(5, 4))
    assert terms.log_prior.shape == (5,) and bool(terms.elbo().isfinite().all())
    terms.elbo().sum().backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in fitted.parameters())
    assert vae.sample(3).shape == (3, 4)
    fitted.zero_grad()


def test_copies_pickles_and_files_are_the_same_density(fitted: FlowDensity, tmp_path: Path) -> None:
    x = gaussian()[:5]
    fitted.save(tmp_path / "density")
    other = FlowDensity("realnvp", 2, num_transforms=2, hidden_dims=(16,))
    other.load_state_dict(fitted.state_dict())
    copies = [copy.deepcopy(fitted), pickle.loads(pickle.dumps(fitted)), FlowDensity.load(tmp_path / "density"), other]
    for density in copies:
        assert same(fitted, density)
        torch.testing.assert_close(density.log_prob(x), fitted.log_prob(x))
    double = copy.deepcopy(fitted).double()
    assert double.log_prob(x).dtype == torch.float64 and double.sample(2).dtype == torch.float64
    torch.testing.assert_close(double.log_prob(x).float(), fitted.log_prob(x), rtol=1e-4, atol=1e-4)


def test_a_flow_of_ones_own_is_passed_when_a_file_is_read(tmp_path: Path) -> None:
    make: Callable[[], flows.Flow] = lambda: flows.build("planar", 2, num_transforms=1)  # noqa: E731
    density = FlowDensity(make(), turn=True)
    density.save(tmp_path / "density")
    assert same(FlowDensity.load(tmp_path / "density", make()), density)
    with pytest.raises(ValueError, match=r"a flow of your own: pass flow="):
        FlowDensity.load(tmp_path / "density")
    with pytest.raises(ValueError, match=r"expected the parameters of"):
        FlowDensity.load(tmp_path / "density", flows.build("radial", 2))
    (tmp_path / "density").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"expected a file that starts with the header"):
        FlowDensity.load(tmp_path / "density")


# -- the fit ---------------------------------------------------------------------------------------------


def test_the_best_parameters_are_kept() -> None:
    x = gaussian(120)
    density = FlowDensity("maf", num_transforms=2, hidden_dims=(64,))
    result = density.fit(x[:60], validation=x[60:], learning_rate=0.03, patience=3, max_epochs=200, **QUIET)
    assert result.stop_reason == "early stopping" and result.epochs == result.best_epoch + 3
    assert result.best == max(result.curves["validation"]) == result.curves["validation"][result.best_epoch - 1]
    assert density.evaluate(x[60:]).mean == pytest.approx(result.best, rel=1e-5)
    assert {len(result.curves[name]) for name in ("train", "validation", "learning_rate", "seconds")} == {result.epochs}
    assert "early stopping" in str(result) and not density.training


def test_a_second_fit_goes_on_from_the_first(fitted: FlowDensity, tmp_path: Path) -> None:
    fitted.save(tmp_path / "density")
    density = FlowDensity.load(tmp_path / "density")
    before = density.evaluate(gaussian()).mean
    density.fit(gaussian() + 1.0, max_epochs=1, learning_rate=1e-6, **QUIET)
    assert torch.equal(density.scaling.loc, fitted.scaling.loc)
    assert density.evaluate(gaussian()).mean == pytest.approx(before, abs=1e-2)


def test_activation_normalisation_starts_from_data() -> None:
    density = FlowDensity("actnorm", num_transforms=1, standardise=False)
    x = gaussian().double()
    density.fit(x, max_epochs=1, learning_rate=1e-9, **QUIET)
    z = density.chain.inverse_and_log_det(x.float())[0]
    torch.testing.assert_close(z.mean(0), torch.zeros(2), rtol=0, atol=0.2)
    torch.testing.assert_close(z.std(0), torch.ones(2), rtol=0.1, atol=0)


def test_seeds_decide_and_leave_the_generator_alone() -> None:
    x = gaussian()
    state = torch.get_rng_state()
    fits = []
    for seed in (0, 0, 1):
        density = FlowDensity("maf", num_transforms=1, hidden_dims=(8,))
        density.fit(x, max_epochs=2, seed=seed, progress=False)
        fits.append(density)
    assert same(fits[0], fits[1]) and not same(fits[0], fits[2])
    assert torch.equal(torch.get_rng_state(), state)


class InterruptedAt:
    """Data that send a signal when so many minibatches have been taken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
        from pyro_flows_vi.density.fitting import Fitting

        count, plain = 0, Fitting._step

        def stepped(fitting: Any, pair: Any) -> None:
            nonlocal count
            plain(fitting, pair)
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(Fitting, "_step", stepped)


@pytest.mark.parametrize("step", [1, 8, 11])  # in the first epoch, after its last minibatch, in the second
@pytest.mark.parametrize("source", ["rows", "loader"])
def test_an_interrupted_fit_ends_with_the_same_bits(
    step: int, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = gaussian(400)
    path = tmp_path / "fit.ckpt"

    def fit(**options: Any) -> tuple[FlowDensity, Any]:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            density = FlowDensity("residual", 2, num_transforms=1)  # draws noise in every step of the training
        data: Any = x
        if source == "loader":
            data = DataLoader(TensorDataset(x), batch_size=50, shuffle=True, generator=torch.Generator().manual_seed(5))
        return density, density.fit(data, validation=x[:40], max_epochs=2, batch_size=50, **QUIET, **options)

    whole, result = fit()
    with monkeypatch.context() as patch:
        InterruptedAt(patch, step)
        with pytest.raises(TrainingInterrupted, match=r"interrupted in epoch \d; .*fit\.ckpt.*resume"):
            fit(checkpoint=path)
    resumed, again = fit(checkpoint=path, resume=True)
    assert same(whole, resumed)
    assert again.curves["train"] == result.curves["train"] and again.curves["validation"] == result.curves["validation"]


def test_an_interruption_without_a_checkpoint_keeps_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    InterruptedAt(monkeypatch, 5)
    density = FlowDensity("maf", num_transforms=1, hidden_dims=(8,))
    result = density.fit(gaussian(), batch_size=200, max_epochs=50, **QUIET)
    assert result.stop_reason == "interrupted" and result.epochs == 2 and result.best_epoch in (1, 2)


def test_checkpoints_of_other_data_or_settings_are_refused(tmp_path: Path) -> None:
    x, path = gaussian(), tmp_path / "fit.ckpt"
    density = FlowDensity("maf", 2, num_transforms=1, hidden_dims=(8,))
    density.fit(x, max_epochs=1, checkpoint=path, **QUIET)
    longer = density.fit(x, max_epochs=2, checkpoint=path, resume=True, **QUIET)  # the budget may grow
    assert longer.epochs == 2
    for changes, data in (({"learning_rate": 0.1}, x), ({}, x + 1.0)):
        with pytest.raises(ValueError, match=r"belongs to other settings"):
            density.fit(data, max_epochs=3, checkpoint=path, resume=True, **QUIET, **changes)


# -- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            torch.cat([gaussian(), torch.ones(400, 1)], 1),
            r"constant columns 2 \(in torch.float32\): their density is infinite; drop",
        ),
        (torch.randn(20), r"shape \(N, D\) with at least one row, got \(\d+,\).*x\[:, None\]"),
        (torch.empty(0, 2), "at least one row"),
        (np.array([["a", "b"]] * 10), "expected x to be numeric, got ndarray"),
        (Frame(np.array([[1.0, None]] * 10, dtype=object)), "expected x to be numeric, got Frame|NaN or infinite"),
        (torch.randn(20, 2, dtype=torch.complex64), "expected x to be real"),
    ],
)
def test_rows_without_a_density_are_refused(x: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlowDensity("maf", num_transforms=1).fit(x, max_epochs=1, **QUIET)


def test_whole_numbers_are_warned_about() -> None:
    x = torch.stack([torch.randn(200), torch.randint(5, (200,)).float()], 1)
    density = FlowDensity("maf", num_transforms=1)
    with pytest.warns(UserWarning, match=r"columns 1 hold whole numbers only.*likelihood diverges.*dequantise"):
        density.fit(x, max_epochs=1, **QUIET)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        density.fit(x + torch.rand(200, 2), max_epochs=1, **QUIET)


def test_other_widths_are_refused(fitted: FlowDensity) -> None:
    with pytest.raises(ValueError, match=r"expected x of shape \(\*batch, 2\), as the density was made for"):
        fitted.log_prob(torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"expected x of 2 columns, as the density was made for, got 3"):
        copy.deepcopy(fitted).fit(torch.randn(50, 3), max_epochs=1, **QUIET)
    with pytest.raises(ValueError, match=r"expected validation x of 2 columns"):
        copy.deepcopy(fitted).fit(torch.randn(50, 2), validation=torch.randn(9, 3), max_epochs=1, **QUIET)
    with pytest.raises(ValueError, match=r"1 that are NaN or infinite"):
        fitted.log_prob(torch.tensor([[0.0, math.nan]]))
    with pytest.raises(ValueError, match=r"context of shape \(50, C\)"):
        FlowDensity("maf").fit(torch.randn(50, 2), torch.zeros(50), **QUIET)
    with pytest.raises(ValueError, match=r"dimensions of the density are not known yet"):
        FlowDensity("maf").sample(3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_epoch": 3}, "unknown setting max_epoch: expected one of batch_size"),
        ({"batch_size": 0}, "expected batch_size to be a positive integer, got 0"),
        ({"learning_rate": -1.0}, "expected learning_rate to be a finite, positive number"),
        ({"schedule": "linear"}, "unknown schedule 'linear'"),
        ({"validation": 1.5}, "fraction between 0 and 1"),
        ({"learning_rate": 1e30, "max_epochs": 30, "clip_norm": None}, "a finite loss"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlowDensity("maf", num_transforms=1).fit(gaussian(), **QUIET, **settings)


def test_the_cosine_ends_low() -> None:
    settings = FitSettings.make(schedule="cosine", max_epochs=100)
    assert settings.rate(0) == 1e-3 and settings.rate(99) < 1e-6 and FitSettings().rate(99) == 1e-3


# -- couplings beyond the data ---------------------------------------------------------------------------


def worst(flow: str, damped: bool) -> float:
    """The lowest log density around the data, of a chain with large weights."""
    made = FlowDensity(flow, 2, damped=damped, num_transforms=6).double()
    testing.randomize(made.flow, 0.3, torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    with torch.no_grad():
        return float(made.log_prob(4.0 * torch.randn(2000, 2, dtype=torch.float64)).min())


@pytest.mark.parametrize("flow", ["realnvp", "maf"])
def test_the_scales_of_a_density_do_not_explode(flow: str) -> None:
    assert worst(flow, damped=True) > -1e13
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the log density of .* rows is not finite")  # where it is NaN
        assert not worst(flow, damped=False) > -1e99


def test_affine_flows_of_densities_are_damped_unless_told_otherwise(tmp_path: Path) -> None:
    def damped(density: FlowDensity) -> set[bool]:
        return {step.damped for step in density.modules() if isinstance(step, AffineCoupling | AffineAutoregressive)}

    for flow in ("realnvp", "maf", "iaf"):
        assert damped(FlowDensity(flow, 2)) == damped(ImageDensity(flow, (2, 2))) == {True}
    assert damped(FlowDensity("maf", 2, damped=False)) == {False}
    assert FlowDensity("realnvp").recipe["options"] == {"damped": True}  # which files and records keep
    images = ImageDensity("realnvp", (2, 2))
    assert images.recipe["options"] == {"damped": True, "interleaved": True}
    first = next(step for step in images.modules() if isinstance(step, AffineCoupling))
    assert first.order.tolist() == [0, 2, 1, 3]
    assert damped(FlowDensity("realnvp", 2, damped=False)) == {False}
    FlowDensity("realnvp", 2, damped=False).save(tmp_path / "density")
    assert damped(FlowDensity.load(tmp_path / "density")) == {False}
    assert not AffineCoupling(3).damped and not AffineCoupling(3, additive=True, damped=True).damped
    step = AffineCoupling(2, damped=True)
    torch.nn.init.constant_(step.net.last.bias, 30.0)  # type: ignore[arg-type, union-attr]
    torch.nn.init.zeros_(step.net.last.weight)  # type: ignore[arg-type, union-attr]
    expected = 4.0 * math.asinh(math.asinh(30.0) / 4.0)
    assert float(step.forward_and_log_det(torch.zeros(2))[1].detach()) == pytest.approx(expected)
    other = AffineAutoregressive(2, damped=True)
    torch.nn.init.constant_(other.net.last.bias, 30.0)  # type: ignore[arg-type, union-attr]
    torch.nn.init.zeros_(other.net.last.weight)  # type: ignore[arg-type, union-attr]
    assert float(other.forward_and_log_det(torch.zeros(2))[1].detach()) == pytest.approx(2.0 * expected)


@pytest.mark.parametrize("flow", ["mixture-cdf", "umnn", "residual"])
def test_a_prior_is_scored_by_the_cheap_direction_under_vmap(flow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be remembered, the log-determinant is not that of another search."""
    density = FlowDensity(flow, 2, num_transforms=2).eval()
    prior, points = density.distribution(), torch.randn(5, 2)
    expected = density.log_prob(points)
    for step in density.chain.flows[0].modules():
        if isinstance(step, Flow) and not step.fast_forward and step.fast_inverse:
            monkeypatch.setattr(step, "forward_and_log_det", None)  # the search
    found = torch.func.vmap(prior.log_prob)(points)
    torch.testing.assert_close(found, expected)


def test_a_conditional_density_is_vectorised_in_a_model() -> None:
    density = FlowDensity("maf", 1, 1, num_transforms=1)
    data = torch.randn(20, 1)

    def model() -> None:
        theta = pyro.sample("theta", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        with pyro.plate("rows", 20):
            pyro.sample("y", density.distribution(theta.expand(20, 1)), obs=data)

    log_density = LogDensity(model)
    latent = torch.tensor([[0.3], [-1.0]])
    found = log_density(latent)
    assert log_density.vectorized
    prior = dist.Normal(0.0, 1.0).log_prob(latent[:, 0])
    expected = torch.stack([density.log_prob(data, row.expand(20, 1)).sum() for row in latent])
    torch.testing.assert_close(found, prior + expected)


def test_rows_where_a_flow_overflows_are_told() -> None:
    density = FlowDensity("sos", 2).eval()
    far = torch.tensor([[0.1, 0.2], [1e9, -1e9]])
    with pytest.warns(UserWarning, match="1 of 2 rows is not finite"):
        density.log_prob(far)
    with pytest.warns(UserWarning, match="1 of 2 rows is not finite"):
        density.evaluate(far)


def test_double_precision_is_kept_in_a_file(tmp_path: Path) -> None:
    density = FlowDensity("maf", 2).double()
    density.save(tmp_path / "density")
    again = FlowDensity.load(tmp_path / "density")
    x = torch.randn(5, 2, dtype=torch.float64)
    assert again.scaling.loc.dtype == torch.float64 and torch.equal(again.log_prob(x), density.log_prob(x))


def test_options_that_want_more_than_one_dimension() -> None:
    density = FlowDensity("sylvester", rank=3)
    density.fit(torch.randn(60, 5), max_epochs=1, progress=False)
    assert FlowDensity("realnvp", given=[0, 1]).recipe["options"]["given"] == [0, 1]
    with pytest.raises(ValueError, match="unknown option 'ranks'"):
        FlowDensity("sylvester", ranks=3)
