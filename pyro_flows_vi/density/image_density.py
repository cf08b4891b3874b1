"""Likelihoods of images: dequantisation, logits of pixels, bits per dimension."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pyro_flows_vi import flows
from pyro_flows_vi.density.dequantisation import (
    Dequantisation,
    UniformDequantisation,
    VariationalDequantisation,
    bits_per_dim,
)
from pyro_flows_vi.density.flow_density import FlowDensity
from pyro_flows_vi.density.scaling import PixelLogit
from pyro_flows_vi.density.scored import CHUNK, warn_of_overflow
from pyro_flows_vi.density.settings import Evaluation
from pyro_flows_vi.transforms._door import positive
from pyro_flows_vi.transforms.base import Flow

__all__ = ["ImageDensity"]

#: images scored together on a processor, whose cache can hold what a layer makes of them
CACHED = 128


class ImageDensity(FlowDensity):
    r"""A :class:`FlowDensity` of images with L levels a pixel, as flat vectors ``(*batch, D)`` of 0, ..., L - 1.

    Pixels become real numbers by noise u, and unbounded by the logit of :class:`~.scaling.PixelLogit`. What is trained
    and reported is the bound

    .. math::
        \log P(x) \ge E_{q(u | x)} \left[\log p(x + u) - \log q(u | x)\right]

    in nats, or in bits per dimension, :math:`-\log P(x) / (D \log 2)`. ``log_prob`` is :math:`\log p` itself, the
    density of real-valued pixels on the scale of the levels.

    Args:
        flow: as of :class:`FlowDensity`; an image flow has its own ``shape``.
        shape: ``(H, W)`` or ``(C, H, W)`` of an image; that of the flow by default.
        levels: L, 256 for bytes.
        logit_level: :math:`\lambda` of the logit.
        dequantisation: ``"uniform"``, ``"variational"``, or a :class:`~.dequantisation.Dequantisation` of your own.
        noise: what makes the flow of ``"variational"`` noise: arguments of
            :class:`~.dequantisation.VariationalDequantisation`, ``{"flow": "realnvp"}`` by default.
        context_dim: C, for class-conditional densities.
        num_transforms: steps of the flow, where it is named.
        turn: as of :class:`FlowDensity`.
        standardise: whether the logits are standardised, pixel by pixel.
        **options: options of the flow, where it is named.

    Example:
        >>> density = ImageDensity("realnvp", (2, 2), levels=4, num_transforms=2)
        >>> x = torch.randint(4, (100, 4))
        >>> _ = density.fit(x, max_epochs=1, seed=0, progress=False)
        >>> density.sample(5).max() <= 3, density.bits_per_dim(x).count
        (tensor(True), 100)
    """

    OPTIONS: ClassVar[dict[str, dict[str, Any]]] = {
        **FlowDensity.OPTIONS,
        "nice": {"interleaved": True},
        "realnvp": {**FlowDensity.OPTIONS["realnvp"], "interleaved": True},
    }
    KIND = "image density"
    discrete = True

    def __init__(
        self,
        flow: str | Flow,
        shape: Sequence[int] | None = None,
        *,
        levels: int = 256,
        logit_level: float = 0.05,
        dequantisation: str | Dequantisation = "uniform",
        noise: dict[str, Any] | None = None,
        context_dim: int | None = None,
        num_transforms: int = 5,
        turn: bool | None = None,
        standardise: bool = True,
        **options: Any,
    ) -> None:
        if isinstance(levels, bool) or not isinstance(levels, int) or levels < 2:
            raise ValueError(f"expected levels to be an integer of at least 2, got {levels!r}")
        shape = getattr(flow, "shape", None) if shape is None else shape
        if not isinstance(shape, Sequence) or len(shape) not in (2, 3):
            raise ValueError(f"expected the shape of an image, (H, W) or (C, H, W), got {shape!r}")
        self.levels, self.logit_level = levels, logit_level
        dim, told = math.prod(shape), {}
        if isinstance(flow, str) and "shape" in flows.options(flow):
            told["shape"] = (1,) * (3 - len(shape)) + tuple(shape)
        super().__init__(
            flow, dim, context_dim, num_transforms=num_transforms, turn=turn, standardise=standardise, **told, **options
        )
        self.shape = tuple(shape)
        self.dequantisation = _noise(dequantisation, noise, dim, levels)
        self.recipe |= {
            "options": {name: value for name, value in self.recipe["options"].items() if name not in told},
            "shape": list(shape),
            "levels": levels,
            "logit_level": logit_level,
            "dequantisation": dequantisation if isinstance(dequantisation, str) else None,
            "noise": noise,
        }

    def _outer(self, input_dim: int) -> list[Flow]:
        return [PixelLogit(input_dim, self.levels, self.logit_level)]

    # -- pixels --------------------------------------------------------------------------------------

    def observed(self, x: Tensor) -> Tensor:
        """The images, if they are levels from 0 to L - 1."""
        low, high = (float(v) for v in torch.aminmax(x)) if x.numel() else (0.0, 0.0)
        if math.isfinite(low) and not (low >= 0.0 and high <= self.levels - 1):
            raise ValueError(
                f"expected pixel values from 0 to {self.levels - 1}, got values from {low:g} to {high:g}; "
                "scale the images, or say how many levels there are"
            )
        if math.isfinite(low) and not bool((x == x.round()).all()):
            raise ValueError(
                f"expected pixel values to be whole numbers from 0 to {self.levels - 1}, got others such as "
                f"{float(x[x != x.round()][0]):g}; multiply intensities by {self.levels - 1} and round them"
            )
        return x

    def to_standardise(self, x: Tensor) -> Tensor:
        """Logits of dequantised pixels, whose moments make the scale."""
        pixels = self.chain[2]
        return pixels.inverse_and_log_det(x + torch.rand_like(x))[0]

    # -- likelihoods ---------------------------------------------------------------------------------

    def log_likelihood(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """One draw of the bound of log P(x) in nats, ``(*batch)``, for levels ``(*batch, D)``."""
        u, log_q = self.dequantisation(x)
        return self._log_prob(x + u, context) - log_q

    def nats(self, x: Any, context: Any = None, *, num_samples: int = 1, seed: int = 0) -> Evaluation:
        """The mean bound of log P(x) of images ``(N, D)``, with its standard error.

        Args:
            x: levels.
            context: ``(N, C)``.
            num_samples: draws of the noise for each image, over which the bound is averaged.
            seed: of the noise; torch's generator is left as it was.
        """
        return self.measures(x, context, num_samples=num_samples, seed=seed)["nats"]

    def evaluate(self, x: Any, context: Any = None) -> Evaluation:
        """:meth:`nats` with one draw of the noise."""
        return self.nats(x, context)

    def bits_per_dim(self, x: Any, context: Any = None, *, num_samples: int = 1, seed: int = 0) -> Evaluation:
        """:meth:`nats` in bits per dimension, as published: lower is better."""
        return self.measures(x, context, num_samples=num_samples, seed=seed)["bits_per_dim"]

    def nats_of_logits(self, x: Any, context: Any = None, *, num_samples: int = 1, seed: int = 0) -> Evaluation:
        """The mean log density of the logits of uniformly dequantised pixels, as the tables of MAF have it.

        It depends on ``logit_level``, and compares only where that is the same.
        """
        if not isinstance(self.dequantisation, UniformDequantisation):
            raise ValueError("nats of logits are those of uniform noise: this density was made with other noise")
        return self.measures(x, context, num_samples=num_samples, seed=seed)["nats_of_logits"]

    @torch.no_grad()
    def measures(self, x: Any, context: Any = None, *, num_samples: int = 1, seed: int = 0) -> dict[str, Evaluation]:
        """:meth:`nats`, :meth:`bits_per_dim` and, of uniform noise, :meth:`nats_of_logits`, in one pass for all."""
        positive("num_samples", num_samples)
        rows = self.observed(self._rows(x))
        given = self._contexts(context, len(rows))
        before, bounds, logits = self.training, [], []
        self.eval()
        device = self.scaling.loc.device
        size = CACHED if device.type == "cpu" else CHUNK
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(seed)
                for i in range(0, len(rows), size):
                    part, c = rows[i : i + size].to(self.scaling.loc), self._part(given, i, size)
                    sums = part.new_zeros(2, len(part), dtype=torch.float64)
                    for _ in range(num_samples):
                        u, log_q = self.dequantisation(part)
                        log_p = self._log_prob(part + u, c)
                        _, log_det = self.chain[2].inverse_and_log_det(part + u)
                        sums += torch.stack([log_p - log_q, log_p + log_det]).double()
                    bounds.append(sums[0] / num_samples)
                    logits.append(sums[1] / num_samples)
        finally:
            self.train(before)
        bound = torch.cat(bounds)
        warn_of_overflow(bound)
        found = {"nats": bound, "bits_per_dim": bits_per_dim(bound, self.input_dim)}
        if isinstance(self.dequantisation, UniformDequantisation):
            found["nats_of_logits"] = torch.cat(logits)
        return {name: Evaluation.of(values) for name, values in found.items()}

    def rsample(self, sample_shape: int | tuple[int, ...] = (), context: Any = None) -> Tensor:
        """Real-valued pixels ``(*sample_shape, *context_batch, D)`` with gradients; see :meth:`sample`."""
        return super().rsample(sample_shape, context)

    @torch.no_grad()
    def sample(self, sample_shape: int | tuple[int, ...] = (), context: Any = None) -> Tensor:
        """Images of levels 0, ..., L - 1, ``(*sample_shape, *context_batch, D)``."""
        return super().sample(sample_shape, context).floor().clamp(0, self.levels - 1)

    def _recipe(self) -> dict[str, Any]:
        recipe = super()._recipe()
        del recipe["input_dim"]
        return recipe


def _noise(kind: str | Dequantisation, noise: dict[str, Any] | None, dim: int, levels: int) -> nn.Module:
    if isinstance(kind, Dequantisation):
        return kind
    if kind not in ("uniform", "variational"):
        raise ValueError(f"unknown dequantisation {kind!r}: expected one of uniform, variational")
    if kind == "uniform":
        if noise is not None:
            raise ValueError("uniform noise has no settings: leave noise out, or ask for dequantisation='variational'")
        return UniformDequantisation()
    return VariationalDequantisation(**{"flow": "realnvp", "input_dim": dim, "levels": levels, **(noise or {})})
