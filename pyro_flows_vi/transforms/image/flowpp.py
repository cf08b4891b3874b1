"""Flow++."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from pyro_flows_vi.nets.conv import AttentionConvNet
from pyro_flows_vi.transforms._door import positive
from pyro_flows_vi.transforms.base import Flow
from pyro_flows_vi.transforms.elementwise.mixture_cdf import MixtureCDF
from pyro_flows_vi.transforms.image.base import Shape, shape_of
from pyro_flows_vi.transforms.image.conv1x1 import ConvForm
from pyro_flows_vi.transforms.image.masks import channel_mask, checkerboard_mask
from pyro_flows_vi.transforms.image.multiscale import Multiscale, num_levels
from pyro_flows_vi.transforms.image.squeeze import Squeeze
from pyro_flows_vi.transforms.image.steps import coupling_step

__all__ = ["FlowPlusPlus"]


class FlowPlusPlus(Multiscale):
    r"""Flow++: couplings whose map is the distribution function of a mixture of logistics, with gated attention.

    .. math::
        y_B = \operatorname{logit}\Bigl(\sum_k w_k\, \sigma\bigl((x_B - \mu_k) / s_k\bigr)\Bigr) \odot e^a + b

    Checkerboards on the image, then, squeezed once, channels and checkerboards again; each coupling
    comes after ActNorm and an invertible 1x1 convolution, and nothing is split off.

    Forward, from data to noise, is one pass; the inverse is one pass and a root search a coupling. Use it turned round
    (``flow.inv``) to score data.

    Source: Flow++: Improving flow-based generative models with variational dequantization and architecture design
    (Ho et al., 2019), arXiv:1902.00275.

    Args:
        input_dim: D, the product of the shape.
        context_dim: size of the context, or ``None``; it enters the networks of the couplings.
        num_transforms: n, for n couplings on checkerboards, n / 2 on channels (rounded up), and n - 1 on
            checkerboards; the paper has 4 on CIFAR-10.
        shape: ``(C, H, W)``; without one the vector is a pixel of D channels, with n couplings on channels.
        components: K, components of the mixture; the paper has 32.
        heads: attention heads of the networks.
        head_channels: channels of a head; the paper has 4 heads of 24.
        blocks: blocks of the networks; the paper has 10.
        form: of the convolutions, ``"lu"`` or ``"plain"``.

    Raises:
        ValueError: for a shape of another size.
    """

    def __init__(
        self,
        input_dim: int,
        context_dim: int | None = None,
        num_transforms: int = 4,
        shape: Sequence[int] | None = None,
        components: int = 8,
        heads: int = 4,
        head_channels: int = 8,
        blocks: int = 1,
        form: ConvForm = "lu",
    ) -> None:
        positive("num_transforms", num_transforms)
        size = sizes = shape_of(input_dim, shape)
        net = partial(
            AttentionConvNet,
            heads=positive("heads", heads),
            head_channels=positive("head_channels", head_channels),
            blocks=positive("blocks", blocks),
        )

        def couplings(mask: Callable[[Shape, int], Tensor], count: int) -> list[Flow]:
            flows = []
            for k in range(count):
                map = MixtureCDF(components, rescale=True)
                flows += coupling_step(mask(size, k), map, partial(net, size=size[1:]), context_dim, form)
            return flows

        chain: list[Flow] = []
        if size[1:] == (1, 1):
            chain = couplings(channel_mask, num_transforms)
        else:
            chain = couplings(checkerboard_mask, num_transforms)
            if num_levels(sizes, None):
                squeeze = Squeeze(size)
                size = squeeze.out_shape
                chain += [squeeze, *couplings(channel_mask, (num_transforms + 1) // 2)]
                if size[1:] != (1, 1):
                    chain += couplings(checkerboard_mask, num_transforms - 1)
        super().__init__(sizes, [chain])
