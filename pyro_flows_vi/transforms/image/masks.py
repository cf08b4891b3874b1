"""Which pixels a coupling takes as given: checkerboards and halves of the channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_flows_vi.transforms.image.base import image_shape

__all__ = ["channel_mask", "checkerboard_mask"]


def checkerboard_mask(shape: Sequence[int], step: int = 0) -> Tensor:
    """True, for given, where row + column + ``step`` is even, in every channel.

    Args:
        shape: ``(C, H, W)``.
        step: its parity chooses the colour.

    Raises:
        ValueError: for images of one pixel, whose board has one field.

    Example:
        >>> checkerboard_mask((1, 2, 4)).int()
        tensor([[[1, 0, 1, 0],
                 [0, 1, 0, 1]]], dtype=torch.int32)
    """
    channels, height, width = image_shape(shape)
    if height * width < 2:
        raise ValueError(f"expected an image of at least two pixels for a checkerboard, got shape {tuple(shape)}")
    board = (torch.arange(height)[:, None] + torch.arange(width) + step) % 2 == 0
    return board.expand(channels, height, width)


def channel_mask(shape: Sequence[int], step: int = 0) -> Tensor:
    """True, for given, in one half of the channels: the first for an even ``step``, the last for an odd one.

    A single channel is never given.

    Args:
        shape: ``(C, H, W)``.
        step: its parity chooses the half.

    Example:
        >>> channel_mask((2, 1, 3)).int()
        tensor([[[1, 1, 1]],
        <BLANKLINE>
                [[0, 0, 0]]], dtype=torch.int32)
    """
    channels, height, width = image_shape(shape)
    first = torch.arange(channels) < channels // 2
    given = first if step % 2 == 0 or channels == 1 else ~first
    return given[:, None, None].expand(channels, height, width)
