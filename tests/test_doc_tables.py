"""The generated parts of the pages: what they are made from, where Sphinx is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest

from pyro_flows_vi import flows
from pyro_flows_vi.transforms.sylvester import Form
from pyro_flows_vi.vae import PROTOCOLS

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    pytest.importorskip("sphinx")
    spec = importlib.util.spec_from_file_location("tables", DOCS / "_ext" / "tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_protocols_are_not_typed_by_hand(tables: ModuleType) -> None:
    page = (DOCS / "vae.md").read_text(encoding="utf-8")
    assert "generated/protocols.md" in page and "| `mlp` |" not in page
    rows = tables.protocol_table().splitlines()[2:]
    assert len(rows) == len(PROTOCOLS)
    for row, preset in zip(rows, PROTOCOLS.values(), strict=True):
        for part in (f"| `{preset.name}` |", f"| {preset.latent_dim} |", f", {preset.learning_rate:g}"):
            assert part in row
        assert f"{preset.warmup_epochs} epochs | {preset.early_stop_epochs} epochs without" in row


def test_every_family_and_form_is_in_the_table_of_errors(tables: ModuleType) -> None:
    cases = tables.error_cases()
    assert {name for name, _ in cases} == set(flows.names())
    assert [o["form"] for name, o in cases if name == "sylvester"] == list(get_args(Form))
    assert ("iaf", {}) in cases and ("iaf", {"gated": True}) in cases
    for name, options in cases:
        flows.build(name, tables.CHECKED_DIM, num_transforms=1, **options)
