"""AutoAmortizedFlow: local latents of subsampled plates, beside global ones."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

from pyro_flows_vi.guides import AutoAmortizedFlow

X = 1.0 + 1.5 * torch.randn(12, generator=torch.Generator().manual_seed(0))
NOISE = 0.5


def hierarchy(x: Tensor, size: int | None = 4) -> None:
    """Linear and Gaussian: a global mean, and a local latent for each datum."""
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), subsample_size=size) as rows:
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        pyro.deterministic("twice", 2.0 * z)
        pyro.sample("x", dist.Normal(z, NOISE), obs=x[rows])


def encoder(x: Tensor, size: int | None = 4, *, indices: Tensor) -> Tensor:
    return x[indices, None]


def posterior(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviations of (loc, z_1, ..., z_n)."""
    n = len(x)
    precision = torch.diag(torch.tensor([1.0 + n] + [1.0 + NOISE**-2] * n))
    precision[0, 1:] = precision[1:, 0] = -1.0
    covariance = torch.linalg.inv(precision)
    return covariance @ torch.cat([torch.zeros(1), x / NOISE**2]), covariance.diagonal().sqrt()


def make(**options: Any) -> AutoAmortizedFlow:
    options = {
        "flow": "planar",
        "num_transforms": 1,
        "global_options": {"flow": "planar", "num_transforms": 1},
        **options,
    }
    return AutoAmortizedFlow(hierarchy, encoder, 1, **options)


def train(model: Any, guide: Any, *args: Any, steps: int = 3, lr: float = 0.02, **kwargs: Any) -> list[float]:
    elbo = Trace_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=2)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": lr, "lrd": 0.1 ** (1.0 / steps)}), elbo)
    return [svi.step(*args, **kwargs) for _ in range(steps)]


def test_recovers_local_posteriors() -> None:
    guide = make()
    train(hierarchy, guide, X, steps=150, lr=0.05)
    mean, sd = posterior(X)
    found = guide.quantiles([0.158655, 0.5, 0.841345], X)
    low, median, high = torch.cat([found["loc"][:, None], found["z"]], dim=1)
    assert float(((median - mean) / sd).abs().max()) < 0.4
    assert float((((high - low) / 2 / sd).log()).abs().max()) < 0.25


def test_the_elbo_of_minibatches_is_unbiased() -> None:
    guide = make(init_scale=0.5).setup(X)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        elbo = Trace_ELBO(num_particles=100, vectorize_particles=True, max_plate_nesting=1)
        whole = torch.tensor([elbo.loss(hierarchy, guide, X, None) for _ in range(4)])
        parts = torch.tensor([elbo.loss(hierarchy, guide, X, 4) for _ in range(120)])
    spread = math.sqrt(float(parts.var()) / len(parts) + float(whole.var()) / len(whole))
    assert abs(float(parts.mean() - whole.mean())) < 4.0 * spread < 0.3 * abs(float(whole.mean()))


def test_the_terms_of_a_minibatch_are_scaled() -> None:
    guide = make().setup(X)
    trace = poutine.trace(guide).get_trace(X)
    trace.compute_log_prob()
    site = trace.nodes["_AutoAmortizedFlow_local"]
    assert site["scale"] == 3.0 and site["log_prob"].shape == (4,)
    assert torch.equal(trace.nodes["data"]["value"].sort().values.unique(), trace.nodes["data"]["value"].sort().values)


def test_local_latents_depend_on_global_ones_unless_told_not_to() -> None:
    for sees in (True, False):
        guide = make(see_globals=sees).setup(X)
        with torch.no_grad():
            for parameter in guide.parameters():
                parameter.add_(0.5 * torch.randn_like(parameter))
        context, x = torch.ones(1, 1), torch.zeros(1, 1)
        one, two = (guide._condition(context, torch.tensor([g]))[0].forward_and_log_det(x)[0] for g in (-1.0, 1.0))
        assert torch.equal(one, two) is not sees


def test_modules_are_trained_along() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(1, 3)

        def forward(self, x: Tensor, indices: Tensor) -> Tensor:
            return torch.tanh(self.net(x[indices, None]))

    network = Encoder()
    before = network.net.weight.detach().clone()
    train(hierarchy, AutoAmortizedFlow(hierarchy, network, 3, num_transforms=1), X)
    assert not torch.equal(network.net.weight, before)


def test_other_data_and_other_sizes() -> None:
    guide = make().setup(X)
    assert guide(torch.randn(30))["z"].shape == (4,) and guide(torch.randn(5), None)["z"].shape == (5,)
    assert guide.median(torch.randn(30))["z"].shape == (30,)
    draws = guide.sample_posterior(3, X, None)
    assert draws["loc"].shape == (3,) and draws["z"].shape == (3, 12)
    torch.testing.assert_close(draws["twice"], 2.0 * draws["z"])
    with pytest.raises(ValueError, match="at random"):
        guide.sample_posterior(3, X)


def test_rows_given_by_the_model() -> None:
    """Without create_plates: the encoder sees the rows that the model is told to look at."""

    def model(batch: Tensor, rows: Tensor) -> None:
        with pyro.plate("data", 12, subsample=rows):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=batch)

    seen = []

    def encode(batch: Tensor, rows: Tensor, indices: Tensor) -> Tensor:
        seen.append(indices)
        return batch[:, None]

    guide = AutoAmortizedFlow(model, encode, 1, num_transforms=1)
    for rows in (torch.tensor([3, 1]), torch.tensor([0, 5])):
        trace = poutine.trace(guide).get_trace(X[rows], rows)
        assert torch.equal(seen[-1], rows) and torch.equal(trace.nodes["data"]["value"], rows)
    guide = AutoAmortizedFlow(
        model, encode, 1, create_plates=lambda batch, rows: pyro.plate("data", 12, subsample=rows)
    )
    guide(X[:2], torch.arange(2))
    assert guide.median(X[:2], torch.arange(2))["z"].shape == (2,)


def test_several_sites_inner_plates_and_bounds() -> None:
    def model(x: Tensor, size: int = 2) -> None:
        top = pyro.sample("top", dist.Gamma(3.0, 1.0))
        data = pyro.plate("data", len(x), subsample_size=size, dim=-1)
        with data as rows:
            weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
            with pyro.plate("times", 5, dim=-2):
                y = pyro.sample("y", dist.Uniform(0.0, top))
                pyro.sample("x", dist.Normal(y * weights[..., 0], 1.0), obs=x[rows].T)

    x = torch.randn(6, 5)
    guide = AutoAmortizedFlow(model, lambda x, size=2, *, indices: x[indices], 5, num_transforms=1)
    assert all(math.isfinite(loss) for loss in train(model, guide, x))
    drawn = guide(x)
    assert drawn["weights"].shape == (2, 3) and drawn["y"].shape == (5, 2)
    assert bool((drawn["y"] < drawn["top"]).all())
    elbo_trace = poutine.trace(poutine.replay(model, poutine.trace(guide).get_trace(x))).get_trace(x)
    assert elbo_trace.log_prob_sum().isfinite()


def test_keeping() -> None:
    guide = make()
    train(hierarchy, guide, X)
    fresh = make().setup(X)
    fresh.load_state_dict(guide.state_dict())
    loaded, copied = pickle.loads(pickle.dumps(guide)), copy.deepcopy(guide)
    expected = guide.median(X)["z"]
    for other in (fresh, loaded, copied):
        torch.testing.assert_close(other.median(X)["z"], expected)
    assert guide.double().median(X.double())["z"].dtype == torch.float64


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="encoder"):
        AutoAmortizedFlow(hierarchy, None, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expected the encoder to give .* \(4, 2\).*got \(4, 1\)"):
        AutoAmortizedFlow(hierarchy, encoder, 2, num_transforms=1)(X)
    with pytest.raises(ValueError, match="'other'"):
        make(plate="other").setup(X)
    with pytest.raises(ValueError, match="use AutoFlow"):
        AutoAmortizedFlow(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)), encoder, 1).setup()
    with pytest.raises(ValueError, match="setup"):
        make().load_state_dict({})
