"""Activation normalisation."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_flows_vi.nets.parameters import ParameterNet
from pyro_flows_vi.numerics.stable import log_softplus
from pyro_flows_vi.transforms.base import Flow

__all__ = ["ActNorm", "initialize_act_norms"]


class ActNorm(Flow):
    r"""Activation normalisation: :math:`y = s \odot x + b`, with
    :math:`s = \operatorname{softplus}(a + \log(e - 1))` and :math:`\log|\det J| = \sum_i \log s_i`.

    It starts at the identity. :meth:`initialize` sets it from data so that y has mean 0 and variance 1, and
    :func:`initialize_act_norms` all those of a flow; both are calls of their own, since a forward pass changes no
    state. O(D) both ways.

    On images it is applied to the channels of each pixel, by
    :class:`~pyro_flows_vi.transforms.image.per_pixel.PerPixel`.

    Source: Glow: Generative flow with invertible 1x1 convolutions (Kingma and Dhariwal, 2018), arXiv:1807.03039.

    Args:
        input_dim: D.
        context_dim: C; then s and b are functions of the context.
    """

    def __init__(self, input_dim: int, context_dim: int | None = None) -> None:
        super().__init__(input_dim, context_dim)
        self.params = ParameterNet({"shift": torch.zeros(input_dim), "scale": torch.zeros(input_dim)}, context_dim)

    @torch.no_grad()
    def initialize(self, x: Tensor, inverse: bool = False) -> Tensor:
        """Set scale and shift from a sample ``(*batch, D)`` and return y, of mean 0 and variance 1.

        With ``inverse`` the sample is one of y, and it is the inverse map that normalises it; then x is returned.

        Raises:
            ValueError: for fewer than two points, a coordinate that is constant, or a flow with a context.
        """
        if self.context_dim is not None:
            raise ValueError("expected a flow without a context: an amortised ActNorm has no values of its own to set")
        rows = x.reshape(-1, self.input_dim)
        sd = rows.std(0, correction=min(1, len(rows) - 1))
        if len(rows) < 2 or not bool((sd > 0).all()):
            raise ValueError(f"expected at least 2 points that vary in every coordinate, got {len(rows)} with sd {sd}")
        raw = sd if inverse else 1.0 / sd  # the inverse of softplus(a + log(e - 1)), which here does not overflow
        scale = raw + torch.log(-torch.expm1(-raw)) - torch.log(torch.expm1(torch.ones_like(raw)))
        self.params.get_parameter("scale").copy_(scale)
        self.params.get_parameter("shift").copy_(rows.mean(0) if inverse else -rows.mean(0) / sd)
        return (self.inverse_and_log_det if inverse else self.forward_and_log_det)(x)[0]

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """O(D)."""
        p = self.params(context)
        log_scale = log_softplus(p["scale"])
        return x * log_scale.exp() + p["shift"], log_scale.sum(-1).expand(x.shape[:-1])

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """O(D)."""
        p = self.params(context)
        log_scale = log_softplus(p["scale"])
        return (y - p["shift"]) * torch.exp(-log_scale), log_scale.sum(-1).expand(y.shape[:-1])


@torch.no_grad()
def initialize_act_norms(flow: Flow, y: Tensor, context: Tensor | None = None) -> int:
    """Set every ActNorm within a flow from data, in one pass of the inverse, from data to base.

    Each gets the scale and the shift with which what arrives there leaves it with mean 0 and variance 1, in
    the direction in which it is met. Amortised ones are left as they are. It is meant for a new flow, before training;
    nothing but the parameters changes, and those of all ActNorms or of none.

    Args:
        flow: any flow, such as a recipe's chain.
        y: data, ``(*batch, D)``.
        context: ``(*context_batch, C)``, where the flow has one.

    Returns:
        the number of ActNorms that were set.

    Raises:
        ValueError: for fewer than two points, or a coordinate (on images, a channel) that does not vary.

    Example:
        >>> flow = ActNorm(2).inv
        >>> initialize_act_norms(flow, 5.0 + 3.0 * torch.randn(100, 2))
        1
    """
    norms = [m for m in flow.modules() if isinstance(m, ActNorm) and m.context_dim is None]
    before = [copy.deepcopy(norm.state_dict()) for norm in norms]
    count = 0

    def first_pass(norm: ActNorm, inverse: bool) -> Callable[..., tuple[Tensor, Tensor]]:
        def method(value: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
            nonlocal count
            _restore(norm)
            norm.initialize(value, inverse)
            count += 1
            return norm.inverse_and_log_det(value) if inverse else norm.forward_and_log_det(value)

        return method

    try:
        for norm in norms:  # hides the methods of this one object, until it is met
            vars(norm).update(forward_and_log_det=first_pass(norm, False), inverse_and_log_det=first_pass(norm, True))
        flow.inverse_and_log_det(y, context)
    except BaseException:
        for norm, state in zip(norms, before, strict=True):
            norm.load_state_dict(state)
        raise
    finally:
        for norm in norms:
            _restore(norm)
    return count


def _restore(norm: ActNorm) -> None:
    vars(norm).pop("forward_and_log_det", None)
    vars(norm).pop("inverse_and_log_det", None)
