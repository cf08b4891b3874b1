"""Memory that the backward pass of a residual flow holds on to, by the number of terms of its series."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from measure import RECORDS, write_record
from torch import Tensor

from pyro_flows_vi.transforms import Flow, Residual

DIM, BATCH = 64, 1000


def saved_bytes(flow: Flow) -> int:
    """Bytes of the different tensors that autograd saves in one forward pass, the weights among them."""
    torch.manual_seed(0)
    kept: dict[int, Tensor] = {}  # holds the tensors, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y, log_det = flow.forward_and_log_det(torch.randn(BATCH, DIM, requires_grad=True))
    (y.square().sum() - log_det.sum()).backward()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--terms", nargs="+", type=int, default=[1, 10, 100])
    parser.add_argument("--out", type=Path, default=RECORDS / "residual_memory.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [
        {"num_terms": n, "saved_bytes": saved_bytes(Residual(DIM, log_det="series", num_terms=n))}
        for n in options.terms
    ]
    for row in rows:
        ratio = row["saved_bytes"] / rows[0]["saved_bytes"]
        print(f"{row['num_terms']:4} terms: {row['saved_bytes'] / 2**20:.2f} MiB, {ratio:.3f} x the first")
    write_record(options.out, {"dim": DIM, "batch": BATCH, "rows": rows})


if __name__ == "__main__":
    main()
