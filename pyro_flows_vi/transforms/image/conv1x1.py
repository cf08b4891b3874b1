"""Invertible 1x1 convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from pyro_flows_vi.nets.parameters import ParameterNet
from pyro_flows_vi.numerics.linear import matvec
from pyro_flows_vi.transforms.base import Flow
from pyro_flows_vi.transforms.image.base import image_shape
from pyro_flows_vi.transforms.image.per_pixel import PerPixel
from pyro_flows_vi.transforms.lu_linear import LULinear

__all__ = ["Conv1x1", "ConvForm", "PlainLinear"]

ConvForm = Literal["lu", "plain"]


class PlainLinear(Flow):
    r"""An affine map :math:`y = W x + b` with a free square matrix W and :math:`\log|\det J| = \log|\det W|`.

    It starts at the identity. O(C^2) a point, and O(C^3) once for the determinant or, in the inverse, the
    factorisation. A matrix that has become singular has a log-determinant of minus infinity and no inverse; the LU form
    of :class:`Conv1x1` cannot become singular.

    Args:
        input_dim: C.
        context_dim: size of the context; then W and b are functions of it.
    """

    def __init__(self, input_dim: int, context_dim: int | None = None) -> None:
        super().__init__(input_dim, context_dim)
        self.params = ParameterNet({"weight": torch.eye(input_dim), "bias": torch.zeros(input_dim)}, context_dim)

    @property
    def sign(self) -> int:
        """In one dimension, that of the weight; not defined where a context sets it."""
        if self.context_dim is not None:
            raise ValueError("sign is not defined where the weight is a function of the context")
        return super().sign * (1 if float(self.params()["weight"]) > 0 else -1)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """A product, and one determinant."""
        weight, bias, log_det = self._parts(context)
        return matvec(weight, x) + bias, log_det.expand(x.shape[:-1])

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """A linear system."""
        weight, bias, log_det = self._parts(context)
        wide, y = _no_half(weight), y - bias
        if weight.dim() == 2:  # one factorisation and one right-hand side for each point
            rows = torch.linalg.solve(wide.mT, y.reshape(-1, self.input_dim).to(wide.dtype), left=False)
            x = rows.reshape(y.shape)
        else:
            x = torch.linalg.solve(wide, y.to(wide.dtype)[..., None])[..., 0]
        return x.to(y.dtype), log_det.expand(y.shape[:-1])

    def _parts(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """W, b and the log-determinant."""
        p = self.params(context)
        return p["weight"], p["bias"], torch.linalg.slogdet(_no_half(p["weight"]))[1].to(p["weight"].dtype)


class Conv1x1(PerPixel):
    r"""Invertible 1x1 convolution: a linear map of the channels, the same at every pixel.

    .. math:: y_{\cdot hw} = W x_{\cdot hw}, \qquad \log|\det J| = H W \log|\det W|

    ``"lu"`` writes W as L U with a positive diagonal (:class:`~pyro_flows_vi.transforms.lu_linear.LULinear`),
    ``"plain"`` keeps W free (:class:`PlainLinear`); both add a bias. They start at the identity, and not at the paper's
    random rotation, whose work alternating masks do.

    Source: Glow: Generative flow with invertible 1x1 convolutions (Kingma and Dhariwal, 2018), arXiv:1807.03039.

    Args:
        shape: ``(C, H, W)``.
        context_dim: size of the context; then W is a function of it.
        form: ``"lu"`` or ``"plain"``.

    Raises:
        ValueError: for another form.
    """

    def __init__(self, shape: Sequence[int], context_dim: int | None = None, form: ConvForm = "lu") -> None:
        if form not in get_args(ConvForm):
            raise ValueError(f"expected form to be one of {get_args(ConvForm)}, got {form!r}")
        channels = image_shape(shape)[0]
        super().__init__((LULinear if form == "lu" else PlainLinear)(channels, context_dim), shape)


def _no_half(value: Tensor) -> Tensor:
    """Half-precision types are factored in float32."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
