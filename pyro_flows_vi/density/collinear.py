"""Whether columns determine each other, so that there is no density over all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pyro_flows_vi.density.data import LOOK, Pair, listed

__all__ = ["require_full_rank"]

#: roundings of its values by which a combination of columns may miss a constant
ROUNDINGS = 4.0
#: standard deviation of a combination above which an eigenvalue in double precision leaves no doubt
SAFE = 1e-5
#: weight in a combination of norm one from which on a column has a part in it
PART = 1e-3


def require_full_rank(in_order: Callable[[], Iterator[Pair]]) -> None:
    r"""Raise where a linear combination of columns of x, or of x and the context, is constant up to rounding.

    Of the standardised columns Z of the first rows, a singular value decomposition gives the combinations v of norm one
    that vary least. One counts as constant where

    .. math::
        \|Z v\| / \sqrt{n} \le 4 \sqrt{\sum_j (u_j v_j)^2}, \qquad u_j = \epsilon \max_i |x_{ij}| / s_j

    with the :math:`\epsilon` of the rows' floating-point type, and where it is so in all rows. Columns that are no more
    than strongly correlated are orders of magnitude away from that. Combinations of the context alone do not matter.
    O(n D^2) for n up to 4096; the decomposition, and one more pass over the data, only where the eigenvalues of the
    correlations leave a doubt.

    Args:
        in_order: gives rows with their contexts, or ``None``, from the first on; called once or twice.

    Raises:
        ValueError: with the columns that have a part in it.
    """
    x, context = _first(in_order())
    width, eps = x.shape[1], torch.finfo(x.dtype).eps
    conditional = context is not None and len(x) > width + context.shape[1]  # a wide context determines any few rows
    joint = _joined((x, context), conditional)
    mean, sd = joint.mean(0), joint.std(0)
    sd = torch.where(sd == 0.0, 1.0, sd)
    scaled, most = (joint - mean) / sd, joint.abs().amax(0)
    coarse = (sd <= ROUNDINGS * eps * most)[:width]
    if bool(coarse.any()):
        raise ValueError(
            f"expected columns whose values differ by more than rounding, got a spread of few roundings of {x.dtype} "
            f"in columns {listed(coarse)}: subtract their means in double precision, or use a density of "
            "float64, FlowDensity(flow, input_dim).double()"
        )
    least = torch.linalg.eigvalsh(scaled.mT @ scaled / len(scaled))[0]
    if float(least) > max(SAFE, ROUNDINGS * eps * float((most / sd).max())) ** 2:
        return
    _, sizes, directions = torch.linalg.svd(scaled, full_matrices=False)

    def constant(size: Tensor, directions: Tensor, most: Tensor) -> Tensor:
        return size <= ROUNDINGS * eps * (directions * most / sd).norm(dim=1)

    found = constant(sizes / len(joint) ** 0.5, directions, most)
    found &= directions[:, :width].norm(dim=1) > PART
    if not bool(found.any()):
        return
    directions, count = directions[found], 0
    square = directions.new_zeros(len(directions))
    for pair in in_order():
        rows = _joined(pair, conditional)
        square += ((rows - mean) / sd @ directions.mT).square().sum(0)
        most, count = torch.maximum(most, rows.abs().amax(0)), count + len(rows)
    directions = directions[constant((square / count).sqrt(), directions, most)]
    if not len(directions):
        return
    parts = (directions.abs() > PART).any(0)
    many = int(torch.linalg.matrix_rank(directions[:, :width], atol=PART))
    known = f" and {listed(parts[width:])} of the context" if bool(parts[width:].any()) else ""
    raise ValueError(
        f"expected columns that do not determine each other, got columns {listed(parts[:width])}{known}, of which "
        f"{many} linear combination{'s are' if many > 1 else ' is'} constant (in {x.dtype}): a density over all of "
        f"them is infinite; drop {many} of x"
    )


def _first(pairs: Iterator[Pair]) -> Pair:
    """The first rows, in one piece."""
    some: list[Pair] = []
    for x, context in pairs:
        some.append((x, context))
        if sum(len(rows) for rows, _ in some) >= LOOK:
            break
    contexts = [context for _, context in some if context is not None]
    return torch.cat([x for x, _ in some])[:LOOK], torch.cat(contexts)[:LOOK] if contexts else None


def _joined(pair: Pair, conditional: bool) -> Tensor:
    x, context = pair
    return (torch.cat([x, context.to(x.device)], 1) if conditional and context is not None else x).double()
