"""What ArviZ needs from an export: groups, names, shapes, and numbers that are right; for ArviZ 0.2x and 1.x."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import Tensor

from pyro_flows_vi.guides import AutoFlow
from pyro_flows_vi.infer.arviz_export import to_arviz
from pyro_flows_vi.infer.pareto import arviz_series, load_arviz

SCHOOLS, DRAWS = 4, 200
Y, SIGMA = torch.tensor([28.0, 8.0, -3.0, 7.0]), torch.tensor([15.0, 10.0, 16.0, 11.0])


def schools(y: Tensor, sigma: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(5.0))
    with pyro.plate("school", SCHOOLS):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)
    pyro.deterministic("total", theta.sum())


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """ArviZ and what it uses have warnings of their own, which are not this library's."""
    with warnings.catch_warnings():
        load_arviz()
        warnings.filterwarnings("ignore", module=r"arviz|xarray|matplotlib|h5netcdf|numpy")
        yield


def exported(**options: Any) -> Any:
    guide = AutoNormal(schools)
    guide(Y, SIGMA)
    return to_arviz(schools, guide, Y, SIGMA, num_draws=DRAWS, seed=0, **options)


def names(idata: Any) -> set[str]:
    return {name.strip("/") for name in (idata.groups if arviz_series() else idata.groups())} - {""}


def test_groups_dimensions_and_coordinates() -> None:
    idata = exported(coords={"school": list("abcd")})
    assert names(idata) == {
        "posterior",
        "posterior_predictive",
        "log_likelihood",
        "sample_stats",
        "prior",
        "prior_predictive",
        "observed_data",
    }
    posterior = idata["posterior"]
    assert set(posterior.data_vars) == {"mu", "tau", "theta", "total"}
    assert posterior["theta"].dims == ("chain", "draw", "school") and posterior["theta"].shape == (1, DRAWS, SCHOOLS)
    assert list(posterior["school"].values) == list("abcd")
    assert idata["observed_data"]["y"].values.tolist() == Y.tolist()
    stats = idata["sample_stats"]
    assert math.isfinite(stats.attrs["pareto_k"]) or stats.attrs["pareto_k"] == math.inf
    assert stats["log_weight"].values == pytest.approx((stats["lp"] - stats["log_guide"]).values)
    assert float(idata["prior"]["tau"].std()) > 1.0 and idata["prior_predictive"]["y"].shape == (1, DRAWS, SCHOOLS)


def test_numbers_belong_to_the_same_draw() -> None:
    idata = exported(prior=False)
    theta = torch.as_tensor(idata["posterior"]["theta"].values)[0]
    assert idata["posterior"]["total"].values[0] == pytest.approx(theta.sum(-1).numpy(), rel=1e-4)
    wanted = dist.Normal(theta, SIGMA).log_prob(Y)
    assert idata["log_likelihood"]["y"].values[0] == pytest.approx(wanted.numpy(), rel=1e-4)
    noise = (torch.as_tensor(idata["posterior_predictive"]["y"].values)[0] - theta) / SIGMA
    assert abs(float(noise.mean())) < 5 / math.sqrt(noise.numel()) and float(noise.std()) == pytest.approx(1.0, abs=0.1)


def test_summary_loo_compare_plot_and_netcdf(tmp_path: Path) -> None:
    az, idata = load_arviz(), exported()
    assert "theta[0]" in az.summary(idata).index
    loo = az.loo(idata)
    assert math.isfinite(float(getattr(loo, "elpd", None) if arviz_series() else loo.elpd_loo))
    other = exported()
    assert len(az.compare({"a": idata, "b": other})) == 2
    (az.plot_dist if arviz_series() else az.plot_posterior)(idata, var_names=["mu"])
    idata.to_netcdf(tmp_path / "posterior.nc")
    again = az.from_netcdf(tmp_path / "posterior.nc")
    assert again["posterior"]["theta"].values.tolist() == idata["posterior"]["theta"].values.tolist()
    assert again["sample_stats"].attrs["pareto_k"] == idata["sample_stats"].attrs["pareto_k"]
    if hasattr(again, "close"):
        again.close()


def test_switches_and_resampling() -> None:
    idata = exported(log_likelihood=False, posterior_predictive=False, prior=False, resample=True)
    assert names(idata) == {"posterior", "sample_stats", "observed_data"}
    assert idata["posterior"]["theta"].shape == (1, DRAWS, SCHOOLS)
    assert idata["sample_stats"].attrs["resampled"] == 1 and not idata["sample_stats"]["log_weight"].values.any()


def test_flow_guides_events_masks_and_factors() -> None:
    """Event dimensions, masked rows, a plate whose name ArviZ needs, a factor, a flow guide, an improper prior."""
    x = torch.randn(5, 3)
    keep = torch.tensor([True, True, False, True, True])

    def model(x: Tensor) -> None:
        flat = dist.ImproperUniform(dist.constraints.real, (), ())
        loc = pyro.sample("loc", flat)
        pyro.factor("soft", -0.01 * loc.square())
        with pyro.plate("draw", 5), poutine.mask(mask=keep):
            pyro.sample("x", dist.Normal(loc * torch.ones(3), 1.0).to_event(1), obs=x)

    guide = AutoFlow(model, "iaf").setup(x)
    idata = to_arviz(model, guide, x, num_draws=50)
    assert names(idata) == {"posterior", "posterior_predictive", "log_likelihood", "sample_stats", "observed_data"}
    assert idata["observed_data"]["x"].dims == ("draw_dim", "x_dim_1")
    assert idata["log_likelihood"]["x"].dims == ("chain", "draw", "draw_dim")
    assert not idata["log_likelihood"]["x"].values[..., 2].any() and idata["log_likelihood"]["x"].values[..., 1].all()
    assert bool(idata["observed_data"]["x"].isnull().values[2].all())
    assert idata["observed_data"]["x"].isnull().values.sum() == 3
    with pytest.raises(ValueError, match="site 'loc' has an improper prior"):
        to_arviz(model, guide, x, num_draws=50, prior=True)


def test_given_dims_are_used_or_refused() -> None:
    idata = exported(dims={"theta": ["place"]}, coords={"place": [1, 2, 3, 4]}, prior=False)
    assert idata["posterior"]["theta"].dims == ("chain", "draw", "place")
    assert idata["observed_data"]["y"].dims == ("school",)
    with pytest.raises(ValueError, match="site 'theta' has the shape"):
        exported(dims={"theta": ["a", "b"]})
    with pytest.raises(ValueError, match="site 'theta' has 4 values along 'school', got 2"):
        exported(coords={"school": ["a", "b"]})
    with pytest.raises(ValueError, match="dims names the site 'phi'"):
        exported(dims={"phi": ["a"]})


def test_subsampled_plates_are_refused() -> None:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 4, subsample_size=2) as rows:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[rows])

    with pytest.raises(ValueError, match="plate 'rows' is subsampled"):
        to_arviz(model, AutoMultivariateNormal(model), Y)
