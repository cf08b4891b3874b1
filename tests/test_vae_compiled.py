"""Compiled steps of a VAE's training against the eager loop: the same numbers from the same seed."""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from cuda_graphs import CUDAGraph
from torch import Tensor, nn
from watched import DIGITS, Change, Watched

from pyro_flows_vi.cli import main
from pyro_flows_vi.infer import compile_mode, compiled
from pyro_flows_vi.vae import VAE, FlowPosterior, History, TrainingInterrupted, build_vae, protocol, row, train
from pyro_flows_vi.vae.compiled import VAESteps
from pyro_flows_vi.vae.trainer import Trainer

LOGGER = "pyro_flows_vi.infer.compile_mode"


#: three whole minibatches of 50 in an epoch, and one of 40
ROWS = 190


def run(
    mode: str | bool,
    name: str = "none",
    change: Change = lambda k, x: None,
    vae: VAE | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    **overrides: Any,
) -> tuple[History, dict[str, Tensor]]:
    small = {"max_epochs": 3, "warmup_epochs": 2, "batch_size": 50, "learning_rate": 2e-3}
    settings = protocol("demo", **{**small, **overrides})
    vae = vae or build_vae(settings, row(name), (8, 8), seed=0)
    options: dict[str, Any] = {"checkpoint": checkpoint, "resume": resume, "seed": 1}
    history = train(vae, Watched(change, ROWS), settings, device="cpu", compile=mode, progress=False, **options)
    return history, vae.state_dict()


def require_same(first: Any, second: Any, tolerance: float = 2e-6) -> None:
    for key, value in first[1].items():
        torch.testing.assert_close(value, second[1][key], rtol=0.0, atol=tolerance)
    a, b = first[0], second[0]
    for name in ("train_elbo", "validation_elbo", "beta", "learning_rate"):
        assert a.curves[name] == pytest.approx(b.curves[name], abs=100 * tolerance)
    assert (a.skipped_steps, a.epochs, a.stop_reason) == (b.skipped_steps, b.epochs, b.stop_reason)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == LOGGER]


# -- the same numbers --------------------------------------------------------------------------------


LARGE = pytest.mark.parametrize("large", [False, True], ids=["joined", "apart"])
TRAININGS = pytest.mark.parametrize(
    ("name", "options"),
    [
        ("none", {}),
        ("planar-10", {"optimiser": "adamax", "clip_norm": 5.0}),
        ("iaf", {"clip_norm": 5.0, "schedule": "constant"}),
        ("none", {"likelihood": "gaussian", "variance_head": "softplus", "eps": 1e-3}),
    ],
    ids=["none", "planar", "iaf", "gaussian"],
)


@LARGE
@TRAININGS
def test_a_traced_training_is_the_eager_one(
    name: str, options: dict[str, Any], large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether parameters are joined into one vector, as many small ones are, or not."""
    monkeypatch.setattr(compiled, "LARGE", 0 if large else 10**6)
    require_same(run("trace", name, **options), run(False, name, **options))


@LARGE
@TRAININGS
def test_a_captured_training_is_the_eager_one(
    name: str, options: dict[str, Any], large: bool, monkeypatch: pytest.MonkeyPatch, cuda_graphs: type[CUDAGraph]
) -> None:
    """By a stand-in for CUDA graphs; the last minibatch of an epoch, a smaller one, is not captured."""
    monkeypatch.setattr(compiled, "LARGE", 0 if large else 10**6)
    require_same(run("cudagraph", name, **options), run(False, name, **options))
    assert cuda_graphs.captured == 1


def test_dropout_drops_the_same() -> None:
    def vae() -> VAE:
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.5))
        return VAE(FlowPosterior(encoder, 16, 4), nn.Linear(4, 64))

    require_same(run("trace", vae=vae()), run(False, vae=vae()))


def test_steps_that_are_not_finite_are_skipped_alike() -> None:
    def spoil(count: int, x: Tensor) -> Tensor | None:
        return x * math.nan if count in (2, 7) else None

    traced, eager = run("trace", change=spoil), run(False, change=spoil)
    assert eager[0].skipped_steps == 2
    require_same(traced, eager)


def test_too_many_in_a_row_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"3 steps in a row .*loss nan.*gradients: only compile=False tells"):
        run("trace", change=lambda k, x: x * math.nan, max_bad_steps=3)


# -- traces ------------------------------------------------------------------------------------------


def test_a_training_is_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[VAESteps] = []
    compiled_steps, eager_step, eager = Trainer.compiled_steps, Trainer.eager_step, []
    monkeypatch.setattr(
        Trainer, "compiled_steps", lambda self, mode: made.append(compiled_steps(self, mode)) or made[-1]
    )
    monkeypatch.setattr(Trainer, "eager_step", lambda self: eager.append(1) or eager_step(self))
    run("trace")
    (steps,) = made
    assert steps.traces == 1 and len(eager) == 3  # the minibatch at the end of each epoch is too small for the graph
    run("trace", batch_size=1000)
    assert made[1].traces == 1 and len(eager) == 3  # all rows are one minibatch


def test_the_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    run("trace", max_epochs=1)
    assert torch.equal(torch.get_rng_state(), state)


# -- checkpoints -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "then"), [("trace", "trace"), ("trace", False), (False, "trace"), ("trace", "auto")])
def test_modes_go_on_from_each_others_checkpoints(first: Any, then: Any, tmp_path: Path, caplog: Any) -> None:
    whole, path = run(then if then == first else False), tmp_path / "run.ckpt"

    def interrupt(count: int, x: Tensor) -> None:
        if count == 6:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingInterrupted):
        run(first, change=interrupt, checkpoint=path)
    with caplog.at_level(logging.INFO, LOGGER):
        resumed = run(then, checkpoint=path, resume=True)
    require_same(resumed, whole, 0.0 if then == first else 2e-6)
    if then == "auto":
        assert "training goes on with compile='trace': so does the checkpoint" in caplog.text


# -- what is refused ---------------------------------------------------------------------------------


def with_batch_norm() -> VAE:
    encoder = nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16))
    return VAE(FlowPosterior(encoder, 16, 4), nn.Linear(4, 64))


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.bernoulli(x.sigmoid())


def with_random_gates() -> VAE:
    return VAE(FlowPosterior(nn.Sequential(nn.Linear(64, 16), Noisy()), 16, 4), nn.Linear(4, 64))


@pytest.mark.parametrize(
    ("vae", "message"),
    [
        (with_batch_norm, "a module keeps a state that a step changes"),
        (with_random_gates, "random numbers of aten.bernoulli.default depend on what the step computes"),
    ],
    ids=["state", "noise"],
)
def test_models_that_are_no_graph(
    vae: Callable[[], VAE], message: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def seeded() -> VAE:
        torch.manual_seed(0)
        return vae()

    with pytest.raises(ValueError, match=f"compile='trace' cannot be had: {message}; use compile='auto' or False"):
        run("trace", vae=seeded())
    for name, value in (("TRIAL", 2), ("STEPS_OF_A_TRACE", 0.0), ("SAVED_BY_TRACE", 1e6)):
        monkeypatch.setattr(compile_mode, name, value)
    with caplog.at_level(logging.INFO, LOGGER):
        auto = run("auto", vae=seeded())
    (line,) = said(caplog)
    assert message in line and "training goes on with compile=False" in line
    require_same(auto, run(False, vae=seeded()), 0.0)


def test_words_that_are_no_mode() -> None:
    with pytest.raises(ValueError, match="expected compile to be 'auto', 'trace'"):
        run("jit")


# -- the choice --------------------------------------------------------------------------------------


def test_short_trainings_stay_eager(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, LOGGER):
        auto = run("auto", max_epochs=5)
    require_same(auto, run(False, max_epochs=5), 0.0)
    (line,) = said(caplog)
    assert "training goes on with compile=False: a step takes" in line and "at a cost of" in line


def test_a_graph_is_chosen_where_it_is_faster(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in (("TRIAL", 3), ("STEPS_OF_A_TRACE", 0.0), ("SAVED_BY_TRACE", 1e6), ("INDUCTOR_LEAST", 1e9)):
        monkeypatch.setattr(compile_mode, name, value)
    eager_step = Trainer.eager_step
    monkeypatch.setattr(Trainer, "eager_step", lambda self: time.sleep(0.3) or eager_step(self))
    with caplog.at_level(logging.INFO, LOGGER):
        auto = run("auto")
    first, second = said(caplog)
    assert "training tries compile='trace'" in first and "training goes on with compile='trace'" in second
    monkeypatch.undo()
    require_same(auto, run(False))


def test_the_command_line_says_what_was_chosen(tmp_path: Path) -> None:
    options = ["--data", "digits", "--protocol", "demo", "--out", str(tmp_path), "--set", "max_epochs=2"]
    result = CliRunner().invoke(main, ["vae", "train", "none", "--compile", "auto", *options])
    assert result.exit_code == 0, result.output
    assert "training goes on with compile=False: a step takes" in result.output
    assert logging.getLogger("pyro_flows_vi").handlers == []


# -- compilers ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*deprecated")  # torch's inductor uses what torch has deprecated
@pytest.mark.skipif(
    not (compile_mode.has_compiler() and os.environ.get("PYRO_FLOWS_VI_COMPILE")),
    reason="takes a C++ compiler and a minute: set PYRO_FLOWS_VI_COMPILE=1",
)
@LARGE
def test_the_inductor_gives_the_eager_training(large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "LARGE", 0 if large else 10**6)
    require_same(run("inductor", clip_norm=5.0), run(False, clip_norm=5.0), 1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="takes a GPU")
@LARGE
def test_a_cuda_graph_gives_the_eager_training(large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "LARGE", 0 if large else 10**6)
    settings = protocol("demo", max_epochs=2, batch_size=50)
    states = []
    for mode in ("cudagraph", False):
        vae = build_vae(settings, row("none"), (8, 8), seed=0)
        train(vae, DIGITS.to("cuda"), settings, device="cuda", compile=mode, progress=False)
        states.append(vae.state_dict())
    for key, value in states[0].items():
        torch.testing.assert_close(value, states[1][key], rtol=0.0, atol=1e-4)
