"""The generated parts of the pages: what they are made from, where Sphinx is installed."""

from __future__ import annotations

import importlib.util
import json
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


def test_examples_are_shown_from_their_records(tables: ModuleType, tmp_path: Path) -> None:
    page = (DOCS / "posteriors.md").read_text(encoding="utf-8")
    assert all(f"generated/example_{name}.md" in page for name in tables.EXAMPLES)
    assert "python -m examples.radon" in tables.example_part(tmp_path, "radon")
    folder = tmp_path / "records" / "posteriors" / "examples"
    folder.mkdir(parents=True)
    row = {
        "guide_mean": 1.5,
        "guide_sd": 2.0,
        "nuts_mean": 1.25,
        "nuts_sd": 1.0,
        "shift": 0.25,
        "log_sd_ratio": 0.6931472,
    }
    record = {
        "fit": {"steps": 30, "stop_reason": "no more progress"},
        "options": {"seed": 4, "draws": 50},
        "scalars": {"tau": row},
        **{"verdict": "trust", "khat": 0.25, "ess": 3500.0, "num_draws": 4000, "reference": "a long run"},
    }
    (folder / "radon.json").write_text(json.dumps(record))
    shown = tables.example_part(tmp_path, "radon")
    assert "| `tau` | 1.5 ± 2 | 1.25 ± 1 | +0.25 sds | 2.00 |" in shown
    assert "Seed 4; 30 steps (no more progress); k-hat 0.25; 3500 effective draws of 4,000; verdict: trust" in shown
    assert "![" not in shown, "a figure that is not there"
    record = {key: record[key] for key in ("fit", "options")} | {
        "levels": [0.5],
        "quantiles": {"truth": [0.0], "NUTS": [0.125]},
        "chains": {"NUTS": {"divergences": 3, "ess": None}},
    }
    (folder / "neutra.json").write_text(json.dumps(record))
    shown = tables.example_part(tmp_path, "neutra")
    assert "| NUTS | 0.12 |" in shown and "NUTS: 3 divergences in 50 draws, effective size unknown" in shown


def test_the_table_of_accuracy_is_that_of_its_records() -> None:
    from examples.benchmarks import accuracy

    assert accuracy.render(accuracy.RECORDS) == accuracy.TABLE.read_text(encoding="utf-8")
