"""Two-dimensional targets: shapes to draw from and the energies U1 to U4, with their densities where known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["ENERGIES", "TARGETS", "Energy", "Target", "target"]

Sampler = Callable[[int, torch.Generator], Tensor]
Score = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Target:
    r"""A distribution over the plane that can be drawn from, with its density where that is known.

    Attributes:
        name: what it is called.
        draw: ``draw(n, generator)`` gives n points ``(n, 2)``.
        log_prob: the normalised log density of points ``(*batch, 2)``; ``None`` where it is not known.
        bound: half the width of a window that holds it all, for plots.
    """

    name: str
    draw: Sampler = field(repr=False)
    log_prob: Score | None = field(repr=False)
    bound: float = 4.0

    def sample(self, count: int, seed: int = 0) -> Tensor:
        """Points ``(count, 2)`` in float32; torch's generator is left as it was."""
        return self.draw(count, torch.Generator().manual_seed(seed)).float()


# -- shapes -------------------------------------------------------------------------------------------


def _moons(n: int, generator: torch.Generator) -> Tensor:
    """Two interleaving half circles with noise of sd 0.1, about the origin."""
    angle = math.pi * torch.rand(n, generator=generator, dtype=torch.float64)
    lower = torch.rand(n, generator=generator) < 0.5
    upper_arc = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], -1)
    lower_arc = torch.stack([0.5 - angle.cos(), 0.25 - angle.sin()], -1)
    points = torch.where(lower[:, None], lower_arc, upper_arc)
    return points + MOON_SD * torch.randn(n, 2, generator=generator, dtype=torch.float64)


def _moons_log_prob(x: Tensor) -> Tensor:
    """The mixture along both arcs, by the midpoint rule, whose error is below 1e-4 nats."""
    angle = math.pi * (torch.arange(MOON_NODES, dtype=torch.float64, device=x.device) + 0.5) / MOON_NODES
    upper_arc = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], -1)
    nodes = torch.cat([upper_arc, -upper_arc])
    squares = (x.double().unsqueeze(-2) - nodes).square().sum(-1)
    kernel = -0.5 * squares / MOON_SD**2
    constant = math.log(2.0 * math.pi * MOON_SD**2) + math.log(2.0 * MOON_NODES)
    return (torch.logsumexp(kernel, -1) - constant).to(x.dtype)


MOON_SD, MOON_NODES = 0.1, 512
RADII, RING_SD = (1.0, 2.0, 3.0), 0.1
CENTRES, CENTRE_RADIUS, CENTRE_SD = 8, 3.0, 0.3
ARMS, ARM_RATE, ARM_SDS = 5, 0.25, (0.3, 0.1)


def _rings(n: int, generator: torch.Generator) -> Tensor:
    """Three rings, each with a third of the mass."""
    which = torch.randint(len(RADII), (n,), generator=generator)
    noise = RING_SD * torch.randn(n, generator=generator, dtype=torch.float64)
    radius = torch.tensor(RADII, dtype=torch.float64)[which] + noise
    angle = 2.0 * math.pi * torch.rand(n, generator=generator, dtype=torch.float64)
    return radius[:, None] * torch.stack([angle.cos(), angle.sin()], -1)


def _rings_log_prob(x: Tensor) -> Tensor:
    radius = x.double().norm(dim=-1).clamp(min=1e-6)  # the density has a pole of no mass at the origin
    parts = -0.5 * ((radius[..., None] - radius.new_tensor(RADII)) / RING_SD).square()
    constant = math.log(len(RADII) * RING_SD * math.sqrt(2.0 * math.pi)) + math.log(2.0 * math.pi)
    return (torch.logsumexp(parts, -1) - constant - radius.log()).to(x.dtype)


def _checkerboard(n: int, generator: torch.Generator) -> Tensor:
    """Uniform on the eight black squares of a board of 4 x 4 on [-4, 4]^2."""
    row = torch.randint(4, (n,), generator=generator)
    column = 2 * torch.randint(2, (n,), generator=generator) + row % 2
    corner = 2.0 * torch.stack([column, row], -1).double() - 4.0
    return corner + 2.0 * torch.rand(n, 2, generator=generator, dtype=torch.float64)


def _checkerboard_log_prob(x: Tensor) -> Tensor:
    square = ((x + 4.0) / 2.0).floor()
    inside = ((square >= 0) & (square < 4)).all(-1) & (square.sum(-1) % 2 == 0)
    return torch.where(inside, -math.log(32.0), -math.inf).to(x.dtype)


def _gaussians(n: int, generator: torch.Generator) -> Tensor:
    """Eight Gaussians on a circle."""
    angle = 2.0 * math.pi / CENTRES * torch.randint(CENTRES, (n,), generator=generator)
    centre = CENTRE_RADIUS * torch.stack([angle.cos(), angle.sin()], -1)
    return centre + CENTRE_SD * torch.randn(n, 2, generator=generator, dtype=torch.float64)


def _gaussians_log_prob(x: Tensor) -> Tensor:
    angle = 2.0 * math.pi / CENTRES * torch.arange(CENTRES, dtype=x.dtype, device=x.device)
    centres = CENTRE_RADIUS * torch.stack([angle.cos(), angle.sin()], -1)
    parts = -0.5 * (x.unsqueeze(-2) - centres).square().sum(-1) / CENTRE_SD**2
    return torch.logsumexp(parts, -1) - math.log(CENTRES * 2.0 * math.pi * CENTRE_SD**2)


def _pinwheel(n: int, generator: torch.Generator) -> Tensor:
    """Five arms of a Gaussian each, bent by a rotation that grows with the radius."""
    noise = torch.randn(n, 2, generator=generator, dtype=torch.float64) * torch.tensor(ARM_SDS, dtype=torch.float64)
    radial, tangential = (noise + torch.tensor([1.0, 0.0], dtype=torch.float64)).unbind(-1)
    arm = torch.randint(ARMS, (n,), generator=generator)
    angle = 2.0 * math.pi / ARMS * arm + ARM_RATE * radial.exp()
    turned = [radial * angle.cos() - tangential * angle.sin(), radial * angle.sin() + tangential * angle.cos()]
    return 2.0 * torch.stack(turned, -1)


def _spirals(n: int, generator: torch.Generator) -> Tensor:
    """Two spirals."""
    turn = torch.rand(n, generator=generator, dtype=torch.float64).sqrt() * 3.0 * math.pi
    side = 2.0 * torch.randint(2, (n,), generator=generator).double() - 1.0
    arm = torch.stack([-turn.cos() * turn, turn.sin() * turn], -1) / 3.0
    return side[:, None] * arm + 0.1 * torch.randn(n, 2, generator=generator, dtype=torch.float64)


# -- energies -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Energy:
    r"""A potential U of Table 1 of Rezende and Mohamed, with the penalty :math:`\sum_i \max(0, |z_i| - 6)^2`.

    Without the penalty only U1 has a finite integral over the plane. log Z is that of :math:`e^{-U}` with it, so that
    :math:`\log p = -U - \log Z` is a density, and both Kullback-Leibler divergences are exact but for sampling error.
    """

    potential: Score
    log_z: float
    #: an upper bound of exp(-U)
    highest: float

    def __call__(self, z: Tensor) -> Tensor:
        """U with the penalty, ``(*batch, 2)`` to ``batch``."""
        return self.potential(z) + (z.abs() - 6.0).clamp(min=0.0).square().sum(-1)

    def log_prob(self, z: Tensor) -> Tensor:
        """-U - log Z."""
        return -self(z) - self.log_z

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Exact draws, by rejection from a square outside of which the density is below e^-25."""
        kept: list[Tensor] = []
        while sum(map(len, kept)) < n:
            z = 22.0 * torch.rand(8 * n, 2, generator=generator, dtype=torch.float64) - 11.0
            height = self.highest * torch.rand(8 * n, generator=generator, dtype=torch.float64)
            kept.append(z[height < torch.exp(-self(z))])
        return torch.cat(kept)[:n]


def _w1(z: Tensor) -> Tensor:
    return torch.sin(0.5 * math.pi * z[..., 0])


def _w2(z: Tensor) -> Tensor:
    return 3.0 * torch.exp(-0.5 * ((z[..., 0] - 1.0) / 0.6).square())


def _w3(z: Tensor) -> Tensor:
    return 3.0 * torch.sigmoid((z[..., 0] - 1.0) / 0.3)


def _u1(z: Tensor) -> Tensor:
    ring = 0.5 * ((z.norm(dim=-1) - 2.0) / 0.4).square()
    sides = [-0.5 * ((z[..., 0] + side) / 0.6).square() for side in (-2.0, 2.0)]
    return ring - torch.logaddexp(*sides)


def _u2(z: Tensor) -> Tensor:
    return 0.5 * ((z[..., 1] - _w1(z)) / 0.4).square()


def _u3(z: Tensor) -> Tensor:
    gap = z[..., 1] - _w1(z)
    return -torch.logaddexp(-0.5 * (gap / 0.35).square(), -0.5 * ((gap + _w2(z)) / 0.35).square())


def _u4(z: Tensor) -> Tensor:
    gap = z[..., 1] - _w1(z)
    return -torch.logaddexp(-0.5 * (gap / 0.4).square(), -0.5 * ((gap + _w3(z)) / 0.35).square())


#: The energies of "Variational inference with normalizing flows" (Rezende, Mohamed, 2015), arXiv:1505.05770; the
#: penalty is that of the code of "Block neural autoregressive flow" (De Cao et al., 2019), arXiv:1904.04676.
ENERGIES: dict[str, Energy] = {
    "u1": Energy(_u1, 1.877502, 1.01),
    "u2": Energy(_u2, 2.625318, 1.0),
    "u3": Energy(_u3, 3.184934, 2.0),
    "u4": Energy(_u4, 3.253927, 2.0),
}

TARGETS: dict[str, Target] = {
    t.name: t
    for t in (
        Target("moons", _moons, _moons_log_prob, 2.5),
        Target("rings", _rings, _rings_log_prob),
        Target("checkerboard", _checkerboard, _checkerboard_log_prob, 4.5),
        Target("gaussians", _gaussians, _gaussians_log_prob, 4.5),
        Target("pinwheel", _pinwheel, None),
        Target("spirals", _spirals, None),
        *(
            Target(name, energy.draw, energy.log_prob, 4.0 if name == "u1" else 8.0)
            for name, energy in ENERGIES.items()
        ),
    )
}


def target(name: str) -> Target:
    """A target by its name.

    Raises:
        ValueError: for an unknown name.

    Example:
        >>> target("u1").sample(3).shape
        torch.Size([3, 2])
    """
    if name not in TARGETS:
        raise ValueError(f"unknown target {name!r}: expected one of {', '.join(TARGETS)}")
    return TARGETS[name]
