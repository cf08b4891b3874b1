"""Several seeds as one program against each of them alone: the same numbers, files and errors."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from cuda_graphs import CUDAGraph
from torch import Tensor, nn
from watched import DIGITS, Change, Watched

from pyro_flows_vi import flows
from pyro_flows_vi.cli import main
from pyro_flows_vi.infer import compile_mode
from pyro_flows_vi.infer.parallel import Ranks
from pyro_flows_vi.transforms import Permute
from pyro_flows_vi.vae import (
    VAE,
    FlowPosterior,
    History,
    Protocol,
    SeedsFailed,
    TrainingInterrupted,
    _seed_steps,
    build_vae,
    load_record,
    load_row,
    protocol,
    record_path,
    row,
    train,
    train_row,
    train_row_seeds,
    train_seeds,
    training,
)
from pyro_flows_vi.vae._seed_steps import SeedSteps
from pyro_flows_vi.vae._stack import Member

SEEDS = (3, 0, 7)
#: three whole minibatches of 50 in an epoch, and one of 40
ROWS = 190


def settings(**overrides: Any) -> Protocol:
    small = {"max_epochs": 3, "warmup_epochs": 2, "batch_size": 50, "learning_rate": 2e-3, "clip_norm": 4.0}
    return protocol("demo", **{**small, **overrides})


class InDouble:
    """Images in double precision."""

    def __init__(self, data: Any = None) -> None:
        self.data = data or Watched(rows=ROWS)
        self.train, self.validation = self.data.train, self.data.validation.double()

    def batches(self, batch_size: int, generator: torch.Generator) -> Any:
        return (x.double() for x in self.data.batches(batch_size, generator))


def fresh(name: str = "none", **overrides: Any) -> list[VAE]:
    return [build_vae(settings(**overrides), row(name), (8, 8), seed=seed) for seed in SEEDS]


def together(vaes: list[VAE], data: Any = None, chosen: Protocol | None = None, **options: Any) -> list[History]:
    options = {"seeds": SEEDS, "device": "cpu", "progress": False, **options}
    return train_seeds(vaes, data or Watched(rows=ROWS), chosen or settings(), **options)


def alone(vaes: list[VAE], data: Any = None, chosen: Protocol | None = None, **options: Any) -> list[History]:
    return [
        train(vae, data or Watched(rows=ROWS), chosen or settings(), seed=seed, device="cpu", progress=False, **options)
        for vae, seed in zip(vaes, SEEDS, strict=True)
    ]


def require_same(first: Any, second: Any, tolerance: float) -> None:
    """The same weights and histories, but for the clock."""
    for (vae, history), (other, expected) in zip(zip(*first, strict=True), zip(*second, strict=True), strict=True):
        state = other.state_dict()
        for name, value in vae.state_dict().items():
            torch.testing.assert_close(value, state[name], rtol=0.0, atol=tolerance)
        for name in set(history.curves) - {"seconds"}:
            assert history.curves[name] == pytest.approx(expected.curves[name], abs=100 * tolerance)
        for name in ("epochs", "best_epoch", "waited", "skipped_steps", "skipped_in_a_row", "stop_reason"):
            assert getattr(history, name) == getattr(expected, name), name


# -- the same numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("none", {}),
        ("none", {"optimiser": "adamax", "likelihood": "gaussian", "variance_head": "softplus"}),
        ("planar-10", {}),
        ("iaf", {"optimiser": "adamax"}),
        ("sylvester-orthogonal", {}),
        ("sylvester-householder", {"clip_norm": None}),
        ("sylvester-triangular", {}),
        ("naf", {"max_epochs": 1}),
        ("residual", {}),
    ],
    ids=str,
)
def test_each_seed_is_what_it_is_alone(name: str, options: dict[str, Any]) -> None:
    """In double precision; each has its own first weights, minibatches, noise and clipping."""
    chosen = settings(**options)
    first, second = ([vae.double() for vae in fresh(name, **options)] for _ in range(2))
    require_same((first, together(first, InDouble(), chosen)), (second, alone(second, InDouble(), chosen)), 1e-9)
    assert not torch.equal(first[0].posterior.heads.weight, first[1].posterior.heads.weight)


def test_single_precision_and_convolutions() -> None:
    chosen = protocol("gated-conv", max_epochs=1, batch_size=50, hidden_dims=(8,), latent_dim=4)
    first, second = ([build_vae(chosen, row("planar-10", 2), (8, 8), seed=seed) for seed in SEEDS] for _ in range(2))
    data = Watched(rows=100)
    require_same((first, together(first, data, chosen)), (second, alone(second, data, chosen)), 1e-5)


def with_dropout(seed: int) -> VAE:
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.5))
    flow = flows.Compose([Permute(torch.randperm(4)), flows.build("planar", 4, num_transforms=2)])
    return VAE(FlowPosterior(encoder, 16, 4, flow), nn.Linear(4, 64))


def test_dropout_and_permutations_are_each_seeds_own() -> None:
    first, second = ([with_dropout(seed) for seed in SEEDS] for _ in range(2))
    require_same((first, together(first)), (second, alone(second)), 1e-5)


def test_early_stopping_is_each_seeds_own() -> None:
    chosen = settings(learning_rate=0.06, warmup_epochs=0, early_stop_epochs=0, max_epochs=12, schedule="constant")
    first, second = fresh(), fresh()
    histories = together(first, chosen=chosen)
    require_same((first, histories), (second, alone(second, chosen=chosen)), 1e-4)
    assert len({history.epochs for history in histories}) > 1
    assert {history.stop_reason for history in histories} == {"early stopping"}


def test_the_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    together(fresh(), chosen=settings(max_epochs=1))
    assert torch.equal(torch.get_rng_state(), state)


def test_models_are_their_own_again_afterwards() -> None:
    vaes = fresh()
    together(vaes, chosen=settings(max_epochs=1))
    for vae in vaes:
        assert not vae.training
        for p in vae.parameters():
            assert p.untyped_storage().nbytes() == p.numel() * p.element_size()


# -- steps as graphs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("large", [False, True], ids=["joined", "apart"])
@pytest.mark.parametrize(
    ("name", "options"),
    [("none", {}), ("planar-10", {"optimiser": "adamax"}), ("iaf", {"max_epochs": 2})],
    ids=["none", "planar", "iaf"],
)
def test_a_trace_of_all_is_what_each_is_alone(
    name: str, options: dict[str, Any], large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether parameters are joined, as many small ones are, or not; a bad step is skipped in the graph."""
    monkeypatch.setattr(_seed_steps, "LARGE", 0 if large else 10**6)
    data, chosen = Spoilt(SEEDS[1], lambda k, x: x * math.nan if k == 2 else None), settings(**options)
    first, second = ([vae.double() for vae in fresh(name, **options)] for _ in range(2))
    histories = together(first, InDouble(data), chosen, compile="trace")
    require_same((first, histories), (second, alone(second, InDouble(data), chosen)), 1e-8)
    assert [history.skipped_steps for history in histories] == [0, chosen.max_epochs, 0]


def test_captured_each_seed_is_what_it_is_alone(cuda_graphs: type[CUDAGraph]) -> None:
    first, second = fresh(), fresh()
    require_same((first, together(first, compile="cudagraph")), (second, alone(second)), 1e-5)
    assert cuda_graphs.captured >= 1


def test_dropout_in_a_trace_is_each_seeds_own() -> None:
    first, second = ([with_dropout(seed) for seed in SEEDS] for _ in range(2))
    require_same((first, together(first, compile="trace")), (second, alone(second)), 1e-5)


def test_a_trace_for_each_number_of_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that stop early leave; and a run may be interrupted, and go on step by step."""
    chosen = settings(learning_rate=0.06, warmup_epochs=0, early_stop_epochs=0, max_epochs=12, schedule="constant")
    made: list[int] = []
    prepare = SeedSteps._trace
    monkeypatch.setattr(
        SeedSteps, "_trace", lambda self, *given: made.append(len(self.stack.members)) or prepare(self, *given)
    )
    first, second = fresh(), fresh()
    histories = together(first, chosen=chosen, compile="trace")
    require_same((first, histories), (second, alone(second, chosen=chosen)), 2e-4)
    assert made[0] == 3 and len(made) == len(set(made)) == len({history.epochs for history in histories})


@pytest.mark.parametrize(("first", "then"), [("trace", "trace"), ("trace", False), (False, "trace")])
def test_modes_go_on_from_each_others_checkpoints(first: Any, then: Any, tmp_path: Path) -> None:
    whole, again = fresh(), fresh()
    expected = together(whole, compile=then if then == first else False)
    paths = paths_in(tmp_path)
    with pytest.raises(TrainingInterrupted):
        together(fresh(), Watched(interrupt, ROWS), checkpoints=paths, compile=first)
    histories = together(again, checkpoints=paths, resume=True, compile=then)
    require_same((again, histories), (whole, expected), 0.0 if first == then else 1e-5)


@pytest.mark.filterwarnings("ignore:.*deprecated")  # torch's inductor uses what torch has deprecated
@pytest.mark.skipif(
    not (compile_mode.has_compiler() and os.environ.get("PYRO_FLOWS_VI_COMPILE")),
    reason="takes a C++ compiler and a minute: set PYRO_FLOWS_VI_COMPILE=1",
)
@pytest.mark.parametrize("large", [False, True], ids=["joined", "apart"])
def test_the_inductor_gives_each_what_it_is_alone(large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_seed_steps, "LARGE", 0 if large else 10**6)
    first, second = fresh(), fresh()
    require_same((first, together(first, compile="inductor")), (second, alone(second)), 1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="takes a GPU")
@pytest.mark.parametrize("mode", [False, "trace", "cudagraph"])
@pytest.mark.parametrize("large", [False, True], ids=["joined", "apart"])
def test_each_seed_is_what_it_is_alone_on_a_gpu(mode: Any, large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_seed_steps, "LARGE", 0 if large else 10**6)
    data, first, second = DIGITS.to("cuda"), fresh(), fresh()
    histories = together(first, data, device="cuda", compile=mode)
    expected = [
        train(vae, data, settings(), seed=seed, device="cuda", progress=False)
        for vae, seed in zip(second, SEEDS, strict=True)
    ]
    require_same((first, histories), (second, expected), 1e-4)


# -- bad steps ---------------------------------------------------------------------------------------


class Spoilt:
    """Digits of which the minibatches of one seed are changed."""

    def __init__(self, seed: int, change: Change) -> None:
        self.seed, self.change, self.plain = seed, change, Watched(rows=ROWS)
        self.train, self.validation = self.plain.train, self.plain.validation

    def batches(self, batch_size: int, generator: torch.Generator) -> Any:
        data = Watched(self.change, ROWS) if generator.initial_seed() == self.seed else self.plain
        return data.batches(batch_size, generator)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_step_of_one_seed_is_its_own(bad: float) -> None:
    def spoil(count: int, x: Tensor) -> Tensor | None:
        return x * bad if count in (1, 3) else None

    first, second = fresh("iaf"), fresh("iaf")
    histories = together(first, Spoilt(SEEDS[1], spoil))
    assert [history.skipped_steps for history in histories] == [0, 6, 0]
    expected = alone(second, Spoilt(SEEDS[1], spoil))
    require_same((first, histories), (second, expected), 1e-5)


def test_a_seed_that_fails_does_not_end_the_others() -> None:
    first, second = fresh(), fresh()
    chosen = settings(max_bad_steps=2)
    with pytest.raises(
        SeedsFailed, match=r"1 of 3 trainings failed, the others are done: seed 0, epoch 1: 2 steps in a.*"
        r"loss nan.*gradients: posterior\.encoder"
    ) as error:  # fmt: skip
        together(first, Spoilt(SEEDS[1], lambda k, x: x * math.nan), chosen)
    assert list(error.value.failures) == [1]
    expected = alone(second, chosen=chosen)
    for k in (0, 2):
        require_same(([first[k]], [error.value.histories[k]]), ([second[k]], [expected[k]]), 1e-5)


# -- checkpoints -------------------------------------------------------------------------------------


def paths_in(folder: Path) -> list[Path]:
    return [folder / f"{seed}.ckpt" for seed in SEEDS]


def interrupt(count: int, x: Tensor) -> None:
    if count == 19:  # of three trainings together: the second epoch, after two steps of each
        os.kill(os.getpid(), signal.SIGINT)


def test_interrupted_and_resumed_is_the_same_bit_by_bit(tmp_path: Path) -> None:
    whole, pieces, again = fresh("iaf"), fresh("iaf"), fresh()
    expected = together(whole)
    paths = paths_in(tmp_path)
    with pytest.raises(TrainingInterrupted, match=r"epoch 2; the state is in .*3\.ckpt, .*0\.ckpt, .*7\.ckpt: run the"):
        together(pieces, Watched(interrupt, ROWS), checkpoints=paths)
    torch.rand(7)
    again = [build_vae(settings(), row("iaf"), (8, 8), seed=99) for _ in SEEDS]
    require_same((again, together(again, checkpoints=paths, resume=True)), (whole, expected), 0.0)


def test_checkpoints_are_those_of_each_alone(tmp_path: Path) -> None:
    """Begun together, gone on with alone; and the other way, one of them ahead and one new."""
    whole = fresh("planar-10")
    expected = alone(whole)
    paths = paths_in(tmp_path)
    with pytest.raises(TrainingInterrupted):
        together(fresh("planar-10"), Watched(interrupt, ROWS), checkpoints=paths)
    first = fresh("planar-10")
    histories = [
        train(vae, Watched(rows=ROWS), settings(), seed=seed, device="cpu", progress=False, checkpoint=path,
              resume=True)
        for vae, seed, path in zip(first, SEEDS, paths, strict=True)
    ]  # fmt: skip
    require_same((first, histories), (whole, expected), 1e-5)
    paths[0].unlink()
    with pytest.raises(TrainingInterrupted):
        train(fresh("planar-10")[1], Watched(lambda k, x: interrupt(k + 13, x), ROWS), settings(), seed=SEEDS[1],
              device="cpu", progress=False, checkpoint=paths[1])  # fmt: skip
    second = fresh("planar-10")
    histories = together(second, checkpoints=paths, resume=True)
    require_same((second, histories), (whole, expected), 1e-5)


@pytest.mark.parametrize("mode", [False, "trace"])
def test_a_checkpoint_is_no_larger_than_of_one_alone(mode: Any, tmp_path: Path) -> None:
    chosen = settings(max_epochs=1)
    together(fresh(), chosen=chosen, checkpoints=paths_in(tmp_path), compile=mode)
    train(fresh()[0], Watched(rows=ROWS), chosen, seed=SEEDS[0], device="cpu", progress=False,
          checkpoint=tmp_path / "alone.ckpt")  # fmt: skip
    sizes = [path.stat().st_size for path in (*paths_in(tmp_path), tmp_path / "alone.ckpt")]
    assert max(sizes) < 1.01 * min(sizes)


# -- what is refused ---------------------------------------------------------------------------------


class Reads(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if bool((x > 0).any()) else -x


class Python(nn.Module):
    """A number that no stack of parameters and buffers can know of."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.factor = 1.0 + seed

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def with_encoder(*layers: nn.Module) -> VAE:
    return VAE(FlowPosterior(nn.Sequential(nn.Linear(64, 16), *layers), 16, 4), nn.Linear(4, 64))


def partly_frozen() -> list[VAE]:
    vaes = fresh()
    vaes[1].decoder.requires_grad_(False)
    return vaes


def shared() -> list[VAE]:
    vae = with_encoder()
    return [vae] * 3


def continuous(**options: Any) -> list[VAE]:
    chains = [flows.build("ffjord", 4, context_dim=16, **options) for _ in SEEDS]
    return [VAE(FlowPosterior(nn.Linear(64, 16), 16, 4, chain), nn.Linear(4, 64)) for chain in chains]


@pytest.mark.parametrize(
    ("vaes", "message"),
    [
        (lambda: [with_encoder(Reads()) for _ in SEEDS], "the forward direction of a module looks at values"),
        (lambda: [with_encoder(nn.BatchNorm1d(16)) for _ in SEEDS], "a module keeps a state that a step changes"),
        (lambda: [with_encoder(Python(s)) for s in SEEDS], "the losses would be .* not those in brackets"),
        (lambda: [with_encoder(), *fresh()[:2]], "the models differ in names or shapes of their parameters"),
        (partly_frozen, "the models differ in class, dtype, or what of them is trained"),
        (shared, "two of the models share parameters"),
        (continuous, "an adaptive solver cannot be vmapped over the parameters"),
        (lambda: continuous(solver="rk4", kinetic=0.1), "the penalty of a continuous flow .* out of a vmap"),
    ],
    ids=["values", "state", "python", "shapes", "frozen", "shared", "solver", "penalty"],
)
def test_models_that_cannot_be_one_program(vaes: Any, message: str) -> None:
    chosen = vaes()
    with pytest.raises(ValueError, match=f"cannot be one program: {message}.*train the seeds one after the other"):
        together(chosen)
    for p in chosen[0].parameters():
        assert p.untyped_storage().nbytes() == p.numel() * p.element_size()


def test_bad_calls() -> None:
    with pytest.raises(ValueError, match="got 2 VAEs, 3 seeds and 3 checkpoints"):
        together(fresh()[:2])
    with pytest.raises(ValueError, match="a checkpoint of its own for each seed"):
        together(fresh(), checkpoints=["one"] * len(SEEDS))
    with pytest.raises(ValueError, match="got 0 VAEs"):
        together([], seeds=())
    with pytest.raises(ValueError, match="expected compile to be"):
        together(fresh(), compile="jit")
    with pytest.raises(ValueError, match="expected one or more different seeds, got 1, 1"):
        train_row_seeds(DIGITS, "demo", "none", "unused", seeds=(1, 1))


# -- rows of the table -------------------------------------------------------------------------------

TINY: dict[str, Any] = {"max_epochs": 1, "batch_size": 500}


def test_one_record_a_seed(tmp_path: Path) -> None:
    options: dict[str, Any] = {"overrides": TINY, "device": "cpu", "progress": False}
    paths = train_row_seeds(DIGITS, "demo", "planar-10", tmp_path / "together", seeds=(0, 2), **options)
    for path, seed in zip(paths, (0, 2), strict=True):
        assert path == record_path(tmp_path / "together", "demo", "planar-10", "digits", seed)
        other = load_record(train_row(DIGITS, "demo", "planar-10", tmp_path / "alone", seed=seed, **options))
        record = load_record(path)
        load_row(path, DIGITS)
        assert record["training"].pop("together") == [0, 2]
        for each in (record, other):
            del each["training"]["seconds"], each["training"]["curves"]["seconds"]
        curves, expected = record["training"].pop("curves"), other["training"].pop("curves")
        assert record["training"].pop("best_validation_elbo") == pytest.approx(
            other["training"].pop("best_validation_elbo"), abs=1e-4
        )
        assert record == other
        for name, curve in curves.items():
            assert curve == pytest.approx(expected[name], abs=1e-4), name
    with pytest.raises(ValueError, match="holds an older run"):
        train_row_seeds(DIGITS, "demo", "planar-10", tmp_path / "together", seeds=(0, 2), **options)


def test_the_records_of_the_others_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end_epoch = Member.end_epoch

    def fail(self: Member) -> None:
        if self.identity["seed"] == 2:
            raise ValueError("epoch 1: no")
        end_epoch(self)

    monkeypatch.setattr(Member, "end_epoch", fail)
    with pytest.raises(SeedsFailed, match="1 of 2 trainings failed, the others are done: seed 2, epoch 1: no"):
        train_row_seeds(DIGITS, "demo", "none", tmp_path, seeds=(0, 2), overrides=TINY, device="cpu", progress=False)
    assert [path.name for path in tmp_path.glob("*.json")] == ["demo-digits-none-seed0.json"]
    load_row(next(tmp_path.glob("*.json")), DIGITS)


def test_processes_that_share_a_run_take_one_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "join", lambda: Ranks(0, 2))
    with pytest.raises(ValueError, match="several seeds are one program of one process: start it without torchrun"):
        together(fresh())


def test_the_command_line(tmp_path: Path) -> None:
    options = ["--data", "digits", "--protocol", "demo", "--out", str(tmp_path), "--set", "max_epochs=1"]
    command = ["vae", "train", "none", *options, "--device", "cpu", "--seed", "0", "--seed", "4"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    paths = [record_path(tmp_path, "demo", "none", "digits", seed) for seed in (0, 4)]
    for path in paths:
        assert f"record: {path}\n" in result.output
        assert json.loads(path.read_text())["training"]["together"] == [0, 4]
    assert f"vae evaluate {paths[0]} {paths[1]} --data digits" in result.output
    result = CliRunner().invoke(main, [*command, "--seed", "5", "--resume"])  # a new one beside two that are done
    assert result.exit_code == 0, result.output
    assert load_record(record_path(tmp_path, "demo", "none", "digits", 5))["training"]["epochs"] == 1
