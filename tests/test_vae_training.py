"""The training loop: schedules, early stopping, bad steps, and runs that were interrupted."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from watched import Watched

from pyro_flows_vi.transforms.continuous import Continuous
from pyro_flows_vi.vae import (
    VAE,
    History,
    Protocol,
    Row,
    TrainingInterrupted,
    build_vae,
    load_weights,
    protocol,
    row,
    train,
)


def settings(**overrides: Any) -> Protocol:
    small = {
        "max_epochs": 4,
        "warmup_epochs": 2,
        "schedule": "constant",
        "batch_size": 50,
        "learning_rate": 2e-3,
    }
    return protocol("demo", **{**small, **overrides})


def fresh(name: str = "none", seed: int = 0) -> VAE:
    return build_vae(settings(), row(name), (8, 8), seed=seed)


def run(vae: VAE, data: Any = None, **options: Any) -> History:
    chosen = options.pop("settings", settings())
    return train(vae, data or Watched(), chosen, device="cpu", progress=False, **options)


def same_bits(a: VAE, b: VAE) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def without_clock(history: History) -> dict[str, Any]:
    """All of a history but the wall time."""
    values = dataclasses.asdict(history)
    values["curves"].pop("seconds")
    return values


def interrupt_at(step: int) -> Callable[[int, Tensor], None]:
    def change(count: int, x: Tensor) -> None:
        if count == step:
            os.kill(os.getpid(), signal.SIGINT)

    return change


# -- interruptions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 6, 8])
@pytest.mark.parametrize(("name", "optimiser"), [("none", "adam"), ("iaf", "adamax"), ("residual", "adam")], ids=str)
def test_interrupted_and_resumed_is_the_same_bit_by_bit(name: str, optimiser: str, step: int, tmp_path: Path) -> None:
    chosen = settings(optimiser=optimiser)
    whole, pieces, path = fresh(name), fresh(name), tmp_path / "run.ckpt"
    expected = run(whole, settings=chosen)
    with pytest.raises(TrainingInterrupted, match=r"epoch \d.*run\.ckpt.*resume"):
        run(pieces, Watched(interrupt_at(step)), settings=chosen, checkpoint=path)
    torch.rand(7)  # what happens in between does not matter, nor how the new model starts
    again = fresh(name, seed=99)
    history = run(again, settings=chosen, checkpoint=path, resume=True)
    assert same_bits(whole, again)
    assert without_clock(history) == without_clock(expected)


def test_a_killed_run_goes_on_from_its_last_epoch(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"

    def die(count: int, x: Tensor) -> None:
        if count == 10:  # in the third epoch of four steps each
            raise MemoryError

    with pytest.raises(MemoryError):
        run(fresh(), Watched(die), checkpoint=path)
    whole, again = fresh(), fresh()
    run(whole)
    assert run(again, checkpoint=path, resume=True).epochs == 4
    assert same_bits(whole, again)


def test_a_longer_budget_continues_the_run(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    whole, again = fresh(), fresh()
    run(whole, settings=settings(max_epochs=5))
    run(fresh(), settings=settings(max_epochs=2), checkpoint=path)
    history = run(again, settings=settings(max_epochs=5), checkpoint=path, resume=True)
    assert history.epochs == 5 and history.stop_reason == "max_epochs"
    assert same_bits(whole, again)


def test_a_cosine_run_has_a_fixed_budget(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    run(fresh(), settings=settings(schedule="cosine", max_epochs=2), checkpoint=path)
    with pytest.raises(ValueError, match=r"max_epochs: expected 3, got 2"):
        run(fresh(), settings=settings(schedule="cosine", max_epochs=3), checkpoint=path, resume=True)


def test_checkpoints_of_other_runs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    run(fresh(), checkpoint=path, identity={"data": "digits"})
    options: dict[str, Any] = {"checkpoint": path, "resume": True}
    with pytest.raises(ValueError, match=r"run\.ckpt.*seed: expected 1, got 0"):
        run(fresh(), seed=1, identity={"data": "digits"}, **options)
    with pytest.raises(ValueError, match=r"data: expected 'faces', got 'digits'"):
        run(fresh(), identity={"data": "faces"}, **options)
    with pytest.raises(ValueError, match=r"learning_rate"):
        run(fresh(), settings=settings(learning_rate=1e-3), identity={"data": "digits"}, **options)
    with pytest.raises(ValueError, match=r"parameters\.posterior\.flow.*expected \[.*got None"):
        run(fresh("iaf"), identity={"data": "digits"}, **options)
    with pytest.raises(ValueError, match=r"parameters\.posterior\.flow"):
        load_weights(fresh("iaf"), path)


def test_an_interrupt_without_a_checkpoint_says_so() -> None:
    before = signal.getsignal(signal.SIGINT)  # a background job may have it ignored
    with pytest.raises(TrainingInterrupted, match="no checkpoint"):
        run(fresh(), Watched(interrupt_at(2)))
    assert signal.getsignal(signal.SIGINT) is before


def test_best_weights_are_left_and_saved(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    vae, loaded = fresh(), fresh(seed=5)
    history = run(vae, settings=settings(learning_rate=0.03, max_epochs=6, warmup_epochs=0), checkpoint=path)
    curve = history.curves["validation_elbo"]
    assert history.best_elbo == max(curve) == curve[history.best_epoch - 1]
    load_weights(loaded, path)
    assert same_bits(vae, loaded)
    assert not vae.training


# -- schedules --------------------------------------------------------------------------------------------


def test_beta_and_rate_follow_the_protocol() -> None:
    chosen = settings(schedule="cosine", learning_rate=1e-2, final_learning_rate=1e-4, max_epochs=5, warmup_epochs=4)
    curves = run(fresh(), settings=chosen).curves
    assert curves["beta"] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert curves["learning_rate"][0] == pytest.approx(1e-2)
    assert curves["learning_rate"][2] == pytest.approx((1e-2 + 1e-4) / 2)
    assert curves["learning_rate"][-1] == pytest.approx(1e-4)
    assert [protocol("mlp").beta(epoch) for epoch in (1, 50, 100, 101)] == [0.01, 0.5, 1.0, 1.0]
    assert settings(warmup_epochs=0).beta(1) == 1.0


def test_patience_counts_after_the_warm_up() -> None:
    """With a learning rate of zero nothing improves after the first epoch."""
    chosen = settings(learning_rate=0.0, warmup_epochs=3, early_stop_epochs=2, max_epochs=20)
    history = run(fresh(), settings=chosen)
    assert history.stop_reason == "early stopping"
    assert history.best_epoch == 1
    assert history.epochs == 3 + 2  # waited through epochs 3, 4 and 5, one more than the patience


def test_training_helps() -> None:
    history = run(fresh("planar-10"), Watched(rows=1000), settings=settings(max_epochs=6))
    curve = history.curves["validation_elbo"]
    assert curve[-1] > curve[0] + 3
    assert history.curves["train_elbo"][-1] == pytest.approx(
        history.curves["train_log_likelihood"][-1] - history.curves["train_kl"][-1]
    )


def test_global_random_state_is_left_alone() -> None:
    state = torch.get_rng_state()
    first, second = fresh(), fresh()
    run(first, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    run(second, seed=3)
    assert same_bits(first, second)
    run(second := fresh(), seed=4)
    assert not same_bits(first, second)


# -- bad steps --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_steps_are_skipped_and_counted(bad: float) -> None:
    vae = fresh("iaf")
    history = run(vae, Watched(lambda k, x: x * bad if k % 4 == 2 else None))
    assert history.skipped_steps == 4
    assert not vae.bad_parameters()
    assert all(math.isfinite(value) for curve in history.curves.values() for value in curve)


def test_a_skipped_step_changes_nothing() -> None:
    changed: list[bool] = []
    vae = fresh()

    def spoil(count: int, x: Tensor) -> Tensor | None:
        nonlocal before
        if count == 2:
            before = [p.detach().clone() for p in vae.parameters()]
            return x * math.nan
        if count == 3:
            changed.extend(not torch.equal(a, b) for a, b in zip(before, vae.parameters(), strict=True))
        return None

    before: list[Tensor] = []
    run(vae, Watched(spoil), settings=settings(max_epochs=1))
    assert changed and not any(changed)


def test_a_gradient_that_is_not_finite_is_noticed() -> None:
    """The loss of sqrt at zero is finite, its gradient is not."""
    vae = fresh()
    decoder = vae.decoder
    vae.decoder = torch.nn.Sequential(decoder, _RootAtZero())
    with pytest.raises(ValueError, match=r"3 steps in a row .*loss [-\d.]+, norm nan.*gradients: .*decoder"):
        run(vae, settings=settings(max_bad_steps=3))
    assert not vae.bad_parameters()


class _RootAtZero(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + (0.0 * x).sqrt()


def test_bad_parameters_are_named_after_so_many_steps() -> None:
    vae = fresh()

    def poison(count: int, x: Tensor) -> None:
        if count == 3:
            with torch.no_grad():
                vae.posterior.heads.bias[0] = math.nan

    with pytest.raises(ValueError, match=r"epoch 1: 2 steps in a row.*parameters: posterior\.heads\.bias;"):
        run(vae, Watched(poison), settings=settings(max_bad_steps=2))


def test_clipping_bounds_the_step() -> None:
    moved = {}
    for clip in (None, 1e-4):
        vae = fresh()
        before = [p.detach().clone() for p in vae.parameters()]
        # a large eps makes Adam's step proportional to the gradient
        run(vae, settings=settings(clip_norm=clip, eps=1e3, learning_rate=1.0, max_epochs=1))
        after = [p.detach() for p in vae.parameters()]
        moved[clip] = max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True))
    assert 0 < moved[1e-4] < 1e-4 < moved[None]


@pytest.mark.parametrize("part", ["validation", "train"])
def test_bad_data_are_refused_before_training(part: str) -> None:
    data = Watched()
    values = getattr(data, part).float().clone()
    values[3, 5] = math.nan
    setattr(data, part, values)
    with pytest.raises(ValueError, match="NaN or infinite"):
        run(fresh(), data)


@pytest.mark.parametrize("every", [0, -1, 1.5, True])
def test_the_distance_of_checkpoints_is_a_positive_integer(every: Any) -> None:
    with pytest.raises(ValueError, match="expected checkpoint_every to be an integer of at least 1, got"):
        run(fresh(), checkpoint_every=every)


def test_images_of_another_width_are_refused_before_training() -> None:
    vae = build_vae(settings(), row("none"), (7, 8))
    with pytest.raises(ValueError, match=r"images that the encoder can take, got torch\.float32 of shape \(50, 64\)"):
        run(vae)


def test_bad_initial_parameters_are_refused() -> None:
    vae = fresh()
    with torch.no_grad():
        vae.posterior.heads.bias[0] = math.inf
    with pytest.raises(ValueError, match=r"posterior\.heads\.bias"):
        run(vae)


# -- settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"epochs": 3}, r"unknown setting epochs: expected one of batch_size, clip_norm.*warmup_epochs"),
        ({"optimiser": "sgd"}, "unknown optimiser 'sgd': expected one of adam, adamax"),
        ({"likelihood": "poisson"}, "unknown likelihood"),
        ({"network": "resnet"}, "unknown network"),
        ({"schedule": "step"}, "unknown schedule"),
        ({"learning_rate": math.nan}, "learning_rate to be a finite number of at least 0.0, got nan"),
        ({"max_epochs": 0}, "max_epochs to be an integer of at least 1, got 0"),
        ({"batch_size": 2.5}, "batch_size to be an integer"),
        ({"clip_norm": -1.0}, "clip_norm"),
        ({"hidden_dims": ()}, "hidden_dims"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_settings_are_checked(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        protocol("mlp", **overrides)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown protocol 'cnn': expected one of mlp, gated-conv, demo"):
        protocol("cnn")
    with pytest.raises(ValueError, match="unknown row 'realnvp': expected one of none, planar-10"):
        row("realnvp")
    with pytest.raises(ValueError, match="has no flow"):
        row("none", hidden_dims=(3,))
    with pytest.raises(ValueError, match=r"unknown option 'widht'.*width"):
        build_vae(settings(), row("naf", widht=3), (8, 8))


def test_presets_are_the_published_ones() -> None:
    mlp, conv = protocol("mlp"), protocol("gated-conv")
    assert (mlp.hidden_dims, mlp.latent_dim, mlp.optimiser, mlp.learning_rate) == (
        (300, 300),
        40,
        "adam",
        5e-4,
    )
    assert (mlp.batch_size, mlp.warmup_epochs, mlp.early_stop_epochs, mlp.max_epochs) == (100, 100, 50, 2000)
    assert (conv.latent_dim, conv.optimiser, conv.eps, conv.early_stop_epochs) == (64, "adamax", 1e-7, 100)
    assert row("planar-10", 3, hidden_dims=(4,)).as_dict() == {
        "flow": "planar",
        "num_transforms": 3,
        "options": {"hidden_dims": [4]},
    }


def test_the_penalty_of_a_continuous_posterior_shortens_its_paths() -> None:
    found = []
    for kinetic in (0.0, 1e3):
        ffjord = Row("ffjord", "ffjord", 1, {"hidden_dims": (8,), "solver": "rk4", "num_steps": 2, "kinetic": kinetic})
        vae = build_vae(settings(), ffjord, (8, 8))
        assert run(vae).best_elbo > -60.0  # of the bound alone
        (step,) = [module for module in vae.modules() if isinstance(module, Continuous)]
        context = vae.posterior.encode(Watched().validation).features
        found.append(float(step.energies(torch.randn(len(context), 8), context).kinetic.mean().detach()))
    assert found[1] < 0.3 * found[0]
    with pytest.raises(ValueError, match="penalty of a continuous flow"):
        run(vae, compile="trace")
