"""The parts of an amortised guide: where local sites lie in the vector of one datum, and an affine layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_flows_vi.infer.layout import Site
from pyro_flows_vi.nets.parameters import ParameterNet
from pyro_flows_vi.transforms.base import Flow

__all__ = ["AmortizedAffine", "LocalSite", "local_plate"]


@dataclass(frozen=True)
class LocalSite:
    """A latent site inside the local plate, and its slice of the flat vector of one datum.

    Attributes:
        name: as in ``pyro.sample(name, ...)``.
        rest: the unconstrained shape of one datum.
        axis: where the plate's axis lies in the unconstrained shape of all data, from the left.
        batch_dims: how many of the axes of that shape belong to plates.
        event_dim: of the constrained value.
        start: where the slice begins.
    """

    name: str
    rest: torch.Size
    axis: int
    batch_dims: int
    event_dim: int
    start: int

    @staticmethod
    def read(site: Site, event_dim: int, dim: int, start: int) -> LocalSite:
        """From the layout's site, the plate's dimension ``dim`` and the place where the slice begins."""
        shape = site.unconstrained_shape
        batch_dims = len(site.shape) - event_dim
        axis = batch_dims + dim
        return LocalSite(site.name, shape[:axis] + shape[axis + 1 :], axis, batch_dims, event_dim, start)

    @property
    def stop(self) -> int:
        """The first place after the slice."""
        return self.start + self.rest.numel()

    def part(self, local: Tensor) -> Tensor:
        """This site's part of ``(*batch, d)``, whose batch has the plate's axis where Pyro wants it."""
        batch = local.shape[:-1]
        batch = torch.Size([1] * (self.batch_dims - len(batch))) + batch
        cut = len(batch) - self.batch_dims
        outer, rows = batch[:cut], batch[cut + self.axis]
        value = local[..., self.start : self.stop].reshape(*outer, rows, *self.rest)
        return value.movedim(cut, cut + self.axis)

    def join(self, value: Tensor) -> Tensor:
        """One row for each datum, ``(rows, n)``, from an unconstrained value of the site."""
        return value.movedim(self.axis, 0).reshape(value.shape[self.axis], -1)


class AmortizedAffine(Flow):
    r"""A diagonal affine map whose location and scale come from a context: :math:`y = m(c) + e^{d(c)} \odot x`.

    Linear in the context, and it starts at a given location and scale for every context.

    Args:
        input_dim: D.
        context_dim: C.
        loc: ``(D,)``.
        scale: a positive number.
    """

    triangular = True

    def __init__(self, input_dim: int, context_dim: int, loc: Tensor, scale: float) -> None:
        super().__init__(input_dim, context_dim)
        start = {"loc": loc, "log_scale": torch.full_like(loc, scale).log()}
        self.params = ParameterNet(start, context_dim)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One product with the context."""
        params = self.params(context)
        log_scale = params["log_scale"].expand_as(x)
        return torch.addcmul(params["loc"], x, log_scale.exp()), log_scale.sum(-1)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One product with the context."""
        params = self.params(context)
        log_scale = params["log_scale"].expand_as(y)
        return (y - params["loc"]) * torch.exp(-log_scale), log_scale.sum(-1)


def local_plate(frames: dict[str, Any], wanted: str | None) -> Any:
    """Which of the plates around latent sites is the local one.

    Raises:
        ValueError: for none, an unknown one, or several.
    """
    known = ", ".join(map(repr, sorted(frames))) or "none"
    if wanted is not None:
        if wanted not in frames:
            raise ValueError(f"expected plate to be one of the plates around latent sites ({known}), got {wanted!r}")
        return frames[wanted]
    subsampled = [f for f in frames.values() if f.full_size is not None and f.full_size != f.size]
    candidates = subsampled or list(frames.values())
    if len(candidates) != 1:
        names = ", ".join(repr(f.name) for f in candidates) or "none"
        advice = "name the one whose rows the encoder sees: plate=..." if candidates else "use AutoFlow for this model"
        raise ValueError(f"expected one plate of local latents, got {names}: {advice}")
    return candidates[0]
