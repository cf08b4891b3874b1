"""What each of several processes does in `test_parallel.py`: ``python parallel_tasks.py FOLDER TASK...``.

Each task returns what it found, as JSON values, and most do the same work alone first: in this process, with the same
seed, and without the others.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal
from test_vae_training import fresh, interrupt_at, settings, without_clock
from torch import Tensor
from watched import DIGITS, Watched

from pyro_flows_vi.guides import AutoFlow
from pyro_flows_vi.infer import ELBO, IWELBO, DReG, LogDensity, PathELBO, Plateau, Renyi, fit, problems
from pyro_flows_vi.infer.parallel import Ranks, join
from pyro_flows_vi.vae import VAE, TrainingInterrupted, nll, train

X = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
problems.FINAL_DRAWS = problems.CHUNK = 512  # what a fit ends with need not be exact here


def model(x: Tensor) -> None:
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    loc = pyro.sample("loc", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    pyro.sample("x", dist.Normal(loc, scale).expand(x.shape).to_event(2), obs=x)


def plated(x: Tensor) -> None:
    """Of which Pyro's own particles can be vectorised."""
    loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("numbers", x.numel()):
        pyro.sample("x", dist.Normal(loc, scale), obs=x.reshape(-1))


def flat(parameters: Any) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in parameters])


def worst(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest number."""
    return float((a - b).abs().max() / b.abs().max())


def said(function: Callable[[], Any]) -> str:
    """The words of the error that a call raises."""
    try:
        function()
    except (ValueError, TrainingInterrupted) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


# -- steps ------------------------------------------------------------------------------------------------


def gradients(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """The gradient and the value of each objective, shared and alone, from the same base draws."""
    torch.manual_seed(1)
    guide = AutoFlow(model, "iaf", num_transforms=2)
    guide.setup(X)
    guide.double()
    target = LogDensity(model, X.double(), trace=False)
    found: dict[str, Any] = {}
    for objective in (ELBO(), PathELBO(), IWELBO(4), DReG(4)):
        results = []
        for processes in (Ranks(), ranks):
            problem = problems.FlowProblem(guide, target, objective, 28, None, ranks=processes)
            parameters = problem.parameters()
            torch.manual_seed(2)
            for p in parameters:
                p.grad = None
            with problem.share as share:
                estimate = problem.estimate(0.0)
                estimate.loss.backward()
                (elbo,) = share.average(parameters, estimate.log_weights.mean())
            moved = [p.grad is not None for p in parameters]
            gradient = flat(p.grad for p in parameters if p.grad is not None)
            results.append((gradient, elbo, moved, torch.rand(())))
        alone, shared = results
        found[type(objective).__name__] = {
            "particles": problem.share.count,
            "gradient": worst(shared[0], alone[0]),
            "elbo": worst(shared[1], alone[1]),
            "same parameters moved": alone[2] == shared[2],
            "the next draw is the same": bool(alone[3] == shared[3]),
        }
    return found


def streams(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """The means of draws that are not base draws: were the processes' streams one, they would not be less noisy."""
    torch.manual_seed(3)
    parameters = [torch.zeros(1)]
    means, own = [], []
    for _ in range(200):
        with ranks.share(2) as share:
            draw = torch.rand(()) - 0.5
            own.append(float(draw))
            means += share.average(parameters, draw)
    return {"mean": float(torch.stack(means).mean()), "variance": float(torch.stack(means).var()), "own": own[:5]}


def missing(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """A parameter without a gradient, one with a gradient in one process, and a bad value that counts nothing."""
    nowhere, somewhere = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    with ranks.share(1) as share:
        if ranks.first:
            somewhere.grad = torch.ones(2)
        value = torch.tensor(3.0 if share.weight else float("nan"))
        (value,) = share.average([nowhere, somewhere], value)
    gradient = somewhere.grad
    return {
        "nowhere": nowhere.grad is None,
        "somewhere": None if gradient is None else gradient.tolist(),
        "value": float(value),
        "weight": share.weight,
    }


# -- fits -------------------------------------------------------------------------------------------------


def run_fit(guide: Any = None, **options: Any) -> tuple[Any, Tensor, Any]:
    pyro.clear_param_store()
    guide = AutoFlow(model, "planar", num_transforms=2) if guide is None else guide
    common = {"seed": 5, "start": "guide", "max_steps": 30, "num_particles": 33, "plateau": Plateau(window=10)}
    result = fit(options.pop("of", model), guide, X, **{**common, "progress": False, **options})
    return result, flat(guide.parameters()), guide


def fits(folder: Path, ranks: Ranks) -> dict[str, Any]:
    torch.manual_seed(ranks.rank)  # what the processes did before does not matter
    cooling: dict[str, Any] = {"num_particles": None, "plateau": Plateau(window=3, patience=1, least_cooldown=9)}
    alone, expected, _ = run_fit(parallel=False, **cooling)
    shared, parameters, _ = run_fit(progress=True, **cooling)
    again = cooling | {"max_steps": 90, "plateau": Plateau(window=3, patience=1, least_cooldown=9, gap=0.0)}
    longer = [run_fit(parallel=parallel, learning_rate=0.3, **again)[0] for parallel in (False, True)]
    return {
        "again": [[*some.history["learning_rate"]] for some in longer],
        "parameters": worst(parameters, expected),
        "elbo": [alone.elbo, shared.elbo, shared.elbo_se],
        "curve": worst(torch.tensor(shared.history["elbo"]), torch.tensor(alone.history["elbo"])),
        "steps": [alone.steps, shared.steps],
        "rates": [len(set(some.history["learning_rate"])) for some in (alone, shared)],
        "kept": [alone.kept, shared.kept],
        "all": [shared.elbo, *parameters.tolist()],
    }


def unseeded(folder: Path, ranks: Ranks) -> list[float]:
    """Without a seed, and from guides that start at different places, the processes end alike; in no compiled mode."""
    torch.manual_seed(ranks.rank)
    guide = AutoFlow(model, "planar", num_transforms=2)
    guide.setup(X)
    result, parameters, _ = run_fit(guide, seed=None, max_steps=5, compile="auto")
    return [result.elbo, *parameters.tolist()]


def pyro_guides(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """Gradients at one place of a guide that is no flow, whose draws are each process's own; and a short fit."""
    result, parameters, _ = run_fit(AutoNormal(plated), of=plated, max_steps=5)
    pyro.clear_param_store()
    found: dict[str, Any] = {"fit": [result.elbo, *parameters.tolist()]}
    guide = AutoNormal(plated)
    for name, processes in (("alone", Ranks()), ("shared", ranks)):
        torch.manual_seed(4)
        problem = problems.PyroProblem(plated, guide, (X,), {}, 9, processes)
        parameters, draws = problem.parameters(), []
        for _ in range(40):
            for p in parameters:
                p.grad = None
            with problem.share as share:
                estimate = problem.estimate(0.0)
                estimate.loss.backward()
                (elbo,) = share.average(parameters, estimate.log_weights.mean())
            draws.append(torch.cat([elbo.reshape(1), *(p.grad.reshape(-1) for p in parameters)]))
        stacked = torch.stack(draws)
        found[name] = {"mean": stacked.mean(0).tolist(), "variance": stacked.var(0).tolist()}
    return found


def fit_resumed(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """A fit in two pieces, and one whose first piece one process does; the file holds what the test goes on from."""
    common: dict[str, Any] = {"max_steps": 40, "checkpoint_every": 20}
    _, whole, _ = run_fit(**common)
    _interrupted_fit(folder / "two.ckpt", ranks, **common)
    if ranks.first:
        shutil.copy(folder / "two.ckpt", folder / "left.ckpt")
    _, pieces, _ = run_fit(**common, checkpoint=folder / "two.ckpt", resume=True)
    _, on, _ = run_fit(**common, checkpoint=folder / "one.ckpt", resume=True)
    bad = said(lambda: run_fit(**common, checkpoint=folder / "bad.ckpt", resume=True))
    return {"same bits": torch.equal(pieces, whole), "from one": worst(on, whole), "bad": bad, "whole": whole.tolist()}


def _interrupted_fit(path: Path, ranks: Ranks, **options: Any) -> None:
    """Stopped when only the last process is asked to, in the middle of a fit."""

    def tempering(fraction: float) -> float:
        if ranks.rank == ranks.size - 1 and fraction == 0.575:
            os.kill(os.getpid(), 2)
        return 1.0

    result, _, _ = run_fit(**options, tempering=tempering, checkpoint=path)
    assert result.stop_reason == "interrupted" and result.steps == 24, result


def refusals(folder: Path, ranks: Ranks) -> dict[str, str]:
    return {
        "seed": said(lambda: run_fit(seed=ranks.rank)),
        "data": said(lambda: fit(model, AutoFlow(model), X + ranks.rank, progress=False)),
        "compile": said(lambda: run_fit(compile="trace")),
        "objective": said(lambda: run_fit(objective=Renyi(0.5))),
        "images": said(lambda: run_vae(fresh(), Watched(rows=100 + ranks.rank))),
        "protocol": said(lambda: run_vae(fresh(), seed=ranks.rank)),
    }


# -- VAEs -------------------------------------------------------------------------------------------------


def run_vae(vae: VAE, data: Any = None, **options: Any) -> dict[str, Any]:
    """The history, without what the clock says."""
    chosen = options.pop("settings", settings(batch_size=33, max_epochs=3))
    return without_clock(train(vae, data or Watched(), chosen, device="cpu", **{"progress": False, **options}))


def trained(name: str, *, seed: int = 0, **options: Any) -> tuple[Tensor, dict[str, Any]]:
    vae = fresh(name, seed=seed)
    history = run_vae(vae, **options)
    return flat(vae.state_dict().values()), history


def vaes(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """200 images in minibatches of 33: the last has two. And minibatches of one, of which a process has none."""
    found: dict[str, Any] = {}
    single = {"settings": settings(batch_size=1, max_epochs=1, clip_norm=5.0), "data": Watched(rows=9)}
    for name, row, options in (("iaf", "iaf", {}), ("single", "none", single)):
        expected, before = trained(row, parallel=False, **options)
        weights, history = trained(row, seed=ranks.rank, progress=True, label="told once", **options)
        curves = [torch.tensor([h["curves"][c] for c in sorted(h["curves"])]) for h in (history, before)]
        found[name] = {
            "weights": worst(weights, expected),
            "curves": worst(*curves),
            "best": [before["best_epoch"], history["best_epoch"]],
            "all": weights.tolist(),
        }
    return found


def estimates(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """Of 401 images, in groups of 200."""
    vae, images = fresh("iaf"), DIGITS.train[:401].float().div(16.0).round()
    alone = nll(vae, images, 20, seed=1)
    shared = nll(vae, images, 20, seed=1, parallel=True, partial=folder / "some.nll")
    return {
        "error": worst(shared.log_evidence, alone.log_evidence),
        "nll": shared.nll,
    }


def bad_steps(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """One image without a value, which one process only sees, and then one in every minibatch."""

    def spoil(count: int, x: Tensor) -> None:
        if count == 5:
            x[-1] = torch.nan

    expected, before = trained("none", data=Watched(spoil), parallel=False)
    weights, history = trained("none", data=Watched(spoil))
    always = Watched(lambda count, x: x.index_fill_(0, torch.tensor([len(x) - 1]), torch.nan))
    return {
        "weights": worst(weights, expected),
        "skipped": [before["skipped_steps"], history["skipped_steps"]],
        "always": said(lambda: trained("none", data=always, settings=settings(max_bad_steps=3))),
    }


def vae_resumed(folder: Path, ranks: Ranks) -> dict[str, Any]:
    whole, expected = trained("iaf")
    last = ranks.rank == ranks.size - 1
    stop = Watched(interrupt_at(9) if last else lambda count, x: None)
    words = said(lambda: trained("iaf", data=stop, checkpoint=folder / "two-vae.ckpt"))
    if ranks.first:
        shutil.copy(folder / "two-vae.ckpt", folder / "left-vae.ckpt")
    pieces, history = trained("iaf", checkpoint=folder / "two-vae.ckpt", resume=True)
    on, _ = trained("iaf", checkpoint=folder / "one-vae.ckpt", resume=True)
    return {
        "words": words,
        "same bits": torch.equal(pieces, whole) and history == expected,
        "from one": worst(on, whole),
        "whole": whole.tolist(),
    }


def killed(folder: Path, ranks: Ranks) -> None:
    """One process is gone in the middle of a run."""

    def die(count: int, x: Tensor) -> None:
        if count == 5 and ranks.rank == 1:
            os._exit(3)

    trained("none", data=Watched(die), checkpoint=folder / "killed.ckpt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    where, *tasks = sys.argv[1:]
    processes = join()
    results = {task: globals()[task](Path(where), processes) for task in tasks}
    (Path(where) / f"rank{processes.rank}.json").write_text(json.dumps(results))
