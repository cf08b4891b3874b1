"""From a user's data to a fit: split, checks, the scale of the data, and the loop."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pyro_flows_vi.density.collinear import require_full_rank
from pyro_flows_vi.density.data import (
    Moments,
    Pairs,
    Rows,
    column_names,
    listed,
    measure,
    require_columns,
    require_rows,
    to_rows,
)
from pyro_flows_vi.density.fitting import Fitting
from pyro_flows_vi.density.settings import DensityFit, FitSettings
from pyro_flows_vi.infer.interruption import Interruption
from pyro_flows_vi.infer.repeat import seeded
from pyro_flows_vi.transforms._door import positive
from pyro_flows_vi.transforms.act_norm import ActNorm, initialize_act_norms

if TYPE_CHECKING:
    from pyro_flows_vi.density.flow_density import FlowDensity

__all__ = ["prepare"]

#: rows that activation normalisation starts from
START_ROWS = 2048
#: means and standard deviations beyond which data are far from standardised
FAR = 10.0


def prepare(
    density: FlowDensity,
    x: Any,
    context: Any,
    validation: Any,
    settings: FitSettings,
    *,
    checkpoint: str | os.PathLike[str] | None,
    checkpoint_every: int,
    resume: bool,
    seed: int | None,
    progress: bool,
) -> DensityFit:
    """What :meth:`FlowDensity.fit` does."""
    positive("checkpoint_every", checkpoint_every)
    if checkpoint is not None and Path(checkpoint).is_dir():
        raise ValueError(f"expected checkpoint to be a file, got the folder {checkpoint}")
    resuming = resume and checkpoint is not None and Path(checkpoint).exists()
    with Interruption() as interruption, seeded(seed):
        dtype = torch.get_default_dtype() if density.transform is None else density.scaling.loc.dtype
        columns = _columns(density, x, context, validation)
        data, held_out = _gather(density, x, context, validation, settings.batch_size, dtype)
        moments = _look(density, data, held_out)
        if density.transform is None:
            density.setup(len(moments[0].mean), None if moments[1] is None else len(moments[1].mean))
        _check_width(density, moments)
        density.columns = columns
        if not resuming and not bool(density.scaling.measured):
            _set_scale(density, data, moments)
            _start(density, data)
        fitting = Fitting(density, data, held_out, settings, checkpoint, _identity(density, data, held_out, seed))
        if resuming:
            fitting.load()
        return fitting.run(interruption, checkpoint_every, progress)


def _columns(density: FlowDensity, x: Any, context: Any, validation: Any) -> dict[str, list[str]]:
    """The names of the columns, which are the same in all data frames."""
    held_out = validation if isinstance(validation, tuple) else (validation,)
    known = dict(density.columns)
    for name, place, values in (("x", 0, x), ("context", 1, context)):
        require_columns(values, name, known.get(name))
        names = column_names(values)
        if names is not None:
            known.setdefault(name, names)
        if place < len(held_out):
            require_columns(held_out[place], f"validation {name}", known.get(name))
    return known


def _gather(
    density: FlowDensity, x: Any, context: Any, validation: Any, batch_size: int, dtype: torch.dtype
) -> tuple[Rows | Pairs, Rows | Pairs | None]:
    """Training and validation data."""
    if isinstance(x, DataLoader):
        if context is not None:
            raise ValueError("expected the context as the second part of the DataLoader's batches, got it apart")
        if isinstance(validation, int | float):
            raise ValueError(
                "expected validation rows of their own, x or (x, context) or a DataLoader, since those of a DataLoader "
                f"cannot be split; got {validation!r}; None trains for max_epochs without any"
            )
        conditional = density.transform is not None and density.context_dim is not None
        return Pairs(x, dtype, conditional), _own(validation, conditional, batch_size, dtype)
    rows = to_rows(x, "x", dtype).detach()
    require_rows(rows, "x")  # before they are split, so that a row is named by the number that the user knows
    given = None if context is None else to_rows(context, "context", dtype).detach()
    if given is not None and (given.ndim != 2 or len(given) != len(rows)):
        raise ValueError(
            f"expected a context of shape ({len(rows)}, C), one row for each of x, got {tuple(given.shape)}; "
            "encode labels as indicator columns (torch.nn.functional.one_hot)"
        )
    if given is not None:
        require_rows(given, "context")
    if not isinstance(validation, int | float):
        return Rows(rows, given, batch_size), _own(validation, given is not None, batch_size, dtype)
    if isinstance(validation, bool) or not 0.0 < validation < 1.0:
        raise ValueError(f"expected validation to be a fraction between 0 and 1, rows, or None, got {validation!r}")
    order = torch.randperm(len(rows)).to(rows.device)
    count = max(1, round(validation * len(rows)))
    if len(rows) < 2:
        raise ValueError(f"expected at least two rows to split, got x of shape {tuple(rows.shape)}")
    train, held_out = order[count:], order[:count]
    parts = [Rows(rows[i], None if given is None else given[i], batch_size) for i in (train, held_out)]
    return parts[0], parts[1]


def _own(validation: Any, with_context: bool, batch_size: int, dtype: torch.dtype) -> Rows | Pairs | None:
    """Validation data that the user has split off."""
    if validation is None:
        return None
    if isinstance(validation, DataLoader):
        return Pairs(validation, dtype, with_context)
    parts = validation if isinstance(validation, tuple) else (validation,)
    if len(parts) != (2 if with_context else 1):
        wanted = "(x, context)" if with_context else "x alone"
        raise ValueError(f"expected validation rows as {wanted}, got {len(parts)} parts")
    names = ("validation x", "validation context")
    rows = [to_rows(part, name, dtype).detach() for part, name in zip(parts, names, strict=False)]
    if with_context and len(rows[0]) != len(rows[1]):
        raise ValueError(f"expected as many validation contexts as rows, got {len(rows[1])} and {len(rows[0])}")
    return Rows(rows[0], rows[1] if with_context else None, batch_size)


Measured = tuple[Moments, Moments | None]


def _look(density: FlowDensity, data: Rows | Pairs, held_out: Rows | Pairs | None) -> Measured:
    """The moments of x and context; raises for bad rows."""
    with _same_draws():
        x = measure((density.observed(pair[0]) for pair in data.in_order()), "x")
        context = measure(_contexts(data), "context") if _has_context(data) else None
        x.require_density(discrete=density.discrete)
        if not density.discrete:
            require_full_rank(data.in_order)
        if held_out is not None:
            other = measure((density.observed(pair[0]) for pair in held_out.in_order()), "validation x")
            if len(other.mean) != len(x.mean):
                raise ValueError(f"expected validation x of {len(x.mean)} columns, as x has, got {len(other.mean)}")
    return x, context


@contextmanager
def _same_draws() -> Iterator[None]:
    """Leave torch's generator, from which a DataLoader draws its order, as it was."""
    before = torch.get_rng_state()
    yield
    torch.set_rng_state(before)


def _has_context(data: Rows | Pairs) -> bool:
    return data.with_context if isinstance(data, Pairs) else data.context is not None


def _contexts(data: Rows | Pairs) -> Iterator[Tensor]:
    for _, context in data.in_order():
        assert context is not None
        yield context


def _check_width(density: FlowDensity, moments: Measured) -> None:
    for name, moment, own in (("x", moments[0], density.input_dim), ("context", moments[1], density.context_dim)):
        width = None if moment is None else len(moment.mean)
        if width != own:
            wanted = f"no {name}" if own is None else f"{name} of {own} columns"
            made = "without one" if own is None else "for"
            raise ValueError(f"expected {wanted}, as the density was made {made}, got {width or 'none'}")


def _set_scale(density: FlowDensity, data: Rows | Pairs, moments: Measured) -> None:
    x, context = moments
    if density.discrete:
        with _same_draws():
            x = measure((density.to_standardise(pair[0]) for pair in data.in_order()), "x")
    if not density.recipe["standardise"]:
        _warn_of_scale(density, x)
        density.scaling.measure(torch.zeros_like(x.mean), torch.ones_like(x.mean))
        return
    density.scaling.measure(x.mean, x.sd)
    if context is not None and density.context_scaling is not None:
        density.context_scaling.measure(context.mean, torch.where(context.constant, 1.0, context.sd))


def _warn_of_scale(density: FlowDensity, x: Moments) -> None:
    """Say so where a flow near the identity starts far from data that are not standardised."""
    far = (x.mean.abs() > FAR) | (x.sd > FAR) | (x.sd < 1.0 / FAR)
    if bool(far.any()) and not _norms(density):
        warnings.warn(
            f"standardise=False, and columns {listed(far)} have means or standard deviations far from 0 and 1, where "
            "every flow here starts: it has a long way to go, and a spline, which is the identity outside of its box, "
            "none to learn from. Leave standardise on, or put an ActNorm between flow and data, which starts there",
            stacklevel=5,
        )


def _norms(density: FlowDensity) -> list[ActNorm]:
    return [module for module in density.flow.modules() if isinstance(module, ActNorm)]


def _start(density: FlowDensity, data: Rows | Pairs) -> None:
    """Let the activation normalisation of a new flow start from data."""
    if not _norms(density):
        return
    x, context = next(iter(data.in_order()))
    like = density.scaling.loc
    rows = density.to_standardise(x[:START_ROWS].to(like))
    given = None if context is None else density.scaled_context(context[:START_ROWS].to(like))
    initialize_act_norms(density.flow, density.scaling.inverse_and_log_det(rows)[0], given)


def _identity(
    density: FlowDensity, data: Rows | Pairs, held_out: Rows | Pairs | None, seed: int | None
) -> dict[str, Any]:
    """What a checkpoint must agree with."""
    return {"recipe": density._recipe(), "seed": seed, "data": _digest(data), "validation": _digest(held_out)}


def _digest(data: Rows | Pairs | None) -> str:
    if data is None:
        return "none"
    if isinstance(data, Pairs):
        return f"DataLoader of {data.steps} batches"
    digest = hashlib.sha256()
    for part in (data.x, data.context):
        if part is not None:
            digest.update(str(tuple(part.shape)).encode())
            digest.update(part.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:16]
