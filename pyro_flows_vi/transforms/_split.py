"""The two parts of a coupling, and the network that looks at one of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_flows_vi.nets.dense import MLP
from pyro_flows_vi.nets.parameters import ParameterNet
from pyro_flows_vi.transforms.base import Flow

__all__ = ["SplitFlow"]


class SplitFlow(Flow):
    """What couplings share: the coordinates A, which stay, set the parameters of the rest, B.

    The first steps of a chain split the coordinates into halves, the next into alternate quarters, and so on; or, where
    they are interleaved, into every other one, then every other pair, and so on. Every second step takes the
    complement. A single coordinate has no other to depend on: then A is empty.

    Args:
        input_dim: D.
        context_dim: C, or ``None``; the network sees the context beside A.
        hidden_dims: widths of the network's hidden layers; ``(max(32, 2 D),) * 2``, at most 128 wide, by default.
        init: the P initial parameters of every coordinate of B.
        step: k.
        given: A itself, in place of what the step says.
        interleaved: whether the first steps take every other coordinate.
    """

    order: Tensor
    back: Tensor

    def __init__(
        self,
        input_dim: int,
        context_dim: int | None,
        hidden_dims: Sequence[int] | None,
        init: Tensor,
        step: int,
        given: Sequence[int] | None = None,
        interleaved: bool = False,
    ) -> None:
        super().__init__(input_dim, context_dim)
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise ValueError(f"expected step to be an integer from 0 on, got {step!r}")
        first = _digit_split(input_dim, step, interleaved) if given is None else _checked(input_dim, given)
        self.num_given = len(first)
        rest = sorted(set(range(input_dim)) - set(first))
        #: whether A and B are neighbours as they are, in this order or the other; then nothing has to be moved
        self.in_order, self.turned = first + rest == [*range(input_dim)], rest + first == [*range(input_dim)]
        #: coordinates of A first, and back
        self.register_buffer("order", torch.tensor([*first, *rest]), persistent=False)
        self.register_buffer("back", torch.argsort(self.order), persistent=False)
        seen, moved = self.num_given + (context_dim or 0), input_dim - self.num_given
        hidden_dims = (min(128, max(32, 2 * input_dim)),) * 2 if hidden_dims is None else hidden_dims
        init = init.repeat_interleave(moved)
        self.num_params = len(init)
        self.net: nn.Module
        if seen:
            self.net = MLP(seen, self.num_params, hidden_dims, nn.SiLU)
            with torch.no_grad():
                self.net.last.weight.mul_(ParameterNet.initial_gain)
                self.net.last.bias.copy_(init)
        else:
            self.net = ParameterNet({"params": init})

    def _split(self, value: Tensor) -> tuple[Tensor, Tensor]:
        sizes = [self.num_given, self.input_dim - self.num_given]
        if self.turned:
            moved, given = value.split(sizes[::-1], dim=-1)
        else:
            given, moved = (value if self.in_order else value.index_select(-1, self.order)).split(sizes, dim=-1)
        return given, moved

    def _join(self, given: Tensor, moved: Tensor) -> Tensor:
        if self.turned:
            return torch.cat([moved, given], dim=-1)
        value = torch.cat([given, moved], dim=-1)
        return value if self.in_order else value.index_select(-1, self.back)

    def _params(self, given: Tensor, context: Tensor | None) -> Tensor:
        """The parameters of B, all first ones before all second ones: ``(*batch, P * len(B))``."""
        if isinstance(self.net, ParameterNet):
            return self.net()["params"].expand(*given.shape[:-1], -1)
        seen = given if context is None else torch.cat([given, context.expand(*given.shape[:-1], -1)], dim=-1)
        params: Tensor = self.net(seen)
        return params


def _digit_split(input_dim: int, step: int, interleaved: bool) -> list[int]:
    if input_dim == 1:
        return []
    digits = (input_dim - 1).bit_length()
    digit = step // 2 % digits
    if interleaved:
        return [i for i in range(input_dim) if (i >> digit) & 1 == step % 2]
    places = [(i << digits) // input_dim for i in range(input_dim)]  # different, and spread over all numbers of digits
    return [i for i, place in enumerate(places) if (place >> digits - 1 - digit) & 1 == step % 2]


def _checked(input_dim: int, given: Sequence[int]) -> list[int]:
    known = isinstance(given, Sequence) and all(type(i) is int and 0 <= i < input_dim for i in given)
    if not known or not len(set(given)) == len(given) < input_dim:
        raise ValueError(
            f"expected given to be different coordinates from 0 to {input_dim - 1}, and not all of them, got {given!r}"
        )
    return list(given)
