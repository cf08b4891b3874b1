"""Memory that the backward pass of a continuous flow holds on to, by the number of steps that its solver takes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from measure import RECORDS, write_record
from residual_memory import BATCH, DIM, saved_bytes

from pyro_flows_vi.testing import randomize
from pyro_flows_vi.transforms import Continuous


def measure(**options: Any) -> dict[str, Any]:
    """Bytes saved in a forward pass, beside the evaluations of the velocity that it took."""
    torch.manual_seed(0)
    flow = randomize(Continuous(DIM, **options), 0.3)
    evaluations, linearise = 0, flow.net.linearise

    def counted(*arguments: Any) -> Any:
        nonlocal evaluations
        evaluations += 1
        return linearise(*arguments)

    flow.net.linearise = counted  # type: ignore[method-assign]
    with torch.no_grad():
        flow.forward_and_log_det(torch.randn(BATCH, DIM))
    return {**options, "evaluations": evaluations, "saved_bytes": saved_bytes(flow)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RECORDS / "continuous_memory.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [measure(solver="dopri5", tolerance=tolerance) for tolerance in (1e-2, 1e-4, 1e-6)]
    rows += [measure(solver="rk4", num_steps=steps) for steps in (5, 20)]
    for row in rows:
        print(f"{row['solver']}, {row['evaluations']:4} evaluations: {row['saved_bytes'] / 2**20:.2f} MiB")
    write_record(options.out, {"dim": DIM, "batch": BATCH, "rows": rows})


if __name__ == "__main__":
    main()
