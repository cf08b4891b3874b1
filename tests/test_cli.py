"""The command line, from arguments to files, with tiny settings on the embedded digits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner, Result

from pyro_flows_vi import __version__
from pyro_flows_vi.cli import common, main
from pyro_flows_vi.cli.demo import DEMO_ROWS
from pyro_flows_vi.vae import load_record

TINY = ("--protocol", "demo", "--set", "max_epochs=2", "--set", "warmup_epochs=1", "--device", "cpu")
DIGITS = ("--data", "digits")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def done(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: object) -> str:
    """The message of a command that ends with exit code 2, and without a traceback."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit) and "Traceback" not in result.output
    assert "Error: " in result.stderr
    return " ".join(result.stderr.split())


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one row that is trained and evaluated; tests that change something copy it."""
    folder = tmp_path_factory.mktemp("runs")
    out = done("vae", "train", "none", *DIGITS, *TINY, "--out", folder)
    path = folder / "demo-digits-none-seed0.json"
    assert f"record: {path}" in out and f"vae evaluate {path} --data digits" in out
    assert load_record(path)["results"] is None
    out = done("vae", "evaluate", path, *DIGITS, "--samples", 5, "--images", 20, "--device", "cpu")
    results = load_record(path)["results"]
    assert (results["num_samples"], results["num_images"]) == (5, 20)
    assert out.startswith(f"none: -ELBO {results['negative_elbo']:.2f} ± ") and "(5 samples)" in out
    return folder


@pytest.fixture
def folder(evaluated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(evaluated, tmp_path / "runs"))


def test_help_and_version() -> None:
    assert done("--version").strip() == f"pyro-flows-vi, version {__version__}"
    for words in ((), ("demo",), ("vae",), ("vae", "train"), ("vae", "evaluate"), ("vae", "table")):
        assert "Usage:" in done(*words, "--help") and "Usage:" in done(*words, "-h")


def test_every_option_says_what_it_does() -> None:
    commands = [main.commands["demo"], *main.commands["vae"].commands.values()]  # type: ignore[attr-defined]
    for command in commands:
        assert command.help
        for option in command.params:
            known = option.name in ("seed", "style")  # which need no words
            assert isinstance(option, click.Argument) or option.help or known, f"{command.name}: {option.name}"  # type: ignore[attr-defined]


def test_demo_ends_with_a_table_and_a_plot_and_keeps_what_is_finished(tmp_path: Path) -> None:
    out = done("demo", "--out", tmp_path, "--epochs", 2, "--samples", 5)
    assert "Protocol demo, digits" in out and f"plot: {tmp_path / 'curves.png'}" in out
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    for name in DEMO_ROWS:
        assert f"\n{name} " in out
        record = load_record(tmp_path / f"demo-digits-{name}-seed0.json")
        assert record["training"]["epochs"] == 2 and record["results"]["num_samples"] == 5
    before = {p: p.read_bytes() for p in tmp_path.glob("*.json")}
    again = done("demo", "--out", tmp_path, "--epochs", 2, "--samples", 5)
    assert again.count("finished before, kept") == len(DEMO_ROWS)
    assert {p: p.read_bytes() for p in tmp_path.glob("*.json")} == before


def test_an_older_run_is_resumed_or_replaced_but_never_lost(folder: Path) -> None:
    command = ("vae", "train", "none", *DIGITS, *TINY, "--out", folder)
    assert "holds an older run" in refused(*command)
    path = folder / "demo-digits-none-seed0.json"
    done(*command, "--resume")
    assert load_record(path)["results"] is not None  # nothing was left to train
    done(*command, "--overwrite")
    assert load_record(path)["results"] is None


def test_flow_options_reach_the_flow(tmp_path: Path) -> None:
    done("vae", "train", "iaf", *DIGITS, *TINY, "--out", tmp_path, "--seed", 3, "--num-transforms", 2,
         "--flow", "hidden_dims=[7]", "--flow", "gated=false", "--set", "optimiser=adamax")  # fmt: skip
    record = load_record(tmp_path / "demo-digits-iaf-seed3.json")
    assert record["flow"] == {"flow": "iaf", "num_transforms": 2, "options": {"hidden_dims": [7], "gated": False}}
    assert record["overrides"] == {"max_epochs": 2, "warmup_epochs": 1, "optimiser": "adamax"}


def test_table_is_printed_and_written(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "made" / "table.md"
    text = done("vae", "table", "--records", folder, "--write", target)
    assert text.startswith("Protocol demo, digits") and "\nnone " in text
    markdown = done("vae", "table", "--records", folder, "--style", "markdown")
    assert target.read_text(encoding="utf-8").strip() == markdown.strip()
    assert markdown.startswith("**Protocol demo, digits") and "| none |" in markdown


def test_table_trains_what_is_missing(folder: Path) -> None:
    done("vae", "evaluate", folder / "demo-digits-none-seed0.json", *DIGITS, "--samples", 5, "--device", "cpu")
    command = ("vae", "table", "--records", folder, "--train-missing", *DIGITS, *TINY, "--samples", 5)
    kept = (folder / "demo-digits-none-seed0.json").read_bytes()
    out = done(*command, "--row", "none", "--row", "planar-10")
    assert out.count("finished before, kept") == 1 and "\nplanar-10 " in out
    assert (folder / "demo-digits-none-seed0.json").read_bytes() == kept
    assert load_record(folder / "demo-digits-planar-10-seed0.json")["results"]["num_samples"] == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nonne", *DIGITS), "unknown row 'nonne': expected one of none, planar-10"),
        (("none", *DIGITS, "--protocol", "mpl"), "unknown protocol 'mpl': expected one of mlp, gated-conv, demo"),
        (("none", *DIGITS, "--set", "max_epoch=2"), "unknown setting max_epoch: expected one of"),
        (("none", *DIGITS, "--set", "max_epochs"), "expected name=value, got 'max_epochs'"),
        (("none", *DIGITS, "--set", "max_epochs=many"), "expected max_epochs to be an integer"),
        (("none", *DIGITS, "--set", "hidden_dims=300"), "hidden_dims"),
        (("none", *DIGITS, "--flow", "width=3"), "row 'none' has no flow, so it takes no options"),
        (("iaf", *DIGITS, "--flow", "hidden_dim=3"), "did you mean 'hidden_dims'"),
        (("naf", *DIGITS, "--flow", "width=abc"), "option 'width' of flow 'naf': expected int, got 'abc'"),
        (("iaf", *DIGITS, "--flow", "gated=yes"), "option 'gated' of flow 'iaf': expected True or False, got 'yes'"),
        (("residual", *DIGITS, "--flow", "num_terms=2.5"), "expected int or None, got 2.5"),
        (("iaf", *DIGITS, "--flow", "hidden_dims=8"), "sequence (list or tuple) of int or None, got 8"),
        (("iaf", *DIGITS, "--flow", "name=x"), "'name' is no option of flow 'iaf'"),
        (("iaf", *DIGITS, "--flow", "num_transforms=3"), "'num_transforms' is no option of flow 'iaf'"),
        (("none", *DIGITS, "--set", "name=x"), "unknown setting name"),
        (("none", *DIGITS, "--device", "meta"), "expected a device that holds values"),
        (("iaf", *DIGITS, "--num-transforms", 0), "num_transforms to be a positive integer, got 0"),
        (("none", "--data", "mnits"), "mnits"),
        (("none", "--data", "mnist", "--data-dir", "/nowhere/at/all"), "/nowhere/at/all"),
        (("none", *DIGITS, "--device", "abacus"), "expected a device of this machine, got 'abacus'"),
        (("none", *DIGITS, "--seed", "x"), "not a valid integer"),
    ],
)
def test_bad_arguments_end_with_a_message(tmp_path: Path, arguments: tuple[object, ...], message: str) -> None:
    assert message in refused("vae", "train", *arguments, "--out", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [("demo",), ("vae", "train", "none", *DIGITS, *TINY)])
def test_a_file_in_the_place_of_the_folder(tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "file").write_text("kept")
    assert "is a file" in refused(*command, "--out", tmp_path / "file")
    assert "is a file" in refused(*command, "--out", tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "kept"


def test_the_demo_uses_one_thread_and_gives_the_others_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        done("demo", "--out", tmp_path, "--epochs", 1, "--samples", 2)
        assert torch.get_num_threads() == 2
        refused("demo", "--out", tmp_path, "--epochs", 2, "--samples", 2)  # of other settings
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    for path in tmp_path.glob("*.json"):
        assert load_record(path)["machine"]["threads"] == load_record(path)["results"]["machine"]["threads"] == 1


@pytest.mark.parametrize("epochs", [0, -3])
def test_a_demo_of_no_epochs(tmp_path: Path, epochs: int) -> None:
    assert "epochs" in refused("demo", "--out", tmp_path, "--epochs", epochs)


def test_records_that_are_missing_or_do_not_belong_together(folder: Path, tmp_path: Path) -> None:
    assert "found none; train a row first" in refused("vae", "table", "--records", tmp_path / "empty")
    assert "expected a record" in refused("vae", "evaluate", tmp_path / "none.json", *DIGITS)
    record = json.loads((folder / "demo-digits-none-seed0.json").read_text())
    record["data"]["binarisation"] = "static"
    (folder / "other.json").write_text(json.dumps(record))
    assert "records of different binarisation do not belong in one table" in refused(
        "vae", "table", "--records", folder
    )


def test_a_tampered_checkpoint(folder: Path) -> None:
    path = folder / "demo-digits-none-seed0.ckpt"
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    record = folder / "demo-digits-none-seed0.json"
    before = record.read_bytes()
    message = refused("vae", "evaluate", record, *DIGITS, "--samples", 5, "--device", "cpu")
    assert "the content was altered" in message and path.name in message
    assert "was altered" in refused("vae", "train", "none", *DIGITS, *TINY, "--out", folder, "--resume")
    assert record.read_bytes() == before


def test_settings_are_json_or_constants_of_python_or_text() -> None:
    found = common.settings(("a=1e-3", "b=[2, 3]", "c=true", "d=True", "e=None", "f=cosine"))
    assert found == {"a": 1e-3, "b": (2, 3), "c": True, "d": True, "e": None, "f": "cosine"}
