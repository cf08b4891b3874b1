"""A step of variational inference with an IAF guide: ours in each mode, Pyro, NumPyro, torch by hand.

The model is eight schools, not centred (D = 10), or a linear regression on 2 D rows with a standard normal prior; the
guide has two IAF layers with two hidden layers each; the step is the plain ELBO with Adam. Ours, NumPyro's and the
hand-written one take 64 particles, Pyro's ``SVI`` one.
"""

from __future__ import annotations

import argparse
import math
import os
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from measure import RECORDS, clock_for, interleaved, write_record
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO
from pyro.infer.autoguide import AutoIAFNormal
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_flows_vi.guides import AutoFlow
from pyro_flows_vi.infer import ELBO, LogDensity, PathELBO, Plateau
from pyro_flows_vi.infer.problems import FlowProblem
from pyro_flows_vi.infer.training import Training

EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
SCHOOLS_DIM, DEPTH, RATE = 10, 2, 1e-3
#: steps in a call of those that can do several
STEPS = 20

#: a call, and how many steps it does
Task = tuple[Callable[[], object], int]


def schools(effects: Tensor, errors: Tensor) -> None:
    """The model, for Pyro and for us."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    eta = pyro.sample("eta", dist.Normal(torch.zeros(8), 1.0).to_event(1))
    pyro.sample("effects", dist.Normal(mu + tau * eta, errors).to_event(1), obs=effects)


def regression(x: Tensor, y: Tensor) -> None:
    """The model of other dimensions."""
    w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(x @ w, 1.0).to_event(1), obs=y)


class Work(NamedTuple):
    """A model with its data, and what the guides for it look like."""

    dim: int
    model: Callable[..., None]
    args: tuple[Tensor, Tensor]
    log_density: Callable[[Tensor], Tensor]  # by hand
    hidden: list[int]


def work(dim: int) -> Work:
    """Eight schools for its dimension, and a regression for every other."""
    if dim == SCHOOLS_DIM:
        return Work(dim, schools, (EFFECTS, ERRORS), schools_by_hand, [16, 16])
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2 * dim, dim, generator=generator) / math.sqrt(dim)
    y = x @ torch.randn(dim, generator=generator) + torch.randn(2 * dim, generator=generator)
    constant = -0.5 * 3 * dim * math.log(2 * math.pi)

    def by_hand(w: Tensor) -> Tensor:
        return constant - 0.5 * (w.square().sum(-1) + (y - w @ x.T).square().sum(-1))

    return Work(dim, regression, (x, y), by_hand, [dim, dim])


def schools_by_hand(u: Tensor) -> Tensor:
    """The log density of eight schools in unconstrained space, up to a constant."""
    mu, log_tau, eta = u[:, 0], u[:, 1], u[:, 2:]
    tau = log_tau.exp()
    residual = (EFFECTS - mu[:, None] - tau[:, None] * eta) / ERRORS
    log_p = -0.5 * ((mu / 5.0).square() + eta.square().sum(-1) + residual.square().sum(-1))
    return log_p - torch.log1p((tau / 5.0).square()) + log_tau


def ours(task: Work, mode: str | bool, particles: int, objective: ELBO | PathELBO) -> Task:
    """The loop of a fit, with its checks and its stopping rule."""
    guide = AutoFlow(task.model, "iaf", DEPTH, hidden_dims=task.hidden, dense=False).setup(*task.args)
    problem = FlowProblem(guide, LogDensity(task.model, *task.args), objective, particles, None)
    training = Training(problem)
    training.configure(None, RATE, None, 10.0, Plateau(drops=10**6), 10**9, 50, mode)

    def steps() -> None:
        until = training.step + STEPS
        while training.step < until:
            training.advance(until)

    return steps, STEPS


def pyro_svi(task: Work, guide: Any, loss: Any) -> Task:
    """Pyro's inference."""
    svi = SVI(task.model, guide, pyro.optim.Adam({"lr": RATE}), loss)
    svi.step(*task.args)
    return lambda: svi.step(*task.args), 1


class Masked(nn.Linear):
    """A linear layer with a mask."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


def network(order: Tensor, hidden: list[int]) -> nn.Sequential:
    """Shift and log scale of each coordinate from those before it in an order."""
    degrees = [order, *(torch.arange(width) % (len(order) - 1) for width in hidden)]
    layers: list[nn.Module] = []
    for before, after in pairwise(degrees):
        layers += [Masked((after[:, None] >= before).float()), nn.ReLU()]
    return nn.Sequential(*layers, Masked((order.repeat(2)[:, None] > degrees[-1]).float()))


def by_hand(task: Work, particles: int, compiled: bool) -> Task:
    """As one would write it for this model alone: nothing is checked or counted."""
    order = torch.arange(task.dim)
    networks = nn.ModuleList([network(order, task.hidden), network(order.flip(0), task.hidden)])
    affine = nn.Parameter(torch.zeros(2, task.dim))
    optimizer = torch.optim.Adam([*networks.parameters(), affine], lr=RATE, fused=True)

    def loss(noise: Tensor) -> Tensor:
        u, log_q = noise, -0.5 * (noise.square().sum(-1) + task.dim * math.log(2 * math.pi))
        for net in networks:
            shift, log_scale = net(u).chunk(2, dim=-1)
            u, log_q = shift + u * log_scale.exp(), log_q - log_scale.sum(-1)
        u, log_q = affine[0] + affine[1].exp() * u, log_q - affine[1].sum()
        return (log_q - task.log_density(u)).mean()

    evaluate: Callable[[Tensor], Tensor] = torch.compile(loss) if compiled else loss

    def step() -> float:
        optimizer.zero_grad()
        value = evaluate(torch.randn(particles, task.dim))
        value.backward()
        optimizer.step()
        return value.item()

    return step, 1


def numpyro_svi(task: Work, particles: int) -> dict[str, Task]:
    """NumPyro's guide, its update jitted and called from Python, and the same in a loop that is compiled too."""
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as ndist
    from numpyro.infer.autoguide import AutoIAFNormal as NumpyroIAF

    first, second = (jnp.asarray(array.numpy()) for array in task.args)

    def schools_twin() -> None:
        mu = numpyro.sample("mu", ndist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", ndist.HalfCauchy(5.0))
        eta = numpyro.sample("eta", ndist.Normal(jnp.zeros(8), 1.0).to_event(1))
        numpyro.sample("effects", ndist.Normal(mu + tau * eta, second).to_event(1), obs=first)

    def regression_twin() -> None:
        w = numpyro.sample("w", ndist.Normal(jnp.zeros(task.dim), 1.0).to_event(1))
        numpyro.sample("y", ndist.Normal(first @ w, 1.0).to_event(1), obs=second)

    model = schools_twin if task.model is schools else regression_twin
    guide = NumpyroIAF(model, num_flows=DEPTH, hidden_dims=task.hidden)
    loss = numpyro.infer.Trace_ELBO(num_particles=particles)
    svi = numpyro.infer.SVI(model, guide, numpyro.optim.Adam(RATE), loss)
    start = svi.init(jax.random.PRNGKey(0))
    update = jax.jit(lambda state: svi.update(state))
    loop = jax.jit(lambda state: jax.lax.fori_loop(0, STEPS, lambda i, state: svi.update(state)[0], state))
    states = {"step": start, "loop": start}

    def step() -> None:
        states["step"], value = update(states["step"])
        value.block_until_ready()

    def steps() -> None:
        states["loop"] = jax.block_until_ready(loop(states["loop"]))

    return {"NumPyro, Python loop": (step, 1), "NumPyro, fori_loop": (steps, STEPS)}


def competitors(options: argparse.Namespace) -> tuple[dict[str, Task], dict[str, str]]:
    """The tasks by name, and why others are not there."""
    objective = PathELBO() if options.path else ELBO()
    task = work(options.dim)
    makers: dict[str, Callable[[], Task]] = {
        "ours, eager": lambda: ours(task, False, options.particles, objective),
        "ours, trace": lambda: ours(task, "trace", options.particles, objective),
        "Pyro SVI, 1 particle": lambda: pyro_svi(
            task, AutoIAFNormal(task.model, hidden_dim=task.hidden, num_transforms=DEPTH), Trace_ELBO()
        ),
        # with our guide: in Pyro's own flow guides, an assertion of pyro.ops.jit fails
        "Pyro JitTrace_ELBO, 1 particle": lambda: pyro_svi(
            task,
            AutoFlow(task.model, "iaf", DEPTH, hidden_dims=task.hidden, dense=False).setup(*task.args),
            JitTrace_ELBO(ignore_jit_warnings=True),
        ),
        "torch by hand": lambda: by_hand(task, options.particles, compiled=False),
    }
    if options.inductor:
        makers["ours, inductor"] = lambda: ours(task, "inductor", options.particles, objective)
        makers["torch by hand, torch.compile"] = lambda: by_hand(task, options.particles, compiled=True)
    tasks: dict[str, Task] = {}
    absent: dict[str, str] = {}
    for name, make in makers.items():
        torch.manual_seed(0)
        try:
            tasks[name] = make()
            tasks[name][0]()
        except Exception as error:  # a peer that fails is a result too
            tasks.pop(name, None)
            absent[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    try:
        tasks |= numpyro_svi(task, options.particles)
    except ImportError as error:
        absent["NumPyro"] = str(error)
    return tasks, absent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--particles", type=int, default=64)
    parser.add_argument("--dim", type=int, default=SCHOOLS_DIM, help="10 for eight schools, else of a regression")
    parser.add_argument("--path", action="store_true", help="ours by the path gradient, our default")
    parser.add_argument("--inductor", action="store_true", help="also what takes a C++ compiler and a minute")
    parser.add_argument("--out", type=Path, help="the record; docs/records/benchmarks/elbo_step-DIM.json by default")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    tasks, absent = competitors(options)
    clock = clock_for(options.threads)
    calls = interleaved({name: call for name, (call, _) in tasks.items()}, options.repeats, clock=clock)
    seconds = {name: calls[name] / steps for name, (_, steps) in tasks.items()}
    best = min((name for name in seconds if name.startswith("ours")), key=seconds.__getitem__)
    ratios = {name: seconds[best] / value for name, value in seconds.items() if not name.startswith("ours")}
    for name, value in sorted(seconds.items(), key=lambda pair: pair[1]):
        print(f"{name:34} {1e3 * value:8.3f} ms   {best} / it = {seconds[best] / value:.2f}")
    for name, why in absent.items():
        print(f"{name:34} {why}")
    write_record(
        options.out or RECORDS / f"elbo_step-{options.dim}.json",
        {
            "clock": clock.__name__,
            "dim": options.dim,
            "particles": options.particles,
            "objective": "path" if options.path else "elbo",
            "seconds": seconds,
            "ours": best,
            "ratios": ratios,
            "absent": absent,
        },
    )


if __name__ == "__main__":
    main()
