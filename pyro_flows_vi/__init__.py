"""Normalizing flows as Pyro transforms, for variational inference.

Importing the package loads nothing but this file: submodules are imported on first use, so

>>> import pyro_flows_vi as pfv
>>> pfv.flows.build("planar", 2).input_dim
2

costs an import of torch and Pyro only at the second line. Nothing here changes a global setting of either.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyro_flows_vi import datasets, density, flows, guides, infer, nets, numerics, testing, transforms, vae

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "datasets",
    "density",
    "flows",
    "guides",
    "infer",
    "nets",
    "numerics",
    "testing",
    "transforms",
    "vae",
]


def __getattr__(name: str) -> Any:
    """Import the submodule ``name`` the first time that it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    """The public names, whether they are loaded yet or not."""
    return sorted(__all__)
