"""How a guide holds the model that it was made for, and runs it."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

from pyro_flows_vi.numerics.new_tensors import placement

__all__ = ["HoldsModel", "forget_arguments", "placed"]


class HoldsModel:
    """To be inherited beside one of Pyro's guides: pickles hold no model and no data, copies share the model."""

    _bare_model: tuple[Callable[..., Any], ...] | None  # in a tuple, so that it is no submodule
    prototype_trace: Any
    _model: Any
    master: Any

    def _bare(self) -> Callable[..., Any]:
        """The model as the user gave it."""
        if self._bare_model is None:
            raise ValueError(
                "this guide was pickled, and a pickle does not hold the model, which is needed here: make a guide of "
                "the model, set it up, and give it this one's state with load_state_dict"
            )
        return self._bare_model[0]

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As of any module, once the guide has parameters."""
        if self.prototype_trace is None:
            raise ValueError("the guide has no parameters yet: call guide.setup(*args) with the model's arguments")
        return super().load_state_dict(state_dict, *args, **kwargs)  # type: ignore[misc]

    def __getstate__(self) -> dict[str, Any]:
        model, master = self._model, self.master
        try:
            return super().__getstate__().copy() | {"_bare_model": None}  # type: ignore[misc]
        finally:
            self._model, self.master = model, master  # which Pyro's method clears in the guide itself

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        clone = type(self).__new__(type(self))
        memo[id(self)] = clone
        clone.__setstate__(copy.deepcopy(self.__getstate__(), memo))  # type: ignore[attr-defined]
        clone._model, clone._bare_model = self._model, self._bare_model
        return clone


def placed(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let a method run the model where the arguments of both are, see :func:`placement`."""

    @functools.wraps(method)
    def where_the_data_are(self: Any, *args: Any, **kwargs: Any) -> Any:
        with placement((args, kwargs)):
            return method(self, *args, **kwargs)

    return where_the_data_are


def forget_arguments(trace: Any) -> None:
    """Take the model's arguments and its result out of a trace, so that a guide does not keep the data."""
    trace.nodes["_INPUT"].update(args=(), kwargs={})
    trace.nodes["_RETURN"]["value"] = None
