"""Parameters that are either free or computed from a context (amortised)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pyro_flows_vi.nets.dense import MLP

__all__ = ["ParameterNet"]


class ParameterNet(nn.Module):
    r"""Named tensors :math:`\phi`, free or as a function :math:`\phi(c)` of a context.

    Without a context the tensors are ``nn.Parameter`` s of this module. With one they are slices of the
    output of a single network, one matrix product for all of them, whose last layer starts with small weights
    and with the initial values as its bias, so that :math:`\phi(c) \approx \phi_0` at the start.

    Args:
        init: the initial value of each tensor, by name.
        context_dim: C, or ``None`` for free parameters.
        hidden_dims: widths of the hidden layers of the network; empty for a linear map.

    Shapes: ``net(context)`` gives a dict of tensors ``(*context_batch, *shape)``; without a context, ``(*shape)``.

    Example:
        >>> net = ParameterNet({"w": torch.zeros(3), "b": torch.zeros(())}, context_dim=2)
        >>> {name: tuple(value.shape) for name, value in net(torch.ones(5, 2)).items()}
        {'w': (5, 3), 'b': (5,)}
    """

    #: scale of the last layer's initial weights, relative to those of a usual linear layer
    initial_gain = 0.01

    def __init__(
        self, init: Mapping[str, Tensor], context_dim: int | None = None, hidden_dims: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.shapes = {name: value.shape for name, value in init.items()}
        self.sizes = [value.numel() for value in init.values()]
        self.net: MLP | None = None
        if context_dim is None:
            for name, value in init.items():
                self.register_parameter(name, nn.Parameter(value.clone()))
        else:
            self.net = MLP(context_dim, sum(self.sizes), hidden_dims)
            with torch.no_grad():
                self.net.last.weight.mul_(self.initial_gain)
                self.net.last.bias.copy_(torch.cat([value.flatten() for value in init.values()]))

    def forward(self, context: Tensor | None = None) -> dict[str, Tensor]:
        """The tensors by name, at ``context`` ``(*context_batch, C)`` or free."""
        if self.net is None:
            return {name: getattr(self, name) for name in self.shapes}
        assert context is not None
        flat = self.net(context).split(self.sizes, dim=-1)
        batch = context.shape[:-1]
        return {
            name: part.reshape(batch + shape) for part, (name, shape) in zip(flat, self.shapes.items(), strict=True)
        }
