"""The variational autoencoder: posterior, decoder, likelihood and prior, for Pyro and for a plain loop."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_flows_vi.vae.likelihoods import Bernoulli, Likelihood
from pyro_flows_vi.vae.posterior import HALF_LOG_2PI, FlowPosterior

__all__ = ["VAE", "ELBOTerms", "copy_state", "shapes"]


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, each part's own mode again afterwards."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


class ELBOTerms(NamedTuple):
    """The three terms of the ELBO of each image, ``(*sample_shape, *batch)`` each."""

    log_likelihood: Tensor
    log_prior: Tensor
    log_q: Tensor

    def elbo(self, beta: float | Tensor = 1.0) -> Tensor:
        r"""log p(x|z) + β (log p(z) - log q(z|x)); with β = 1 its mean is the evidence lower bound."""
        return self.log_likelihood + beta * (self.log_prior - self.log_q)


class VAE(nn.Module):
    r"""A variational autoencoder with the model :math:`p(z)\, p(x|z)` and the guide :math:`q(z|x)`.

    ``model`` and ``guide`` are for Pyro (``SVI(vae.model, vae.guide, optimiser, Trace_ELBO())``);
    :meth:`elbo` is the same bound on tensors, without Pyro's handlers, for a fast loop.

    Args:
        posterior: q(z|x).
        decoder: maps z ``(*batch, latent_dim)`` to the likelihood's parameters ``(*batch, D * K)``.
        likelihood: p(x|z), Bernoulli unless given.
        prior: p(z), a Pyro distribution over vectors of ``latent_dim``; N(0, I) unless given. Where it is a
            ``TransformedDistribution`` whose transforms are modules, their parameters are trained too.

    Example:
        >>> posterior = FlowPosterior(nn.Linear(784, 32), 32, latent_dim=2)
        >>> vae = VAE(posterior, decoder=nn.Linear(2, 784))
        >>> vae.elbo(torch.zeros(5, 784)).elbo().shape
        torch.Size([5])
    """

    def __init__(
        self,
        posterior: FlowPosterior,
        decoder: nn.Module,
        likelihood: Likelihood | None = None,
        prior: dist.TorchDistribution | None = None,
    ) -> None:
        super().__init__()
        if prior is not None and tuple(prior.event_shape) != (posterior.latent_dim,):
            raise ValueError(
                f"expected a prior over vectors of {posterior.latent_dim} (event_shape), "
                f"got event_shape {tuple(prior.event_shape)}; use .to_event(1)"
            )
        self.posterior = posterior
        self.decoder = decoder
        self.likelihood = Bernoulli() if likelihood is None else likelihood
        self._prior = prior
        self.prior_modules = nn.ModuleList(t for t in getattr(prior, "transforms", ()) if isinstance(t, nn.Module))

    @property
    def prior(self) -> dist.TorchDistribution:
        """p(z), without batch dimensions."""
        if self._prior is not None:
            return self._prior
        like = self.posterior.heads.weight
        zeros = torch.zeros(self.posterior.latent_dim, dtype=like.dtype, device=like.device)
        return dist.Normal(zeros, torch.ones_like(zeros)).to_event(1)

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z), ``(*batch, latent_dim)`` to ``batch``."""
        if self._prior is None:
            return -0.5 * z.square().sum(-1) - HALF_LOG_2PI * self.posterior.latent_dim
        return self._prior.log_prob(z)

    # -- Pyro ----------------------------------------------------------------------------------------

    def model(self, x: Tensor) -> None:
        """p(z) p(x|z) with the sites ``z`` and ``x``, in a plate over the images ``(B, D)``."""
        pyro.module("vae", self)
        with pyro.plate("images", x.shape[0]):
            z = pyro.sample("z", self.prior.expand([x.shape[0]]))
            pyro.sample("x", self.likelihood.distribution(self.decoder(z)), obs=self.likelihood.observed(x))

    def guide(self, x: Tensor) -> None:
        """q(z|x) with the site ``z``, in a plate over the images ``(B, D)``."""
        pyro.module("vae", self)
        with pyro.plate("images", x.shape[0]):
            pyro.sample("z", self.posterior.condition(x))

    # -- tensors -------------------------------------------------------------------------------------

    def elbo(self, x: Tensor, num_samples: int | None = None) -> ELBOTerms:
        """The terms of the ELBO for images ``x`` ``(*batch, D)``, from one draw of z each.

        Args:
            x: the images; not inspected for bad values, which :meth:`check` does.
            num_samples: draws per image, as a leading dimension of the terms; without it no such dimension.

        Returns:
            the terms, with gradients; ``.elbo(beta)`` combines them.
        """
        return self.terms(x, *self.posterior.rsample_and_log_prob(x, () if num_samples is None else (num_samples,)))

    def terms(self, x: Tensor, z: Tensor, log_q: Tensor) -> ELBOTerms:
        """The terms at given draws ``z`` with their ``log_q``."""
        params, expected = self.decoder(z), self.likelihood.num_params(x.shape[-1])
        if params.shape[-1] != expected:  # a width of 1 would broadcast without a word
            raise ValueError(
                f"expected {expected} numbers from the decoder for images of {x.shape[-1]} pixels, "
                f"got {params.shape[-1]}"
            )
        return ELBOTerms(self.likelihood.log_prob(params, x), self.log_prior(z), log_q)

    def check(self, x: Tensor) -> None:
        """Raise ``ValueError`` for images that are empty, not finite, outside of the likelihood's range or misshapen.

        One image goes through encoder, flow and decoder, in evaluation mode and without randomness.
        """
        if 0 in x.shape:
            raise ValueError(f"expected at least one image, got shape {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"expected images as floating point numbers, got {x.dtype}; use x.float()")
        self.likelihood.check(x)
        with evaluating(self), torch.no_grad(), torch.random.fork_rng(devices=[]):
            try:
                encoding = self.posterior.encode(x[:1].to(self.posterior.heads.weight.device))
            except RuntimeError as error:
                raise ValueError(
                    f"expected images that the encoder can take, got {x.dtype} of shape {tuple(x.shape)}: {error}"
                ) from error
            self.terms(x[:1].to(encoding.loc), *self.posterior.transform(encoding, torch.zeros_like(encoding.loc)))

    def check_parameters(self) -> None:
        """Raise ``ValueError`` that names the parameters with NaN or infinite values, if there are any."""
        names = self.bad_parameters()
        if names:
            raise ValueError(
                f"expected finite parameters, got NaN or infinite values in {', '.join(names)}; "
                "load an earlier checkpoint or train with a smaller step"
            )

    def bad_parameters(self) -> list[str]:
        """Names of the parameters that hold NaN or infinite values."""
        return [name for name, p in self.named_parameters() if not math.isfinite(p.detach().double().sum())]

    @torch.no_grad()
    def sample(self, num_samples: int, *, mean: bool = False) -> Tensor:
        """Images ``(num_samples, D)`` from the prior; with ``mean`` E[x|z] in place of a draw of x."""
        params = self.decoder(self.prior.sample((num_samples,)))
        return self.likelihood.mean(params) if mean else self.likelihood.sample(params)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x|z] at one draw z ~ q(z|x), ``(*batch, D)``."""
        return self.likelihood.mean(self.decoder(self.posterior.rsample_and_log_prob(x)[0]))


def copy_state(vae: VAE) -> dict[str, Tensor]:
    """The weights as they are now."""
    return {name: value.detach().clone() for name, value in vae.state_dict().items()}


def shapes(vae: VAE) -> dict[str, list[int]]:
    """Names and shapes of all weights: the architecture's fingerprint."""
    return {name: list(value.shape) for name, value in vae.state_dict().items()}
