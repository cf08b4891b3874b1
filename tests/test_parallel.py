"""Several processes: the same results as one, the same decisions in all of them, and no one waiting for ever."""

from __future__ import annotations

import json
import math
import os
import re
import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import parallel_tasks as tasks
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from pyro_flows_vi.cli import main
from pyro_flows_vi.infer.parallel import Ranks, digest, join, launched
from pyro_flows_vi.vae import load_record

HERE = Path(__file__).parent
#: rounding of float32 over some ten steps
CLOSE = 1e-4


def start(*names: str, folder: Path, processes: int = 2) -> list[subprocess.Popen[str]]:
    """What torchrun does, without its agent, whose own start takes as long as that of the processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]),
        "OMP_NUM_THREADS": "1",
    }
    started = []
    for rank in range(processes):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        environment = {**os.environ, **here, **{name: str(value) for name, value in place.items()}}
        command = [sys.executable, str(HERE / "parallel_tasks.py"), str(folder), *names]
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    return started


def ended(processes: list[subprocess.Popen[str]], seconds: float) -> tuple[list[str], list[int]]:
    """What each process said, and its exit code; none is left behind."""
    try:
        said = [process.communicate(timeout=seconds)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return said, [process.returncode for process in processes]


class Pair:
    """What two processes found, and what they said."""

    def __init__(self, folder: Path, *names: str) -> None:
        said, codes = ended(start(*names, folder=folder), 600.0)
        assert codes == [0, 0], "\n".join(said)
        self.folder, self.said = folder, said
        self.found = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]

    def both(self, name: str) -> Any:
        """The result of a task, which is the same in both."""
        first, second = (found[name] for found in self.found)
        assert first == second
        return first


# -- one process ------------------------------------------------------------------------------------------


def test_a_process_alone_joins_nobody() -> None:
    ranks = join()
    assert (ranks.rank, ranks.size, ranks.first, launched()) == (0, 1, True, False)
    assert not torch.distributed.is_initialized()
    state, value = torch.get_rng_state(), torch.ones(3)
    with ranks.share(7) as share:
        assert share.rows == slice(0, 7) and share.weight == 1.0
        assert share.average([value], value)[0] is value and ranks.sum(value) is value
    assert torch.equal(state, torch.get_rng_state())
    assert ranks.after_first(lambda: 5) == 5
    ranks.align_random()
    ranks.wait()


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 5))
def test_shares_are_all_rows_in_whole_groups(total: int, size: int, group: int) -> None:
    shares = [Ranks(rank, size).share(total, group) for rank in range(size)]
    whole = max(1, total // group) * group if size > 1 else total
    assert math.isclose(sum(share.weight for share in shares), 1.0)
    rows = [row for share in shares if share.weight for row in range(share.rows.start, share.rows.stop)]
    assert rows == list(range(whole)) and shares[0].weight > 0
    for share in shares:
        assert share.total == whole and 0 < share.count == share.rows.stop - share.rows.start
        assert size == 1 or share.count % group == 0
        assert not share.weight or math.isclose(share.weight, share.count / whole)


@given(st.integers(1, 20), st.integers(2, 5), st.booleans())
def test_base_draws_are_the_rows_of_one_draw(total: int, size: int, packed: bool) -> None:
    torch.manual_seed(total)
    expected, after = torch.randn(total, 3), torch.get_rng_state()
    own = set()
    for rank in range(size):
        torch.manual_seed(total)
        with Ranks(rank, size).share(total) as share:
            count = share.count
            draw = torch.randn((count, 3)) if packed else torch.randn(count, 3, dtype=torch.float32)
            own.add(float(torch.rand(())))
        assert torch.equal(draw, expected[share.rows])
        assert torch.equal(torch.get_rng_state(), after)
    assert len(own) == size


def test_steps_without_base_draws_have_new_noise() -> None:
    torch.manual_seed(0)
    draws = []
    for _ in range(3):
        with Ranks(1, 2).share(4):
            draws.append(float(torch.rand(())))
    assert len(set(draws)) == 3


def test_digests_tell_values_shapes_and_dtypes_apart() -> None:
    x = torch.arange(6.0)
    others = (x.view(2, 3), x.double(), x + 1e-6, x.bfloat16(), "x", torch.zeros(0), torch.tensor(True))
    assert len({digest(x), *map(digest, others)}) == 1 + len(others)
    assert digest(x, 1) == digest(x.clone(), 1) != digest(x, 2)


def test_other_commands_are_refused_to_several_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = CliRunner().invoke(main, ["demo", "--out", str(tmp_path)])
    assert result.exit_code == 2 and "runs in one process: start it without torchrun" in result.output
    assert not list(tmp_path.iterdir())


# -- two processes: steps and estimates -------------------------------------------------------------------


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("steps"), "gradients", "streams", "missing", "pyro_guides", "estimates")


@pytest.mark.parametrize("objective", ["ELBO", "PathELBO", "IWELBO", "DReG"])
def test_gradients_are_those_of_one_process(steps: Pair, objective: str) -> None:
    found = [some["gradients"][objective] for some in steps.found]
    assert [some["particles"] for some in found] == ([16, 12] if objective in ("IWELBO", "DReG") else [14, 14])
    for some in found:
        assert some["gradient"] < 1e-13 and some["elbo"] < 1e-13
        assert some["same parameters moved"] and some["the next draw is the same"]


def test_other_noise_is_each_process_s_own(steps: Pair) -> None:
    first, second = (found["streams"] for found in steps.found)
    assert first["own"] != second["own"] and first["variance"] == second["variance"]
    expected, count = 1 / 24, 200  # the variance of a mean of two uniform numbers, which is triangular
    assert abs(first["variance"] - expected) < 4 * expected * math.sqrt(1.4 / count)
    assert abs(first["mean"]) < 4 * math.sqrt(expected / count)


def test_missing_gradients_and_processes_without_rows(steps: Pair) -> None:
    for rank, found in enumerate(steps.found):
        some = found["missing"]
        assert some == {"nowhere": True, "somewhere": [1.0, 1.0], "value": 3.0, "weight": 1.0 - rank}


def test_gradients_of_pyro_guides_have_one_process_s_mean_and_noise(steps: Pair) -> None:
    found, count = steps.both("pyro_guides"), 40
    (mean, variance), (alone, noise) = (
        (torch.tensor(found[name]["mean"]), torch.tensor(found[name]["variance"])) for name in ("shared", "alone")
    )
    assert not torch.equal(mean, alone)  # their draws are their own
    assert bool(((mean - alone).abs() < 5 * ((variance + noise) / count).sqrt()).all())
    ratio = variance / noise  # of chi-square variables: their logarithms have the variance 2 / (count - 1), or more
    assert float(ratio.min()) > 0.2 and float(ratio.max()) < 5.0


def test_the_nll_is_that_of_one_process(steps: Pair) -> None:
    found = steps.both("estimates")
    assert found["error"] < 1e-5 and math.isfinite(found["nll"])
    assert not (steps.folder / "some.nll").exists()


# -- two processes: fits ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fits(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("fits")
    tasks._interrupted_fit(folder / "one.ckpt", Ranks(), max_steps=40, checkpoint_every=20)
    (folder / "bad.ckpt").write_bytes(b"no checkpoint")
    return Pair(folder, "fits", "unseeded", "fit_resumed", "refusals")


def test_a_fit_is_that_of_one_process(fits: Pair) -> None:
    found = fits.both("fits")
    assert found["parameters"] < CLOSE and found["curve"] < CLOSE
    alone, shared, _ = found["elbo"]
    assert shared == pytest.approx(alone, rel=CLOSE)
    assert found["steps"][0] == found["steps"][1] and found["kept"][0] == found["kept"][1]
    assert found["rates"][0] == found["rates"][1] > 1
    alone, shared = found["again"]
    rises = sum(later > earlier for earlier, later in pairwise(alone))
    assert alone == pytest.approx(shared) and rises > 0, "another cooldown begins in all of them"


def test_processes_that_begin_apart_end_alike(fits: Pair) -> None:
    assert len(fits.both("unseeded")) > 1


def test_only_one_process_shows_progress(fits: Pair) -> None:
    assert "step/s" in fits.said[0] and "step/s" not in fits.said[1]


def test_a_fit_goes_on_with_any_number_of_processes(fits: Pair) -> None:
    found = fits.both("fit_resumed")
    assert found["same bits"] and found["from one"] < CLOSE
    options: dict[str, Any] = {"max_steps": 40, "checkpoint_every": 20}
    _, parameters, _ = tasks.run_fit(**options, checkpoint=fits.folder / "left.ckpt", resume=True)
    assert tasks.worst(parameters, torch.tensor(found["whole"])) < CLOSE


def test_all_processes_hear_of_a_bad_checkpoint(fits: Pair) -> None:
    assert "bad.ckpt: expected a file that starts with" in fits.both("fit_resumed")["bad"]


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("seed", "the settings of rank 1 differ from those of rank 0"),
        ("data", "the arguments of rank 1 differ"),
        ("images", "the images of rank 1 differ"),
        ("protocol", "the settings of rank 1 differ"),
        ("compile", "compile='trace' cannot be had: several processes share each step"),
        ("objective", "expected one of ELBO, .* got Renyi"),
    ],
)
def test_what_cannot_be_shared_is_refused(fits: Pair, task: str, words: str) -> None:
    assert re.search(f"^ValueError: .*{words}", fits.both("refusals")[task])


# -- two processes: VAEs ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vaes(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("vaes")
    stop = tasks.Watched(tasks.interrupt_at(9))
    assert "resume" in tasks.said(lambda: tasks.trained("iaf", data=stop, checkpoint=folder / "one-vae.ckpt"))
    return Pair(folder, "vaes", "bad_steps", "vae_resumed")


@pytest.mark.parametrize("name", ["iaf", "single"])
def test_a_vae_is_that_of_one_process(vaes: Pair, name: str) -> None:
    found = vaes.both("vaes")[name]
    assert found["weights"] < CLOSE and found["curves"] < CLOSE
    assert found["best"][0] == found["best"][1]


def test_only_one_process_shows_batches(vaes: Pair) -> None:
    assert "told once" in vaes.said[0] and "told once" not in vaes.said[1]


def test_all_processes_leave_a_bad_step_out(vaes: Pair) -> None:
    found = vaes.both("bad_steps")
    assert found["skipped"] == [1, 1] and found["weights"] < CLOSE
    assert "3 steps in a row without a finite" in found["always"]


def test_a_vae_goes_on_with_any_number_of_processes(vaes: Pair) -> None:
    found = vaes.both("vae_resumed")
    assert "TrainingInterrupted" in found["words"] and "in epoch 2" in found["words"]
    assert found["same bits"] and found["from one"] < CLOSE
    weights, _ = tasks.trained("iaf", checkpoint=vaes.folder / "left-vae.ckpt", resume=True)
    assert tasks.worst(weights, torch.tensor(found["whole"])) < CLOSE


def test_no_process_waits_for_one_that_died(tmp_path: Path) -> None:
    said, codes = ended(start("killed", folder=tmp_path), 120.0)
    assert codes[1] == 3 and codes[0] not in (0, 3), said
    assert not (tmp_path / "killed.ckpt").exists()  # it was the first epoch


def test_three_processes_and_torchrun(tmp_path: Path) -> None:
    """Train and evaluate under the real launcher: one record, as of one process, and everything said once."""
    options = ["none", "--protocol", "demo", "--data", "digits", "--set", "max_epochs=1", "--set", "hidden_dims=[8]"]
    train, record = ["vae", "train", *options, "--out"], "demo-digits-none-seed0.json"
    evaluate = ["vae", "evaluate", "--data", "digits", "--samples", "3", "--images", "401"]
    code = f"""
import sys, torch
from pyro_flows_vi.cli import main
torch.set_num_threads(1)
main({train!r} + [sys.argv[1]], standalone_mode=False)
main({evaluate!r} + [sys.argv[1] + "/{record}"], standalone_mode=False)
"""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3", "--no-python"]
    done = subprocess.run(
        [*command, sys.executable, "-c", code, str(tmp_path / "three")],
        env={**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("record:") == done.stdout.count("none: -ELBO") == 1
    runner = CliRunner()
    assert runner.invoke(main, [*train, str(tmp_path / "one")]).exit_code == 0
    assert runner.invoke(main, [*evaluate, str(tmp_path / "one" / record)]).exit_code == 0
    three, one = (load_record(tmp_path / name / record) for name in ("three", "one"))
    assert three["machine"]["processes"] == 3 and "processes" not in one["machine"]
    for curve in ("train_elbo", "validation_elbo"):
        assert three["training"]["curves"][curve] == pytest.approx(one["training"]["curves"][curve], rel=CLOSE)
    assert three["results"]["nll"] == pytest.approx(one["results"]["nll"], rel=CLOSE)
    assert sorted(path.name for path in (tmp_path / "three").iterdir()) == [record.replace(".json", ".ckpt"), record]
