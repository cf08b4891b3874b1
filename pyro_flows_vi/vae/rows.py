"""The flows of the table's rows, and the VAE that a protocol and a row describe."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from pyro_flows_vi import flows
from pyro_flows_vi.nets.gated import GatedConvDecoder, GatedConvEncoder, GatedMLP
from pyro_flows_vi.vae.likelihoods import LIKELIHOODS
from pyro_flows_vi.vae.model import VAE
from pyro_flows_vi.vae.posterior import FlowPosterior
from pyro_flows_vi.vae.protocols import Protocol, one_of

__all__ = ["ROWS", "Row", "build_vae", "row"]


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table: which flow, how many, which options; ``flow=None`` is the diagonal Gaussian."""

    name: str
    flow: str | None = None
    num_transforms: int = 0
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        options = {k: list(v) if isinstance(v, tuple) else v for k, v in self.options.items()}
        return {"flow": self.flow, "num_transforms": self.num_transforms, "options": options}


#: The rows by name. Sylvester and IAF as in the code of arXiv:1803.05649, NAF as in arXiv:1804.00779.
ROWS: dict[str, Row] = {
    r.name: r
    for r in (
        Row("none"),
        Row("planar-10", "planar", 10),
        Row("planar-40", "planar", 40),
        Row("sylvester-orthogonal", "sylvester", 4, {"form": "orthogonal", "rank": 8}),
        Row("sylvester-householder", "sylvester", 4, {"form": "householder", "num_reflections": 8}),
        Row("sylvester-triangular", "sylvester", 4, {"form": "triangular"}),
        Row("iaf", "iaf", 4, {"hidden_dims": (320,), "gated": True}),
        Row("naf", "naf", 2, {"hidden_dims": (320,), "width": 16}),
        Row("residual", "residual", 2),
    )
}


def row(name: str, num_transforms: int | None = None, /, **options: Any) -> Row:
    """A row by its name, with another number of transforms or other flow options where given."""
    one_of("row", name, tuple(ROWS))
    preset = ROWS[name]
    if preset.flow is None and (options or num_transforms):
        raise ValueError(f"row {name!r} has no flow, so it takes no options; got {num_transforms=}, {options}")
    if taken := options.keys() & {"name", "input_dim", "context_dim", "num_transforms"}:
        known = ", ".join(flows.options(str(preset.flow)))
        raise ValueError(f"{min(taken)!r} is no option of flow {preset.flow!r}; expected one of {known}")
    count = preset.num_transforms if num_transforms is None else num_transforms
    return dataclasses.replace(preset, num_transforms=count, options={**preset.options, **options})


def build_vae(settings: Protocol, row: Row, image_shape: tuple[int, int], *, seed: int = 0) -> VAE:
    """The VAE of a protocol and a row, with initial parameters drawn from ``seed``.

    Args:
        settings: the protocol.
        row: the flow of the posterior.
        image_shape: ``(H, W)``; images are flat vectors of H * W pixels.
        seed: torch's global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        num_pixels, latent = image_shape[0] * image_shape[1], settings.latent_dim
        likelihood = LIKELIHOODS[settings.likelihood]()
        widths = settings.hidden_dims
        encoder: nn.Module
        decoder: nn.Module
        if settings.network == "mlp":
            encoder = GatedMLP(num_pixels, widths)
            decoder = GatedMLP(latent, widths[::-1], likelihood.num_params(num_pixels))
        else:
            encoder = GatedConvEncoder(image_shape, widths[-1])
            decoder = GatedConvDecoder(latent, image_shape, likelihood.params_per_pixel)
        flow = None
        if row.flow is not None:
            flow = flows.build(
                row.flow, latent, context_dim=widths[-1], num_transforms=row.num_transforms, **row.options
            )
        posterior = FlowPosterior(encoder, widths[-1], latent, flow, variance_head=settings.variance_head)
        return VAE(posterior, decoder, likelihood)
