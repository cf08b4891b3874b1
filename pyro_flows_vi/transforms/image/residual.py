"""Residual flow on images."""

from __future__ import annotations

from collections.abc import Sequence

from pyro_flows_vi.nets.lipschitz_conv import LipschitzConvNet
from pyro_flows_vi.transforms._door import positive
from pyro_flows_vi.transforms.act_norm import ActNorm
from pyro_flows_vi.transforms.base import Flow
from pyro_flows_vi.transforms.image.base import image_shape, shape_of
from pyro_flows_vi.transforms.image.multiscale import Multiscale, num_levels, squeezed_levels
from pyro_flows_vi.transforms.image.per_pixel import PerPixel
from pyro_flows_vi.transforms.residual import ResidualBase, below_one

__all__ = ["ConvResidual", "ImageResidual"]


class ConvResidual(ResidualBase):
    r"""Residual flow on images: :math:`y = x + g(x; c)` with a convolutional g of Lipschitz constant below 1.

    g is a :class:`~pyro_flows_vi.nets.lipschitz_conv.LipschitzConvNet`; all else is as for
    :class:`~pyro_flows_vi.transforms.residual.Residual`. The exact log-determinant, up to C H W = 128, takes
    one pass of the transposed network for each row of the Jacobian.

    Source: Residual flows for invertible generative modeling (Chen et al., 2019), arXiv:1906.02735.

    Args:
        shape: ``(C, H, W)``.
        context_dim: size of the context, or ``None``.
        hidden_channels: channels of the hidden layers of g.
        lipschitz, norm, log_det, num_terms, num_probes, tail, rate, eval_probes, tolerance: as for ``Residual``.

    Raises:
        ValueError: for a shape that is not three positive integers, or an option out of its range.
    """

    def __init__(
        self,
        shape: Sequence[int],
        context_dim: int | None = None,
        hidden_channels: Sequence[int] = (32, 32),
        *,
        lipschitz: float = 0.97,
        norm: str = "spectral",
        log_det: str = "auto",
        num_terms: int | None = None,
        num_probes: int = 1,
        tail: str = "geometric",
        rate: float | None = None,
        eval_probes: int = 16,
        tolerance: float = 1e-3,
    ) -> None:
        sizes = image_shape(shape)
        super().__init__(
            sizes[0] * sizes[1] * sizes[2],
            context_dim,
            LipschitzConvNet(sizes, hidden_channels, context_dim, below_one(lipschitz), norm),
            log_det=log_det,
            num_terms=num_terms,
            num_probes=num_probes,
            tail=tail,
            rate=rate,
            eval_probes=eval_probes,
            tolerance=tolerance,
        )
        self.shape = sizes


class ImageResidual(Multiscale):
    r"""Residual flow for images: levels of squeezing, and steps of ActNorm and :class:`ConvResidual`.

    Forward, from data to noise, is one pass; the inverse is a fixed point a step. In training the log-determinant is
    estimated without bias where a level has more than 128 numbers; see
    :class:`~pyro_flows_vi.transforms.residual.Residual`.

    Source: Residual flows for invertible generative modeling (Chen et al., 2019), arXiv:1906.02735.

    Args:
        input_dim: D, the product of the shape.
        context_dim: size of the context, or ``None``.
        num_transforms: steps a level.
        shape: ``(C, H, W)``; without one the vector is a pixel of D channels.
        levels: how often to squeeze and split; by default as often as height and width can be halved, up to three.
        hidden_channels: channels of the hidden layers; the paper has 512.
        lipschitz: the bound of each step, in (0, 1).
        norm: ``"spectral"``, ``"inf"`` or ``"one"``.
        log_det, num_terms, num_probes, tail, rate, eval_probes, tolerance: as for ``Residual``. Nearly all of a
            training step are the terms of the series: the default tail has 36 on average and a variance that is
            certainly finite, ``tail="poisson"`` six.

    Raises:
        ValueError: for a shape of another size, levels that cannot be squeezed, or an option out of its range.
    """

    def __init__(
        self,
        input_dim: int,
        context_dim: int | None = None,
        num_transforms: int = 4,
        shape: Sequence[int] | None = None,
        levels: int | None = None,
        hidden_channels: Sequence[int] = (32, 32),
        lipschitz: float = 0.97,
        norm: str = "spectral",
        log_det: str = "auto",
        num_terms: int | None = None,
        num_probes: int = 1,
        tail: str = "geometric",
        rate: float | None = None,
        eval_probes: int = 16,
        tolerance: float = 1e-3,
    ) -> None:
        positive("num_transforms", num_transforms)
        sizes = shape_of(input_dim, shape)
        chains: list[list[Flow]] = []
        for start, size in squeezed_levels(sizes, num_levels(sizes, levels)):
            chains.append([*start])
            for _ in range(num_transforms):
                step = ConvResidual(
                    size,
                    context_dim,
                    hidden_channels,
                    lipschitz=lipschitz,
                    norm=norm,
                    log_det=log_det,
                    num_terms=num_terms,
                    num_probes=num_probes,
                    tail=tail,
                    rate=rate,
                    eval_probes=eval_probes,
                    tolerance=tolerance,
                )
                chains[-1] += [PerPixel(ActNorm(size[0]), size), step]
        super().__init__(sizes, chains)
