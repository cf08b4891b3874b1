"""A density that is learned from data: a flow, fitted by maximum likelihood."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, ClassVar

from pyro_flows_vi import flows
from pyro_flows_vi.density.prepare import prepare
from pyro_flows_vi.density.scaling import Scaling
from pyro_flows_vi.density.scored import Scored
from pyro_flows_vi.density.settings import DensityFit, FitSettings
from pyro_flows_vi.infer.checkpoint import load_checkpoint, save_checkpoint
from pyro_flows_vi.transforms.base import Flow
from pyro_flows_vi.transforms.compose import Compose

__all__ = ["FlowDensity"]


class FlowDensity(Scored):
    r"""A density over vectors, learned from data by maximum likelihood: a flow behind a fixed scale of the data.

    .. math::
        y = m + s \odot f(z; c), \quad z \sim N(0, I), \qquad
        \log p(y | c) = \log N(z; 0, I) - \log |\det \partial f / \partial z| - \sum_i \log s_i

    m and s are the means and standard deviations of the training rows, so ``log_prob`` is in the data's own units. With
    a context c it is a conditional density p(y | c); the context is standardised too.

    A family named by ``flow`` is turned so that ``log_prob`` is its cheap direction: an IAF becomes a MAF. Sampling is
    then the other one, which ``density.flow.fast_forward`` says the cost of.

    Args:
        flow: a name of :func:`pyro_flows_vi.flows.names`, or a :class:`~pyro_flows_vi.transforms.base.Flow`.
        input_dim: D; without it, the first :meth:`fit` decides.
        context_dim: C; without it, the first :meth:`fit` decides.
        num_transforms: steps of the flow, where it is named.
        turn: whether the flow is turned round. By default a named one is, where that makes ``log_prob`` cheap, and a
            flow of your own is used as it is.
        standardise: whether m and s (and those of the context) are measured, or stay 0 and 1.
        **options: options of the flow, where it is named, such as ``hidden_dims``. The scales of ``"realnvp"``,
            ``"maf"`` and ``"iaf"`` are ``damped`` unless you say ``damped=False``.

    Example:
        >>> import torch
        >>> x = torch.randn(200, 1) @ torch.ones(1, 2) + 0.1 * torch.randn(200, 2)
        >>> density = FlowDensity("maf", num_transforms=2)
        >>> result = density.fit(x, max_epochs=2, seed=0, progress=False)
        >>> density.log_prob(x).shape, density.sample(5).shape
        (torch.Size([200]), torch.Size([5, 2]))
    """

    #: options of families that a density has unless it is told otherwise: affine maps whose scales explode less where
    #: there are no data, which a likelihood never sees until a test row is there
    OPTIONS: ClassVar[dict[str, dict[str, Any]]] = {name: {"damped": True} for name in ("realnvp", "maf", "iaf")}
    #: ``kind`` of the files that :meth:`save` writes
    KIND = "density"

    def __init__(
        self,
        flow: str | Flow = "nsf",
        input_dim: int | None = None,
        context_dim: int | None = None,
        *,
        num_transforms: int = 5,
        turn: bool | None = None,
        standardise: bool = True,
        **options: Any,
    ) -> None:
        super().__init__()
        if not isinstance(flow, str | Flow):
            raise ValueError(f"expected flow to be a name or a Flow, got {type(flow).__name__}")
        if isinstance(flow, str):
            options = {**self.OPTIONS.get(flow, {}), **options}
            flows.check(flow, num_transforms, **_tuples(options))  # a wrong word is found now, not later
        elif options:
            raise ValueError(f"a flow of your own takes no options here, got {', '.join(options)}")
        self.recipe: dict[str, Any] = {
            "flow": flow if isinstance(flow, str) else None,
            "num_transforms": num_transforms,
            "turn": turn,
            "standardise": standardise,
            "options": options,
        }
        self.columns = {}
        self.transform: Compose | None = None
        self.context_scaling: Scaling | None = None
        if isinstance(flow, Flow):
            for name, given, own in (
                ("input_dim", input_dim, flow.input_dim),
                ("context_dim", context_dim, flow.context_dim),
            ):
                if given is not None and given != own:
                    raise ValueError(f"expected {name} to be that of the flow, {own}, got {given}")
            self._assemble(flow.inv if turn else flow)
        elif input_dim is not None:
            self.setup(input_dim, context_dim)

    # -- the parts -----------------------------------------------------------------------------------

    def setup(self, input_dim: int, context_dim: int | None = None) -> None:
        """Make the named flow for these dimensions; :meth:`fit` calls it where that has not been done."""
        recipe = self.recipe
        flow: Flow = flows.build(
            recipe["flow"], input_dim, context_dim, recipe["num_transforms"], **_tuples(recipe["options"])
        )
        turn = not flow.fast_inverse and flow.fast_forward if recipe["turn"] is None else recipe["turn"]
        self._assemble(flow.inv if turn else flow)

    def _assemble(self, flow: Flow) -> None:
        self.transform = Compose([flow, Scaling(flow.input_dim), *self._outer(flow.input_dim)])
        self.context_scaling = None if flow.context_dim is None else Scaling(flow.context_dim)

    def _outer(self, input_dim: int) -> list[Flow]:
        """What comes after the scale, on the way to the data."""
        return []

    # -- fitting -------------------------------------------------------------------------------------

    def fit(
        self,
        x: Any,
        context: Any = None,
        *,
        validation: Any = 0.1,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 10,
        resume: bool = False,
        seed: int | None = None,
        progress: bool = True,
        **settings: Any,
    ) -> DensityFit:
        r"""Maximise the likelihood of data by Adam on minibatches; afterwards the density holds the best parameters.

        Continuous flows that were made with ``kinetic`` or ``jacobian`` add their penalty to the loss of a step.

        The first fit measures the scale, and lets activation normalisation start from data. A later one goes on
        from the parameters and the scale that there are.

        A fit that was interrupted and resumed ends with the same bits as one that was not (on the same device with as
        many threads). To fit on a GPU, make the density with its dimensions and call ``density.to(device)`` first;
        data may stay where they are.

        Args:
            x: rows ``(N, D)``: a tensor, an array, a data frame of numbers, or a ``DataLoader`` of x or (x, context).
            context: ``(N, C)``, of the same kinds; of a ``DataLoader`` it is the second part of a batch, where the
                density has a ``context_dim``.
            validation: the fraction of rows, drawn at random, that decides when to stop; or rows of their own, x or
                (x, context), or a ``DataLoader``; or ``None`` to train for ``max_epochs`` and keep the last
                parameters. A ``DataLoader`` needs rows of their own, or ``None``.
            checkpoint: a file for the state, written every ``checkpoint_every`` epochs and at an interruption.
            checkpoint_every: epochs.
            resume: go on from the checkpoint if it exists.
            seed: of the parameters of a flow that is made here, the split, the order and all noise; the global
                generator is then left as it was.
            progress: whether to show a progress bar.
            **settings: fields of :class:`~pyro_flows_vi.density.settings.FitSettings`: ``batch_size``, ``max_epochs``,
                ``patience``, ``learning_rate``, ``schedule``, ``weight_decay``, ``clip_norm``, ``max_skipped``.

        Returns:
            how it went. Ctrl-C ends a fit early, with the best parameters so far.

        Raises:
            ValueError: for rows with NaN or infinite values, columns that are constant or determine each other, no
                more rows than columns, another width than that of the density, unknown settings, steps without a
                finite loss, a first step whose gradient is exactly zero, and validation rows that never have a finite
                likelihood.
            NotConverged: where a flow that searches or integrates does not converge.
            TrainingInterrupted: after Ctrl-C with a ``checkpoint``, where the state has been saved.

        Warns:
            UserWarning: for columns of whole numbers, or of few values that come often, whose likelihood diverges; for
                ``standardise=False`` and data far from standardised.
        """
        return prepare(
            self,
            x,
            context,
            validation,
            FitSettings.make(**settings),
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
            resume=resume,
            seed=seed,
            progress=progress,
        )

    # -- files ---------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write parameters, scale and recipe to one file, whole or not at all."""
        settings = {**self._recipe(), "columns": self.columns}
        save_checkpoint(path, self.state_dict(), kind=f"{self.KIND} model", settings=settings)

    @classmethod
    def load(cls, path: str | os.PathLike[str], flow: Flow | None = None) -> FlowDensity:
        """Read what :meth:`save` wrote; no code in the file is executed.

        Args:
            path: the file.
            flow: a flow of your own of the same shape, where one was fitted: a file does not hold its code.

        Raises:
            ValueError: for a file that is missing, damaged or of something else, and a flow that is missing.
        """
        recipe, state = load_checkpoint(Path(path), kind=f"{cls.KIND} model")
        if recipe["flow"] is None and flow is None:
            raise ValueError(f"{path}: the density is one of a flow of your own: pass flow=..., made as it was then")
        columns = recipe.pop("columns", {})
        density = cls._made(recipe, recipe["flow"] if flow is None else flow)
        density.columns = columns
        density.to(state["transform.flows.1.loc"].dtype)
        try:
            density.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"{path}: expected the parameters of {recipe['flow'] or flow}: {error}") from error
        return density.eval()

    def _recipe(self) -> dict[str, Any]:
        """All that makes this density again but its parameters, as JSON has it."""
        dims = {"input_dim": self.input_dim, "context_dim": self.context_dim}
        found: dict[str, Any] = json.loads(json.dumps({**self.recipe, **dims}))
        return found

    @classmethod
    def _made(cls, recipe: dict[str, Any], flow: str | Flow) -> FlowDensity:
        known = {key: value for key, value in recipe.items() if key not in ("flow", "options")}
        return cls(flow, **known, **(_tuples(recipe["options"]) if isinstance(flow, str) else {}))


def _tuples(options: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
