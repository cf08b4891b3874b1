"""The step that Glow, RealNVP and Flow++ repeat: normalise, mix the channels, couple."""

from __future__ import annotations

from torch import Tensor

from pyro_flows_vi.transforms.act_norm import ActNorm
from pyro_flows_vi.transforms.base import Flow
from pyro_flows_vi.transforms.elementwise.base import ElementwiseMap
from pyro_flows_vi.transforms.image.conv1x1 import Conv1x1, ConvForm
from pyro_flows_vi.transforms.image.coupling import ImageCoupling, NetMaker
from pyro_flows_vi.transforms.image.per_pixel import PerPixel

__all__ = ["coupling_step"]


def coupling_step(
    mask: Tensor, map: ElementwiseMap, net: NetMaker, context_dim: int | None, form: ConvForm | None
) -> list[Flow]:
    """ActNorm, an invertible 1x1 convolution and a coupling.

    Args:
        mask: of the coupling, ``(C, H, W)``.
        map: of the coupling.
        net: of the coupling.
        context_dim: of the coupling; the other two have parameters of their own.
        form: of the convolution, or ``None`` to leave it out.
    """
    shape = tuple(mask.shape)
    flows: list[Flow] = [PerPixel(ActNorm(shape[0]), shape)]
    if form is not None:
        flows.append(Conv1x1(shape, form=form))
    return [*flows, ImageCoupling(mask, map, net, context_dim)]
