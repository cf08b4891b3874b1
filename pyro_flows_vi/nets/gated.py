"""Gated networks: every layer multiplies its linear output by a sigmoid gate, with no other nonlinearity."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "GatedConv2d",
    "GatedConvDecoder",
    "GatedConvEncoder",
    "GatedConvTranspose2d",
    "GatedLinear",
    "GatedMLP",
]

Size = int | tuple[int, int]


class GatedLinear(nn.Module):
    r"""A gated linear layer :math:`(W x + b) \odot \sigma(V x + c)`, both halves in one matrix product.

    Args:
        in_dim: size of the input's last dimension.
        out_dim: size of the output's last dimension.

    Source: Language Modeling with Gated Convolutional Networks (Dauphin et al., 2017), arXiv:1612.08083.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_dim, 2 * out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(*batch, in_dim)`` to ``(*batch, out_dim)``."""
        return F.glu(self.linear(x), dim=-1)


class GatedMLP(nn.Sequential):
    """A stack of :class:`GatedLinear` layers, and a plain linear one at the end where ``out_dim`` is given.

    Args:
        in_dim: size of the input's last dimension.
        hidden_dims: widths of the gated layers, at least one.
        out_dim: size of the linear output, or ``None`` to end with the last gated layer.

    Example:
        >>> import torch
        >>> GatedMLP(784, [300, 300])(torch.zeros(5, 784)).shape
        torch.Size([5, 300])
    """

    def __init__(self, in_dim: int, hidden_dims: Sequence[int], out_dim: int | None = None) -> None:
        widths = [in_dim, *hidden_dims]
        layers: list[nn.Module] = [GatedLinear(a, b) for a, b in pairwise(widths)]
        if out_dim is not None:
            layers.append(nn.Linear(widths[-1], out_dim))
        super().__init__(*layers)


class GatedConv2d(nn.Module):
    """A gated convolution: the features times the sigmoid of as many gates.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: size of the kernel.
        stride: step of the kernel.
        padding: zeros added on each side.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: Size, stride: int = 1, padding: Size = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 2 * out_channels, kernel, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, in_channels, H, W)`` to ``(batch, out_channels, H', W')``."""
        return F.glu(self.conv(x), dim=-3)


class GatedConvTranspose2d(nn.Module):
    """A gated transposed convolution that enlarges by exactly ``stride``.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: size of the kernel.
        stride: factor by which height and width grow (with ``padding`` of half the kernel).
        padding: zeros taken away on each side.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: Size, stride: int = 1, padding: Size = 0) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(in_channels, 2 * out_channels, kernel, stride, padding, stride - 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, in_channels, H, W)`` to ``(batch, out_channels, H', W')``."""
        return F.glu(self.conv(x), dim=-3)


class GatedConvEncoder(nn.Module):
    """Six gated convolutions that reduce an image to one feature vector.

    Channels 32, 32, 64, 64, 64 and ``feature_dim``; kernels of 5, the last as large as what is left of the
    image after two halvings; strides 1, 2, 1, 2, 1, 1.

    Args:
        image_shape: ``(H, W)``, both divisible by 4.
        feature_dim: size of the feature vector.

    Source: Sylvester Normalizing Flows for Variational Inference (van den Berg et al., 2018),
    arXiv:1803.05649.
    """

    def __init__(self, image_shape: tuple[int, int], feature_dim: int = 256) -> None:
        super().__init__()
        self.image_shape = image_shape
        channels, strides = (1, 32, 32, 64, 64, 64), (1, 2, 1, 2, 1)
        self.layers = nn.Sequential(
            *(GatedConv2d(a, b, 5, s, 2) for (a, b), s in zip(pairwise(channels), strides, strict=True)),
            GatedConv2d(channels[-1], feature_dim, _quarter(image_shape)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map flat images ``(*batch, H * W)`` to features ``(*batch, feature_dim)``."""
        images = x.reshape(-1, 1, *self.image_shape)
        features: Tensor = self.layers(images)
        return features.reshape(*x.shape[:-1], -1)


class GatedConvDecoder(nn.Module):
    """Six gated transposed convolutions and a 1x1 convolution, from a latent vector to parameters per pixel.

    Channels 64, 64, 32, 32, 32, 32; the first kernel makes an image of a quarter of the size, the others are
    5 wide with strides 1, 2, 1, 2, 1.

    Args:
        latent_dim: size of the latent vector.
        image_shape: ``(H, W)``, both divisible by 4.
        params_per_pixel: K, numbers that the likelihood needs for one pixel.

    Source: Sylvester Normalizing Flows for Variational Inference (van den Berg et al., 2018),
    arXiv:1803.05649.
    """

    def __init__(self, latent_dim: int, image_shape: tuple[int, int], params_per_pixel: int = 1) -> None:
        super().__init__()
        channels, strides = (64, 64, 32, 32, 32, 32), (1, 2, 1, 2, 1)
        self.layers = nn.Sequential(
            GatedConvTranspose2d(latent_dim, channels[0], _quarter(image_shape)),
            *(GatedConvTranspose2d(a, b, 5, s, 2) for (a, b), s in zip(pairwise(channels), strides, strict=True)),
            nn.Conv2d(channels[-1], params_per_pixel, 1),
        )

    def forward(self, z: Tensor) -> Tensor:
        """Map ``(*batch, latent_dim)`` to ``(*batch, H * W * K)``, the K numbers of a pixel side by side."""
        params: Tensor = self.layers(z.reshape(-1, z.shape[-1], 1, 1))
        return params.movedim(1, -1).reshape(*z.shape[:-1], -1)


def _quarter(image_shape: tuple[int, int]) -> tuple[int, int]:
    height, width = image_shape
    if height < 4 or width < 4 or height % 4 or width % 4:
        raise ValueError(
            f"expected an image whose height and width are multiples of 4, got {height} x {width}; "
            "pad the images or use a dense network"
        )
    return height // 4, width // 4
