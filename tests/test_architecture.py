"""The shape of the code, read from its syntax trees: who imports whom, how long, what is documented."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "pyro_flows_vi"
LONGEST_MODULE = 300

# A room may import rooms on the floors below it, and itself.
FLOORS = [
    {"numerics", "datasets"},
    {"nets"},
    {"transforms"},
    {"flows"},
    {"testing", "infer"},
    {"vae", "density", "guides"},
    {"cli"},
]
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
WITHOUT_PYRO = {"numerics", "nets"}
# What a family may import from its own room: the base class, the maps of one variable, and the flows of any such map.
SHARED_TRANSFORMS = {"base", "monotone", "elementwise", "elementwise_flow", "map_autoregressive", "map_coupling"}
# Image flows are architectures: they are built of one another's parts, and of these layers besides.
IMAGE_TRANSFORMS = {"image", "act_norm", "compose", "lu_linear", "residual"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted((ROOT / PACKAGE).rglob("*.py"))}
PUBLIC = [name for name in MODULES if not any(part.startswith("_") for part in name.split("."))]


def room_of(module: str) -> str | None:
    """``pyro_flows_vi.nets.dense`` is in the room "nets"; the package itself is in none."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def syntax_tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def imported(module: str) -> Iterator[str]:
    """Every module that ``module`` imports, at its top or inside a function.

    The package's own file imports nothing, so the version may be taken from it.
    """
    for node in ast.walk(syntax_tree(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import in line {node.lineno}"
            origin = node.module or ""
            below = [f"{origin}.{alias.name}" for alias in node.names]
            if below == [f"{PACKAGE}.__version__"]:
                continue
            yield from (name if name in MODULES else origin for name in below)


def exported(tree: ast.Module) -> list[str]:
    """The names in a module's ``__all__``."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def definitions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """The functions and classes that a module exports, and the public methods of those classes."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    names = exported(tree)
    for node in tree.body:
        if isinstance(node, kinds) and node.name in names:
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (m for m in node.body if isinstance(m, kinds) and not m.name.startswith("_"))


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    room = room_of(module)
    for name in imported(module):
        if name.split(".")[0] != PACKAGE or room is None:
            continue
        other = room_of(name)
        assert other is not None, f"{module} imports the package itself: name the module"
        assert other == room or FLOOR[other] < FLOOR[room], f"{module} imports {name}: wrong way"


@pytest.mark.parametrize("module", [name for name in MODULES if room_of(name) in WITHOUT_PYRO])
def test_numerics_and_nets_do_not_know_pyro(module: str) -> None:
    assert "pyro" not in {name.split(".")[0] for name in imported(module)}


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith(f"{PACKAGE}.transforms.")])
def test_families_do_not_import_each_other(module: str) -> None:
    room = f"{PACKAGE}.transforms"
    siblings = {name.removeprefix(room + ".") for name in imported(module) if name.startswith(room)} - {room}
    allowed = SHARED_TRANSFORMS | (IMAGE_TRANSFORMS if module.startswith(f"{room}.image") else set())
    families = {name for name in siblings if not name.startswith("_") and name.split(".")[0] not in allowed}
    assert not families, f"{module} imports {sorted(families)}"


def test_rooms_are_known() -> None:
    assert {room_of(name) for name in MODULES} - {None} <= set(FLOOR), "a new room needs a floor in this file"


@pytest.mark.parametrize("module", MODULES)
def test_modules_are_short(module: str) -> None:
    lines = len(MODULES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST_MODULE, f"{module} has {lines} lines: is there a room of its own in there?"


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_have_docstrings(module: str) -> None:
    tree = syntax_tree(module)
    missing = [node.name for node in definitions(tree) if not ast.get_docstring(node)]
    assert not missing, f"{module}: no docstring on {missing}"
    assert ast.get_docstring(tree) or not tree.body, f"{module} has no docstring"


@pytest.mark.parametrize("module", PUBLIC)
def test_modules_say_what_they_export(module: str) -> None:
    tree = syntax_tree(module)
    assert exported(tree) or not any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree.body)


def test_public_modules_are_in_the_docs() -> None:
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").rglob("*.md"))
    documented = set(re.findall(r"automodule:: ([\w.]+)", pages))
    expected = {name for name in PUBLIC if any(definitions(syntax_tree(name)))}
    assert expected - documented == set(), "these modules are missing from docs/api"
    assert documented - set(PUBLIC) == set(), "docs/api names modules that do not exist"
