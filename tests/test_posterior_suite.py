"""The suite of real posteriors: every model runs, its NumPyro twin is the same model, and its truth is good enough."""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro import poutine
from torch.distributions import biject_to, constraints

from examples.benchmarks.posteriors import RECORDS, SUITE, scalars, truth
from examples.benchmarks.posteriors.check import log_joint_gaps, prototype, pyro_log_joint
from examples.benchmarks.posteriors.data import linnerud

RECORDED = [name for name in SUITE if (RECORDS / f"{name}.json").is_file()]
needs_numpyro = pytest.mark.skipif(importlib.util.find_spec("numpyro") is None, reason="needs the extra peers")


@pytest.fixture(scope="module")
def records() -> dict[str, dict[str, Any]]:
    return {name: truth(name) for name in RECORDED}


def test_the_suite_is_broad() -> None:
    assert len(SUITE) >= 14
    assert all(name == posterior.name == posterior.name.lower() for name, posterior in SUITE.items())
    assert len({posterior.kind for posterior in SUITE.values()}) == len(SUITE)
    assert sorted(RECORDED) == sorted(path.stem for path in RECORDS.glob("*.json")), "a record of no posterior"


@pytest.mark.parametrize("name", SUITE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_models_run(name: str, dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    posterior = SUITE[name]
    sites = prototype(posterior)
    values = {site: node["value"] for site, node in sites.items()}
    assert {value.dtype for value in values.values()} == {dtype}
    assert np.isfinite(pyro_log_joint(posterior, values))
    with poutine.trace() as trace:
        poutine.condition(posterior.model, values)(*posterior.args)
    assert trace.trace.log_prob_sum().dtype == dtype


@pytest.mark.parametrize("name", RECORDED)
def test_records_have_the_sites_of_the_model(name: str, records: dict[str, dict[str, Any]]) -> None:
    sites = {site: list(node["value"].shape) for site, node in prototype(SUITE[name]).items()}
    assert {site: columns["shape"] for site, columns in records[name]["sites"].items()} == sites
    for site, columns in records[name]["sites"].items():
        lengths = {len(column) for key, column in columns.items() if key != "shape"}
        assert lengths == {int(np.prod(sites[site]))}, site


@pytest.mark.parametrize("name", RECORDED)
def test_records_are_good_enough(name: str, records: dict[str, dict[str, Any]]) -> None:
    record = records[name]
    table = scalars(record)
    assert len(table) >= record["dim"]
    for label, row in table.items():
        assert row["rhat"] < 1.01, label
        assert row["mcse_mean"] < 0.03 * row["sd"], label
        assert row["mcse_sd"] < 0.03 * row["sd"], label
        assert row["q05"] < row["q50"] < row["q95"], label
    assert record["chains"] >= 4
    assert record["draws"] >= 5000
    assert record["divergences"] <= 1e-3 * record["chains"] * record["draws"]


@pytest.mark.parametrize("name", RECORDED)
def test_the_pyro_model_is_lower_far_from_the_truth(name: str, records: dict[str, dict[str, Any]]) -> None:
    """From the recorded medians, eight sds along any one coordinate that is free to go there lead downhill."""
    torch.set_default_dtype(torch.float64)
    posterior, sites = SUITE[name], prototype(SUITE[name])
    medians, sds, steps = {}, {}, {}
    for site, columns in records[name]["sites"].items():
        support = sites[site]["fn"].support
        value, sds[site] = (torch.tensor(columns[key]).reshape(columns["shape"]) for key in ("q50", "sd"))
        transform = biject_to(support)
        medians[site] = transform(transform.inv(value))  # the medians of a simplex do not sum to one
        free = getattr(support, "base_constraint", support)
        steps[site] = (-8.0, 8.0) if free is constraints.real else (8.0,) if free is constraints.positive else ()
    level = pyro_log_joint(posterior, medians)
    assert np.isfinite(level)
    for site, value in medians.items():
        for step in steps[site]:
            for i in range(value.numel()):
                moved = value.clone()
                moved.view(-1)[i] += step * sds[site].view(-1)[i]
                assert pyro_log_joint(posterior, {**medians, site: moved}) < level, (site, i, step)


@pytest.mark.skipif("linnerud_flat" not in RECORDED, reason="not recorded yet")
def test_nuts_meets_the_closed_form(records: dict[str, dict[str, Any]]) -> None:
    """Flat in the coefficients and in sigma: Student-t coefficients and an inverse gamma variance."""
    columns, target = linnerud()
    design = np.column_stack([np.ones(len(target)), columns])
    n, p = design.shape
    centre, (rest,) = np.linalg.lstsq(design, target, rcond=None)[:2]
    df = n - p - 1
    spread = np.sqrt(rest / df * np.diag(np.linalg.inv(design.T @ design)))
    sites = records["linnerud_flat"]["sites"]
    found = sites["coefficients"]
    np.testing.assert_array_less(np.abs(found["mean"] - centre), 5 * np.array(found["mcse_mean"]))
    sd = spread * np.sqrt(df / (df - 2))
    np.testing.assert_array_less(np.abs(found["sd"] - sd), 5 * np.array(found["mcse_sd"]))
    for key, level in (("q05", 0.05), ("q50", 0.5), ("q95", 0.95)):
        np.testing.assert_array_less(np.abs(found[key] - scipy.stats.t(df, centre, spread).ppf(level)), 0.05 * sd)
    variance = scipy.stats.invgamma(df / 2, scale=rest / 2)
    for key, level in (("q05", 0.05), ("q50", 0.5), ("q95", 0.95)):
        assert sites["sigma"][key][0] == pytest.approx(variance.ppf(level) ** 0.5, rel=0.01)


@needs_numpyro
@pytest.mark.parametrize("name", SUITE)
@pytest.mark.filterwarnings("ignore")  # what jax's own modules warn of is not ours
def test_numpyro_twins_are_the_same_models(name: str) -> None:
    gaps, levels = log_joint_gaps(SUITE[name])
    assert np.isfinite(levels).all()
    assert np.ptp(levels) > 0.1  # the points differ
    assert np.abs(gaps - gaps[0]).max() < 1e-7 + 2e-8 * np.abs(levels).max()


@needs_numpyro
@pytest.mark.filterwarnings("ignore")
def test_the_comparison_sees_another_prior() -> None:
    def wider(errors: torch.Tensor, effects: torch.Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 5.5))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("schools", len(effects)):
            eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
            pyro.sample("obs", dist.Normal(mu + tau * eta, errors), obs=effects)

    posterior = SUITE["eight_schools_noncentred"]
    wider.__module__, wider.__name__ = posterior.model.__module__, posterior.model.__name__
    gaps, _ = log_joint_gaps(dataclasses.replace(posterior, model=wider))
    assert np.ptp(gaps) > 1e-4


@pytest.mark.skipif(
    not {"eight_schools_centred", "eight_schools_noncentred"} <= set(RECORDED), reason="not recorded yet"
)
def test_both_eight_schools_are_one_posterior(records: dict[str, dict[str, Any]]) -> None:
    centred, plain = (scalars(records[f"eight_schools_{kind}"]) for kind in ("centred", "noncentred"))
    for label in ("mu", "tau"):
        error = np.hypot(centred[label]["mcse_mean"], plain[label]["mcse_mean"])
        assert abs(centred[label]["mean"] - plain[label]["mean"]) < 5 * error


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="no posterior is called 'nine_schools'"):
        truth("nine_schools")
