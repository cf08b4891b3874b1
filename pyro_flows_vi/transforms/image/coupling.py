"""Coupling flow on images: a convolutional network looks at one part of the pixels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pyro_flows_vi.nets.parameters import ParameterNet
from pyro_flows_vi.transforms.elementwise.base import ElementwiseMap
from pyro_flows_vi.transforms.image.base import ImageFlow

__all__ = ["ImageCoupling", "NetMaker"]

#: ``(in_channels, init, context_dim)`` to a network of images ``(in_channels, H, W)``, with one output channel and
#: initial value for each of ``init``
NetMaker = Callable[[int, Tensor, "int | None"], nn.Module]


class ImageCoupling(ImageFlow):
    r"""Coupling flow on images, of any mask and any increasing map m of one variable.

    .. math::
        y_A = x_A, \qquad y_i = m(x_i; \phi_i(x_A)) \quad (i \in B), \qquad
        \log|\det J| = \sum_{i \in B} \log m'(x_i; \phi_i)

    The network sees the channels that hold any given pixel, with zeros in place of the others, and puts out the
    parameters of the channels that hold any other: half the channels each for a mask of channels, all for a
    checkerboard. Both directions are one pass of the network, and the map or its inverse.

    Source: Density estimation using Real NVP (Dinh et al., 2016), arXiv:1605.08803.

    Args:
        mask: True for given, A; ``(C, H, W)``, with at least one pixel that is not given.
        map: the map m.
        net: makes the network; not asked where A is empty: then the parameters are free, or a function of the context.
        context_dim: size of the context, or ``None``.

    Raises:
        ValueError: for a mask that gives every pixel.

    Example:
        >>> from pyro_flows_vi.nets.conv import PointwiseConvNet
        >>> from pyro_flows_vi.transforms.elementwise.affine import AffineMap
        >>> from pyro_flows_vi.transforms.image.masks import channel_mask
        >>> flow = ImageCoupling(channel_mask((4, 2, 2)), AffineMap(), PointwiseConvNet)
        >>> flow(torch.zeros(5, 16)).shape
        torch.Size([5, 16])
    """

    order: Tensor
    back: Tensor
    place: Tensor
    sees: Tensor
    given_image: Tensor

    def __init__(self, mask: Tensor, map: ElementwiseMap, net: NetMaker, context_dim: int | None = None) -> None:
        super().__init__(tuple(mask.shape), context_dim)
        if mask.dtype != torch.bool or bool(mask.all()):
            raise ValueError("expected a mask of booleans, with at least one pixel that is not given (False)")
        sees, moves = mask.flatten(1).any(1), ~mask.flatten(1).all(1)
        given, index = mask.flatten(), torch.arange(self.input_dim)
        self.num_given = int(given.sum())
        for name, value in {
            "order": torch.cat([index[given], index[~given]]),  # A first
            "back": torch.argsort(torch.cat([index[given], index[~given]])),
            "sees": sees.nonzero()[:, 0],
            "place": (~mask[moves]).flatten().nonzero()[:, 0],  # of B among what the network puts out
            "given_image": mask[sees],
        }.items():
            self.register_buffer(name, value, persistent=False)
        self.map = map
        self.fast_inverse = map.fast_inverse
        #: whether the network puts out parameters of pixels in A too
        self.mixed = len(self.place) < int(moves.sum()) * mask[0].numel()
        init = map.initial()
        if self.num_given:
            self.net = net(len(self.sees), init.repeat_interleave(int(moves.sum())), context_dim)
        else:
            self.net = ParameterNet({"params": init[:, None].repeat(1, self.input_dim)}, context_dim)

    def _split(self, value: Tensor) -> tuple[Tensor, Tensor]:
        value = value.index_select(-1, self.order)
        return value[..., : self.num_given], value[..., self.num_given :]

    def _join(self, given: Tensor, moved: Tensor) -> Tensor:
        return torch.cat([given, moved], dim=-1).index_select(-1, self.back)

    def _params(self, x: Tensor, context: Tensor | None) -> Tensor:
        """The parameters of B, ``(*batch, len(B), P)``."""
        if not self.num_given:
            params: Tensor = self.net(context)["params"]
        else:
            image = torch.where(self.given_image, self._image(x).index_select(-3, self.sees), x.new_zeros(()))
            params = self.net(image, context)
            params = params.reshape(*x.shape[:-1], self.map.num_params, -1)
            params = params.index_select(-1, self.place) if self.mixed else params
        return params.mT

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One pass of the network and one evaluation of the map."""
        given, moved = self._split(x)
        moved, log_slope = self.map.forward_and_log_slope(moved, self._params(x, context))
        return self._join(given, moved), log_slope.sum(-1)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One pass of the network and one inverse of the map."""
        given, moved = self._split(y)
        moved, log_slope = self.map.inverse_and_log_slope(moved, self._params(y, context))
        return self._join(given, moved), log_slope.sum(-1)
