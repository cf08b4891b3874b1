"""Networks in which a step of an optimiser moves the guide alike, whatever their width and their number."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import linear

__all__ = ["EvenLinear", "even_out"]


class EvenLinear(nn.Module):
    r"""A linear layer :math:`y = s\,(V x / n + b)` with n inputs, that starts as a given one.

    Adam moves every entry of V and b by the step size :math:`\eta`, in the worst case all in one direction: y then
    moves by about :math:`s \eta`, instead of by :math:`n \eta` as in the usual parameters.

    Source: Tensor Programs V: Tuning large neural networks via zero-shot hyperparameter transfer (Yang et al., 2022),
    arXiv:2203.03466, the rule for Adam.

    Args:
        layer: the layer that this one starts as.
        share: s.
    """

    def __init__(self, layer: nn.Linear, share: float = 1.0) -> None:
        super().__init__()
        self.share, self.gain = share, share / layer.in_features
        self.weight_units = nn.Parameter(layer.weight.detach() / self.gain)
        self.bias_units = None if layer.bias is None else nn.Parameter(layer.bias.detach() / share)

    @property
    def weight(self) -> Tensor:
        """s V / n."""
        return self.gain * self.weight_units

    @property
    def bias(self) -> Tensor | None:
        """s b."""
        return self.bias_units if self.bias_units is None or self.share == 1.0 else self.share * self.bias_units

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(*batch, in)`` to ``(*batch, out)``."""
        return linear(x, self.weight, self.bias)


def even_out(module: nn.Module, share: float) -> None:
    """Put an :class:`EvenLinear` in the place of every linear layer in ``module``, which computes the same as before.

    Args:
        module: a chain of flows.
        share: of the last layer of each network: one over the number of networks whose outputs add up.
    """
    for name, child in list(module.named_children()):
        if type(child) is nn.Linear:
            setattr(module, name, EvenLinear(child, share if name == "last" else 1.0))
        else:
            even_out(child, share)
