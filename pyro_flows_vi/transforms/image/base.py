"""What image flows have in common: a flat vector that is seen as an image."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from pyro_flows_vi.transforms._door import positive
from pyro_flows_vi.transforms.base import Flow

__all__ = ["ImageFlow", "Shape", "image_shape", "shape_of"]

Shape = tuple[int, int, int]


def image_shape(shape: Sequence[int]) -> Shape:
    """``shape`` as a tuple ``(C, H, W)``.

    Raises:
        ValueError: unless it is three positive integers.
    """
    sizes = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else ()
    if len(sizes) != 3 or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in sizes):
        raise ValueError(f"expected shape to be (channels, height, width), three positive integers, got {shape!r}")
    return sizes[0], sizes[1], sizes[2]


def shape_of(input_dim: int, shape: Sequence[int] | None, without: Sequence[int] | None = None) -> Shape:
    """The shape in which a recipe sees a vector of ``input_dim`` numbers.

    Args:
        input_dim: D.
        shape: ``(C, H, W)``, or ``None`` where none was given.
        without: the shape to take then; by default the vector is one pixel of D channels.

    Raises:
        ValueError: for a shape that is not of D numbers.

    Example:
        >>> shape_of(12, (3, 2, 2)), shape_of(5, None)
        ((3, 2, 2), (5, 1, 1))
    """
    positive("input_dim", input_dim)
    sizes = image_shape(shape if shape is not None else without or (input_dim, 1, 1))
    if math.prod(sizes) != input_dim:
        raise ValueError(
            f"expected a shape (channels, height, width) of {input_dim} numbers, as input_dim says, "
            f"got {sizes} with {math.prod(sizes)}"
        )
    return sizes


class ImageFlow(Flow):
    """A flow on images ``(C, H, W)``, given and returned as flat vectors of ``C * H * W`` numbers, row by row.

    Args:
        shape: ``(C, H, W)``, also an attribute.
        context_dim: size of the context, or ``None``.

    Raises:
        ValueError: for a shape that is not three positive integers.
    """

    def __init__(self, shape: Sequence[int], context_dim: int | None = None) -> None:
        sizes = image_shape(shape)
        super().__init__(math.prod(sizes), context_dim)
        self.shape: Shape = sizes

    def _image(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], *self.shape)

    def extra_repr(self) -> str:
        """The dimensions and the shape, for ``repr``."""
        return f"{super().extra_repr()}, shape={self.shape}"
