"""Convolutional networks from images to parameters for every pixel."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_flows_vi.nets.attention import GatedAttention, positions_2d
from pyro_flows_vi.nets.parameters import ParameterNet

__all__ = ["AttentionConvNet", "ChannelNorm", "GatedBlock", "ImageNet", "PointwiseConvNet", "ResidualConvNet"]


class ImageNet(nn.Module):
    """A convolution into hidden channels, a body on them, and a convolution out of them that starts small.

    A context is a bias of the hidden channels, the same at every pixel.

    Args:
        in_channels: channels of the image.
        init: the initial value of each output channel.
        context_dim: C, or ``None``.
        hidden_channels: channels of the body.
        body: maps ``(n, hidden_channels, H, W)`` to the same shape.

    Shapes: ``net(x, context)`` maps ``(*batch, in_channels, H, W)`` to ``(*batch, len(init), H, W)``.
    """

    def __init__(
        self, in_channels: int, init: Tensor, context_dim: int | None, hidden_channels: int, body: nn.Module
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, hidden_channels, 3, padding=1)
        self.context = None if context_dim is None else nn.Linear(context_dim, hidden_channels, bias=False)
        self.body = body
        self.last = nn.Conv2d(hidden_channels, len(init), 3, padding=1)
        with torch.no_grad():
            self.last.weight.mul_(ParameterNet.initial_gain)
            cast(Tensor, self.last.bias).copy_(init)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The parameters of every pixel, ``(*batch, len(init), H, W)``."""
        batch, image = x.shape[:-3], x.shape[-3:]
        hidden = self.first(x.reshape(-1, *image))
        if self.context is not None:
            bias = self.context(context)
            hidden = hidden + bias.expand(*batch, bias.shape[-1]).reshape(-1, bias.shape[-1], 1, 1)
        result: Tensor = self.last(self.body(hidden))
        return result.reshape(*batch, *result.shape[1:])


class PointwiseConvNet(ImageNet):
    """Glow's network: a 3x3, a 1x1 and a 3x3 convolution with ReLUs between them.

    Source: Glow: Generative flow with invertible 1x1 convolutions (Kingma and Dhariwal, 2018), arXiv:1807.03039.

    Args:
        in_channels: channels of the image.
        init: the initial value of each output channel.
        context_dim: C, or ``None``.
        hidden_channels: channels between the convolutions; the paper has 512.

    Example:
        >>> PointwiseConvNet(2, torch.zeros(6))(torch.zeros(5, 2, 4, 4)).shape
        torch.Size([5, 6, 4, 4])
    """

    def __init__(
        self, in_channels: int, init: Tensor, context_dim: int | None = None, hidden_channels: int = 64
    ) -> None:
        body = nn.Sequential(nn.ReLU(), nn.Conv2d(hidden_channels, hidden_channels, 1), nn.ReLU())
        super().__init__(in_channels, init, context_dim, hidden_channels, body)


class ResidualConvNet(ImageNet):
    """RealNVP's network: residual blocks of two 3x3 convolutions, with layer norm over the channels for batch norm.

    Batch norm would make a point's image depend on the batch that it comes with.

    Source: Density estimation using Real NVP (Dinh et al., 2016), arXiv:1605.08803.

    Args:
        in_channels: channels of the image.
        init: the initial value of each output channel.
        context_dim: C, or ``None``.
        hidden_channels: channels of the blocks.
        blocks: their number.
    """

    def __init__(
        self,
        in_channels: int,
        init: Tensor,
        context_dim: int | None = None,
        hidden_channels: int = 32,
        blocks: int = 2,
    ) -> None:
        layers = (_ResidualBlock(hidden_channels) for _ in range(blocks))
        body = nn.Sequential(*layers, ChannelNorm(hidden_channels), nn.ReLU())
        super().__init__(in_channels, init, context_dim, hidden_channels, body)


class AttentionConvNet(ImageNet):
    """Flow++'s network: blocks of a gated convolution and gated self-attention over the pixels, each with layer norm.

    Attention costs O((H W)^2) a block.

    Source: Flow++: Improving flow-based generative models with variational dequantization and architecture design
    (Ho et al., 2019), arXiv:1902.00275.

    Args:
        in_channels: channels of the image.
        init: the initial value of each output channel.
        context_dim: C, or ``None``.
        size: ``(H, W)``.
        heads: attention heads.
        head_channels: channels of a head; the blocks have ``heads * head_channels``.
        blocks: their number.
    """

    def __init__(
        self,
        in_channels: int,
        init: Tensor,
        context_dim: int | None = None,
        *,
        size: tuple[int, int],
        heads: int = 4,
        head_channels: int = 8,
        blocks: int = 2,
    ) -> None:
        hidden_channels = heads * head_channels
        body: list[nn.Module] = []
        for _ in range(blocks):
            body += [GatedBlock(hidden_channels), ChannelNorm(hidden_channels)]
            body += [_PixelAttention(hidden_channels, heads, size), ChannelNorm(hidden_channels)]
        super().__init__(in_channels, init, context_dim, hidden_channels, nn.Sequential(*body))


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of every pixel, on ``(n, C, H, W)``."""

    def forward(self, x: Tensor) -> Tensor:
        """Mean 0 and variance 1 at every pixel, then a scale and a shift of each channel."""
        return super().forward(x.movedim(-3, -1)).movedim(-1, -3)


class GatedBlock(nn.Module):
    """The identity plus a gated 3x3 convolution.

    Args:
        channels: of the input and the output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.gate = nn.Conv2d(channels, 2 * channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(n, channels, H, W)`` to the same shape."""
        return x + F.glu(self.gate(F.elu(self.conv(F.elu(x)))), dim=-3)


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(ChannelNorm(channels), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)),
            *(ChannelNorm(channels), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.layers(x)
        return result


class _PixelAttention(nn.Module):
    """Gated attention over the pixels, which know where they are."""

    def __init__(self, channels: int, heads: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.attention = GatedAttention(channels, heads)
        self.register_buffer("positions", positions_2d(*size, channels), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(-2).mT
        update: Tensor = self.attention(tokens + cast(Tensor, self.positions).to(x.dtype))
        return x + update.mT.reshape(x.shape)
