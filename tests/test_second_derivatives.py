"""Second derivatives through inverses: right where the root has a closed form of its slope, else refused."""

from __future__ import annotations

import pytest
import torch
from cases import LAYERS

from pyro_flows_vi import testing


@pytest.mark.parametrize("name", LAYERS)
def test_second_derivatives_through_an_inverse_are_right_or_refused(name: str) -> None:
    flow = testing.randomize(LAYERS[name](2, None).double().eval(), 0.5)
    y = torch.randn(2, dtype=torch.float64, requires_grad=True)

    def log_prob(y: torch.Tensor) -> torch.Tensor:
        x, log_det = flow.inverse_and_log_det(y)
        return -0.5 * x.square().sum() - log_det

    searched = ("dsf", "bnaf", "residual", "tails", "adaptive", "convex", "mixture", "sos", "umnn")
    if any(word in name for word in searched):
        with pytest.raises(RuntimeError, match="second derivatives"):
            torch.autograd.functional.hessian(log_prob, y)
        return
    hessian = torch.autograd.functional.hessian(log_prob, y)
    step = 1e-5 * torch.eye(2, dtype=torch.float64)
    gradient = torch.func.grad(log_prob)
    rows = [(gradient(y.detach() + e) - gradient(y.detach() - e)) / 2e-5 for e in step]
    torch.testing.assert_close(hessian, torch.stack(rows), rtol=1e-5, atol=1e-6)
