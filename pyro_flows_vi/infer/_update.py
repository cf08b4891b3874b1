"""An optimiser's update in place, as part of the graph of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, Adamax, Optimizer

__all__ = ["MOMENTS", "refused_optimizer", "update"]

#: names of the two moments in an optimiser's state
MOMENTS: dict[type[Optimizer], tuple[str, str]] = {
    Adam: ("exp_avg", "exp_avg_sq"),
    Adamax: ("exp_avg", "exp_inf"),
}
#: options that are not in the graph
OTHERS = ("weight_decay", "amsgrad", "maximize", "differentiable", "decoupled_weight_decay")


def refused_optimizer(optimizer: Optimizer, parameters: Sequence[Tensor]) -> str | None:
    """Why the steps of an optimiser cannot be part of a graph."""
    name = type(optimizer).__name__
    if type(optimizer) not in MOMENTS or len(optimizer.param_groups) > 1:
        return f"the optimiser is {name}, not one plain Adam or Adamax"
    if {id(p) for p in optimizer.param_groups[0]["params"]} != {id(p) for p in parameters}:
        return f"{name} has other parameters than those that are trained"
    if changed := [option for option in OTHERS if optimizer.param_groups[0].get(option)]:
        return f"of {name}'s options, {', '.join(changed)} is not in the graph"
    if len({(p.dtype, p.device) for p in parameters}) > 1:
        return "the parameters have several dtypes or devices"
    return None


def update(
    optimizer: Optimizer,
    state: tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]],
    gradients: Sequence[Tensor],
    steps: Tensor,
    rate: Tensor,
    finite: Tensor,
    fused: bool,
) -> None:
    r"""Adam, :math:`\theta \mathrel{-}= \eta \hat m / (\sqrt{\hat v} + \epsilon)`, or Adamax, unless not ``finite``.

    Args:
        optimizer: whose rule and settings.
        state: parameters and the two moments, each in as many pieces as the gradient.
        gradients: the gradient.
        steps: how many there are with this one.
        rate: the step size.
        finite: whether anything is done.
        fused: whether Adam is one kernel, as it is where compilers fuse nothing.
    """
    group: dict[str, Any] = optimizer.param_groups[0]
    (decay, decay_of_squares), eps = group["betas"], group["eps"]
    correction = 1.0 - decay**steps
    if fused and type(optimizer) is Adam:
        parameters, firsts, seconds = map(list, state)
        torch._fused_adam_(
            parameters,
            list(gradients),
            firsts,
            seconds,
            [],
            [steps.float()] * len(parameters),
            lr=rate.float() if rate.is_cuda else rate,
            beta1=decay,
            beta2=decay_of_squares,
            weight_decay=0.0,
            eps=eps,
            amsgrad=False,
            maximize=False,
            found_inf=(~finite).float(),
        )
        return
    # stacked, so that a compiler computes them once, and not in the loop over each parameter
    sizes = torch.stack([rate / correction, (1.0 - decay_of_squares**steps).sqrt()]).to(gradients[0].dtype)
    step_size, root = sizes.unbind()
    for parameter, first, second, gradient in zip(*state, gradients, strict=True):
        new_first = torch.lerp(first, gradient, 1.0 - decay)
        if type(optimizer) is Adam:
            new_second = second * decay_of_squares + (1.0 - decay_of_squares) * gradient.square()
            spread = new_second.sqrt() / root + eps
        else:
            new_second = spread = torch.maximum(second * decay_of_squares, gradient.abs() + eps)
        new_parameter = parameter - step_size * (new_first / spread)
        for old, new in ((parameter, new_parameter), (first, new_first), (second, new_second)):
            old.copy_(torch.where(finite, new, old))
