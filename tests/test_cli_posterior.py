"""``pyro-flows-vi posterior``, from a user's file to NetCDF and a page, with tiny settings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from pyro_flows_vi.cli import main
from pyro_flows_vi.cli._arguments import bind, load_function, read_data, read_function
from pyro_flows_vi.cli.posterior import fit_settings
from pyro_flows_vi.infer import load_checkpoint
from pyro_flows_vi.numerics.new_tensors import precision

MODEL = """
import pyro
import pyro.distributions as dist
import torch

def model(x, y, scale=1.0):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("obs", dist.Normal(slope * x, scale), obs=y)

def data():
    return {"x": torch.tensor([1.0, 2.0, 3.0]), "y": torch.tensor([1.1, 1.9, 3.2])}

def ordered():
    return torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0])

def broken(x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    pyro.sample("obs", dist.Normal(slope * torch.ones(7), 1.0).to_event(1), obs=y)

def raising(x, y):
    pyro.sample("slope", dist.Normal(0.0, 1.0))
    raise RuntimeError("no luck")

def discrete(x, y):
    pyro.sample("kind", dist.Bernoulli(0.5))

def nothing(x, y):
    pyro.sample("obs", dist.Normal(x, 1.0).to_event(1), obs=y)

NUMBER = 3
"""
TABLE = "x,y,who\n1,1.1,ann\n2,1.9,bob\n3,3.2,eve\n"
TINY = (
    *("--flow", "planar", "--num-transforms", 1, "--set", "max_steps=3", "--set", "restarts=1"),
    *("--set", "num_particles=8", "--draws", 20, "--weighted-draws", 100, "--no-progress"),
)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["posterior", *map(str, arguments)])


def refused(*arguments: object) -> str:
    """The message of a command that ends with exit code 2, and without a traceback."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit) and "Traceback" not in result.output
    assert "Error: " in result.stderr
    return " ".join(result.stderr.split())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "slopes.py").write_text(MODEL)
    (tmp_path / "table.csv").write_text(TABLE)
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with a finished run, and what it printed; tests that change something copy it."""
    folder = tmp_path_factory.mktemp("posterior")
    (folder / "slopes.py").write_text(MODEL)
    result = run(f"{folder / 'slopes.py'}:model", *TINY, "--out", folder / "out")
    assert result.exit_code == 0, result.output
    return folder, result.stdout


def test_a_run_leaves_all_its_files(finished: tuple[Path, str]) -> None:
    folder, out = finished
    record = json.loads((folder / "out" / "report.json").read_text())
    assert record["stage"] == "finished" and record["fit"]["steps"] == 3
    assert record["asked"]["arguments"]["x"]["shape"] == [3]
    assert record["diagnosis"]["verdict"] in out and "mean" in out
    assert {"torch", "pyro", "pyro_flows_vi"} <= set(record["versions"])
    page = (folder / "out" / "report.html").read_text()
    assert record["diagnosis"]["verdict"] in page and page.count("data:image/png;base64,") == 1  # one scalar: no pairs
    assert "http" not in page, "the page is not self-contained"
    assert not list((folder / "out").glob(".*")), "temporary files are left"


def test_the_netcdf_file_holds_the_groups(finished: tuple[Path, str]) -> None:
    xarray = pytest.importorskip("xarray")
    path = finished[0] / "out" / "posterior.nc"
    with xarray.open_dataset(path, group="posterior") as group:
        assert group["slope"].sizes == {"chain": 1, "draw": 20}
        assert np.isfinite(group["slope"]).all()
    with xarray.open_dataset(path, group="observed_data") as group:
        assert group["obs"].values == pytest.approx([1.1, 1.9, 3.2])


def test_an_older_run_is_not_replaced_unasked(finished: tuple[Path, str], tmp_path: Path) -> None:
    shutil.copytree(finished[0], tmp_path / "copy")
    out, spec = tmp_path / "copy" / "out", f"{finished[0] / 'slopes.py'}:model"
    assert "--overwrite" in refused(spec, *TINY, "--out", out)
    message = refused(spec, *TINY, "--seed", 1, "--out", out, "--resume")
    assert "seed: expected 0, got 1" in message


def test_a_resumed_run_keeps_the_fit(finished: tuple[Path, str], tmp_path: Path) -> None:
    shutil.copytree(finished[0], tmp_path / "copy")
    out = tmp_path / "copy" / "out"
    before = json.loads((out / "report.json").read_text())
    (out / "posterior.nc").unlink()
    result = run(f"{finished[0] / 'slopes.py'}:model", *TINY, "--out", out, "--resume")
    assert result.exit_code == 0, result.output
    after = json.loads((out / "report.json").read_text())
    assert (out / "posterior.nc").exists()
    assert after["fit"] == before["fit"] and after["diagnosis"] == before["diagnosis"]


def test_an_interrupted_fit_ends_with_130_and_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyro_flows_vi.infer import Interruption, training

    advance = training.Training.advance
    interruptions = []
    enter = Interruption.__enter__
    monkeypatch.setattr(Interruption, "__enter__", lambda self: interruptions.append(self) or enter(self))

    def advance_and_stop(self: training.Training, until: int) -> str:
        said = advance(self, until)
        interruptions[-1].requested = self.step == 2
        return said

    monkeypatch.setattr(training.Training, "advance", advance_and_stop)
    spec, out = f"{folder / 'slopes.py'}:model", folder / "out"
    result = run(spec, *TINY, "--out", out)
    assert result.exit_code == 130 and "--resume" in result.stderr
    record = json.loads((out / "report.json").read_text())
    assert record["stage"] == "fit" and record["fit"]["stop_reason"] == "interrupted"
    assert (out / "checkpoint.pt").exists() and (out / "guide.pt").exists()
    monkeypatch.setattr(training.Training, "advance", advance)
    result = run(spec, *TINY, "--out", out, "--resume")
    assert result.exit_code == 0, result.output
    assert json.loads((out / "report.json").read_text())["fit"]["steps"] == 3


def test_what_is_known_before_a_failure_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise ValueError("no diagnosis today")

    monkeypatch.setattr("pyro_flows_vi.cli._run.diagnose", fails)
    out = folder / "out"
    assert "no diagnosis today" in refused(f"{folder / 'slopes.py'}:model", *TINY, "--out", out)
    assert json.loads((out / "report.json").read_text())["fit"]["steps"] == 3
    assert (out / "guide.pt").exists()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("slopes.py", "expected module:function"),
        ("slopes.py:", "expected module:function"),
        ("absent.py:model", "found none at"),
        ("no_such_module_at_all:model", "no module is called 'no_such_module_at_all'"),
        ("slopes.py:modell", "has no function 'modell'; its functions are: model, data"),
        ("slopes.py:NUMBER", "cannot be called"),
    ],
)
def test_wrong_specs_are_told(spec: str, words: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert words in refused(spec, "--out", "out")
    assert not (folder / "out").exists()


def test_a_file_that_fails_is_told_with_its_line(folder: Path) -> None:
    (folder / "wrong.py").write_text("import math\n\nx = math.no_such_thing\n")
    message = refused(f"{folder / 'wrong.py'}:model", "--out", folder / "out")
    assert "AttributeError" in message and "line 3" in message


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("broken", "site 'obs'"),
        ("raising", "after site 'slope', slopes.py line 23: RuntimeError: no luck"),
        ("discrete", "site 'kind' is discrete"),
        ("nothing", "no latent sites"),
    ],
)
def test_errors_of_the_model_name_the_site(function: str, words: str, folder: Path) -> None:
    arguments = ("--args", f"{folder / 'slopes.py'}:data", *TINY, "--out", folder / "out")
    assert words in refused(f"{folder / 'slopes.py'}:{function}", *arguments)


def test_wrong_arguments_are_told(folder: Path) -> None:
    model, table = f"{folder / 'slopes.py'}:model", folder / "table.csv"
    out = ("--out", folder / "out")
    message = refused(model, "--data", f"x={table}:x", *out)
    assert "model(x, y, scale=1.0)" in message and "'y'" in message and "got x" in message
    assert "no column 'z'" in refused(model, "--data", f"{table}:x,z", *out)
    assert "found none at" in refused(model, "--data", folder / "absent.csv", *out)
    assert "got 'table.txt'" in refused(model, "--data", "table.txt", *out)
    assert "given twice" in refused(model, "--data", table, "--data", f"x={table}:x", *out)
    assert "got both" in refused(model, "--data", table, "--args", f"{folder / 'slopes.py'}:data", *out)
    (folder / "bad.npz").write_bytes(b"no archive")
    assert "bad.npz cannot be read" in refused(model, "--data", folder / "bad.npz", *out)
    (folder / "bad.json").write_text("[1, 2]")
    assert "expected an object" in refused(model, "--data", folder / "bad.json", *out)
    (folder / "bad.csv").write_text("x,y\n1\n")
    assert "row 2 has 1 values" in refused(model, "--data", folder / "bad.csv", *out)
    (folder / "nan.csv").write_text("x,y\n1,\n2,3\n")
    assert "observed site 'obs' holds 1 NaN" in refused(model, "--data", folder / "nan.csv", *TINY, *out)
    again = run(model, "--data", folder / "table.csv", *TINY, *out)  # where a failed run left a record of nothing
    assert again.exit_code == 0, again.output


def test_wrong_settings_are_told(folder: Path) -> None:
    model, out = f"{folder / 'slopes.py'}:model", ("--out", folder / "out")
    assert "no setting 'steps'" in refused(model, "--set", "steps=3", *out)
    assert "max_steps to be of type int" in refused(model, "--set", "max_steps=1.5", *out)
    assert "max_steps to be positive" in refused(model, "--set", "max_steps=0", *out)
    assert "one of ELBO" in refused(model, "--set", "objective=elbow", *out)
    assert "realnvp" in refused(model, "--flow", "realnvpp", *out)
    assert "no_such_option" in refused(model, "--flow-option", "no_such_option=1", *out)
    assert "expected a device of this machine" in refused(model, "--device", "abacus", *out)
    assert fit_settings(("learning_rate=1", "dtype=float64")) == {"learning_rate": 1, "dtype": "float64"}


def test_files_of_data(folder: Path) -> None:
    table = folder / "table.csv"
    found = read_data((str(table),))
    assert found["x"].tolist() == [1, 2, 3] and found["x"].dtype == torch.int64
    assert found["y"].dtype == torch.float32 and found["who"] == ["ann", "bob", "eve"]
    matrix = read_data((f"m={table}:x,y",))["m"]
    assert matrix.shape == (3, 2) and matrix.dtype == torch.float32
    assert read_data((f"v={table}:y",))["v"].tolist() == pytest.approx([1.1, 1.9, 3.2])
    with pytest.raises(ValueError, match="who hold words"):
        read_data((f"m={table}",))
    np.savez(folder / "arrays.npz", a=np.ones((2, 3)), n=np.uint8(3))
    found = read_data((str(folder / "arrays.npz"),))
    assert found["a"].dtype == torch.float32 and found["n"] == 3
    np.save(folder / "z.npy", np.arange(3))
    assert read_data((str(folder / "z.npy"),))["z"].tolist() == [0, 1, 2]
    (folder / "values.json").write_text('{"n": 3, "v": [1, 2.5], "k": "word"}')
    found = read_data((str(folder / "values.json"),))
    assert (found["n"], found["k"], found["v"].tolist()) == (3, "word", [1.0, 2.5])


def test_double_precision_reaches_the_file_and_the_guide(folder: Path) -> None:
    with precision(torch.float64):
        assert read_data((f"{folder / 'table.csv'}",))["y"].tolist() == [1.1, 1.9, 3.2]
    assert torch.get_default_dtype() == torch.float32
    out = folder / "out"
    result = run(
        f"{folder / 'slopes.py'}:model", "--data", folder / "table.csv", *TINY, "--set", "dtype=float64", "--out", out
    )
    assert result.exit_code == 0, result.output
    assert "not used, as the model has no such argument: who" in result.stderr
    record = json.loads((out / "report.json").read_text())
    assert record["asked"]["arguments"]["y"]["dtype"] == "float64"
    state = load_checkpoint(out / "guide.pt", kind="guide")[1]
    assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float64}


def test_arguments_are_bound_by_name_or_in_order() -> None:
    def model(a: int, /, b: int, c: int = 3, *, d: int = 4) -> None: ...

    assert bind(model, {"b": 2, "a": 1, "d": 5, "e": 6}) == ((1, 2), {"d": 5}, ["e"])
    assert bind(model, (1, 2)) == ((1, 2), {}, [])
    with pytest.raises(ValueError, match="missing a required argument: 'b'; got 1 values"):
        bind(model, (1,))


def test_functions_give_arguments(folder: Path) -> None:
    assert [part.tolist() for part in read_function(f"{folder / 'slopes.py'}:ordered")] == [[1.0, 2.0], [1.0, 2.0]]
    assert set(read_function(f"{folder / 'slopes.py'}:data")) == {"x", "y"}
    with pytest.raises(ValueError, match=r"raising fails: TypeError"):
        read_function(f"{folder / 'slopes.py'}:raising")


def test_modules_are_imported_from_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "a_model_of_this_test.py").write_text("def model(): ...\n")
    function, module = load_function("a_model_of_this_test:model")
    assert function.__name__ == "model" and module.__name__ == "a_model_of_this_test"


def test_every_option_says_what_it_does() -> None:
    command = main.commands["posterior"]  # type: ignore[attr-defined]
    assert command.help
    for option in command.params:
        assert isinstance(option, click.Argument) or option.help, option.name
