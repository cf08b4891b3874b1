"""Plates of a guide that are those of the model, call by call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro

from pyro_flows_vi.guides._runs import look, require_same_shapes, signature
from pyro_flows_vi.infer.layout import Site

__all__ = ["FollowsPlates"]

#: arguments of different looks that are remembered
MARKS = 64


class FollowsPlates:
    """To be inherited beside Pyro's ``AutoGuide``: plates have the size and the rows that the arguments give them."""

    create_plates: Callable[..., Any] | None
    plates: dict[str, pyro.plate]
    plate_name: str
    _plate_dim: int
    _expected: dict[str, Site]
    _looks: dict[Any, dict[str, Any]]
    _bare: Callable[[], Callable[..., Any]]

    def _create_plates(self, *args: Any, **kwargs: Any) -> dict[str, pyro.plate]:
        made = () if self.create_plates is None else self.create_plates(*args, **kwargs)
        plates = {p.name: p for p in ((made,) if isinstance(made, pyro.plate) else made)}
        for name, (frame, rows) in self._look(args, kwargs, plates).items():
            if name not in plates:
                size = frame.full_size or frame.size
                if rows is None:
                    plates[name] = pyro.plate(name, size, dim=frame.dim, subsample_size=frame.size)
                else:
                    plates[name] = pyro.plate(name, size, dim=frame.dim, subsample=rows)
        self.plates = plates
        return plates

    def _look(self, args: tuple[Any, ...], kwargs: dict[str, Any], plates: dict[str, Any]) -> dict[str, Any]:
        """The frames of the plates around latents, and the rows that the model itself gives them."""
        mark = signature(args, kwargs)
        if mark not in self._looks:
            sites, given = look(self._bare(), args, kwargs)
            require_same_shapes(sites, self._expected, self.plate_name, self._plate_dim)
            frames = {f.name: f for name in self._expected for f in sites[name]["cond_indep_stack"] if f.vectorized}
            found = {name: (frame, given.get(name)) for name, frame in frames.items()}
            fixed = all(rows is None or name in plates for name, (_, rows) in found.items())
            if not fixed or len(self._looks) >= MARKS:
                return found
            self._looks[mark] = found
        return self._looks[mark]
