"""A training step of several seeds of a VAE as one program, beside the steps of each of them."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from measure import RECORDS, clock_for, interleaved, write_record
from torch import Tensor
from vae_step import BATCH, PIXELS, STEPS, Data, Task, model, where

from pyro_flows_vi.infer._as_one import Stream
from pyro_flows_vi.vae import VAE, Protocol, build_vae, protocol, row
from pyro_flows_vi.vae._stack import Member
from pyro_flows_vi.vae.minibatches import Minibatches
from pyro_flows_vi.vae.seeds import Seeds
from pyro_flows_vi.vae.trainer import Trainer

#: rows of the table with the small network, for images of 8 x 8 pixels
ROWS = ("none", "planar-10", "iaf")
SIDE = 8
LARGE = "784-400-400-64"


def begun(trainer: Trainer) -> Trainer:
    """In an epoch without an end."""
    trainer.begin_epoch()
    trainer.minibatches = Minibatches(trainer.data.batches(BATCH, trainer.generator))
    return trainer


def steps_of(work: Trainer | Seeds) -> None:
    """So many steps, with what the loop takes note of."""
    done = 0
    while done < STEPS:
        rows = work.driver.run(STEPS - done)
        done += len(rows)
        if isinstance(work, Trainer):
            work.count(rows)
        else:
            for member, outcomes in zip(work.group, zip(*rows, strict=True), strict=True):
                member.count(outcomes)


def tasks(
    make: Callable[[], VAE], settings: Protocol, images: Tensor, count: int, modes: Sequence[str]
) -> dict[str, Task]:
    """The same steps one by one and together, in each mode."""
    found: dict[str, Task] = {}
    for word in modes:
        mode = False if word == "eager" else word
        common = Data(images), settings
        alone = [
            begun(Trainer(make().to(images.device), *common, i, images.device, None, {}, mode)) for i in range(count)
        ]
        members = [
            Member(Stream(i, images.device), make().to(images.device), *common, i, images.device, None, {})
            for i in range(count)
        ]
        seeds = Seeds(members, mode)
        for member in members:
            begun(member)
        found[f"{word}, one by one"] = lambda alone=alone: [steps_of(trainer) for trainer in alone]  # type: ignore[misc]
        found[f"{word}, together"] = lambda seeds=seeds: steps_of(seeds)  # type: ignore[misc]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--rows", nargs="*", default=ROWS)
    parser.add_argument("--modes", nargs="+", default=["eager", "trace"], help="eager, trace, inductor or cudagraph")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=RECORDS / "seeds.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    small, large = protocol("demo", batch_size=BATCH), protocol("mlp", hidden_dims=(400, 400), latent_dim=64)
    cases = [
        (name, small, SIDE**2, lambda name=name: build_vae(small, row(name), (SIDE, SIDE))) for name in options.rows
    ]
    clock = time.perf_counter if options.device != "cpu" else clock_for(options.threads)
    results = []
    for name, settings, pixels, make in [*cases, (LARGE, large, PIXELS, model)]:
        images = torch.rand(BATCH, pixels).round_().to(options.device)
        found = interleaved(tasks(make, settings, images, options.seeds, options.modes), options.repeats, clock=clock)
        seconds = {task: value / STEPS for task, value in found.items()}
        results.append({"model": name, "parameters": sum(p.numel() for p in make().parameters()), "seconds": seconds})
        for mode in options.modes:
            alone, together = seconds[f"{mode}, one by one"], seconds[f"{mode}, together"]
            print(f"{name}, {mode}: {1e3 * together:.2f} ms, one by one {alone / together:.2f} times as much")
    record = {"clock": clock.__name__, "device": where(images), "seeds": options.seeds, "batch": BATCH}
    write_record(options.out, {**record, "rows": results})


if __name__ == "__main__":
    main()
