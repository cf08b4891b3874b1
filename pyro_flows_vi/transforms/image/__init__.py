"""Flows on images, as flat vectors of a shape ``(C, H, W)``: parts, and the architectures that are built of them."""

from pyro_flows_vi.transforms.image.base import ImageFlow
from pyro_flows_vi.transforms.image.conv1x1 import Conv1x1, PlainLinear
from pyro_flows_vi.transforms.image.coupling import ImageCoupling
from pyro_flows_vi.transforms.image.flowpp import FlowPlusPlus
from pyro_flows_vi.transforms.image.glow import Glow
from pyro_flows_vi.transforms.image.masks import channel_mask, checkerboard_mask
from pyro_flows_vi.transforms.image.multiscale import Multiscale
from pyro_flows_vi.transforms.image.per_pixel import PerPixel
from pyro_flows_vi.transforms.image.realnvp import ImageRealNVP
from pyro_flows_vi.transforms.image.residual import ConvResidual, ImageResidual
from pyro_flows_vi.transforms.image.squeeze import Squeeze
from pyro_flows_vi.transforms.image.tarflow import PatchAutoregressive

__all__ = [
    "Conv1x1",
    "ConvResidual",
    "FlowPlusPlus",
    "Glow",
    "ImageCoupling",
    "ImageFlow",
    "ImageRealNVP",
    "ImageResidual",
    "Multiscale",
    "PatchAutoregressive",
    "PerPixel",
    "PlainLinear",
    "Squeeze",
    "channel_mask",
    "checkerboard_mask",
]
