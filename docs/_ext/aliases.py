"""Sphinx extension: links a name that a package re-exports to the module where it is documented."""

from __future__ import annotations

import importlib

from docutils.nodes import Element, reference
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment


def home_of(target: str) -> str | None:
    """The name under which ``package.object`` was defined."""
    package, _, name = target.rpartition(".")
    try:
        thing = getattr(importlib.import_module(package), name)
        return f"{thing.__module__}.{thing.__qualname__}"
    except (ImportError, AttributeError, ValueError):
        return None


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: Element) -> reference | None:
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not target.startswith("pyro_flows_vi."):
        return None
    home = home_of(target)
    if home is None or home == target:
        return None
    domain = env.get_domain("py")
    return domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], home, node, content)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
