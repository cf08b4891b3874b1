"""Options of the recipes, as hypothesis draws them: by the types of the layer's signature."""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from pyro_flows_vi import flows

MIXTURES = ("ELU", "LeakyReLU", "sigmoid", "tanh")

#: what a type does not tell; options of type str or float that are not here keep their default
NAMED: dict[tuple[str, str], st.SearchStrategy[Any]] = {
    ("naf", "activation"): st.sampled_from(["ELU", "sigmoid", "tanh"]),  # a rectifier's slopes jump where it starts
    ("bnaf", "activation"): st.sampled_from(MIXTURES),
    ("bnaf", "residual"): st.sampled_from(["normal", "gated"]),  # without one it does not start near the identity
    ("householder", "num_reflections"): st.sampled_from([2, 4]),  # an odd number of them mirrors space
    ("tarflow", "patch"): st.none(),
    **{(name, "levels"): st.none() for name in ("glow", "realnvp-image", "residual-image")},
    ("residual-image", "norm"): st.sampled_from(["spectral", "inf", "one"]),
    ("residual-image", "log_det"): st.sampled_from(["auto", "exact", "series", "roulette"]),
    ("residual-image", "lipschitz"): st.floats(0.1, 0.98),
    **{(name, "bins"): st.integers(2, 12) for name in ("nsf", "nsf-ar", "nsf-iaf")},
    **{(name, "bound"): st.floats(0.5, 5.0) for name in ("nsf", "nsf-ar", "nsf-iaf")},
    ("ffjord", "max_steps"): st.integers(100, 200),
    ("residual", "norm"): st.sampled_from(["spectral", "inf", "one"]),
    ("residual", "log_det"): st.sampled_from(["auto", "exact", "series", "roulette"]),
    ("residual", "tail"): st.sampled_from(["geometric", "poisson"]),
    ("residual", "lipschitz"): st.floats(0.1, 0.98),
    ("residual", "rate"): st.none() | st.floats(0.1, 0.9),
    ("residual", "tolerance"): st.floats(1e-4, 0.1),
    ("residual", "eval_probes"): st.integers(2, 20),
}


def of_type(kind: Any) -> st.SearchStrategy[Any] | None:
    """Values of a type, or ``None`` where the type does not say enough."""
    inner = typing.get_args(kind)
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        (known,) = (of_type(one) for one in inner if one is not type(None))
        return None if known is None else st.none() | known
    if typing.get_origin(kind) is typing.Literal:
        return st.sampled_from(inner)
    if typing.get_origin(kind) is Sequence:
        return st.lists(st.integers(1, 12), min_size=1, max_size=2).map(tuple)
    return {int: st.integers(1, 5), bool: st.booleans()}.get(kind)


@st.composite
def options(draw: st.DrawFn, name: str, input_dim: int) -> dict[str, Any]:
    """Some of the options of a recipe, at values that go together."""
    layer: Any = flows.describe(name).layer
    hints = typing.get_type_hints(layer.__init__)
    drawn: dict[str, Any] = {}
    for option in flows.options(name):
        values = NAMED[name, option] if (name, option) in NAMED else of_type(hints[option])
        if values is not None and draw(st.booleans()):
            drawn[option] = draw(values)
    if drawn.get("shape"):
        drawn["shape"] = draw(st.permutations([input_dim, 1, 1]).map(tuple))
    if drawn.get("given"):
        drawn["given"] = sorted({i % input_dim for i in drawn["given"]})[: input_dim - 1]
    if drawn.get("rank"):
        drawn["rank"] = min(drawn["rank"], input_dim)
    if drawn.get("depth", 1) > 1:
        drawn.pop("activation", None)  # the dense form has the sigmoid only
    return drawn
