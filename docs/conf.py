"""Sphinx configuration: strict, offline, with every table made from the code or from committed records."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

import pyro_flows_vi  # noqa: E402

project = "pyro-flows-vi"
author = "The pyro-flows-vi contributors"
copyright = author
version = release = pyro_flows_vi.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "aliases",
    "tables",
]
TABLES = ("accuracy", "density", "performance", "vae")
exclude_patterns = ["_build", "generated", *(f"{name}_table.md" for name in TABLES)]
source_suffix = {".md": "markdown"}

myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# Every reference of ours has to resolve; those to other projects stay names, since the build is offline.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!pyro_flows_vi).*"),
    (r"py:.*", r"pyro_flows_vi\..*\._\w+.*"),  # private classes and modules have no page
]
suppress_warnings = ["ref.python"]  # a class that a package also exports has two names

html_theme = "furo"
html_title = f"pyro-flows-vi {release}"
templates_path: list[str] = []
