"""Trainings of one architecture whose parameters are stacked, and one step of all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_flows_vi.infer._as_one import AsOne, Stream
from pyro_flows_vi.infer._step_graph import put_back, put_in_place, watch_buffers
from pyro_flows_vi.infer._vectorise import FAILURES
from pyro_flows_vi.vae.protocols import make_optimiser
from pyro_flows_vi.vae.trainer import Outcome, Trainer

__all__ = ["Member", "Stack", "refused", "unstack"]

#: images on which the losses of the program are compared with those of the models by themselves
COMPARED = 8
#: the largest relative difference that is rounding
ROUNDING = 1e-3


class Member(Trainer):
    """One training of several, with its own stream of random numbers in the place of torch's."""

    def __init__(self, stream: Stream, *arguments: Any) -> None:
        self.stream = stream
        stream(lambda: Trainer.__init__(self, *arguments))
        self.failure: ValueError | None = None

    @property
    def runs(self) -> bool:
        """Whether it goes on."""
        return not self.history.stop_reason and self.failure is None

    @property
    def place(self) -> tuple[int, int]:
        """Epochs, and minibatches after these."""
        return self.history.epochs, self.history.batches

    def save(self) -> None:
        """As of one training alone."""
        self.stream(super().save)

    def load(self) -> None:
        """As of one training alone."""
        self.stream(super().load)

    def loss_alone(self, x: Tensor) -> Tensor:
        """The loss of the model by itself."""
        self.vae.train()
        return self.stream(lambda: self.loss(self.vae.elbo(x), 1.0)[0])

    def set_gradients(self, used: Sequence[int], gradients: Sequence[Tensor | None]) -> None:
        """The gradients of some parameters."""
        for k, gradient in zip(used, gradients, strict=True):
            self.parameters[k].grad = gradient


class Stack:
    """The parameters of some trainings, stacked; theirs become views of it.

    Args:
        members: the trainings, of the same settings.

    Attributes:
        trained: the stacked parameters ``(members, *shape)`` that have a gradient.

    Raises:
        ValueError: for models of different classes, dtypes or frozen parameters.
    """

    @torch.no_grad()
    def __init__(self, members: Sequence[Member]) -> None:
        self.members = list(members)
        models = [member.vae.train() for member in members]
        kinds = {tuple((p.dtype, p.requires_grad) for p in model.parameters()) for model in models}
        if len(kinds) > 1 or len({type(model) for model in models}) > 1:
            raise ValueError(refused("the models differ in class, dtype, or what of them is trained"))
        parameters, buffers = torch.func.stack_module_state(models)
        self.pieces = list(parameters.values())
        self.trained = [piece for piece in self.pieces if piece.requires_grad]
        for i, member in enumerate(members):
            for own, piece in zip(member.vae.parameters(), self.pieces, strict=True):
                own.data = piece.data[i]
        # one mask for all is cheaper than a stack of them
        differ = [name for name, stack in buffers.items() if not bool((stack == stack[:1]).all())]
        self.buffers = [buffers[name] for name in differ]
        self.places = [*models[0].parameters(), *(models[0].get_buffer(name) for name in differ)]
        # one call for all; where the gradient of a member is None nothing changes, not even the count of its steps
        self.optimiser = make_optimiser(members[0].settings, [p for member in members for p in member.parameters])
        for member in members:
            for own in member.parameters:
                self.optimiser.state[own] = member.optimiser.state[own]

    # -- a step --------------------------------------------------------------------------------------

    def losses(
        self,
        x: Tensor,
        beta: float | Tensor,
        trained: Sequence[Tensor] | None = None,
        draw: Callable[[int, Callable[[], Tensor]], Tensor] | None = None,
    ) -> list[Tensor]:
        """Loss, log-likelihood and KL of each member, ``(members,)``.

        Args:
            x: a minibatch for each ``(members, B, D)``.
            beta: the weight of the KL term.
            trained: other tensors in the place of those that are trained.
            draw: see :class:`~pyro_flows_vi.infer._as_one.AsOne`; from the stream of each member unless given.
        """
        model = self.members[0]

        def one(index: Tensor, own: list[Tensor], images: Tensor) -> list[Tensor]:
            with AsOne(index, draw or self._draw), put_in_place(model.vae, self.places, own):
                terms = model.vae.elbo(images)
            return model.loss(terms, beta)[1]

        others = iter(self.trained if trained is None else trained)
        pieces = [next(others) if piece.requires_grad else piece for piece in self.pieces]
        index = torch.arange(len(self.members), device=x.device)
        return torch.func.vmap(one)(index, [*pieces, *self.buffers], x)

    def _draw(self, i: int, call: Callable[[], Tensor]) -> Tensor:
        return self.members[i].stream(call)

    def step(self) -> list[Outcome]:
        """One step of each member on its next minibatch, unless its own loss or gradient is not finite."""
        members, settings = self.members, self.members[0].settings
        x = torch.stack([member.minibatches.take() for member in members])
        values = self.losses(x, members[0].beta)
        found = torch.autograd.grad(values[0].sum(), self.trained, allow_unused=True)
        used = [k for k, gradient in enumerate(found) if gradient is not None]
        # one kernel for all parameters takes their layout for that of the gradients
        own = list(zip(*(found[k].contiguous().unbind() for k in used), strict=True))
        norms = torch.stack(torch._foreach_norm([gradient for gradients in own for gradient in gradients]))
        norm = norms.view(len(members), -1).norm(dim=1)
        # the one point where the host waits for the device
        rows = torch.stack([*values, norm], dim=1).tolist()
        finite = [all(map(math.isfinite, row)) for row in rows]
        for member, gradients, row, good in zip(members, own, rows, finite, strict=True):
            member.set_gradients(used, gradients if good else [None] * len(used))
            if good and settings.clip_norm is not None and row[-1] > settings.clip_norm:
                torch._foreach_mul_(gradients, settings.clip_norm / row[-1])
        self.optimiser.param_groups[0]["lr"] = members[0].rate
        self.optimiser.step()
        for member, gradients, good in zip(members, own, finite, strict=True):
            if not good:
                member.set_gradients(used, gradients)  # for the message of an error
        return [(*row, x.shape[1]) for row in rows]

    # -- the door ------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise ``ValueError`` unless the losses are those of the models by themselves, on a few images."""
        x = self.members[0].validation[:COMPARED]
        states = [member.stream.state for member in self.members]
        before = watch_buffers([member.vae for member in self.members])
        with torch.no_grad():
            alone = torch.stack([member.loss_alone(x) for member in self.members])
        self._restore(states)
        if put_back(before):
            raise ValueError(refused("a module keeps a state that a step changes"))
        try:
            together = self.losses(x.expand(len(self.members), *x.shape), 1.0)[0]
            torch.autograd.grad(together.sum(), self.trained, allow_unused=True)
        except FAILURES as error:
            raise ValueError(refused(_reason(error))) from error
        finally:
            self._restore(states)
        rounding = ROUNDING if self.members[0].settings.matmul_precision == "highest" else 10 * ROUNDING
        if not torch.allclose(together, alone, rtol=rounding, equal_nan=True):
            said = ", ".join(f"{a:.6g} ({b:.6g})" for a, b in zip(together.tolist(), alone.tolist(), strict=True))
            raise ValueError(refused(f"the losses would be {said}, and not those in brackets, of each model alone"))

    def _restore(self, states: Sequence[tuple[Tensor, Tensor | None]]) -> None:
        for member, state in zip(self.members, states, strict=True):
            member.stream.state = state


@torch.no_grad()
def unstack(members: Sequence[Member]) -> None:
    """Give their parameters a storage of their own again."""
    for member in members:
        for own in member.vae.parameters():
            own.data = own.data.clone()


def refused(reason: str) -> str:
    """Why trainings cannot be one program, and what to do."""
    return f"these trainings cannot be one program: {reason}; train the seeds one after the other"


def _reason(error: Exception) -> str:
    text = str(error).strip().split("\n")[0]
    reads = "data-dependent" in text or ".item()" in text
    return "the forward direction of a module looks at values" if reads else text
