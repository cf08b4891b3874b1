"""The multi-scale architecture: after each level, half of the numbers are done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from pyro_flows_vi.transforms.base import Flow
from pyro_flows_vi.transforms.compose import Compose
from pyro_flows_vi.transforms.image.base import ImageFlow, Shape, image_shape
from pyro_flows_vi.transforms.image.squeeze import Squeeze

__all__ = ["Multiscale", "half", "num_levels", "squeezed_levels"]


class Multiscale(ImageFlow):
    r"""Levels of flows, each on half of what the one before left: the multi-scale architecture of RealNVP and Glow.

    After every level but the last, half of the channels is done, and the other half goes on. Levels may squeeze, and
    a level usually does before it splits. In the end every number returns to the pixel and the channel where it was
    before squeezing, so that the order of y is that of x, and levels near the identity make a flow near the identity.

    As in the papers, forward starts with the whole image, which is the direction from data to noise:
    the recipes turn it round where that is as cheap.

    Source: Density estimation using Real NVP (Dinh et al., 2016), arXiv:1605.08803.

    Args:
        shape: ``(C, H, W)`` of the image.
        levels: the flows of each level, in order; of the dimension that is left there.

    Raises:
        ValueError: for a level that is empty, of another dimension, or leaves a number of channels that has no half.
    """

    back: Tensor

    def __init__(self, shape: Sequence[int], levels: Sequence[Sequence[Flow]]) -> None:
        super().__init__(shape, _context_dim(levels))
        rest, place = self.shape, torch.arange(self.input_dim)
        chains, places = [], []
        for k, level in enumerate(levels):
            chain = Compose(level)
            if chain.input_dim != len(place):
                raise ValueError(f"expected level {k} to be of dimension {len(place)}, got {chain.input_dim}")
            for flow in level:
                if isinstance(flow, Squeeze):
                    rest, place = flow.out_shape, flow.rearrange(place)
            chains.append(chain)
            if k + 1 < len(levels):
                rest = half(rest)
                done, place = place.split(len(place) // 2)
                places.append(done)
        self.levels = nn.ModuleList(chains)
        self.register_buffer("back", torch.argsort(torch.cat([*places, place])), persistent=False)
        self.fast_forward = all(chain.fast_forward for chain in chains)
        self.fast_inverse = all(chain.fast_inverse for chain in chains)

    @property
    def exact_log_det(self) -> bool:  # type: ignore[override]
        """Whether all log-determinants are exact at present."""
        return all(chain.exact_log_det for chain in self._chains())

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """All levels, from the whole image down."""
        done, log_det = [], x.new_zeros(x.shape[:-1])
        for k, chain in enumerate(self._chains()):
            x, term = chain.forward_and_log_det(x, None if chain.context_dim is None else context)
            log_det = log_det + term
            if k + 1 < len(self.levels):
                part, x = x.chunk(2, dim=-1)
                done.append(part)
        return torch.cat([*done, x], dim=-1).index_select(-1, self.back), log_det

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """All inverses, from the smallest part up."""
        chains, log_det = self._chains(), y.new_zeros(y.shape[:-1])
        *done, y = y.index_select(-1, self.back.argsort()).split(self._sizes(), dim=-1)
        for k in reversed(range(len(chains))):
            y, term = chains[k].inverse_and_log_det(y, None if chains[k].context_dim is None else context)
            log_det = log_det + term
            y = torch.cat([done[k - 1], y], dim=-1) if k else y
        return y, log_det

    def _chains(self) -> list[Compose]:
        return list(self.levels)  # type: ignore[arg-type]

    def _sizes(self) -> list[int]:
        dims = [chain.input_dim for chain in self._chains()]
        return [dim // 2 for dim in dims[:-1]] + dims[-1:]


def half(shape: Shape) -> Shape:
    """The shape of half of the channels."""
    if shape[0] % 2:
        raise ValueError(
            f"expected an even number of channels to split after a level, got shape {shape}; squeeze first"
        )
    return shape[0] // 2, *shape[1:]


def num_levels(shape: Sequence[int], levels: int | None, most: int = 3) -> int:
    """How many levels that squeeze by two an image can have: ``levels`` if it can, by default as many up to ``most``.

    Raises:
        ValueError: for more levels than the height and the width can be halved.

    Example:
        >>> num_levels((3, 32, 32), None), num_levels((1, 28, 28), None), num_levels((5, 1, 1), None)
        (3, 2, 0)
    """
    _, height, width = image_shape(shape)
    possible = 0
    while height % 2 == width % 2 == 0:
        height, width, possible = height // 2, width // 2, possible + 1
    if levels is None:
        return min(possible, most)
    if isinstance(levels, bool) or not isinstance(levels, int) or not 0 <= levels <= possible:
        raise ValueError(
            f"expected levels to be an integer from 0 to {possible}, as often as the height and the width of "
            f"{tuple(shape)} can be halved, got {levels!r}"
        )
    return levels


def squeezed_levels(shape: Shape, levels: int) -> Iterator[tuple[list[Flow], Shape]]:
    """What each level begins with, and the shape of the rest of it; a single level without squeezing for none."""
    for k in range(max(1, levels)):
        start: list[Flow] = []
        if levels:
            squeeze = Squeeze(shape)
            start, shape = [squeeze], squeeze.out_shape
        yield start, shape
        if k + 1 < levels:
            shape = half(shape)


def _context_dim(levels: Sequence[Sequence[Flow]]) -> int | None:
    contexts = {flow.context_dim for level in levels for flow in level} - {None}
    if not levels or len(contexts) > 1:
        raise ValueError(
            f"expected at least one level and one context_dim, got {len(levels)} levels with "
            f"context_dim {sorted(contexts, key=str)}"
        )
    return contexts.pop() if contexts else None
