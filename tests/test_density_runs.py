"""Targets, tables and the command line of densities: from data to records and tables."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import pickle
import shutil
from pathlib import Path
from typing import Any

import click
import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor

from pyro_flows_vi.cli import main
from pyro_flows_vi.datasets import load_table, table_names
from pyro_flows_vi.datasets._frame_pickle import read_frame
from pyro_flows_vi.density import (
    ENERGIES,
    PUBLISHED,
    TARGETS,
    evaluate_run,
    load_problem,
    load_record,
    load_run,
    plot_density,
    published,
    render_tables,
    save_record,
    target,
    train_run,
)
from pyro_flows_vi.density.plot import _sheet
from pyro_flows_vi.density.runs import _training
from pyro_flows_vi.density.settings import DensityFit

# -- targets ---------------------------------------------------------------------------------------------


def integral(name: str, bound: float, nodes: int = 1201) -> float:
    """Of a target's density over a square, by the midpoint rule."""
    log_prob = TARGETS[name].log_prob
    assert log_prob is not None
    grid = (torch.arange(nodes, dtype=torch.float64) + 0.5) / nodes * 2 * bound - bound
    cells = torch.cartesian_prod(grid, grid).split(200_000 if name != "moons" else 4000)
    return sum(float(log_prob(part).exp().sum()) for part in cells) * (2 * bound / nodes) ** 2


@pytest.mark.parametrize("name", ENERGIES)
def test_log_z_by_quadrature(name: str) -> None:
    assert math.log(integral(name, 11.0, 1601)) == pytest.approx(0.0, abs=2e-6)


@pytest.mark.parametrize(
    ("name", "bound", "nodes"),
    [("rings", 4.0, 801), ("checkerboard", 4.0, 800), ("gaussians", 5.0, 801), ("moons", 2.5, 151)],
)
def test_densities_of_targets_integrate_to_one(name: str, bound: float, nodes: int) -> None:
    assert integral(name, bound, nodes) == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize("name", [name for name, t in TARGETS.items() if t.log_prob is not None])
def test_draws_are_of_the_density(name: str) -> None:
    """Shares of draws in the cells of a grid are those that the density gives them."""
    log_prob, bound = TARGETS[name].log_prob, TARGETS[name].bound
    assert log_prob is not None
    draws, cells = target(name).sample(20_000), 8
    fine = 8 if name == "moons" else 24  # whose density costs a sum over a thousand terms
    grid = (torch.arange(cells * fine, dtype=torch.float64) + 0.5) / (cells * fine) * 2 * bound - bound
    nodes = torch.cartesian_prod(grid, grid)
    area = (2 * bound / (cells * fine)) ** 2
    mass = torch.cat([log_prob(part).exp() for part in nodes.split(4000)]).reshape(cells, fine, cells, fine)
    expected = mass.sum((1, 3)) * area
    place = ((draws.double() + bound) / (2 * bound) * cells).floor().long()
    inside = ((place >= 0) & (place < cells)).all(1)
    place = place[inside]
    found = torch.zeros(cells, cells, dtype=torch.float64)
    found.index_put_((place[:, 0], place[:, 1]), torch.ones(len(place), dtype=torch.float64), accumulate=True)
    se = (expected * (1 - expected).clamp(min=0) / len(draws)).sqrt()
    assert bool(((found / len(draws) - expected).abs() < 5 * se + 2e-3).all())


def test_targets_are_drawn_by_seed() -> None:
    for name in TARGETS:
        state = torch.get_rng_state()
        draws = target(name).sample(50, seed=1)
        assert draws.shape == (50, 2) and draws.dtype == torch.float32 and bool(draws.isfinite().all())
        assert torch.equal(draws, target(name).sample(50, seed=1)) and not torch.equal(draws, target(name).sample(50))
        assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(ValueError, match=r"unknown target 'moon': expected one of moons"):
        target("moon")


# -- tables ----------------------------------------------------------------------------------------------


def test_power_is_prepared_as_published(tmp_path: Path) -> None:
    rows = np.random.RandomState(0).randn(200, 8) * 3 + 5
    (tmp_path / "power").mkdir()
    np.save(tmp_path / "power" / "data.npy", rows)
    table = load_table("power", tmp_path)
    assert [len(part) for part in (table.train, table.validation, table.test)] == [162, 18, 20] and table.dim == 6
    # the noise is at most 0.01 for the voltage and 0.001 for the active power, so that order and scale can be found
    order = np.random.RandomState(42)
    shuffled = rows.copy()
    order.shuffle(shuffled)
    kept = np.delete(shuffled, [1, 3], axis=1)
    seen = np.vstack([table.train.numpy(), table.validation.numpy()])
    np.testing.assert_allclose(seen.mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose(seen.std(0), 1.0, atol=1e-5)
    for column, width in ((0, 0.001), (1, 0.01), (5, 0.0)):
        slope, intercept = np.polyfit(kept[:180, column], seen[:, column], 1)
        assert np.abs(seen[:, column] - slope * kept[:180, column] - intercept).max() <= width * slope + 1e-5


def test_miniboone_and_bsds300(tmp_path: Path) -> None:
    rows = np.random.RandomState(1).rand(100, 43)
    (tmp_path / "miniboone").mkdir()
    np.save(tmp_path / "miniboone" / "data.npy", rows)
    table = load_table("miniboone", tmp_path)
    expected = (rows - rows[:90].mean(0)) / rows[:90].std(0)
    np.testing.assert_allclose(torch.cat([table.train, table.validation, table.test]), expected, rtol=1e-4, atol=1e-5)
    assert [len(table.train), len(table.validation), len(table.test)] == [81, 9, 10]
    (tmp_path / "BSDS300").mkdir()
    with h5py.File(tmp_path / "BSDS300" / "BSDS300.hdf5", "w") as file:
        for part, count in (("train", 6), ("validation", 3), ("test", 4)):
            file[part] = np.full((count, 63), count, np.float32)
    table = load_table("bsds300", tmp_path)
    assert table.dim == 63 and float(table.test.mean()) == 4.0 and len(table.validation) == 3
    with h5py.File(tmp_path / "BSDS300" / "BSDS300.hdf5", "w") as file:
        file["train"] = np.zeros((2, 63))
    with pytest.raises(ValueError, match=r"BSDS300\.hdf5: expected an HDF5 file with train, validation and test"):
        load_table("bsds300", tmp_path)


def test_hepmass_keeps_the_signal_and_drops_repeated_columns(tmp_path: Path) -> None:
    source = np.random.RandomState(2)
    (tmp_path / "hepmass").mkdir()
    header = ",".join(["# label", *(f"f{i}" for i in range(4))])
    features = source.randn(60, 4)
    features[:20, 2] = -9.0  # a value that comes back
    labels = np.arange(60) % 2
    lines = [",".join(map(repr, [float(k), *map(float, row)])) for k, row in zip(labels, features, strict=True)]
    (tmp_path / "hepmass" / "1000_train.csv").write_text("\n".join([header, *lines]) + "\n")
    wider = [f"{line},500.0" for line in lines[:20]]
    (tmp_path / "hepmass" / "1000_test.csv").write_text("\n".join([header + ",mass", *wider]) + "\n")
    table = load_table("hepmass", tmp_path)
    signal = features[labels == 1]
    scaled = ((signal - signal.mean(0)) / signal.std(0, ddof=1))[:, [0, 1, 3]]
    np.testing.assert_allclose(torch.cat([table.train, table.validation]), scaled, rtol=1e-4, atol=1e-5)
    assert (len(table.train), len(table.validation), len(table.test)) == (27, 3, 10)
    np.testing.assert_allclose(table.test, scaled[:10], rtol=1e-4, atol=1e-5)
    (tmp_path / "hepmass" / "1000_test.csv").write_text("\n".join([header, *lines]) + "\n")
    with pytest.raises(ValueError, match=r"1000_test\.csv: expected one column more than in 1000_train\.csv"):
        load_table("hepmass", tmp_path)


class FakeManager:
    """Pickles as the block manager of an old pandas does."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def __reduce__(self) -> Any:
        return FakeManager, (), self.state


class FakeFrame(FakeManager):
    def __reduce__(self) -> Any:
        return FakeFrame, (), {"_data": self.state, "_typ": "dataframe", "_metadata": []}


def old_pickle(columns: list[str], rows: np.ndarray) -> bytes:
    """The pickle of a frame as pandas 0.20 wrote it, by the names of its classes."""
    axes = [np.array(columns, object), np.arange(len(rows))]
    state = ([], [], [], {"0.14.1": {"axes": axes, "blocks": [{"values": rows.T, "mgr_locs": slice(0, len(columns))}]}})
    content = pickle.dumps(FakeFrame(FakeManager(state)), protocol=0)
    for ours, theirs in (("FakeFrame", "DataFrame"), ("FakeManager", "BlockManager")):
        content = content.replace(f"c{__name__}\n{ours}".encode(), f"cpandas.core.frame\n{theirs}".encode())
    return content


def test_gas_is_read_without_running_the_pickle(tmp_path: Path) -> None:
    source = np.random.RandomState(3)
    rows = source.randn(50, 6)
    rows[:, 4] = rows[:, 5] + 0.01 * source.randn(50)  # nearly the same: the first of the two goes
    columns = ["Time", "Meth", "Eth", "s1", "s2", "s3"]
    (tmp_path / "gas").mkdir()
    path = tmp_path / "gas" / "ethylene_CO.pickle"
    path.write_bytes(old_pickle(columns, rows))
    table = load_table("gas", tmp_path)
    kept = rows[:, [3, 5]]
    expected = (kept - kept.mean(0)) / kept.std(0, ddof=1)
    np.testing.assert_allclose(torch.cat([table.train, table.validation, table.test]), expected, rtol=1e-4, atol=1e-5)
    assert [len(table.train), len(table.validation), len(table.test)] == [41, 4, 5]
    path.write_bytes(pickle.dumps(print))
    with pytest.raises(ValueError, match=r"it asks for builtins.print, which a table of numbers does not need"):
        load_table("gas", tmp_path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"ethylene_CO\.pickle: expected the pickle of a pandas data frame"):
        load_table("gas", tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_frames_of_the_pandas_of_today_are_read(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"Time": np.arange(4.0), "count": np.arange(4), "s": [0.5, 1.5, -1.0, 2.0]})
    buffer = io.BytesIO()
    frame.columns = pandas.Index(np.array(["Time", "count", "s"], object), dtype=object)
    pickle.dump(frame, buffer, protocol=4)
    path = tmp_path / "frame.pickle"
    path.write_bytes(buffer.getvalue())
    names, values = read_frame(path)
    assert names == ["Time", "count", "s"]
    np.testing.assert_allclose(values, frame.to_numpy(dtype=float))


@pytest.mark.parametrize("name", ["power", "gas", "hepmass", "miniboone", "bsds300"])
def test_missing_files_are_named_with_their_source(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYRO_FLOWS_VI_DATA", raising=False)
    with pytest.raises(ValueError, match=rf"{name}: expected a directory with .*zenodo\.org/records/1161203"):
        load_table(name)
    monkeypatch.setenv("PYRO_FLOWS_VI_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=rf"{name}: missing .*PYRO_FLOWS_VI_DATA.*zenodo\.org"):
        load_table(name)


def test_embedded_tables() -> None:
    for name, dim in (("breast_cancer", 10), ("wine", 13)):
        table = load_table(name)
        assert table.dim == dim and not bool((table.train == table.train.round()).all(0).any())
        assert table.describe() == load_table(name).describe()
    with pytest.raises(ValueError, match=r"unknown table 'iris': expected one of power"):
        load_table("iris")
    assert len(table_names()) == 7


# -- records, tables, commands ---------------------------------------------------------------------------


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def done(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    return " ".join(result.stderr.split())


TINY = ("--num-transforms", 1, "--set", "max_epochs=1", "--set", "batch_size=2000", "--device", "cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One evaluated record of each kind."""
    folder = tmp_path_factory.mktemp("runs")
    for data, flow in (("u1", "realnvp"), ("breast_cancer", "maf"), ("digits", "realnvp")):
        out = done("density", "train", data, "--flow", flow, *TINY, "--out", folder)
        path = folder / f"{data}-{flow}-seed0.json"
        assert f"record: {path}" in out and load_record(path)["results"] is None
        out = done("density", "evaluate", path, "--plot", "--device", "cpu")
        assert out.startswith(f"{data}, {flow}: ") and path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "runs"))


def test_the_record_says_everything(folder: Path) -> None:
    record = load_record(folder / "u1-realnvp-seed0.json")
    assert record["flow"] == {"flow": "realnvp", "num_transforms": 1, "options": {"damped": True}}
    assert record["overrides"] == {"max_epochs": 1, "batch_size": 2000} and record["images"] is None
    assert record["data"] == load_problem("u1").description and record["training"]["epochs"] == 1
    results = record["results"]
    assert results["num_rows"] == 20_000 and results["kl_forward"] > 0 and results["kl_reverse"] > 0
    density = load_run(folder / "u1-realnvp-seed0.json", load_problem("u1"))
    # KL(p‖q) + E_p[log q] is minus the entropy of p, which quadrature knows
    grid = (torch.arange(800, dtype=torch.float64) + 0.5) / 100 - 4
    log_p = ENERGIES["u1"].log_prob(torch.cartesian_prod(grid, grid))
    negative_entropy = float((log_p.exp() * log_p).sum() * 1e-4)
    assert results["kl_forward"] + results["nats"] == pytest.approx(negative_entropy, abs=0.03)
    assert record["parameters"] == sum(p.numel() for p in density.parameters())
    images = load_record(folder / "digits-realnvp-seed0.json")
    assert images["images"] == {"levels": 17, "logit_level": 0.05, "dequantisation": "uniform", "noise": None}
    assert images["results"]["bits_per_dim"] == pytest.approx(-images["results"]["nats"] / (64 * math.log(2)), rel=1e-5)


def test_the_table_is_made_of_records(folder: Path, tmp_path: Path) -> None:
    text = done("density", "table", "--records", folder, "--write", tmp_path / "table.md")
    assert text.index("u1: 20,000 training") < text.index("breast_cancer: 4") < text.index("digits: 1,297 training")
    for words in ("KL(p‖q)", "bits/dim", "17 levels, uniform noise, logit level 0.05", "max_epochs = 1", "max_epochs"):
        assert words in text
    markdown = (tmp_path / "table.md").read_text(encoding="utf-8")
    result = load_record(folder / "u1-realnvp-seed0.json")["results"]
    assert f"| {result['nats']:.2f} ± {result['nats_se']:.2f} |" in markdown
    assert "arXiv" not in markdown  # nothing was published on these data


def as_if(folder: Path, name: str, flow: str = "maf", **images: Any) -> None:
    """Let the record of digits or of breast cancer be one of other data, and of another flow."""
    path = folder / ("digits-realnvp-seed0.json" if images else "breast_cancer-maf-seed0.json")
    record = json.loads(path.read_text())
    record["data"]["name"] = name
    record["flow"]["flow"] = flow
    if images:
        record["images"] |= images
    for other in folder.glob("*.json"):
        other.unlink()
    save_record(folder / "one.json", record)


def test_published_rows_stand_beside_their_own_protocol_only(folder: Path) -> None:
    as_if(folder, "power")
    table = render_tables(folder)
    assert "| RQ-NSF (AR) | 0.66 ± 0.01 |" in table and "(second-hand)" in table and "CP-Flow" not in table
    assert "CP-Flow" in render_tables(folder, recalled=True)
    assert "two standard errors (Gaussian" in table and "sd over 3 runs (FFJORD" in table


@pytest.mark.parametrize(
    ("images", "flow", "shown", "hidden"),
    [
        ({"logit_level": 1e-6}, "maf", "| MAF (5) | 1.89 | -1300.50 ± 1.70 |", "Residual Flow"),
        ({"logit_level": 1e-6}, "glow", "| Residual Flow | 0.97 |", "MAF (5)"),
        ({"logit_level": 0.05}, "maf", "| Residual Flow | 0.97 |", "MAF (5)"),
        ({"dequantisation": "variational"}, "maf", "variational noise", "arXiv"),
    ],
)
def test_protocols_of_images_are_kept_apart(
    folder: Path, images: dict[str, Any], flow: str, shown: str, hidden: str
) -> None:
    as_if(folder, "mnist", flow, **images)
    table = render_tables(folder)
    assert shown in table and hidden not in table


def test_flows_on_vectors_and_on_images_have_tables_of_their_own(folder: Path) -> None:
    as_if(folder, "mnist", "maf", logit_level=1e-6)
    record = json.loads((folder / "one.json").read_text())
    record["flow"]["flow"] = "glow"
    save_record(folder / "two.json", record)
    table = render_tables(folder)
    assert table.count("mnist: 1,297") == 2 and table.count("flows on vectors") == 1
    record["flow"]["flow"] = "a-flow-of-another-version"
    save_record(folder / "two.json", record)
    assert render_tables(folder).count("mnist: 1,297") == 1


def test_published_numbers_say_where_they_were_read() -> None:
    assert len(PUBLISHED) == 5 * 24 + 8 + 11
    for row in PUBLISHED:
        assert row.source.startswith("arXiv:") and (row.nats or row.bits)
        for number in (row.nats, row.bits):
            assert number is None or number.reading in ("primary", "authors' page", "second-hand", "recalled")
    assert {p.data for p in published("power", "uci")} == {"power"} and not published("power", "maf")


def test_older_runs_are_not_lost(folder: Path) -> None:
    words = ("density", "train", "breast_cancer", "--flow", "maf", *TINY, "--out", folder)
    assert "holds an older run: resume it" in refused(*words)
    before = (folder / "breast_cancer-maf-seed0.density").read_bytes()
    done(*words, "--resume")
    assert load_record(folder / "breast_cancer-maf-seed0.json")["training"]["epochs"] == 1
    assert (folder / "breast_cancer-maf-seed0.density").read_bytes() == before
    done(*words, "--overwrite", "--seed", 1, "--name", "other")
    assert load_record(folder / "breast_cancer-other-seed1.json")["row"] == "other"


def test_a_run_is_checked_against_data_and_density(folder: Path) -> None:
    problem = load_problem("breast_cancer")
    path = folder / "breast_cancer-maf-seed0.json"
    other = dataclasses.replace(problem, description={**problem.description, "sha256": "0"})
    with pytest.raises(ValueError, match=r"the record is of other data: sha256: expected"):
        evaluate_run(path, other)
    shutil.copy(folder / "u1-realnvp-seed0.density", path.with_suffix(".density"))
    with pytest.raises(ValueError, match=r"the density is of another run: flow: expected 'maf', got 'realnvp'"):
        load_run(path, problem)


def test_what_the_command_line_refuses(folder: Path, tmp_path: Path) -> None:
    assert "unknown data 'moon': expected one of moons" in refused("density", "train", "moon", *TINY)
    assert "unknown flow 'mfa'" in refused("density", "train", "u1", "--flow", "mfa", *TINY, "--out", tmp_path)
    assert "are no images" in refused(
        "density", "train", "u1", "--flow", "maf", "--logit-level", 0.1, "--out", tmp_path
    )
    assert "unknown setting epochs" in refused("density", "train", "u1", "--set", "epochs=1", "--out", tmp_path)
    assert "expected a folder with records" in refused("density", "table", "--records", tmp_path)
    record = json.loads((folder / "u1-realnvp-seed0.json").read_text())
    del record["results"]["kl_forward"]
    (folder / "u1-realnvp-seed0.json").write_text(json.dumps(record))
    assert "field 'results.kl_forward' is missing" in refused("density", "table", "--records", folder)


def test_options_say_what_they_do() -> None:
    group = main.commands["density"]  # type: ignore[attr-defined]
    for command in group.commands.values():
        assert command.help
        for option in command.params:
            assert isinstance(option, click.Argument) or option.help or option.name in ("seed", "style"), (
                f"{command.name}: {option.name}"
            )


def test_a_leaking_flow_has_no_reverse_divergence(tmp_path: Path) -> None:
    problem = load_problem("checkerboard")
    few = dataclasses.replace(problem, train=problem.train[:500], validation=problem.validation[:200])
    path = train_run(
        few, "realnvp", tmp_path, num_transforms=1, settings={"max_epochs": 1}, device="cpu", progress=False
    )
    results = evaluate_run(path, few, device="cpu")["results"]
    assert results["kl_reverse"] is None and results["kl_forward"] > 0
    assert " – |" in render_tables(tmp_path)


def test_pictures(tmp_path: Path, trained: Path) -> None:
    for data, flow in (("u1", "realnvp"), ("breast_cancer", "maf"), ("digits", "realnvp")):
        problem = load_problem(data)
        drawn: Tensor = load_run(trained / f"{data}-{flow}-seed0.json", problem).sample(3)
        assert drawn.shape == (3, problem.dim)
        path = plot_density(load_run(trained / f"{data}-{flow}-seed0.json", problem), problem, tmp_path / f"{data}.png")
        assert path.read_bytes().startswith(b"\x89PNG")


def test_images_of_a_sheet_have_gaps_between_them() -> None:
    sheet = _sheet(torch.arange(5.0)[:, None].expand(5, 6), (2, 3))
    assert sheet.shape == (3 * 2 + 2, 3 * 3 + 2)
    gaps = sheet.isnan()
    assert bool(gaps[2].all()) and bool(gaps[5].all()) and bool(gaps[:, 3].all()) and bool(gaps[:, 7].all())
    assert sheet[0, 4] == 1.0 and sheet[3, 0] == 3.0 and bool(gaps[3:5, 8:].all())  # a place without an image


def test_epochs_that_overflow_are_numbers_in_a_record() -> None:
    curves = {
        "train": [-3.0, math.nan],
        "validation": [-math.inf, -3.0],
        "learning_rate": [0.1] * 2,
        "seconds": [1.0] * 2,
    }
    kept = _training(DensityFit(curves=curves, best=-3.0))["curves"]
    assert kept["validation"][1] == kept["train"][0] == -3.0
    assert kept["validation"][0] == kept["train"][1] == pytest.approx(-3.4e38, rel=0.01)
