"""Glow."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from pyro_flows_vi.nets.conv import PointwiseConvNet
from pyro_flows_vi.transforms._door import positive
from pyro_flows_vi.transforms.base import Flow
from pyro_flows_vi.transforms.elementwise.affine import AffineMap
from pyro_flows_vi.transforms.image.base import shape_of
from pyro_flows_vi.transforms.image.conv1x1 import ConvForm
from pyro_flows_vi.transforms.image.masks import channel_mask
from pyro_flows_vi.transforms.image.multiscale import Multiscale, num_levels, squeezed_levels
from pyro_flows_vi.transforms.image.steps import coupling_step

__all__ = ["Glow"]


class Glow(Multiscale):
    r"""Glow: levels of squeezing, then steps of ActNorm, an invertible 1x1 convolution and an affine coupling.

    The coupling's network takes half of the channels; which half alternates, as the convolutions
    start at the identity. Forward goes from data to noise, and the recipe ``glow`` is this flow turned round. Both
    directions are one pass. Without a shape it is Glow on vectors: the convolutions are matrices, and
    there are no levels.

    Source: Glow: Generative flow with invertible 1x1 convolutions (Kingma and Dhariwal, 2018), arXiv:1807.03039.

    Args:
        input_dim: D, the product of the shape.
        context_dim: size of the context, or ``None``; it enters the networks of the couplings.
        num_transforms: steps a level; the paper has 32.
        shape: ``(C, H, W)``; without one the vector is a pixel of D channels.
        levels: how often to squeeze and split; by default as often as height and width can be halved, up to three.
        hidden_channels: of the networks; the paper has 512.
        form: of the convolutions, ``"lu"`` or ``"plain"``.

    Raises:
        ValueError: for a shape of another size, or levels that cannot be squeezed.

    Example:
        >>> import torch
        >>> Glow(48, num_transforms=2, shape=(3, 4, 4))(torch.zeros(5, 48)).shape
        torch.Size([5, 48])
    """

    def __init__(
        self,
        input_dim: int,
        context_dim: int | None = None,
        num_transforms: int = 4,
        shape: Sequence[int] | None = None,
        levels: int | None = None,
        hidden_channels: int = 64,
        form: ConvForm = "lu",
    ) -> None:
        positive("num_transforms", num_transforms)
        net = partial(PointwiseConvNet, hidden_channels=positive("hidden_channels", hidden_channels))
        sizes = shape_of(input_dim, shape)
        chains: list[list[Flow]] = []
        for start, size in squeezed_levels(sizes, num_levels(sizes, levels)):
            chains.append([*start])
            for k in range(num_transforms):
                chains[-1] += coupling_step(channel_mask(size, k), AffineMap(), net, context_dim, form)
        super().__init__(sizes, chains)
