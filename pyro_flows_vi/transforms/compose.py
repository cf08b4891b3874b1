"""Chains of flows."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from pyro_flows_vi.transforms.base import Flow

__all__ = ["Compose"]


class Compose(Flow):
    r"""The chain :math:`f_K \circ \dots \circ f_1`: x goes through ``flows[0]`` first.

    A context goes to every flow that has a ``context_dim``, and to no other.

    Args:
        flows: at least one flow, all of one ``input_dim``, and of one ``context_dim`` where they have any.

    Raises:
        ValueError: for an empty chain, something that is not a :class:`Flow`, or dimensions that differ.

    Example:
        >>> from pyro_flows_vi.transforms.planar import Planar
        >>> chain = Compose([Planar(3), Planar(3)])
        >>> len(chain), chain(torch.zeros(5, 3)).shape
        (2, torch.Size([5, 3]))
    """

    def __init__(self, flows: Iterable[Flow]) -> None:
        flows = list(flows)
        for flow in flows:
            if not isinstance(flow, Flow):
                raise ValueError(f"expected flows of type Flow, got {type(flow).__name__}")
        dims = {flow.input_dim for flow in flows}
        contexts = {flow.context_dim for flow in flows} - {None}
        if len(dims) != 1 or len(contexts) > 1:
            raise ValueError(
                f"expected at least one flow, one input_dim and one context_dim; got {len(flows)} flows with "
                f"input_dim {sorted(dims)} and context_dim {sorted(contexts, key=str)}"
            )
        super().__init__(dims.pop(), contexts.pop() if contexts else None)
        self.flows = nn.ModuleList(flows)
        self.fast_forward = all(flow.fast_forward for flow in flows)
        self.fast_inverse = all(flow.fast_inverse for flow in flows)
        self.triangular = all(flow.triangular for flow in flows)

    @property
    def exact_log_det(self) -> bool:  # type: ignore[override]
        """Whether all log-determinants are exact at present."""
        return all(flow.exact_log_det for flow in self)

    @property
    def sign(self) -> int:
        """The product of the signs."""
        sign = 1
        for flow in self:
            sign *= flow.sign
        return sign

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """All flows in order; the log-determinants add up."""
        terms = []
        for flow in self:
            x, term = flow.forward_and_log_det(x, None if flow.context_dim is None else context)
            terms.append(term)
        return x, functools.reduce(torch.add, terms)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """All inverses in reverse order."""
        terms = []
        for flow in reversed(list(self)):
            y, term = flow.inverse_and_log_det(y, None if flow.context_dim is None else context)
            terms.append(term)
        return y, functools.reduce(torch.add, terms)

    def _forward_and_score(self, x: Tensor, score: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        terms = []
        for flow in self:
            x, term, score = flow.forward_and_score(x, score, None if flow.context_dim is None else context)
            terms.append(term)
        return x, functools.reduce(torch.add, terms), score

    def __len__(self) -> int:
        return len(self.flows)

    def __iter__(self) -> Iterator[Flow]:
        return iter(self.flows)  # type: ignore[arg-type]

    def __getitem__(self, index: int | slice) -> Flow:
        flows = list(self)
        return Compose(flows[index]) if isinstance(index, slice) else flows[index]
