"""A step of variational inference with an IAF guide: ours in each mode, Pyro, NumPyro, torch by hand.

The model is eight schools, not centred (D = 10), or a linear regression on 2 D rows with a standard normal prior; the
guide has two IAF layers with two hidden layers each; the step is the plain ELBO with Adam. Each number of particles
in each dimension is a cell with a record of its own; a cell that has one is left out.
"""

from __future__ import annotations

import argparse
import math
import os
import time
import warnings
from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pyro
import torch
from elbo_models import Work, schools, work
from measure import RECORDS, clock_for, interleaved, write_record
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO
from pyro.infer.autoguide import AutoIAFNormal
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_flows_vi.guides import AutoFlow
from pyro_flows_vi.infer import ELBO, LogDensity, PathELBO, Plateau
from pyro_flows_vi.infer.problems import FlowProblem
from pyro_flows_vi.infer.training import Training

DEPTH, RATE = 2, 1e-3
#: most steps in a call of those that can do several, and what numbers of all particles together they may be
STEPS, NUMBERS = 20, 1_000_000
#: seconds of a step after which a peer is not measured
LONGEST = 15.0
#: the largest D of Pyro's JitTrace_ELBO
JIT_DIM = 100

#: a call, and how many steps it does
Task = tuple[Callable[[], object], int]


def steps_in_a_call(dim: int, particles: int) -> int:
    """Few where a step is long, as in a fit, which looks at its clock."""
    return max(1, min(STEPS, NUMBERS // (dim * particles)))


def ours(
    task: Work,
    mode: str | bool,
    particles: int,
    objective: ELBO | PathELBO,
    depth: int = DEPTH,
    count: int | None = None,
) -> Task:
    """The loop of a fit, with its checks and its stopping rule."""
    guide = AutoFlow(task.model, "iaf", depth, hidden_dims=task.hidden, dense=False).setup(*task.args)
    problem = FlowProblem(guide, LogDensity(task.model, *task.args), objective, particles, None)
    training = Training(problem)
    training.configure(None, RATE, None, 10.0, Plateau(patience=10**9), 10**9, 50, mode)

    count = steps_in_a_call(task.dim, particles) if count is None else count

    def steps() -> None:
        until = training.step + count
        while training.step < until:
            training.advance(until)

    return steps, count


def pyro_svi(task: Work, guide: Any, loss: type[Trace_ELBO], particles: int, **options: Any) -> Task:
    """Pyro's inference."""
    estimate = loss(num_particles=particles, vectorize_particles=particles > 1, max_plate_nesting=0, **options)
    svi = SVI(task.model, guide, pyro.optim.Adam({"lr": RATE}), estimate)
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
    count = steps_in_a_call(task.dim, particles)
    loop = jax.jit(lambda state: jax.lax.fori_loop(0, count, lambda i, state: svi.update(state)[0], state))
    states = {"step": start, "loop": start}

    def step() -> None:
        states["step"], value = update(states["step"])
        value.block_until_ready()

    def steps() -> None:
        states["loop"] = jax.block_until_ready(loop(states["loop"]))

    return {"NumPyro, Python loop": (step, 1), "NumPyro, fori_loop": (steps, count)}


def competitors(
    dim: int, particles: int, objective: ELBO | PathELBO, inductor: bool
) -> tuple[dict[str, Task], dict[str, str]]:
    """The tasks by name, and why others are not there."""
    task = work(dim)

    def ours_in(mode: str | bool) -> Callable[[], Task]:
        return lambda: ours(task, mode, particles, objective)

    def pyros(count: int) -> Task:
        guide = AutoIAFNormal(task.model, hidden_dim=task.hidden, num_transforms=DEPTH)
        return pyro_svi(task, guide, Trace_ELBO, count)

    def pyros_jit() -> Task:  # with our guide: in Pyro's own flow guides, an assertion of pyro.ops.jit fails
        guide = AutoFlow(task.model, "iaf", DEPTH, hidden_dims=task.hidden, dense=False).setup(*task.args)
        return pyro_svi(task, guide, JitTrace_ELBO, particles, ignore_jit_warnings=True)

    makers: dict[str, Callable[[], Task]] = {
        "ours, eager": ours_in(False),
        "ours, trace": ours_in("trace"),
        "Pyro SVI, 1 particle": lambda: pyros(1),
        "torch by hand": lambda: by_hand(task, particles, compiled=False),
    }
    if dim <= JIT_DIM:
        makers["Pyro JitTrace_ELBO"] = pyros_jit
    if particles > 1:
        makers["Pyro SVI"] = lambda: pyros(particles)
    if inductor:
        makers["ours, inductor"] = ours_in("inductor")
        makers["torch by hand, torch.compile"] = lambda: by_hand(task, particles, compiled=True)
    tasks: dict[str, Task] = {}
    absent: dict[str, str] = {}
    if dim > JIT_DIM:
        absent["Pyro JitTrace_ELBO"] = "two steps were not done after ten minutes of a loaded machine"
    for name, make in makers.items():
        torch.manual_seed(0)
        try:
            made = make()
            made[0]()
            began = time.perf_counter()
            made[0]()
            if (seconds := (time.perf_counter() - began) / made[1]) > LONGEST:
                absent[name] = f"a step takes {seconds:.0f} s"
            else:
                tasks[name] = made
        except Exception as error:  # a peer that fails is a result too
            absent[name] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[-1][:200]}"
    try:
        tasks |= numpyro_svi(task, particles)
    except ImportError as error:
        absent["NumPyro"] = str(error)
    return tasks, absent


def measure(dim: int, particles: int, options: argparse.Namespace) -> dict[str, Any]:
    """The record of a cell."""
    torch.compiler.reset()  # so that a shape is not taken for another value of one that was compiled
    pyro.clear_param_store()
    objective = PathELBO() if options.path else ELBO()
    tasks, absent = competitors(dim, particles, objective, options.inductor)
    clock = clock_for(options.threads)
    calls = interleaved({name: call for name, (call, _) in tasks.items()}, options.repeats, clock=clock)
    seconds = {name: calls[name] / steps for name, (_, steps) in tasks.items()}
    best = min((name for name in seconds if name.startswith("ours")), key=seconds.__getitem__)
    ratios = {name: seconds[best] / value for name, value in seconds.items() if not name.startswith("ours")}
    for name, value in sorted(seconds.items(), key=lambda pair: pair[1]):
        print(f"{name:34} {1e3 * value:8.3f} ms   {best} / it = {seconds[best] / value:.2f}")
    for name, why in absent.items():
        print(f"{name:34} {why}")
    return {
        "clock": clock.__name__,
        "dim": dim,
        "particles": particles,
        "objective": "path" if options.path else "elbo",
        "repeats": options.repeats,
        "seconds": seconds,
        "ours": best,
        "ratios": ratios,
        "absent": absent,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--particles", nargs="+", type=int, default=[1, 64, 1024])
    parser.add_argument("--dims", nargs="+", type=int, default=[10, 100, 1000], help="10 for eight schools")
    parser.add_argument("--path", action="store_true", help="ours by the path gradient, our default")
    parser.add_argument("--inductor", action="store_true", help="also what takes a C++ compiler and a minute")
    parser.add_argument("--again", action="store_true", help="also cells that have a record")
    parser.add_argument("--out", type=Path, default=RECORDS, help="the folder of the records")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    for dim, particles in product(options.dims, options.particles):
        path = options.out / f"elbo_step-{dim}-{particles}.json"
        if path.exists() and not options.again:
            continue
        print(f"D = {dim}, {particles} particles", flush=True)
        write_record(path, measure(dim, particles, options))


if __name__ == "__main__":
    main()
