"""The settings of a training run, and the published protocols as presets."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from pyro_flows_vi.vae.likelihoods import LIKELIHOODS

__all__ = ["PROTOCOLS", "SOURCES", "Protocol", "make_optimiser", "protocol"]


def one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}: expected one of {', '.join(known)}")


def number(name: str, value: Any, kind: type, least: float) -> None:
    kinds = (int,) if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value) or value < least:
        wanted = "an integer" if kind is int else "a finite number"
        raise ValueError(f"expected {name} to be {wanted} of at least {least}, got {value!r}")


@dataclasses.dataclass(frozen=True)
class Protocol:
    r"""All settings of a training run but the flow; :func:`protocol` makes one from a preset.

    The KL weight is min(1, epoch / ``warmup_epochs``) with epochs counted from 1. Training stops after more
    than ``early_stop_epochs`` epochs without a better validation ELBO, counted after the warm-up, or after
    ``max_epochs``.
    """

    #: name of the preset, which decides what a run may be compared with
    name: str
    #: ``"mlp"`` (gated dense layers, mirrored in the decoder) or ``"gated-conv"``
    network: str = "mlp"
    #: widths of the encoder's gated layers; for ``"gated-conv"`` one number, the size of the features
    hidden_dims: tuple[int, ...] = (300, 300)
    latent_dim: int = 40
    #: ``"bernoulli"``, ``"categorical"`` or ``"gaussian"``
    likelihood: str = "bernoulli"
    #: ``"log"`` or ``"softplus"``, see :class:`FlowPosterior`
    variance_head: str = "log"
    #: ``"adam"`` or ``"adamax"``
    optimiser: str = "adam"
    learning_rate: float = 5e-4
    #: the optimiser's epsilon
    eps: float = 1e-8
    #: ``"constant"``, or ``"cosine"``: down to ``final_learning_rate`` over ``max_epochs``, epoch by epoch
    schedule: str = "constant"
    final_learning_rate: float = 1e-5
    batch_size: int = 100
    warmup_epochs: int = 100
    early_stop_epochs: int = 50
    max_epochs: int = 2000
    #: largest norm of the gradient; ``None`` for no clipping
    clip_norm: float | None = None
    #: so many steps in a row with a loss or gradient that is not finite end the run
    max_bad_steps: int = 20
    #: ``"highest"`` for float32 products, ``"high"`` or ``"medium"`` for TF32 or bfloat16 inside them where
    #: the machine is faster so; in training only, see :func:`torch.set_float32_matmul_precision`
    matmul_precision: str = "highest"

    def __post_init__(self) -> None:
        if not isinstance(self.hidden_dims, list | tuple):
            raise ValueError(f"expected hidden_dims to be one or more positive integers, got {self.hidden_dims!r}")
        object.__setattr__(self, "hidden_dims", tuple(self.hidden_dims))
        one_of("network", self.network, ("mlp", "gated-conv"))
        one_of("likelihood", self.likelihood, tuple(LIKELIHOODS))
        one_of("variance_head", self.variance_head, ("log", "softplus"))
        one_of("optimiser", self.optimiser, ("adam", "adamax"))
        one_of("schedule", self.schedule, ("constant", "cosine"))
        one_of("matmul_precision", self.matmul_precision, ("highest", "high", "medium"))
        for name in ("latent_dim", "batch_size", "max_epochs", "max_bad_steps"):
            number(name, getattr(self, name), int, 1)
        for name in ("warmup_epochs", "early_stop_epochs"):
            number(name, getattr(self, name), int, 0)
        for name in ("learning_rate", "eps", "final_learning_rate"):
            number(name, getattr(self, name), float, 0.0)
        if self.clip_norm is not None:
            number("clip_norm", self.clip_norm, float, 0.0)
        if not self.hidden_dims or any(not isinstance(w, int) or w < 1 for w in self.hidden_dims):
            raise ValueError(f"expected hidden_dims to be one or more positive integers, got {self.hidden_dims}")
        if self.network == "gated-conv" and len(self.hidden_dims) != 1:
            raise ValueError(f"expected one number in hidden_dims for 'gated-conv', got {self.hidden_dims}")

    def beta(self, epoch: int) -> float:
        """The weight of the KL term in ``epoch``, counted from 1."""
        return 1.0 if self.warmup_epochs == 0 else min(1.0, epoch / self.warmup_epochs)

    def rate(self, epoch: int) -> float:
        """The learning rate in ``epoch``, counted from 1."""
        if self.schedule == "constant" or self.max_epochs == 1:
            return self.learning_rate
        cosine = 0.5 * (1 + math.cos(math.pi * (epoch - 1) / (self.max_epochs - 1)))
        return self.final_learning_rate + (self.learning_rate - self.final_learning_rate) * cosine

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return {**dataclasses.asdict(self), "hidden_dims": list(self.hidden_dims)}


#: The presets. ``mlp``: Exemplar VAE: Exemplar based Variational Autoencoder (Norouzi et al., 2020),
#: arXiv:2004.04795, after VAE with a VampPrior (Tomczak, Welling, 2018), arXiv:1705.07120. ``gated-conv``:
#: Sylvester Normalizing Flows for Variational Inference (van den Berg et al., 2018), arXiv:1803.05649.
#: ``demo``: our own, small, for digits of 8 x 8 pixels.
PROTOCOLS: dict[str, Protocol] = {
    "mlp": Protocol("mlp"),
    "gated-conv": Protocol(
        "gated-conv",
        network="gated-conv",
        hidden_dims=(256,),
        latent_dim=64,
        variance_head="softplus",
        optimiser="adamax",
        eps=1e-7,
        early_stop_epochs=100,
    ),
    "demo": Protocol(
        "demo",
        hidden_dims=(64,),
        latent_dim=8,
        learning_rate=6e-3,
        schedule="cosine",
        warmup_epochs=20,
        early_stop_epochs=100,
        max_epochs=80,
    ),
}

#: where each preset is from
SOURCES = {"mlp": "arXiv:2004.04795, 1705.07120", "gated-conv": "arXiv:1803.05649", "demo": "this library"}


def protocol(name: str, /, **overrides: Any) -> Protocol:
    """A preset with some fields replaced.

    Raises:
        ValueError: for an unknown preset, an unknown field or a value that a field cannot have.

    Example:
        >>> protocol("mlp", max_epochs=100).max_epochs
        100
    """
    one_of("protocol", name, tuple(PROTOCOLS))
    fields = {field.name for field in dataclasses.fields(Protocol)} - {"name"}
    unknown = sorted(set(overrides) - fields)
    if unknown:
        raise ValueError(f"unknown setting {', '.join(unknown)}: expected one of {', '.join(sorted(fields))}")
    return dataclasses.replace(PROTOCOLS[name], **overrides)


def restored(settings: dict[str, Any]) -> Protocol:
    """The protocol that ``as_dict`` made ``settings`` of."""
    return protocol(settings["name"], **{key: value for key, value in settings.items() if key != "name"})


def make_optimiser(settings: Protocol, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser of the protocol."""
    if settings.optimiser == "adamax":
        return torch.optim.Adamax(parameters, lr=settings.learning_rate, eps=settings.eps)
    # one kernel for all parameters: a third of the time of the loop over parameters, on CPU and GPU alike
    return torch.optim.Adam(parameters, lr=settings.learning_rate, eps=settings.eps, fused=True)
