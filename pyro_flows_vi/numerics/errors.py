"""What a search raises that does not find what it looks for."""

from __future__ import annotations

__all__ = ["NotConverged"]


class NotConverged(RuntimeError):
    """A solver did not converge: a root, a fixed point, a minimum or the path of a differential equation.

    The message says which, how far it came, and what to do.
    """
