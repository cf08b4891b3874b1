"""The importance-weighted estimate of a VAE's negative log-likelihood, streamed, with its standard errors."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_flows_vi.infer.checkpoint import load_checkpoint, save_checkpoint
from pyro_flows_vi.infer.parallel import join
from pyro_flows_vi.infer.progress import progress_bar
from pyro_flows_vi.vae.model import VAE, evaluating
from pyro_flows_vi.vae.posterior import Encoding

__all__ = ["NLLEstimate", "nll"]

#: each image's noise is drawn in blocks of so many samples, whatever the chunks are
BLOCK = 50
#: images encoded at a time, and how many an interruption can lose
GROUP = 200
#: how many copies of the widest layer's output are alive at once, roughly, in float32
COPIES = 6


@dataclasses.dataclass(frozen=True)
class NLLEstimate:
    r"""What :func:`nll` found, in nats. Standard errors are of the mean over the images.

    With weights :math:`w_{is} = p(x_i, z_{is}) / q(z_{is}|x_i)`, S draws for each of N images:
    """

    #: mean of :math:`-\log \frac1S \sum_s w_{is}`, on average an upper bound of -log p(x)
    nll: float
    #: standard error of ``nll`` over the images (as draws from a larger population)
    nll_se: float
    #: Monte-Carlo standard error of ``nll`` on these images, by the delta method: how far another seed
    #: would move it
    nll_mc_se: float
    #: mean of :math:`-\frac1S \sum_s \log w_{is}`, from the same draws
    negative_elbo: float
    negative_elbo_se: float
    num_samples: int
    num_images: int
    seed: int
    #: smallest, 5 % quantile and median over the images of the effective sample size, between 1 and S
    ess_min: float
    ess_5: float
    ess_median: float
    #: per image: log of the mean weight, mean of the log weights, effective sample size; float64 ``(N,)``
    log_evidence: Tensor = dataclasses.field(repr=False)
    elbo: Tensor = dataclasses.field(repr=False)
    ess: Tensor = dataclasses.field(repr=False)

    def summary(self) -> dict[str, Any]:
        """All but the values per image, as JSON has them."""
        named = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in named.items() if not isinstance(value, Tensor)}


def nll(
    vae: VAE,
    x: Tensor,
    num_samples: int = 5000,
    *,
    seed: int = 0,
    memory: int | None = None,
    partial: str | os.PathLike[str] | None = None,
    progress: bool = False,
    parallel: bool = False,
) -> NLLEstimate:
    r"""Estimate the negative log-likelihood by importance sampling from the posterior.

    .. math::
        -\log p(x) \approx -\log \frac1S \sum_{s=1}^S \frac{p(x, z_s)}{q(z_s|x)}, \qquad z_s \sim q(z|x)

    The encoder runs once per image; flow, decoder and likelihood run ``num_samples`` times. The sum over the
    samples is a running log-sum-exp, so that memory does not grow with ``num_samples``. The noise of an image
    depends on ``seed`` and the image's place in ``x`` only, and the first S draws are the same for every
    ``num_samples`` of at least S, so that the result does not depend on how the work is cut into chunks (but
    for float32 rounding, about 1e-6 of the value).

    The expectation of the estimate is an upper bound that falls towards -log p(x) as S grows. Where the
    effective sample size of an image is near 1, a few draws decide: the bound is then still loose, and the
    Monte-Carlo error too small.

    The model is put in evaluation mode, in which log-determinants are exact, and back.

    Args:
        vae: the model.
        x: images ``(N, D)``.
        num_samples: S.
        seed: of the draws.
        memory: bytes to spend on intermediate results, roughly; 128 MiB on the CPU and 4 GiB on a GPU
            unless given.
        partial: a file for the results of the images that are done, so that an interrupted estimate goes on
            from there when it is called again; removed at the end.
        progress: whether to show a progress bar.
        parallel: whether processes that ``torchrun`` started share the images; all of them have to call then, with the
            same arguments, and all get the result. It does not depend on their number.

    Raises:
        ValueError: for images or parameters that are not finite, for images of another width than the model's,
            for weights that are NaN or infinite, for a flow whose log-determinant stays a random estimate, and for
            a ``partial`` of another estimate.

    Source: Importance Weighted Autoencoders (Burda, Grosse, Salakhutdinov, 2016), arXiv:1509.00519.
    """
    if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"expected num_samples to be a positive integer, got {num_samples!r}")
    if x.ndim != 2:
        raise ValueError(f"expected images of shape (N, D), got {tuple(x.shape)}; flatten them")
    vae.check(x)
    vae.check_parameters()
    ranks = join(parallel)
    device = vae.posterior.heads.weight.device
    if memory is None:
        memory = 1 << (32 if device.type == "cuda" else 27)
    with (
        evaluating(vae),
        torch.no_grad(),
        progress_bar(len(x), f"NLL, {num_samples} samples", "image", progress and ranks.first) as bar,
    ):
        flow = vae.posterior.flow
        if flow is not None and not flow.exact_log_det:
            raise ValueError(
                "expected a flow with an exact log-determinant in evaluation mode, got an estimate, "
                "which would bias the NLL; choose the flow's exact option"
            )
        rows = max(1, memory // (COPIES * 4 * _widest(vae, x[:1].to(device))))
        done = ranks.from_first(lambda: _Partial(partial, vae, x, {"num_samples": num_samples, "seed": seed}))
        done.path = done.path if ranks.first else None
        bar.update(done.results.shape[1])
        for start in range(done.results.shape[1], len(x), GROUP * ranks.size):
            images = x[start : start + GROUP * ranks.size]
            share, results = ranks.share(len(images)), torch.zeros(3, len(images), dtype=torch.float64)
            if share.weight:
                own, first = images[share.rows].to(device), start + share.rows.start
                results[:, share.rows] = _weigh(vae, own, num_samples, rows, seed, first, bar)
            done.add(ranks.sum(results))
            bar.update(len(images) - share.count)
        done.remove()
    log_evidence, elbo, ess = done.results.unbind()
    relative_variance = (1 / ess - 1 / num_samples).clamp(min=0)
    quantiles = torch.quantile(ess, torch.tensor([0.0, 0.05, 0.5], dtype=ess.dtype)).tolist()
    return NLLEstimate(
        nll=-float(log_evidence.mean()),
        nll_se=_standard_error(log_evidence),
        nll_mc_se=math.sqrt(float(relative_variance.sum())) / len(x),
        negative_elbo=-float(elbo.mean()),
        negative_elbo_se=_standard_error(elbo),
        num_samples=num_samples,
        num_images=len(x),
        seed=seed,
        ess_min=quantiles[0],
        ess_5=quantiles[1],
        ess_median=quantiles[2],
        log_evidence=log_evidence,
        elbo=elbo,
        ess=ess,
    )


def _weigh(vae: VAE, x: Tensor, num_samples: int, rows: int, seed: int, first: int, bar: Any) -> Tensor:
    """Log mean weight, mean log weight and effective sample size of each image: ``(3, N)``, on the CPU."""
    encoding = vae.posterior.encode(x)
    per_chunk = min(max(BLOCK, rows // BLOCK * BLOCK), math.ceil(num_samples / BLOCK) * BLOCK)
    count = max(1, rows // per_chunk)
    results = []
    for start in range(0, len(x), count):
        images = slice(start, start + count)
        some = Encoding(*(part[images] for part in encoding))
        number = some.loc.shape[0]
        generators = [torch.Generator().manual_seed((_mixed(seed) + first + start + i) % 2**32) for i in range(number)]
        top = torch.full((number,), -math.inf, dtype=torch.float64, device=x.device)
        total, squares, logs = torch.zeros_like(top), torch.zeros_like(top), torch.zeros_like(top)
        for done in range(0, num_samples, per_chunk):
            size = min(per_chunk, num_samples - done)
            eps = _noise(generators, size, some.loc.shape[1]).to(some.loc)
            log_weight = vae.terms(x[images], *vae.posterior.transform(some, eps)).elbo().double()
            higher = torch.maximum(top, log_weight.amax(0))
            rescale, weight = (top - higher).exp(), (log_weight - higher).exp()
            total = total * rescale + weight.sum(0)
            squares = squares * rescale.square() + weight.square().sum(0)
            logs += log_weight.sum(0)
            top = higher
        results.append(torch.stack([top + (total / num_samples).log(), logs / num_samples, total.square() / squares]))
        bar.update(number)
    result = torch.cat(results, dim=1).cpu()
    if not bool(result.isfinite().all()):
        bad = int((~result.isfinite()).any(0).nonzero()[0]) + first
        raise ValueError(
            f"image {bad}: expected finite importance weights, got NaN or infinite ones; "
            "check the image and the trained model"
        )
    return result


class _Partial:
    """The results of the images so far, ``(3, images)``, in memory and in a file where one is given."""

    def __init__(self, path: str | os.PathLike[str] | None, vae: VAE, x: Tensor, settings: dict[str, Any]) -> None:
        self.results = torch.empty(3, 0, dtype=torch.float64)
        self.path = None if path is None else Path(path)
        if self.path is None:
            return
        digest = hashlib.sha256()
        for tensor in (*vae.state_dict().values(), x):
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        self.settings = {**settings, "weights and images": digest.hexdigest()}
        if self.path.exists():
            try:
                _, state = load_checkpoint(self.path, kind="nll", settings=self.settings)
            except ValueError as error:
                raise ValueError(f"{error}; remove the file to begin again") from error
            self.results = state["results"]

    def add(self, results: Tensor) -> None:
        self.results = torch.cat([self.results, results], dim=1)
        if self.path is not None:
            save_checkpoint(self.path, {"results": self.results}, kind="nll", settings=self.settings)

    def remove(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _noise(generators: list[torch.Generator], size: int, dim: int) -> Tensor:
    """Standard normal ``(size, images, dim)``, each image from its own generator, in whole blocks."""
    noise = torch.empty(math.ceil(size / BLOCK), BLOCK, len(generators), dim)
    for index, generator in enumerate(generators):
        for block in noise:
            block[:, index] = torch.randn(BLOCK, dim, generator=generator)
    return noise.flatten(0, 1)[:size]


def _mixed(seed: int) -> int:
    """A seed far from those of neighbouring seeds, so that images do not share noise between runs."""
    return (seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % 2**64 >> 32


def _widest(vae: VAE, x: Tensor) -> int:
    """Numbers in the widest output of any layer for one image and one sample."""
    sizes = [vae.posterior.latent_dim, x.shape[-1]]

    def measure(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel())

    hooks = [module.register_forward_hook(measure) for module in vae.modules()]
    try:
        encoding = vae.posterior.encode(x)
        vae.terms(x, *vae.posterior.transform(encoding, torch.zeros_like(encoding.loc)))
    finally:
        for hook in hooks:
            hook.remove()
    return max(sizes)


def _standard_error(values: Tensor) -> float:
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan
