"""Mixture-CDF flows: autoregressive (mixtures as conditionals) and coupling (Flow++ on vectors)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pyro_flows_vi.transforms.elementwise.mixture_cdf import MixtureCDF
from pyro_flows_vi.transforms.map_autoregressive import Autoregressive
from pyro_flows_vi.transforms.map_coupling import Coupling

__all__ = ["MixtureAutoregressive", "MixtureCoupling"]


class MixtureAutoregressive(Autoregressive):
    r"""Autoregressive flow of distribution functions of mixtures, :math:`y_i = Q(F_i(x_i \mid x_{<i}))`.

    **Its inverse takes the base of the link to a density whose every conditional is a mixture**: with
    ``kind="gaussian"`` and a standard normal base, that of the masked autoencoder with mixtures of Gaussians (MADE
    MoG), for D = 2 the two-dimensional mixture-CDF flow. So ``flow.inv`` scores data in closed form, and samples by D
    root searches; the flow itself has these costs turned round. See
    :class:`~pyro_flows_vi.transforms.elementwise.mixture_cdf.MixtureCDF` for the map.

    Source: Masked autoregressive flow for density estimation (Papamakarios et al., 2017), arXiv:1705.07057.

    Args:
        input_dim: D.
        context_dim: C, or ``None``.
        hidden_dims: widths of the hidden layers; ``(max(32, 2 D),) * 2`` by default.
        components: K of each mixture.
        kind: "gaussian" or "logistic".
        link: "normal" or "logit", the base that is meant; by default that of the kind.

    Example:
        >>> import torch
        >>> flow = MixtureAutoregressive(2, components=4)
        >>> flow.inv(torch.zeros(5, 2)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        input_dim: int,
        context_dim: int | None = None,
        hidden_dims: Sequence[int] | None = None,
        components: int = 8,
        kind: Literal["gaussian", "logistic"] = "gaussian",
        link: Literal["normal", "logit"] | None = None,
    ) -> None:
        super().__init__(input_dim, context_dim, hidden_dims, map=MixtureCDF(components, kind, link))


class MixtureCoupling(Coupling):
    r"""Coupling flow of distribution functions of logistic mixtures, as in Flow++, on vectors.

    .. math::
        y_i = e^{a_i} \operatorname{logit} \sum_k w_{ik}\, \sigma\bigl((x_i - \mu_{ik}) / s_{ik}\bigr) + b_i,
        \qquad i \in B,

    with all parameters functions of the other coordinates. The paper maps data to the base in this direction,
    which is one pass of the network; the inverse is one pass and a root search for all coordinates together.

    Source: Flow++ (Ho et al., 2019), arXiv:1902.00275.

    Args:
        input_dim: D.
        context_dim: C, or ``None``.
        hidden_dims: widths of the network's hidden layers; ``(max(32, 2 D),) * 2``, at most 128 wide, by default.
        components: K of each mixture.
        kind: "logistic" (the paper's) or "gaussian".
        step: k, which chooses the split.
    """

    def __init__(
        self,
        input_dim: int,
        context_dim: int | None = None,
        hidden_dims: Sequence[int] | None = None,
        components: int = 8,
        kind: Literal["logistic", "gaussian"] = "logistic",
        step: int = 0,
    ) -> None:
        super().__init__(input_dim, context_dim, hidden_dims, map=MixtureCDF(components, kind, rescale=True), step=step)
