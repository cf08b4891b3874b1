"""Block-autoregressive flow over the patches of an image, with a transformer: TarFlow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_flows_vi.nets.attention import CausalTransformer
from pyro_flows_vi.transforms._door import positive
from pyro_flows_vi.transforms.elementwise.affine import AffineMap
from pyro_flows_vi.transforms.image.base import ImageFlow, shape_of
from pyro_flows_vi.transforms.image.squeeze import Squeeze

__all__ = ["PatchAutoregressive"]


class PatchAutoregressive(ImageFlow):
    r"""The step of TarFlow: each patch is scaled and shifted by what a causal transformer makes of those before it.

    .. math::
        y_t = \sigma_t(x_{<t}) \odot x_t + \mu_t(x_{<t}), \qquad \log|\det J| = \sum_t \sum_j \log \sigma_{tj}

    with :math:`\log\sigma = \tau(s)`, :math:`\tau(s) = 4 \operatorname{asinh}(s / 4)`, and t over the patches of p x p
    pixels, row by row or, in every second step of the recipe, from the last to the first.

    Forward is one pass of the transformer over all T patches. The inverse is sequential, but keeps the keys
    and values of attention, so that each patch goes through the transformer once. The recipe ``tarflow`` turns the
    step round, so that scoring data is the single pass. The noise, the guidance and the denoising with which the
    paper trains and samples are no part of the flow.

    Source: Normalizing flows are capable generative models (Zhai et al., 2024), arXiv:2412.06329.

    Args:
        input_dim: D, the product of the shape.
        context_dim: size of the context, or ``None``; it is added to every token.
        shape: ``(C, H, W)``; without one the vector is a row of D pixels.
        patch: p, a divisor of the height and the width; by default the largest of 4, 2 and 1 that leaves
            at least 16 patches, or 1.
        heads: attention heads.
        head_dim: size of a head.
        depth: blocks of the transformer; the paper has 8.
        reverse: whether to take the patches from the last to the first.

    Raises:
        ValueError: for a shape of another size, or a patch that does not divide it.

    Example:
        >>> flow = PatchAutoregressive(64, shape=(1, 8, 8), patch=2)
        >>> flow(torch.zeros(5, 64)).shape
        torch.Size([5, 64])
    """

    fast_inverse = False

    def __init__(
        self,
        input_dim: int,
        context_dim: int | None = None,
        shape: Sequence[int] | None = None,
        patch: int | None = None,
        heads: int = 4,
        head_dim: int = 8,
        depth: int = 2,
        reverse: bool = False,
    ) -> None:
        sizes = shape_of(input_dim, shape, without=(1, 1, input_dim))
        super().__init__(sizes, context_dim)
        self.patch = positive("patch", _default_patch(sizes[1:]) if patch is None else patch)
        self.reverse = reverse
        if sizes[1] % self.patch or sizes[2] % self.patch:
            raise ValueError(
                f"expected a patch that divides the height and the width {sizes[1]} x {sizes[2]}, got {self.patch}"
            )
        self.squeeze = Squeeze(sizes, self.patch)  # whose pixels are the patches
        self.map = AffineMap()
        self.token_dim, rows, columns = self.squeeze.out_shape
        self.net = CausalTransformer(
            self.token_dim,
            rows * columns,
            self.map.initial().repeat_interleave(self.token_dim),
            context_dim,
            positive("heads", heads),
            positive("head_dim", head_dim),
            positive("depth", depth),
        )

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One pass of the transformer."""
        tokens = self._tokens(x)
        tokens, log_slope = self.map.forward_and_log_slope(tokens, self._params(self.net(tokens, context)))
        return self._pixels(tokens), log_slope.flatten(-2).sum(-1)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """T steps, which together take each patch through the transformer once."""
        tokens, log_slopes = self._tokens(y), []

        def step(t: int, params: Tensor) -> Tensor:
            token, log_slope = self.map.inverse_and_log_slope(tokens[..., t, :], self._params(params))
            log_slopes.append(log_slope)
            return token

        x = self.net.sequential(y.shape[:-1], step, context)
        return self._pixels(x), torch.stack(log_slopes, dim=-2).flatten(-2).sum(-1)

    def _params(self, raw: Tensor) -> Tensor:
        """The parameters of each number of a token, ``(*batch, token_dim, P)``."""
        return raw.unflatten(-1, (self.map.num_params, self.token_dim)).mT

    def _tokens(self, x: Tensor) -> Tensor:
        """The patches in their order, ``(*batch, T, token_dim)``."""
        tokens = self.squeeze.rearrange(x).unflatten(-1, (self.token_dim, -1)).mT
        return tokens.flip(-2) if self.reverse else tokens

    def _pixels(self, tokens: Tensor) -> Tensor:
        tokens = tokens.flip(-2) if self.reverse else tokens
        return self.squeeze.restore(tokens.mT.flatten(-2))

    def extra_repr(self) -> str:
        """The dimensions, the shape and the patches, for ``repr``."""
        return f"{super().extra_repr()}, patch={self.patch}, reverse={self.reverse}"


def _default_patch(size: tuple[int, int]) -> int:
    height, width = size
    return next(p for p in (4, 2, 1) if p == 1 or (height % p == width % p == 0 and height * width >= 16 * p * p))
