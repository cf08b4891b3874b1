"""Scoring and drawing with a chain that ends in the units of the data."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pyro_flows_vi.density.data import require_columns, require_rows, to_rows
from pyro_flows_vi.density.scaling import Scaling
from pyro_flows_vi.density.settings import Evaluation
from pyro_flows_vi.numerics.tracing import is_traced
from pyro_flows_vi.transforms._door import is_finite
from pyro_flows_vi.transforms.base import Flow
from pyro_flows_vi.transforms.compose import Compose

__all__ = ["CHUNK", "Scored"]

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
#: rows scored together by :meth:`Scored.evaluate`
CHUNK = 2048


class Scored(nn.Module):
    """What a fitted density can do: log_prob, draws, a Pyro distribution.

    ``transform`` is the chain from N(0, I) to the data, a flow and its :class:`~.scaling.Scaling` first, and
    ``context_scaling`` the scale of the context; both are ``None`` while the dimensions are unknown.
    """

    transform: Compose | None
    context_scaling: Scaling | None
    #: of x and of the context: the names in the data frame that the density was first fitted to
    columns: dict[str, list[str]]
    #: whether the data are whole numbers, to which noise is added
    discrete = False

    @property
    def chain(self) -> Compose:
        """The whole map from N(0, I) to the data.

        Raises:
            ValueError: while the dimensions are unknown.
        """
        if self.transform is None:
            raise ValueError("the dimensions of the density are not known yet: fit it, or pass input_dim")
        return self.transform

    @property
    def flow(self) -> Flow:
        """The learned part."""
        return self.chain[0]

    @property
    def scaling(self) -> Scaling:
        """The fixed scale of the data."""
        scaling = self.chain.flows[1]
        assert isinstance(scaling, Scaling)
        return scaling

    @property
    def input_dim(self) -> int:
        """D."""
        return self.chain.input_dim

    @property
    def context_dim(self) -> int | None:
        """C, or ``None``."""
        return self.chain.context_dim

    # -- data ----------------------------------------------------------------------------------------

    def log_likelihood(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """What :meth:`fit` maximises, per row: ``log_prob``, or a bound of it where a subclass says so."""
        return self._log_prob(x, context)

    def observed(self, x: Tensor) -> Tensor:
        """Rows of data, checked for what a subclass expects of them."""
        return x

    def to_standardise(self, x: Tensor) -> Tensor:
        """What the scale is measured on."""
        return x

    # -- scoring and drawing -------------------------------------------------------------------------

    def log_prob(self, x: Any, context: Any = None) -> Tensor:
        """log p(x), or log p(x | context), with gradients.

        Args:
            x: ``(*batch, D)``; anything that :meth:`fit` takes but a ``DataLoader``.
            context: ``(*context_batch, C)``, with a batch that broadcasts against that of x.

        Returns:
            ``(*batch)``.

        Raises:
            ValueError: for another width than that of the density, and for NaN or infinite values.

        Warns:
            UserWarning: for rows whose density overflows, which is then NaN or zero.
        """
        result = self._log_prob(self._values(x, "x"), None if context is None else self._values(context, "context"))
        warn_of_overflow(result)
        return result

    def _log_prob(self, x: Tensor, context: Tensor | None) -> Tensor:
        return self._log_density(*self.chain.inverse_and_log_det(x, self.scaled_context(context)))

    @torch.no_grad()
    def sample(self, sample_shape: int | tuple[int, ...] = (), context: Any = None) -> Tensor:
        """Draws ``(*sample_shape, *context_batch, D)``.

        Warns:
            UserWarning: for draws that overflow, which are NaN or infinite.
        """
        draws = self.rsample(sample_shape, context)
        lost = int((~draws.isfinite()).any(-1).sum())
        if lost:
            count = draws.shape[:-1].numel()
            warnings.warn(
                f"{lost} of {count} draws overflow and are not finite: the scales of the flow explode where its "
                "networks have seen no data. Train longer, or with a smaller learning_rate, or use a spline flow",
                stacklevel=3,
            )
        return draws

    def rsample(self, sample_shape: int | tuple[int, ...] = (), context: Any = None) -> Tensor:
        """Draws ``(*sample_shape, *context_batch, D)`` with gradients to parameters and context."""
        shape = _shape(sample_shape)
        values = None if context is None else self._values(context, "context")
        like = self.scaling.loc
        batch = () if values is None else tuple(values.shape[:-1])
        z = torch.randn((*shape, *batch, self.input_dim), dtype=like.dtype, device=like.device)
        return self.chain.forward_and_log_det(z, self.scaled_context(values))[0]

    def rsample_and_log_prob(self, count: int) -> tuple[Tensor, Tensor]:
        """``count`` draws ``(n, D)`` without a context, and their log densities ``(n,)``, with gradients; one pass."""
        z = self._base_draws(count)
        x, log_det = self.chain.forward_and_log_det(z)
        return x, self._log_density(z, log_det)

    def rsample_and_score(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        r"""As :meth:`rsample_and_log_prob`, and the score :math:`\nabla_x \log p(x)` ``(n, D)``, without a graph."""
        z = self._base_draws(count)
        x, log_det, score = self.chain.forward_and_score(z, -z)
        return x, self._log_density(z, log_det), score

    def _base_draws(self, count: int) -> Tensor:
        like = self.scaling.loc
        return torch.randn(count, self.input_dim, dtype=like.dtype, device=like.device)

    def _log_density(self, z: Tensor, log_det: Tensor) -> Tensor:
        """log N(z; 0, I) - log_det, in two kernels after the sum."""
        return torch.sub(-HALF_LOG_2PI * z.shape[-1] - log_det, z.square().sum(-1), alpha=0.5)

    def distribution(self, context: Any = None) -> dist.TorchDistribution:
        """The density as a Pyro distribution over vectors: a prior for a model, or for a VAE.

        Its batch shape is that of the context, ``()`` without one. It shares the parameters with this density, and
        takes them as they are when it scores and draws.
        """
        like = self.scaling.loc
        base = dist.Normal(torch.zeros_like(like), torch.ones_like(like)).to_event(1)
        chain: Flow = self.chain
        if context is not None or self.context_dim is not None:
            if context is None or self.context_dim is None:
                self.chain.inverse_and_log_det(
                    like, self.scaled_context(context)
                )  # says what is wrong with the context
            scaled = self.scaled_context(self._values(context, "context"))
            assert scaled is not None
            base = base.expand(scaled.shape[:-1])
            chain = chain.condition(scaled)
        return dist.TransformedDistribution(base, [chain])

    @torch.no_grad()
    def evaluate(self, x: Any, context: Any = None) -> Evaluation:
        """The mean log-likelihood of rows ``(N, D)`` in evaluation mode, in chunks, with its standard error."""
        rows = self._rows(x)
        given = self._contexts(context, len(rows))
        before = self.training
        self.eval()
        try:
            parts = [
                self.log_likelihood(rows[i : i + CHUNK].to(self.scaling.loc), self._part(given, i, CHUNK))
                for i in range(0, len(rows), CHUNK)
            ]
        finally:
            self.train(before)
        values = torch.cat(parts)
        warn_of_overflow(values)
        return Evaluation.of(values)

    def _rows(self, x: Any) -> Tensor:
        rows = self._values(x, "x", move=False)
        require_rows(rows, "x")
        return rows

    def _contexts(self, context: Any, count: int) -> Tensor | None:
        """A context for each of so many rows, from as many or from one for all."""
        if context is None:
            return None
        values = self._values(context, "context", move=False)
        if values.shape[:-1] not in ((), (1,), (count,)):
            raise ValueError(f"expected a context for each of {count} rows, or one for all, got {tuple(values.shape)}")
        return values.expand(count, values.shape[-1])

    def _part(self, context: Tensor | None, start: int, size: int) -> Tensor | None:
        return None if context is None else context[start : start + size].to(self.scaling.loc)

    def scaled_context(self, context: Tensor | None) -> Tensor | None:
        """The context as the flow sees it."""
        if context is None or self.context_scaling is None:
            return context
        if context.shape[-1:] != (self.context_dim,):
            return context  # the flow's door says what is wrong with it
        return self.context_scaling.inverse_and_log_det(context)[0]

    def _values(self, values: Any, name: str, move: bool = True) -> Tensor:
        like = self.scaling.loc
        if isinstance(values, DataLoader):
            raise ValueError(f"expected {name} as a tensor, an array or a data frame, got a DataLoader")
        require_columns(values, name, self.columns.get(name))
        rows = to_rows(values, name, like.dtype, like.device if move else None)
        width = self.input_dim if name == "x" else self.context_dim
        if width is not None and rows.shape[-1:] != (width,):
            raise ValueError(
                f"expected {name} of shape (*batch, {width}), as the density was made for, got {tuple(rows.shape)}"
            )
        if not is_traced(rows) and not is_finite(rows):
            raise ValueError(
                f"expected finite values in {name}, got {int((~rows.isfinite()).sum())} that are NaN or infinite"
            )
        return rows


def warn_of_overflow(log_prob: Tensor) -> None:
    """Say how many of these are not finite."""
    if is_traced(log_prob) or is_finite(log_prob):
        return
    lost = int((~log_prob.isfinite()).sum())
    warnings.warn(
        f"the log density of {lost} of {log_prob.numel()} rows is not finite: the flow overflows there, far from "
        "the rows that it was fitted to. Train longer, or with a smaller learning_rate, or use a flow whose tails "
        "do not explode, such as nsf or maf",
        stacklevel=3,
    )


def _shape(sample_shape: Any) -> tuple[int, ...]:
    shape = tuple(sample_shape) if isinstance(sample_shape, Sequence) else (sample_shape,)
    if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in shape):
        raise ValueError(f"expected sample_shape to be a number of draws or a tuple of them, got {sample_shape!r}")
    return shape
