"""Rows from training to table: records, what they refuse, and the numbers beside them."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_flows_vi import datasets
from pyro_flows_vi.vae import (
    PUBLISHED,
    evaluate_row,
    finish_row,
    load_record,
    load_records,
    load_row,
    nll,
    plot_curves,
    published,
    render_table,
    save_record,
    train_row,
)

DIGITS = datasets.load("digits")
SMALL = dataclasses.replace(
    DIGITS, train=DIGITS.train[:150], validation=DIGITS.validation[:40], test=DIGITS.test[:30].clone()
)
OVERRIDES = {"max_epochs": 2, "warmup_epochs": 1}


def trained(folder: Path, name: str = "none", **options: Any) -> Path:
    options = {"overrides": OVERRIDES, "device": "cpu", "progress": False, **options}
    return train_row(SMALL, "demo", name, folder, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two evaluated rows."""
    place = tmp_path_factory.mktemp("records")
    for name in ("planar-10", "none"):
        path = trained(place, name, num_transforms=2 if name != "none" else None)
        evaluate_row(path, SMALL, 40, device="cpu", progress=False)
    return place


@pytest.fixture
def record(folder: Path) -> dict[str, Any]:
    return load_record(folder / "demo-digits-planar-10-seed0.json")


def write(folder: Path, record: dict[str, Any], **changes: Any) -> Path:
    """A copy of a record with nested fields changed, written without the checks of ``save_record``."""
    copy = json.loads(json.dumps(record))
    for field, value in changes.items():
        *way, last = field.split("__")
        place = copy
        for key in way:
            place = place[key]
        if value is ...:
            del place[last]
        else:
            place[last] = value
    path = folder / f"{copy.get('protocol')}-{copy['row']}-{len(list(folder.iterdir()))}.json"
    path.write_text(json.dumps(copy))
    return path


# -- runs -------------------------------------------------------------------------------------------------


def test_the_record_says_everything(record: dict[str, Any]) -> None:
    assert record["settings"]["max_epochs"] == 2 and record["settings"]["latent_dim"] == 8
    assert record["overrides"] == {**OVERRIDES, "warmup_epochs": 1}
    assert record["flow"] == {"flow": "planar", "num_transforms": 2, "options": {}}
    assert record["data"] == SMALL.describe()
    assert set(record["versions"]) == {"python", "torch", "pyro", "numpy", "pyro_flows_vi"}
    assert record["machine"]["device"] == "cpu" and record["machine"]["threads"] == torch.get_num_threads()
    assert record["parameters"]["total"] > record["parameters"]["flow"] == 2 * (64 + 1) * (2 * 8 + 1)
    training = record["training"]
    assert training["epochs"] == 2 and training["stop_reason"] == "max_epochs" and training["seconds"] > 0
    assert {len(curve) for curve in training["curves"].values()} == {2}
    results = record["results"]
    assert results["num_samples"] == 40 and results["num_images"] == 30
    assert results["nll"] < results["negative_elbo"] and results["nll_mc_se"] > 0
    assert len(results["log_evidence"]) == 30


def test_the_numbers_are_those_of_nll(folder: Path, record: dict[str, Any]) -> None:
    vae = load_row(folder / "demo-digits-planar-10-seed0.json", SMALL)
    estimate = nll(vae, SMALL.test, 40)
    assert record["results"]["nll"] == pytest.approx(estimate.nll, rel=1e-6)
    assert record["results"]["negative_elbo_se"] == pytest.approx(estimate.negative_elbo_se, rel=1e-6)
    assert record["training"]["best_validation_elbo"] == pytest.approx(
        max(record["training"]["curves"]["validation_elbo"])
    )


def test_records_are_small_and_readable(folder: Path) -> None:
    text = (folder / "demo-digits-none-seed0.json").read_text()
    assert len(text.splitlines()) < 120
    assert '"hidden_dims": [64]' in text


def test_older_runs_are_not_lost(tmp_path: Path) -> None:
    path = trained(tmp_path)
    with pytest.raises(ValueError, match=r"holds an older run: resume it .* replace it"):
        trained(tmp_path)
    evaluate_row(path, SMALL, 20, device="cpu", progress=False)
    assert load_record(trained(tmp_path, resume=True))["results"] is not None  # nothing was left to train
    longer = trained(tmp_path, overrides={**OVERRIDES, "schedule": "cosine"}, overwrite=True)
    assert load_record(longer)["results"] is None


def test_a_row_is_checked_against_data_and_checkpoint(tmp_path: Path) -> None:
    path = trained(tmp_path)
    other = dataclasses.replace(SMALL, test=1.0 - SMALL.test)
    with pytest.raises(ValueError, match=r"other data: sha256: expected '\w+', got '\w+'"):
        load_row(path, other)
    with pytest.raises(ValueError, match=r"none\.ckpt: expected a checkpoint, found no such file"):
        load_row(path, SMALL, tmp_path / "none.ckpt")
    other_row = trained(tmp_path, "iaf")
    with pytest.raises(ValueError, match=r"row\.flow: expected None, got 'iaf'"):
        load_row(path, SMALL, other_row.with_suffix(".ckpt"))


def test_a_checkpoint_ahead_of_its_record_is_noticed(tmp_path: Path) -> None:
    options = {"overrides": {**OVERRIDES, "schedule": "constant"}}
    path = trained(tmp_path, **options)
    old = path.read_bytes()
    trained(tmp_path, overrides={**options["overrides"], "max_epochs": 3}, resume=True)
    path.write_bytes(old)
    with pytest.raises(ValueError, match=r"record is of 2 epochs, the checkpoint of 3"):
        load_row(path, SMALL)


def test_resuming_needs_the_checkpoint(tmp_path: Path) -> None:
    path = trained(tmp_path)
    old = path.read_bytes()
    path.with_suffix(".ckpt").unlink()
    with pytest.raises(ValueError, match=r"checkpoint|ckpt"):
        trained(tmp_path, resume=True)
    assert path.read_bytes() == old


def test_fewer_test_images_are_told(tmp_path: Path) -> None:
    record = evaluate_row(trained(tmp_path), SMALL, 20, max_images=7, device="cpu", progress=False)
    assert record["results"]["num_images"] == 7
    assert "Test images: 7." in render_table(tmp_path)


def finish(folder: Path, num_samples: int = 10, **options: Any) -> bool:
    options = {"overrides": OVERRIDES, "device": "cpu", "progress": False, **options}
    return finish_row(SMALL, "demo", "none", folder, num_samples, **options)


def test_a_row_is_finished_as_asked_and_then_kept(tmp_path: Path) -> None:
    assert finish(tmp_path, seed=3)
    path = tmp_path / "demo-digits-none-seed3.json"
    results = load_record(path)["results"]
    assert (results["num_samples"], results["num_images"], results["seed"]) == (10, 30, 3)
    assert results["nll"] == pytest.approx(nll(load_row(path, SMALL), SMALL.test, 10, seed=3).nll, rel=1e-6)
    before = path.read_bytes()
    assert not finish(tmp_path, seed=3)
    assert path.read_bytes() == before


def test_results_other_than_asked_are_made_again_and_nothing_else_is(tmp_path: Path) -> None:
    path = tmp_path / "demo-digits-none-seed0.json"
    assert finish(tmp_path)
    training = load_record(path)["training"]
    assert finish(tmp_path, 20)
    assert load_record(path)["results"]["num_samples"] == 20
    for change in ({"seed": 5}, {"max_images": 7}):
        evaluate_row(path, SMALL, 20, device="cpu", progress=False, **change)
        assert finish(tmp_path, 20)
        results = load_record(path)["results"]
        assert (results["num_samples"], results["num_images"], results["seed"]) == (20, 30, 0)
    assert load_record(path)["training"] == training


def test_a_record_of_other_settings_is_neither_kept_nor_replaced(tmp_path: Path) -> None:
    path = tmp_path / "demo-digits-none-seed0.json"
    finish(tmp_path)
    before = path.read_bytes()
    other = {**OVERRIDES, "learning_rate": 1e-3}
    with pytest.raises(ValueError, match=r"belongs to other settings: protocol\.learning_rate"):
        finish(tmp_path, overrides=other)
    path.with_suffix(".ckpt").unlink()
    with pytest.raises(ValueError, match=r"no checkpoint to go on from: settings\.learning_rate: expected 0\.001"):
        finish(tmp_path, overrides=other)
    assert not finish(tmp_path)  # what is asked stands in the record, and needs no checkpoint
    assert path.read_bytes() == before


def test_a_larger_budget_is_trained_on_and_a_smaller_one_refused(tmp_path: Path) -> None:
    options = {**OVERRIDES, "schedule": "constant"}
    finish(tmp_path, overrides=options)
    assert finish(tmp_path, overrides={**options, "max_epochs": 3})
    record = load_record(tmp_path / "demo-digits-none-seed0.json")
    assert record["training"]["epochs"] == record["settings"]["max_epochs"] == 3 and record["results"] is not None
    with pytest.raises(ValueError, match=r"at most max_epochs = 2 epochs, got one of 3"):
        finish(tmp_path, overrides=options)


@pytest.mark.parametrize("below", [(), ("deeper", "still")])
def test_a_folder_that_is_a_file_is_refused_before_training(
    tmp_path: Path, below: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr("pyro_flows_vi.vae.runs.train", never)
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ValueError, match=r"expected a folder for the record .*file is a file"):
        trained(tmp_path.joinpath("file", *below))
    assert (tmp_path / "file").read_text() == "kept"


# -- records ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("schema", 99, r"field 'schema': expected 1, got 99"),
        ("seed", ..., r"field 'seed' is missing"),
        ("data__sha256", ..., r"field 'data\.sha256' is missing"),
        ("flow__flow", ..., r"field 'flow\.flow' is missing"),
        ("flow__flow", 3, r"field 'flow\.flow': expected str or null, got 3"),
        ("machine__threads", ..., r"field 'machine\.threads' is missing"),
        ("machine__threads", None, r"field 'machine\.threads': expected int, got None"),
        ("machine__name", ..., r"field 'machine\.name' is missing"),
        ("settings__name", ..., r"field 'settings\.name' is missing"),
        ("settings__name", "mpl", r"field 'settings': unknown protocol 'mpl'"),
        ("settings__colour", "red", r"field 'settings': unknown setting colour"),
        ("settings__latent_dim", "8", r"field 'settings': expected latent_dim to be an integer"),
        ("training__curves__validation_elbo", ..., r"field 'training\.curves\.validation_elbo' is missing"),
        ("training__curves__validation_elbo", [], r"curves\.validation_elbo': expected one or more finite numbers"),
        ("results__log_evidence", ["a"], r"field 'results\.log_evidence': expected one or more finite numbers"),
        ("results__seed", ..., r"field 'results\.seed' is missing"),
        ("data", [], r"field 'data': expected dict, got \[\]"),
        ("training__epochs", 2.5, r"field 'training\.epochs': expected int, got 2\.5"),
        ("training__epochs", True, r"field 'training\.epochs': expected int, got True"),
        ("results__nll", "84", r"field 'results\.nll': expected int or float, got '84'"),
        ("results__nll_se", ..., r"field 'results\.nll_se' is missing"),
        ("results__nll", float("nan"), r"field 'results\.nll': expected int or float, got nan"),
        ("results", 3, r"field 'results': expected dict or null"),
    ],
)
def test_bad_fields_are_named(tmp_path: Path, record: dict[str, Any], field: str, value: Any, message: str) -> None:
    path = write(tmp_path, record, **{field: value})
    with pytest.raises(ValueError, match=re.escape(path.name) + ".*" + message):
        load_record(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flow__flow": "planr"}, r"field 'flow': unknown flow 'planr'"),
        ({"flow__num_transforms": 0}, r"field 'flow': expected num_transforms to be a positive integer"),
        ({"flow__options": {"widht": 3}}, r"field 'flow': unknown option 'widht'"),
        ({"flow__options": {"hidden_dims": "wide"}}, r"field 'flow': option 'hidden_dims'"),
    ],
)
def test_a_record_of_no_flow_that_we_know(
    tmp_path: Path, record: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    path = write(tmp_path, record, **changes)
    with pytest.raises(ValueError, match=re.escape(path.name) + ".*" + message):
        load_row(path, SMALL)


@pytest.mark.parametrize("content", ["", "[1, 2]", '{"schema": 1', "\x80\x03"])
def test_files_that_are_no_records(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"bad\.json: (expected a JSON record|expected a record)"):
        load_record(path)


def test_missing_records(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        load_record(tmp_path / "none.json")
    with pytest.raises(ValueError, match=r"expected a folder with records .* found none"):
        load_records(tmp_path)
    with pytest.raises(ValueError, match=r"expected a folder with records .* found none"):
        render_table(tmp_path)


def test_bad_records_are_not_written(tmp_path: Path, record: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="'row' is missing"):
        save_record(tmp_path / "r.json", {k: v for k, v in record.items() if k != "row"})
    assert not list(tmp_path.iterdir())


def test_saving_is_idempotent(tmp_path: Path, record: dict[str, Any]) -> None:
    save_record(tmp_path / "r.json", record)
    assert load_record(tmp_path / "r.json") == record


# -- tables -----------------------------------------------------------------------------------------------


def test_the_table_shows_the_records(folder: Path, record: dict[str, Any]) -> None:
    table = render_table(folder)
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    assert [line.split("|")[1].strip() for line in lines] == ["posterior", "---", "none", "planar-10"]
    results = record["results"]
    cells = [cell.strip() for cell in lines[-1].split("|")]
    assert cells[2] == f"{results['negative_elbo']:.2f} ± {results['negative_elbo_se']:.2f}"
    assert cells[3] == f"{results['nll']:.2f} ± {results['nll_se']:.2f}"
    assert cells[5] == "40" and 1 <= float(cells[6]) <= 40
    assert cells[7:8] == [f"2 (best {record['training']['best_epoch']})"]
    assert "warmup_epochs = 1, max_epochs = 2" in table  # the budget
    assert "digits, dynamic binarisation" in table


def test_differences_are_paired(folder: Path, record: dict[str, Any]) -> None:
    plain = load_record(folder / "demo-digits-none-seed0.json")
    a, b = (torch.tensor(r["results"]["log_evidence"], dtype=torch.float64) for r in (plain, record))
    gap, error = float((a - b).mean()), float((a - b).std() / len(a) ** 0.5)
    assert f"| {gap:+.2f} ± {error:.2f} |" in render_table(folder)
    assert gap == pytest.approx(record["results"]["nll"] - plain["results"]["nll"], abs=0.01)


@pytest.mark.parametrize("change", [{"results__num_samples": 41}, {"results__log_evidence": [-30.0] * 29}])
def test_results_that_do_not_compare_are_not_paired(folder: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    write(tmp_path, load_record(folder / "demo-digits-none-seed0.json"))
    write(tmp_path, load_record(folder / "demo-digits-planar-10-seed0.json"), **change)
    table = render_table(tmp_path)
    (cells,) = ([c.strip() for c in line.split("|")] for line in table.splitlines() if line.startswith("| planar-10"))
    assert "±" in cells[3] and cells[4] == "–"
    assert "No difference to 'none' is given for planar-10: evaluated with another number of samples" in table
    assert "No difference" not in render_table(folder)


def test_text_has_the_same_cells(folder: Path) -> None:
    def cells(text: str) -> list[str]:
        return re.findall(r"\d+\.\d\d ± \d+\.\d\d", text)

    assert cells(render_table(folder)) == cells(render_table(folder, style="text")) != []
    with pytest.raises(ValueError, match="unknown style 'html'"):
        render_table(folder, style="html")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__binarisation": "static"}, "different binarisation"),
        ({"protocol": "mlp"}, "different protocol"),
        ({"data__name": "faces"}, "different data set"),
        ({"data__sha256": "0"}, "different content of the data"),
    ],
)
def test_what_is_not_comparable_is_not_mixed(
    tmp_path: Path, record: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    paths = [write(tmp_path, record), write(tmp_path, record, **changes)]
    with pytest.raises(ValueError, match=message) as error:
        render_table(tmp_path)
    assert all(path.name in str(error.value) for path in paths)


def mnist(record: dict[str, Any], protocol: str, name: str, binarisation: str) -> dict[str, Any]:
    return {
        **record,
        "protocol": protocol,
        "data": {**record["data"], "name": name, "binarisation": binarisation},
    }


def test_published_rows_of_the_same_protocol_stand_beside(tmp_path: Path, record: dict[str, Any]) -> None:
    write(tmp_path, mnist(record, "mlp", "mnist", "dynamic"))
    table = render_table(tmp_path)
    assert "| diagonal | – | 84.45 (second-hand) | – | 5000 |" in table and "arXiv:2004.04795" in table
    assert "1803.05649" not in table


def test_static_results_stand_beside_static_ones_only(tmp_path: Path, record: dict[str, Any]) -> None:
    write(tmp_path, mnist(record, "gated-conv", "static_mnist", "static"))
    table = render_table(tmp_path)
    assert "86.55 ± 0.06 (second-hand)" in table and "84.45" not in table
    assert "82.14" not in table and "recalled)" not in table  # nobody has read that number
    assert "82.14 ± 0.07 (recalled)" in render_table(tmp_path, recalled=True)
    assert published("gated-conv", "mnist", "dynamic") == []


def test_every_published_number_has_a_source_and_a_reading() -> None:
    for entry in PUBLISHED:
        numbers = [number for number in (entry.negative_elbo, entry.nll) if number is not None]
        assert numbers and "arXiv:" in entry.source
        assert {number.reading for number in numbers} <= {"second-hand", "recalled"}


def test_seeds_are_told_apart(tmp_path: Path, record: dict[str, Any]) -> None:
    write(tmp_path, record)
    write(tmp_path, record, seed=1)
    table = render_table(tmp_path)
    assert "planar-10 (seed 0)" in table and "planar-10 (seed 1)" in table


def test_rows_that_wait_for_evaluation(tmp_path: Path, record: dict[str, Any]) -> None:
    write(tmp_path, record, results=None)
    assert "| planar-10 | – | – | – | – | – | 2 (best" in render_table(tmp_path)


def test_curves_are_drawn(folder: Path, tmp_path: Path) -> None:
    path = plot_curves(folder, tmp_path / "plots" / "curves.png")
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000
