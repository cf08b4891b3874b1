"""A training step of a VAE, in every mode, against the same network by hand and in Pyro; and the memory of the NLL."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise, repeat
from pathlib import Path
from typing import Any

import pyro
import torch
from measure import RECORDS, clock_for, interleaved, megabytes, write_record
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_flows_vi.vae import VAE, FlowPosterior, nll, protocol
from pyro_flows_vi.vae.minibatches import Minibatches
from pyro_flows_vi.vae.trainer import Trainer

PIXELS, WIDTH, LATENT, BATCH = 784, 400, 64, 100
RATE = 5e-4
#: steps in a call
STEPS = 20
#: images and samples: of the default run, and of the run with --full
SIZES = ((60, 5000), (10_000, 50))
FULL = (10_000, 5000)


#: a call of so many steps
Task = Callable[[], object]


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with rectifiers between them."""
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def model() -> VAE:
    """784-400-400-64 and back, with a diagonal Gaussian posterior."""
    torch.manual_seed(0)
    encoder = nn.Sequential(mlp(PIXELS, WIDTH, WIDTH), nn.ReLU())
    return VAE(FlowPosterior(encoder, WIDTH, LATENT), mlp(LATENT, WIDTH, WIDTH, PIXELS))


class Data:
    """What a trainer needs of a data set: the same images again and again."""

    def __init__(self, images: Tensor) -> None:
        self.train = self.validation = images

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
        """An epoch without an end."""
        return repeat(self.train)


def ours(images: Tensor, mode: str | bool) -> Task:
    """The steps of our training loop: with the norm of the gradient, the check that all is finite, the sums."""
    settings = protocol("mlp", learning_rate=RATE, hidden_dims=(WIDTH, WIDTH), latent_dim=LATENT, batch_size=BATCH)
    vae = model().to(images.device)
    trainer = Trainer(vae, Data(images), settings, 0, images.device, None, {}, mode)
    trainer.vae.train()
    trainer.minibatches = Minibatches(trainer.data.batches(BATCH, trainer.generator))

    def steps() -> None:
        done = 0
        while done < STEPS:
            outcomes = trainer.driver.run(STEPS - done)
            done += len(outcomes)
            trainer.count(outcomes)

    return steps


def by_hand(images: Tensor, mode: str) -> Task:
    """As one would write it for this network alone: the KL in closed form, nothing checked or counted."""
    encoder, heads = nn.Sequential(mlp(PIXELS, WIDTH, WIDTH), nn.ReLU()), nn.Linear(WIDTH, 2 * LATENT)
    decoder = mlp(LATENT, WIDTH, WIDTH, PIXELS)
    modules = nn.ModuleList([encoder, heads, decoder]).to(images.device)
    optimiser = torch.optim.Adam(modules.parameters(), lr=RATE, fused=True, capturable=mode == "cudagraph")

    def loss() -> Tensor:
        loc, log_variance = heads(encoder(images)).chunk(2, dim=-1)
        z = loc + torch.randn_like(loc) * torch.exp(0.5 * log_variance)
        misfit = F.binary_cross_entropy_with_logits(decoder(z), images, reduction="sum")
        kl = 0.5 * (loc.square() + log_variance.exp() - log_variance - 1.0).sum()
        return (misfit + kl) / len(images)

    evaluate: Callable[[], Tensor] = torch.compile(loss) if mode == "compile" else loss

    def step() -> Tensor:
        optimiser.zero_grad()
        value = evaluate()
        value.backward()
        optimiser.step()
        return value

    if mode != "cudagraph":
        return lambda: [step().item() for _ in range(STEPS)]
    replay = captured(step)

    def steps() -> None:
        for _ in range(STEPS):
            replay()
        torch.cuda.synchronize()

    return steps


def captured(step: Callable[[], Tensor]) -> Callable[[], None]:
    """A whole step as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def pyro_svi(images: Tensor) -> Task:
    """Pyro's inference on our model and guide, with its default checks."""
    pyro.clear_param_store()
    vae = model().to(images.device)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": RATE, "fused": True}), Trace_ELBO())
    return lambda: [svi.step(images) for _ in range(STEPS)]


def competitors(images: Tensor, inductor: bool) -> dict[str, Task]:
    """The tasks by name."""
    tasks = {
        "ours": ours(images, False),
        "ours, trace": ours(images, "trace"),
        "torch": by_hand(images, "eager"),
        "Pyro": pyro_svi(images),
    }
    if inductor:
        tasks["ours, inductor"] = ours(images, "inductor")
        tasks["torch, torch.compile"] = by_hand(images, "compile")
    if images.is_cuda:
        tasks["ours, cudagraph"] = ours(images, "cudagraph")
        tasks["torch, CUDA graph"] = by_hand(images, "cudagraph")
    return tasks


def memory_of(images: int, samples: int, threads: int) -> dict[str, Any]:
    """The peak memory of one estimate, in a process of its own."""
    arguments = ["--child", str(images), str(samples), "--threads", str(threads)]
    done = subprocess.run([sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def child(images: int, samples: int) -> None:
    """Estimate, and print what it took."""
    imported = megabytes()
    started = time.perf_counter()
    nll(model(), torch.rand(images, PIXELS).round_(), samples)
    seconds = time.perf_counter() - started
    print(
        json.dumps(
            {
                "images": images,
                "samples": samples,
                "imported_mib": imported,
                "peak_mib": megabytes(),
                "seconds": seconds,
            }
        )
    )


def where(images: Tensor) -> str:
    """The device in words."""
    return torch.cuda.get_device_name(images.device) if images.is_cuda else "cpu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--inductor", action="store_true", help="also what takes a C++ compiler and some minutes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps-only", action="store_true", help="no memory, and no record")
    parser.add_argument("--full", action="store_true", help="5000 samples for each of 10,000 images: hours")
    parser.add_argument("--child", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RECORDS / "vae.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        child(*options.child)
        return
    torch.manual_seed(1)
    images = torch.rand(BATCH, PIXELS).round_().to(options.device)
    tasks = competitors(images, options.inductor)
    clock = time.perf_counter if images.is_cuda else clock_for(options.threads)
    seconds = {name: value / STEPS for name, value in interleaved(tasks, options.repeats, clock=clock).items()}
    for name, value in seconds.items():
        print(f"{name}: {1e3 * value:.3f} ms, {value / seconds['torch']:.2f} times torch by hand")
    if options.steps_only:
        return
    memory = [memory_of(*size, options.threads) for size in (*SIZES, *([FULL] if options.full else []))]
    for row in memory:
        print(
            f"{row['images']} images, {row['samples']} samples: peak {row['peak_mib']:.0f} MiB, of which "
            f"{row['imported_mib']:.0f} for the imports"
        )
    write_record(
        options.out,
        {"clock": clock.__name__, "device": where(images), "seconds": seconds, "memory": memory},
    )


if __name__ == "__main__":
    main()
