"""One guide for each family, which only chooses the flow of :class:`~pyro_flows_vi.guides.AutoFlow`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from pyro_flows_vi.guides.auto_flow import AutoFlow

__all__ = ["AutoBNAF", "AutoIAF", "AutoNAF", "AutoPlanar", "AutoRadial", "AutoRealNVP", "AutoResidual", "AutoSylvester"]


class _Named(AutoFlow):
    """An :class:`AutoFlow` of one family."""

    family: ClassVar[str]

    def __init__(self, model: Callable[..., Any], num_transforms: int | None = None, **options: Any) -> None:
        super().__init__(model, self.family, num_transforms, **options)


class AutoPlanar(_Named):
    """Planar flows: the cheapest step; one direction is bent at a time. ``AutoFlow(model, "planar", ...)``."""

    family = "planar"


class AutoRadial(_Named):
    """Radial flows: contraction or expansion around points. ``AutoFlow(model, "radial", ...)``."""

    family = "radial"


class AutoSylvester(_Named):
    """Sylvester flows: many directions at a time, by ``form``. ``AutoFlow(model, "sylvester", ...)``."""

    family = "sylvester"


class AutoRealNVP(_Named):
    """Affine couplings: fast both ways, AutoFlow's default beyond one latent. ``AutoFlow(model, "realnvp", ...)``."""

    family = "realnvp"


class AutoIAF(_Named):
    """Inverse autoregressive flow: rich dependence, fast to sample. ``AutoFlow(model, "iaf", ...)``."""

    family = "iaf"


class AutoNAF(_Named):
    """Neural autoregressive flow: each coordinate through a monotone network. ``AutoFlow(model, "naf", ...)``."""

    family = "naf"


class AutoBNAF(_Named):
    """Block neural autoregressive flow: one large monotone network. ``AutoFlow(model, "bnaf", ...)``."""

    family = "bnaf"


class AutoResidual(_Named):
    """Residual flow: an unrestricted contraction added to the identity. ``AutoFlow(model, "residual", ...)``."""

    family = "residual"
