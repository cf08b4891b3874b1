"""The example scripts run from start to end in a tiny setting, and are about the posteriors that they name."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path

import pyro
import pytest
import torch
from torch import Tensor

from examples import comparison
from examples.benchmarks.posteriors import SUITE
from pyro_flows_vi.infer import LogDensity

CHAIN = ("--warmup", "2", "--draws", "4")
EXAMPLES = {
    "eight_schools": CHAIN,
    "logistic_regression": (),
    "radon": (),
    "neutra": CHAIN,
    "density": ("--rows", "500"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = importlib.import_module(f"examples.{name}")
    example.main(["--steps", "2", "--out", str(tmp_path), "--record", str(tmp_path), *EXAMPLES[name]])
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / f"{name}.json").read_text())
    assert record["example"] == name and record["fit"]["steps"] == record["options"]["steps"] == 2
    printed = capsys.readouterr().out
    assert f"{name}.png" in printed
    for label in record.get("scalars", {"truth": None, "NeuTra": None}):
        assert label in printed


def test_every_example_is_tested() -> None:
    folder = Path(comparison.__file__).parent
    assert {path.stem for path in folder.glob("*.py")} - {"comparison"} == set(EXAMPLES)


@pytest.mark.parametrize(
    ("module", "posterior"),
    [
        ("eight_schools", "eight_schools_centred"),
        ("logistic_regression", "breast_cancer_logistic"),
        ("radon", "radon_like"),
    ],
)
def test_models_are_those_of_the_suite(module: str, posterior: str) -> None:
    """Otherwise the records of truth would be those of another posterior."""
    example = importlib.import_module(f"examples.{module}")
    args = (example.ERRORS, example.EFFECTS) if module == "eight_schools" else example.data()
    theirs = SUITE[posterior]
    ours, suite = LogDensity(example.model, *args, trace=False), LogDensity(theirs.model, *theirs.args, trace=False)
    assert [site.name for site in ours.layout] == [site.name for site in suite.layout]
    point = 0.01 * torch.randn(2, ours.latent_dim)
    torch.testing.assert_close(ours(point), suite(point))


def test_nuts_finds_a_normal() -> None:
    def model(x: Tensor) -> None:
        z = pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
        pyro.sample("x", pyro.distributions.Normal(z, 1.0), obs=x)

    chain = comparison.nuts(model, torch.tensor(1.0), warmup=100, draws=300, seed=0)
    (row,) = comparison.compare(
        comparison.summaries({"z": 0.5 + math.sqrt(0.5) * torch.randn(4000)}), comparison.summaries(chain["draws"])
    ).values()
    assert abs(row["shift"]) < 0.4 and abs(row["log_sd_ratio"]) < 0.3
    assert chain["ess"]["z"] > 30


def test_summaries_name_every_scalar() -> None:
    draws = {"a": torch.arange(5.0), "b": torch.arange(10.0).reshape(5, 1, 2)}
    table = comparison.summaries(draws)
    assert list(table) == ["a", "b[0, 0]", "b[0, 1]"]
    assert table["a"] == pytest.approx({"mean": 2.0, "sd": math.sqrt(2.5), "q05": 0.2, "q95": 3.8})
    assert table["b[0, 1]"]["mean"] == 5.0


def test_records_hold_no_infinities(tmp_path: Path) -> None:
    options = comparison.arguments("", ["--steps", "7", "--record", str(tmp_path)], steps=3)
    path = comparison.save_record(options.record, "x", options, a=[math.inf, 1.23456789], b={"c": math.nan})
    record = json.loads(path.read_text())
    assert (record["a"], record["b"]) == ([None, 1.23457], {"c": None})
    assert record["options"] == {"steps": 7, "seed": 0}
