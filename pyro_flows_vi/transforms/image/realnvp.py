"""RealNVP for images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from pyro_flows_vi.nets.conv import ResidualConvNet
from pyro_flows_vi.transforms._door import positive
from pyro_flows_vi.transforms.base import Flow
from pyro_flows_vi.transforms.elementwise.affine import AffineMap
from pyro_flows_vi.transforms.image.base import shape_of
from pyro_flows_vi.transforms.image.masks import channel_mask, checkerboard_mask
from pyro_flows_vi.transforms.image.multiscale import Multiscale, half, num_levels
from pyro_flows_vi.transforms.image.squeeze import Squeeze
from pyro_flows_vi.transforms.image.steps import coupling_step

__all__ = ["ImageRealNVP"]


class ImageRealNVP(Multiscale):
    r"""RealNVP for images: at each level affine couplings on checkerboards, squeezing, and couplings on channels.

    After the last split there is one more round of checkerboards. ActNorm stands where the paper has batch norm,
    which would make an image depend on its batch. Forward goes from data to noise, and the recipe
    ``realnvp-image`` is this flow turned round. Both directions are one pass.

    Source: Density estimation using Real NVP (Dinh et al., 2016), arXiv:1605.08803.

    Args:
        input_dim: D, the product of the shape.
        context_dim: size of the context, or ``None``; it enters the networks of the couplings.
        num_transforms: couplings of each kind at each level; the paper has 3.
        shape: ``(C, H, W)``; without one the vector is a pixel of D channels, and all couplings are on channels.
        levels: how often to squeeze and split; by default as often as height and width can be halved, up to two.
        hidden_channels: of the networks.
        blocks: residual blocks of the networks.

    Raises:
        ValueError: for a shape of another size, or levels that cannot be squeezed.
    """

    def __init__(
        self,
        input_dim: int,
        context_dim: int | None = None,
        num_transforms: int = 3,
        shape: Sequence[int] | None = None,
        levels: int | None = None,
        hidden_channels: int = 32,
        blocks: int = 2,
    ) -> None:
        positive("num_transforms", num_transforms)
        positive("hidden_channels", hidden_channels)
        net = partial(ResidualConvNet, hidden_channels=hidden_channels, blocks=positive("blocks", blocks))
        size = sizes = shape_of(input_dim, shape)

        def couplings(masks: list[Tensor]) -> list[Flow]:
            return [flow for mask in masks for flow in coupling_step(mask, AffineMap(), net, context_dim, form=None)]

        chains: list[list[Flow]] = []
        for _ in range(num_levels(sizes, levels, most=2)):
            squeeze = Squeeze(size)
            boards = couplings([checkerboard_mask(size, k) for k in range(num_transforms)])
            size = squeeze.out_shape
            chains.append([*boards, squeeze, *couplings([channel_mask(size, k) for k in range(num_transforms)])])
            size = half(size)
        last = channel_mask if size[1:] == (1, 1) else checkerboard_mask
        chains.append(couplings([last(size, k) for k in range(num_transforms)]))
        super().__init__(sizes, chains)
