"""Importing the package changes nothing but `sys.modules`, and loads only what it needs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pyro_flows_vi"
LAZY = {"arviz", "click", "matplotlib", "pandas", "pooch", "scipy", "sklearn", "torchdiffeq", "xarray"}
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path.stem != "__main__"
)

SNAPSHOT = """
import hashlib, importlib, json, os, random, sys, warnings
import numpy, pyro, torch


def settings():
    generators = [torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()]
    return {
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "torch validation": torch.distributions.Distribution._validate_args,
        "pyro settings": {k: str(v) for k, v in pyro.settings.get().items()},
        "pyro params": list(pyro.get_param_store().keys()),
        "pyro stack": len(pyro.poutine.runtime._PYRO_STACK),
        "grad": torch.is_grad_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "printing": str(vars(torch._tensor_str.PRINT_OPTS)),
        "numpy printing": str(numpy.get_printoptions()),
        "numpy errors": str(numpy.geterr()),
        "generators": [hashlib.sha256(str(g).encode()).hexdigest() for g in generators],
        "warnings": [str(f) for f in warnings.filters],
        "environment": dict(os.environ),
        "recursion": sys.getrecursionlimit(),
    }


before = settings()
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
after = settings()
print(json.dumps({k: [before[k], after[k]] for k in before if before[k] != after[k]}))
"""


def python(*arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter in the root of the repository."""
    run = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == expect, run.stderr
    return run


def test_settings_are_unchanged() -> None:
    changed = json.loads(python("-c", SNAPSHOT, json.dumps(MODULES)).stdout)
    assert changed == {}


def test_snapshot_sees_a_change() -> None:
    loud = "torch.manual_seed(1); torch.set_default_dtype(torch.float64); warnings.simplefilter('ignore')"
    altered = SNAPSHOT.replace("after = settings()", loud + "\nafter = settings()")
    changed = json.loads(python("-c", altered, "[]").stdout)
    assert set(changed) == {"default dtype", "generators", "warnings"}


def test_package_alone_loads_neither_torch_nor_pyro() -> None:
    code = "import sys, pyro_flows_vi; print(*sys.modules)"
    assert not set(python("-c", code).stdout.split()) & {"torch", "pyro", "numpy", *LAZY}


def test_library_loads_no_optional_weight() -> None:
    library = [name for name in MODULES if name.split(".")[1:2] != ["cli"]]
    code = """
import importlib, json, sys

lazy, culprits = set(sys.argv[2:]), {}
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
    for found in lazy & set(sys.modules):
        culprits.setdefault(found, name)
print(json.dumps(culprits))
"""
    culprits = json.loads(python("-c", code, json.dumps(library), *LAZY).stdout)
    assert culprits == {}, f"each is loaded by the module named beside it: {culprits}"


def test_beside_pyro_only_own_modules_and_small_ones_are_loaded() -> None:
    """What an import costs beyond that of Pyro is then the time of our own small files."""
    code = """
import json, sys
import pyro, pyro.infer.autoguide
before = set(sys.modules)
import pyro_flows_vi.flows, pyro_flows_vi.guides, pyro_flows_vi.density, pyro_flows_vi.vae
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    loaded = json.loads(python("-c", code).stdout)
    others = [name for name in loaded if name.split(".")[0] != "pyro_flows_vi"]
    assert "pyro_flows_vi.vae" in loaded
    heavy = [name for name in others if name.split(".")[0] not in {*sys.stdlib_module_names, "numpy"}]
    assert heavy == []
    assert len(others) < 30, others


def test_every_exported_name_resolves() -> None:
    python(
        "-c",
        "import pyro_flows_vi as p; assert set(p.__all__) <= set(dir(p)); [getattr(p, n) for n in dir(p)]",
    )
    failed = python("-c", "import pyro_flows_vi; pyro_flows_vi.no_such_name", expect=1)
    assert "no attribute 'no_such_name'" in failed.stderr


def test_import_time_is_reported(record_property: pytest.RecordProperty) -> None:
    """What the flows add to the time that importing Pyro takes: printed, not judged, as clocks differ."""
    report = python("-X", "importtime", "-c", "import pyro, pyro_flows_vi.flows").stderr
    rows = re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", report)
    own = sum(int(time) for time, name in rows if name.split(".")[0] == "pyro_flows_vi")
    assert any(name == "pyro_flows_vi.flows" for _, name in rows)
    record_property("own import time in microseconds", own)
    print(f"the package's own modules: {own / 1e3:.1f} ms")
