"""Attention: gated over pixels, and a causal transformer that can be run one token at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_flows_vi.nets.parameters import ParameterNet

__all__ = ["CausalTransformer", "GatedAttention", "attend", "positions_2d"]


def attend(query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None = None) -> Tensor:
    r"""Scaled dot-product attention :math:`\operatorname{softmax}(Q K^\top / \sqrt{d})\, V`.

    Written out, since torch's fused kernels cannot be differentiated twice. O(T S d), with the T x S weights in memory.

    Args:
        query: Q, ``(*batch, T, d)``.
        key: K, ``(*batch, S, d)``.
        value: V, ``(*batch, S, d)``.
        seen: which keys a query may look at, ``(T, S)``; all by default.
    """
    score = (query / math.sqrt(query.shape[-1])) @ key.mT
    score = score if seen is None else score.masked_fill(~seen, -math.inf)
    return torch.softmax(score, dim=-1) @ value


def positions_2d(height: int, width: int, dim: int) -> Tensor:
    """Sines and cosines of the row and of the column at falling frequencies, ``(height * width, dim)``."""
    frequency = torch.exp(-math.log(1e4) * torch.arange(dim) // 4 * 4 / max(1, dim))
    where = torch.where(torch.arange(dim) % 4 < 2, torch.arange(height)[:, None, None], torch.arange(width)[:, None])
    angle = where * frequency
    return torch.where(torch.arange(dim) % 2 == 0, angle.sin(), angle.cos()).flatten(0, 1)


class GatedAttention(nn.Module):
    """Multi-head self-attention whose output is gated: features times the sigmoid of as many gates.

    Args:
        dim: size of a token.
        heads: number of heads, a divisor of ``dim``.

    Raises:
        ValueError: for heads that do not divide ``dim``.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"expected a number of heads that divides {dim}, got {heads}")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)  # a bias of the keys would do nothing
        self.gate = nn.Linear(dim, 2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens ``(*batch, T, dim)`` to the same shape."""
        query, key, value = (_split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        return F.glu(self.gate(_join_heads(attend(query, key, value))), dim=-1)


class CausalTransformer(nn.Module):
    r"""P parameters for each token t, as a function of the tokens :math:`x_1, \dots, x_{t-1}` before it.

    Blocks of causal attention and a two-layer network, each on top of a layer norm. A context is added to every token.
    :meth:`sequential` runs it one token at a time and keeps the keys and values of the tokens before, so that each
    token goes through the network once.

    Args:
        token_dim: size of a token.
        length: T.
        init: the P initial parameters of every token, which the network starts at (the last layer starts small).
        context_dim: C, or ``None``.
        heads: attention heads.
        head_dim: size of a head; hidden tokens have ``heads * head_dim`` numbers.
        depth: number of blocks.

    Shapes: ``net(x, context)`` maps ``(*batch, T, token_dim)`` to ``(*batch, T, P)``.
    """

    def __init__(
        self,
        token_dim: int,
        length: int,
        init: Tensor,
        context_dim: int | None = None,
        heads: int = 4,
        head_dim: int = 16,
        depth: int = 2,
    ) -> None:
        super().__init__()
        width = heads * head_dim
        self.length = length
        #: no other token sees a single one
        self.embed = nn.Linear(token_dim, width) if length > 1 else None
        self.position = nn.Parameter(0.1 * torch.randn(length, width))
        self.context = None if context_dim is None else nn.Linear(context_dim, width, bias=False)
        self.blocks = nn.ModuleList(_CausalBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, len(init))
        with torch.no_grad():
            self.last.weight.mul_(ParameterNet.initial_gain)
            self.last.bias.copy_(init)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """All parameters in one pass."""
        hidden = self._start(context).expand(*x.shape[:-1], -1)
        if self.embed is not None:
            hidden = hidden + F.pad(self.embed(x[..., :-1, :]), (0, 0, 1, 0))
        seen = torch.ones(self.length, self.length, dtype=torch.bool, device=x.device).tril()
        for block in cast("list[_CausalBlock]", self.blocks):
            query, key, value = block.project(hidden)
            hidden = block.finish(hidden, attend(query, key, value, seen))
        result: Tensor = self.last(self.norm(hidden))
        return result

    def sequential(
        self, batch: torch.Size, step: Callable[[int, Tensor], Tensor], context: Tensor | None = None
    ) -> Tensor:
        """Build x one token at a time, each through the network once.

        Args:
            batch: the batch shape of x.
            step: called as ``step(t, params)`` with the parameters ``(*batch, P)`` of token t given the tokens
                before it; returns token t, ``(*batch, token_dim)``.
            context: ``(*context_batch, C)``.

        Returns:
            x, ``(*batch, T, token_dim)``, with the graph of the steps when gradients are enabled.
        """
        start, tokens = self._start(context), list[Tensor]()
        caches: list[tuple[Tensor, Tensor] | None] = [None] * len(self.blocks)
        for t in range(self.length):
            hidden = start[..., t : t + 1, :].expand(*batch, 1, -1)
            if t and self.embed is not None:
                hidden = hidden + self.embed(tokens[-1].unsqueeze(-2))
            for i, block in enumerate(cast("list[_CausalBlock]", self.blocks)):
                query, key, value = block.project(hidden)
                known = caches[i]
                if known is not None:
                    key, value = torch.cat([known[0], key], dim=-2), torch.cat([known[1], value], dim=-2)
                caches[i] = (key, value)
                hidden = block.finish(hidden, attend(query, key, value))
            tokens.append(step(t, self.last(self.norm(hidden)).squeeze(-2)))
        return torch.stack(tokens, dim=-2)

    def _start(self, context: Tensor | None) -> Tensor:
        """What every token knows besides the tokens before it, ``(*context_batch, T, width)``."""
        return self.position if self.context is None else self.position + self.context(context).unsqueeze(-2)


class _CausalBlock(nn.Module):
    """One block, cut where the keys and values meet those of other tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)  # a bias of the keys would do nothing
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def project(self, hidden: Tensor) -> list[Tensor]:
        """Queries, keys and values, each ``(*batch, heads, T, width / heads)``."""
        return [_split_heads(part, self.heads) for part in self.qkv(self.norm(hidden)).chunk(3, dim=-1)]

    def finish(self, hidden: Tensor, attended: Tensor) -> Tensor:
        hidden = hidden + self.out(_join_heads(attended))
        result: Tensor = hidden + self.mlp(hidden)
        return result


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(-2, -3)


def _join_heads(x: Tensor) -> Tensor:
    return x.transpose(-2, -3).flatten(-2)
