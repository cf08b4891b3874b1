"""Defects known of the flow guides that ship with Pyro 1.9.2, one test each: none of them may show here."""

from __future__ import annotations

import io
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO
from pyro.infer.autoguide import init_to_value

from pyro_flows_vi.guides import AutoAmortizedFlow, AutoFlow, AutoIAF, AutoPlanar, AutoRealNVP


def model() -> None:
    with pyro.plate("p", 3):
        pyro.sample("x", dist.Normal(torch.tensor([1.0, 2.0, 3.0]), 1.0))


def subsampled(x: torch.Tensor, size: int | None = 4) -> None:
    with pyro.plate("rows", len(x), subsample_size=size) as rows:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])


def train(model: Any, guide: Any, *args: Any, steps: int = 2, lr: float = 0.01, elbo: Any = None) -> list[float]:
    svi = SVI(model, guide, pyro.optim.Adam({"lr": lr}), elbo or Trace_ELBO(num_particles=8, vectorize_particles=True))
    return [svi.step(*args) for _ in range(steps)]


def test_28_median_and_quantiles() -> None:
    guide = AutoIAF(model).setup()
    assert guide.median()["x"].shape == (3,) and guide.quantiles([0.1, 0.9])["x"].shape == (2, 3)


def test_29_the_start_is_honoured() -> None:
    start = init_to_value(values={"x": torch.tensor([-7.0, 0.0, 100.0])})
    for guide in (AutoIAF(model, init_loc_fn=start), AutoFlow(model, "planar", init_loc_fn=start)):
        torch.testing.assert_close(guide.median()["x"], torch.tensor([-7.0, 0.0, 100.0]), rtol=1e-4, atol=1e-4)


def test_30_documented_options_work() -> None:
    AutoIAF(model, num_transforms=2, hidden_dims=(8,)).setup()
    with pytest.raises(ValueError, match="hidden_dims"):
        AutoIAF(model, hidden_dim=8)


def test_31_parameters_before_the_first_call() -> None:
    guide = AutoPlanar(model).setup()
    optimizer = torch.optim.Adam(guide.parameters())
    assert sum(len(group["params"]) for group in optimizer.param_groups) > 0
    assert all(p.dtype == torch.float64 for p in guide.double().parameters())
    AutoPlanar(model).setup().load_state_dict(guide.state_dict())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_32_nothing_spurious_in_the_state_and_jit_works() -> None:
    guide = AutoIAF(model, num_transforms=1)
    elbo = JitTrace_ELBO(ignore_jit_warnings=True)
    assert all(math.isfinite(loss) for loss in train(model, guide, elbo=elbo))
    assert all(name.startswith("transform.") for name in guide.state_dict())


def test_33_a_state_brings_everything_that_the_flow_is() -> None:
    guide = AutoIAF(model, num_transforms=2)
    train(model, guide)
    buffer = io.BytesIO()
    torch.save(guide.state_dict(), buffer)
    buffer.seek(0)
    pyro.clear_param_store()
    torch.manual_seed(99)  # under which a random permutation would be another one
    fresh = AutoIAF(model, num_transforms=2).setup()
    fresh.load_state_dict(torch.load(buffer))
    x = torch.randn(5, 3)
    torch.testing.assert_close(fresh.log_prob(x), guide.log_prob(x), rtol=0.0, atol=0.0)
    with pytest.raises(RuntimeError, match=r"Missing|Unexpected"):
        AutoIAF(model, num_transforms=3).setup().load_state_dict(guide.state_dict())


def test_34_no_coordinate_is_left_alone() -> None:
    guide = AutoRealNVP(model, num_transforms=4, dense=False).setup()
    chain = guide.get_transform()[:4]
    with torch.no_grad():
        for parameter in chain.parameters():
            parameter.add_(torch.randn_like(parameter))
    jacobian = torch.autograd.functional.jacobian(lambda v: chain.forward_and_log_det(v)[0], torch.randn(3))
    assert bool((jacobian - torch.eye(3)).abs().amax(1).gt(1e-3).all())


def test_35_small_scales_are_reached() -> None:
    def narrow() -> None:
        pyro.sample("x", dist.Normal(torch.zeros(2), 0.001).to_event(1))

    guide = AutoIAF(narrow, init_scale=0.003, num_transforms=1)
    train(narrow, guide, steps=400, lr=0.02)
    low, high = guide.quantiles([0.158655, 0.841345])["x"]
    torch.testing.assert_close((high - low) / 2.0, torch.full((2,), 0.001), rtol=0.35, atol=0.0)


def test_36_no_box() -> None:
    def far() -> None:
        pyro.sample("x", dist.Normal(torch.tensor([10.0, -10.0]), 1.0).to_event(1))

    guide = AutoFlow(far, num_transforms=2, init_loc_fn=init_to_value(values={"x": torch.zeros(2)}))
    train(far, guide, steps=120, lr=0.15)
    torch.testing.assert_close(guide.median()["x"], torch.tensor([10.0, -10.0]), rtol=0.0, atol=0.5)


def test_37_local_latents_are_not_shared() -> None:
    x = torch.randn(10)
    with pytest.raises(ValueError, match=r"'z'.*subsampled plate.*AutoAmortizedFlow"):
        AutoFlow(subsampled).setup(x)
    guide = AutoAmortizedFlow(subsampled, lambda x, indices: x[indices, None], 1, num_transforms=1)
    train(subsampled, guide, x, steps=20, lr=0.05)
    median = guide.median(x)["z"]
    assert median.shape == (10,) and torch.corrcoef(torch.stack([median, x]))[0, 1] > 0.9


def test_38_data_of_another_size_is_refused() -> None:
    guide = AutoFlow(subsampled, num_transforms=1).setup(torch.randn(5), None)
    with pytest.raises(ValueError, match=r"'z' of shape \(5,\)"):
        guide(torch.randn(6), None)
