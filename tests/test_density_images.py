"""Images as densities: noise, logits and bits per dimension against closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_flows_vi import flows
from pyro_flows_vi.density import (
    FlowDensity,
    ImageDensity,
    UniformDequantisation,
    VariationalDequantisation,
    dequantise,
    image_density,
    scored,
)
from pyro_flows_vi.density.scaling import PixelLogit

QUIET: dict[str, Any] = {"progress": False, "seed": 0}


def test_the_logit_and_its_jacobian() -> None:
    pixels = PixelLogit(3, levels=16, logit_level=0.05).double()
    y = torch.tensor([0.0, 7.3, 16.0], dtype=torch.float64)
    x, log_det = pixels.inverse_and_log_det(y)
    torch.testing.assert_close(x, torch.logit(0.05 + 0.9 * y / 16.0))
    jacobian = torch.autograd.functional.jacobian(lambda x: pixels.forward_and_log_det(x)[0], x)
    torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobian)[1])
    back, again = pixels.forward_and_log_det(x)
    torch.testing.assert_close(back, y)
    torch.testing.assert_close(again, log_det)
    with pytest.raises(ValueError, match=r"expected pixel values from 0 to 16, got values from -9 to 3"):
        pixels.inverse_and_log_det(torch.tensor([-9.0, 0.0, 3.0]))
    with pytest.raises(ValueError, match=r"logit_level to be between 0 and 0.5, got 0"):
        PixelLogit(3, logit_level=0.0)


def logistic_density(levels: int, level: float, dim: int = 2) -> ImageDensity:
    """An image density whose flow is the identity: logits are standard normal."""
    return ImageDensity("actnorm", (1, dim), levels=levels, logit_level=level, num_transforms=1).double().eval()


def test_bits_per_dim_are_those_of_the_published_formula() -> None:
    r"""b = -log p(x) / (D ln 2) - log2(1 - 2λ) + 8 + mean of log2 σ(x) + log2(1 - σ(x)), at logits x."""
    level, dim = 1e-6, 2
    density = logistic_density(256, level, dim)
    images = torch.randint(256, (50, dim)).double()
    torch.manual_seed(3)
    x = torch.logit(level + (1 - 2 * level) * (images + torch.rand_like(images)) / 256)
    log_p = (-0.5 * x.square() - 0.5 * math.log(2 * math.pi)).sum(-1)
    sigma = torch.sigmoid(x)
    last = (sigma.log2() + (1 - sigma).log2()).mean(-1)
    expected = -log_p / (dim * math.log(2)) - math.log2(1 - 2 * level) + 8 + last
    found = density.bits_per_dim(images, seed=3)
    torch.testing.assert_close(found.values, expected)
    assert found.mean == pytest.approx(float(expected.mean())) and found.count == 50
    torch.testing.assert_close(density.nats_of_logits(images, seed=3).values, log_p)
    torch.testing.assert_close(-density.nats(images, seed=3).values / (dim * math.log(2)), expected)


class Uniform(flows.Flow):
    """Makes the logits of pixels that are uniform on their range: bits per dimension are known exactly."""

    def __init__(self, dim: int, level: float) -> None:
        super().__init__(dim)
        self.level = level
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        share = self.level + (1 - 2 * self.level) * torch.special.ndtr(x)
        slope = (1 - 2 * self.level) * torch.exp(-0.5 * x.square()) / math.sqrt(2 * math.pi) / (share * (1 - share))
        return torch.logit(share), slope.log().sum(-1)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = torch.special.ndtri((torch.sigmoid(y) - self.level) / (1 - 2 * self.level))
        return x, self.forward_and_log_det(x)[1]


@pytest.mark.parametrize("levels", [2, 256])
def test_a_uniform_density_costs_the_logarithm_of_the_levels(levels: int) -> None:
    density = ImageDensity(Uniform(4, 0.05), (2, 2), levels=levels, standardise=False).double()
    images = torch.randint(levels, (20, 4)).double()
    found = density.bits_per_dim(images)
    torch.testing.assert_close(found.values, torch.full((20,), math.log2(levels), dtype=torch.float64))
    drawn = density.sample(4000)
    assert set(drawn.unique().tolist()) <= set(range(levels)) and float(drawn.mean()) == pytest.approx(
        (levels - 1) / 2, rel=0.1
    )


def test_the_bound_is_below_the_probability_of_a_level() -> None:
    """P(x) is the integral of the density over a level: by quadrature above the bound, and not by much."""
    density = logistic_density(4, 0.05, 1)
    for value in range(4):
        inside = torch.linspace(value, value + 1, 2001, dtype=torch.float64)[:, None]
        exact = float(torch.trapezoid(density.log_prob(inside).detach().exp(), inside[:, 0]).log())
        image = torch.tensor([[float(value)]], dtype=torch.float64)
        bound = density.nats(image.expand(4000, 1)).mean
        assert exact - 0.3 < bound < exact


def test_variational_noise_starts_uniform_and_is_a_density() -> None:
    torch.manual_seed(0)
    noise = VariationalDequantisation("realnvp", 2, levels=4, num_transforms=2).double()
    x = torch.randint(4, (2000, 2)).double()
    with torch.no_grad():
        u, log_q = noise(x)
    assert bool(((u > 0) & (u < 1)).all()) and float(u.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(log_q.abs().max()) < 0.5  # uniform but for small initial weights
    for parameter in noise.parameters():
        parameter.data.normal_(0.0, 0.5)
    # E_q[1 / q(u|x)] is the volume that q covers: one, whatever the parameters
    many = x[:1].expand(200_000, 2)
    weights = torch.exp(-noise(many)[1]).detach()
    assert float(weights.mean()) == pytest.approx(1.0, abs=6 * float(weights.std() / math.sqrt(len(many))))
    with pytest.raises(ValueError, match=r"input_dim and context_dim 2, the number of pixels, got 2 and None"):
        VariationalDequantisation(flows.build("realnvp", 2), 2)


def test_learned_noise_tightens_the_bound() -> None:
    """A discrete distribution: no bound beats its entropy, and learned noise comes closer than uniform noise."""
    torch.manual_seed(0)
    chances = torch.tensor([0.7, 0.1, 0.1, 0.1])
    images = torch.multinomial(chances, 3000, replacement=True).float()[:, None].expand(-1, 2).clone()
    images[:, 1] = torch.multinomial(chances, 3000, replacement=True).float()
    rows = images[:2000], images[2000:]
    entropy = -2 * float((chances * chances.log()).sum())
    found = {}
    for kind in ("uniform", "variational"):
        density = ImageDensity("realnvp", (1, 2), levels=4, dequantisation=kind, num_transforms=2, hidden_dims=(32,))
        density.fit(rows[0], validation=rows[1], max_epochs=25, learning_rate=5e-3, **QUIET)
        found[kind] = density.nats(rows[1], num_samples=10)
    worse, better = found["uniform"], found["variational"]
    gap = better.values - worse.values
    assert float(gap.mean()) > 0.02
    assert -better.mean > entropy - 4 * better.se


def test_images_are_fitted_saved_and_drawn(tmp_path: Path) -> None:
    images = torch.randint(16, (200, 4), dtype=torch.uint8)
    density = ImageDensity("maf", (2, 2), levels=16, dequantisation="variational", num_transforms=1, hidden_dims=(8,))
    result = density.fit(images, max_epochs=2, **QUIET)
    assert result.best < 0 and density.evaluate(images).mean == density.nats(images).mean
    density.save(tmp_path / "images")
    again = ImageDensity.load(tmp_path / "images")
    assert isinstance(again, ImageDensity) and again.levels == 16
    assert again.bits_per_dim(images, num_samples=2) == density.bits_per_dim(images, num_samples=2)
    with pytest.raises(ValueError, match=r"expected a checkpoint of kind 'density model', got 'image density model'"):
        FlowDensity.load(tmp_path / "images")
    state = torch.get_rng_state()
    assert density.bits_per_dim(images).mean != density.bits_per_dim(images, seed=1).mean
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.full((50, 4), 16.0), "expected pixel values from 0 to 15, got values from 16 to 16"),
        (torch.rand(50, 4), "whole numbers from 0 to 15, got others such as 0.*multiply intensities by 15"),
        (torch.full((50, 4), math.nan), "NaN or infinite"),
        (-torch.ones(50, 4), "got values from -1 to -1"),
    ],
)
def test_pixels_out_of_range_are_refused(images: Tensor, message: str) -> None:
    density = ImageDensity("maf", (2, 2), levels=16, num_transforms=1)
    with pytest.raises(ValueError, match=message):
        density.fit(images, max_epochs=1, **QUIET)


def test_settings_of_images_are_checked() -> None:
    with pytest.raises(ValueError, match=r"expected the shape of an image"):
        ImageDensity("maf")
    with pytest.raises(ValueError, match=r"expected levels to be an integer of at least 2, got 1"):
        ImageDensity("maf", (2, 2), levels=1)
    with pytest.raises(ValueError, match=r"unknown dequantisation 'gaussian'"):
        ImageDensity("maf", (2, 2), dequantisation="gaussian")
    with pytest.raises(ValueError, match=r"uniform noise has no settings"):
        ImageDensity("maf", (2, 2), noise={"flow": "maf"})
    own = ImageDensity("maf", (2, 2), dequantisation=UniformDequantisation(), num_transforms=1)
    assert isinstance(own.dequantisation, UniformDequantisation)


def test_tables_of_counts_are_dequantised() -> None:
    x = torch.randint(5, (500, 3))
    noisy = dequantise(x, [0, 2], seed=4)
    assert torch.equal(noisy[:, 1], x[:, 1].float()) and torch.equal(noisy[:, [0, 2]].floor(), x[:, [0, 2]].float())
    assert not torch.equal(noisy[:, 0], x[:, 0].float()) and torch.equal(noisy, dequantise(x, [0, 2], seed=4))
    tenths = dequantise(x.double() / 10, width=0.1)
    assert float((tenths - x / 10).max()) < 0.1


def test_a_flow_that_was_told_the_shape_is_read_again(tmp_path: Path) -> None:
    density = ImageDensity("glow", (4, 4), levels=4, num_transforms=1, hidden_channels=4)
    density.save(tmp_path / "density")
    other = ImageDensity.load(tmp_path / "density")
    images = torch.randint(4, (5, 16))
    torch.testing.assert_close(other.nats(images).values, density.nats(images).values)


def test_nats_of_logits_are_those_of_uniform_noise() -> None:
    images = torch.randint(0, 4, (20, 4)).float()
    density = ImageDensity("realnvp", (2, 2), levels=4, dequantisation="variational")
    assert set(density.measures(images)) == {"nats", "bits_per_dim"}
    with pytest.raises(ValueError, match="those of uniform noise"):
        density.nats_of_logits(images)


@pytest.mark.parametrize(
    "make", [lambda: FlowDensity("realnvp", 4, 2), lambda: ImageDensity("realnvp", (2, 2), levels=5, context_dim=2)]
)
def test_contexts_of_many_rows(make: Callable[[], FlowDensity], monkeypatch: pytest.MonkeyPatch) -> None:
    """One for all or one for each, in parts of any size; never one for the rest of the rows."""
    monkeypatch.setattr(image_density, "CACHED", 8)
    monkeypatch.setattr(scored, "CHUNK", 8)
    density, images, context = make(), torch.randint(0, 5, (20, 4)).float(), torch.randn(20, 2)
    whole = density.evaluate(images, context).values
    each = [density.evaluate(images[i : i + 1], context[i]).values for i in range(20)]
    if isinstance(density, ImageDensity):  # the noise of a row depends on those before
        assert whole.shape == (20,)
    else:
        torch.testing.assert_close(whole, torch.cat(each))
    same = [density.evaluate(images, c).values for c in (context[0], context[:1], context[:1].expand(20, 2))]
    assert torch.equal(same[0], same[1]) and torch.equal(same[0], same[2]) and not torch.equal(same[0], whole)
    with pytest.raises(ValueError, match="a context for each of 20 rows, or one for all"):
        density.evaluate(images, context[:9])
