"""Work on another device than the processor: the same numbers, and everything where the data are.

Without a GPU only the first tests run. ``PYRO_FLOWS_VI_DEVICE`` names another device to try, such as ``mps``.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import CASES
from click.testing import CliRunner
from torch import Tensor

from pyro_flows_vi import datasets
from pyro_flows_vi.cli import main
from pyro_flows_vi.density import FlowDensity, ImageDensity, target
from pyro_flows_vi.guides import AutoFlow
from pyro_flows_vi.infer import LogDensity, diagnose, fit, to_arviz
from pyro_flows_vi.infer.layout import trace_model
from pyro_flows_vi.numerics.new_tensors import placement
from pyro_flows_vi.transforms import Flow
from pyro_flows_vi.vae import evaluate_row, load_record, train_row

DEVICE = os.environ.get("PYRO_FLOWS_VI_DEVICE", "cuda")
there_only = pytest.mark.skipif(
    DEVICE == "cuda" and not torch.cuda.is_available(), reason="takes a GPU, or a device in PYRO_FLOWS_VI_DEVICE"
)

X = torch.linspace(-1.0, 2.0, 24)[:, None] ** torch.arange(3)
Y = X @ torch.tensor([1.0, -2.0, 0.5]) + 0.3 * torch.cos(torch.arange(24.0) * 2.1)
NOISE, PRIOR = 0.5, 3.0


def regression(x: Tensor, y: Tensor) -> None:
    """Its prior is of plain numbers, which say nothing of a device."""
    weights = pyro.sample("weights", dist.Normal(0.0, PRIOR).expand([3]).to_event(1))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(x @ weights, NOISE), obs=y)


def exact_posterior() -> tuple[Tensor, Tensor]:
    precision = X.double().mT @ X.double() / NOISE**2 + torch.eye(3, dtype=torch.double) / PRIOR**2
    covariance = torch.linalg.inv(precision)
    return covariance @ X.double().mT @ Y.double() / NOISE**2, covariance.diagonal().sqrt()


def test_new_tensors_are_where_the_data_are() -> None:
    away = torch.zeros(2, device="meta")
    with placement(({"x": [away]}, 1.0)):
        assert torch.zeros(1).device.type == dist.Normal(0.0, 1.0, validate_args=False).loc.device.type == "meta"
    assert torch.zeros(1).device.type == "cpu"
    with placement((torch.zeros(2), None)):
        assert torch.zeros(1).device.type == "cpu"


def test_a_model_runs_where_its_data_are() -> None:
    def model(x: Tensor, scale: float) -> None:
        pyro.sample("z", dist.Normal(0.0, scale))

    for device in ("meta", "cpu"):
        run = trace_model(model, (torch.zeros(2, device=device),), {"scale": 2.0})
        assert run.nodes["z"]["value"].device.type == device


def test_a_guide_and_a_log_density_run_a_model_where_its_data_are() -> None:
    devices: list[str] = []

    def model(x: Tensor) -> None:
        devices.append(pyro.sample("z", dist.Normal(0.0, 1.0)).device.type)
        pyro.factor("f", x.sum() * torch.ones(()))

    away, density = torch.zeros(2, device="meta"), LogDensity(model, torch.zeros(2))
    assert set(devices) == {"cpu"}
    devices.clear()
    density._run(torch.zeros(1, device="meta"), [away])
    with contextlib.suppress(RuntimeError, NotImplementedError):  # there are no values to go on by
        AutoFlow(model).setup(away)
    assert devices and set(devices) == {"meta"}


@there_only
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("name", CASES)
def test_a_flow_gives_the_same_there(name: str, inverse: bool) -> None:
    torch.manual_seed(0)
    here = CASES[name](4, 3).eval().double()
    with torch.no_grad():
        for parameter in here.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(10, 4, dtype=torch.double)
    context = None if here.context_dim is None else torch.randn(10, 3, dtype=torch.double)

    def values(flow: Flow, *given: Tensor | None) -> list[Tensor]:
        point, context = given
        assert point is not None
        point = point.clone().requires_grad_()
        method = flow.inverse_and_log_det if inverse else flow.forward_and_log_det
        result, log_det = method(point, context)
        inputs = [point, *(p for p in flow.parameters() if p.requires_grad)]
        slopes = torch.autograd.grad(result.sum() + log_det.sum(), inputs, allow_unused=True)
        return [result, log_det, *(slope for slope in slopes if slope is not None)]

    there = copy.deepcopy(here).to(DEVICE)
    found = values(there, x.to(DEVICE), None if context is None else context.to(DEVICE))
    for value, expected in zip(found, values(here, x, context), strict=True):
        assert value.device.type == torch.device(DEVICE).type
        torch.testing.assert_close(value.cpu(), expected, rtol=1e-6, atol=1e-7)


@there_only
@pytest.mark.parametrize("compile", [False, True, "auto"])
def test_a_fit_is_where_its_data_are(compile: bool | str) -> None:
    pyro.clear_param_store()
    data = X.to(DEVICE), Y.to(DEVICE)
    guide = AutoFlow(regression)
    fit(regression, guide, *data, max_steps=300, compile=compile, seed=0, progress=False)
    assert {p.device.type for p in guide.parameters()} == {torch.device(DEVICE).type}
    report = diagnose(regression, guide, *data, seed=0)
    assert report.verdict.startswith("trust"), report
    weights = to_arviz(regression, guide, *data, num_draws=4000, seed=0).posterior["weights"].values.reshape(-1, 3)
    mean, sd = exact_posterior()
    assert ((torch.as_tensor(weights).mean(0) - mean).abs() < 0.1 * sd).all()
    assert ((torch.as_tensor(weights).std(0) / sd - 1.0).abs() < 0.1).all()


@there_only
def test_the_command_fits_a_model_there(tmp_path: Path) -> None:
    (tmp_path / "line.py").write_text(
        "import pyro\nimport pyro.distributions as dist\n"
        "def model(x, y):\n"
        "    slope = pyro.sample('slope', dist.Normal(0.0, 1.0))\n"
        "    pyro.sample('y', dist.Normal(slope * x, 1.0).to_event(1), obs=y)\n"
    )
    (tmp_path / "table.csv").write_text("x,y\n1,1.1\n2,1.9\n3,3.2\n")
    words = ["posterior", f"{tmp_path / 'line.py'}:model", "--data", str(tmp_path / "table.csv"), "--device", DEVICE]
    result = CliRunner().invoke(
        main, [*words, "--set", "max_steps=50", "--no-progress", "--out", str(tmp_path / "out")]
    )
    assert result.exit_code == 0, result.output
    assert "slope" in result.output and (tmp_path / "out" / "posterior.nc").exists()


@there_only
def test_a_log_density_is_that_of_the_processor() -> None:
    latent = torch.randn(5, 3)
    expected, score = LogDensity(regression, X, Y).value_and_score(latent)
    found = LogDensity(regression, X.to(DEVICE), Y.to(DEVICE)).value_and_score(latent.to(DEVICE))
    torch.testing.assert_close(found[0].cpu(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1].cpu(), score, rtol=1e-4, atol=1e-3)


@there_only
@pytest.mark.parametrize("flow", ["maf", "realnvp", "nsf", "nsf-ar", "naf", "ffjord", "residual", "umnn"])
def test_a_density_is_fitted_there_and_read_here(flow: str, tmp_path: Path) -> None:
    x = target("moons").sample(600)
    density = FlowDensity(flow, 2, num_transforms=2).to(DEVICE)
    density.fit(x, max_epochs=2, seed=0, progress=False)
    log_prob = density.log_prob(x)
    assert log_prob.device.type == density.sample(5).device.type == torch.device(DEVICE).type
    density.save(tmp_path / "moons.density")
    here = FlowDensity.load(tmp_path / "moons.density")
    torch.testing.assert_close(here.log_prob(x), log_prob.cpu(), rtol=1e-4, atol=1e-3)


@there_only
@pytest.mark.parametrize("flow", ["glow", "residual-image", "flow++"])
@pytest.mark.parametrize("dequantisation", ["uniform", "variational"])
def test_a_density_of_images_is_fitted_there(flow: str, dequantisation: str) -> None:
    images = torch.randint(0, 17, (200, 64)).float()
    density = ImageDensity(flow, (1, 8, 8), levels=17, dequantisation=dequantisation, num_transforms=1).to(DEVICE)
    result = density.fit(images, max_epochs=1, seed=0, progress=False)
    assert result.epochs == 1 and density.evaluate(images[:50]).mean < 0.0
    assert density.sample(2).device.type == torch.device(DEVICE).type


@there_only
@pytest.mark.parametrize("row", ["none", "planar-10", "sylvester-orthogonal", "iaf", "naf", "residual"])
def test_a_vae_is_trained_there_and_evaluated_here(row: str, tmp_path: Path) -> None:
    digits = datasets.load("digits")
    few = dataclasses.replace(
        digits, train=digits.train[:150], validation=digits.validation[:40], test=digits.test[:30].clone()
    )
    options: dict[str, Any] = {"overrides": {"max_epochs": 2, "warmup_epochs": 1}, "progress": False}
    path = train_row(few, "demo", row, tmp_path, device=DEVICE, **options)
    there = evaluate_row(path, few, 400, device=DEVICE, progress=False)["results"]
    record = load_record(path)
    assert record["machine"]["device"] != "cpu"
    here = evaluate_row(path, few, 300, device="cpu", progress=False)["results"]  # another number is another draw
    assert abs(there["nll"] - here["nll"]) < 0.2
