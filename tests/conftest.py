"""What every test may count on: fixed seeds, Pyro's state empty, torch's settings as they were before it."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import numpy as np
import pyro
import pytest
import torch
from cuda_graphs import cuda_graphs  # noqa: F401  # a fixture

# The cases lead to compilation and solver runs of very unequal length: a deadline would only be noise.
hypothesis.settings.register_profile("local", deadline=None, print_blob=True)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")

# The tests' tensors are tiny: a second thread costs more than it computes.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def isolated_state() -> Iterator[None]:
    """Seed every generator, empty Pyro's param store, and give back the settings that a test has changed."""
    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    validate = torch.distributions.Distribution._validate_args
    random.seed(0)
    np.random.seed(0)
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(grad)
    torch.distributions.Distribution.set_default_validate_args(validate)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of the real data sets: PYRO_FLOWS_VI_DATA, or `shared/data` beside the checkout."""
    named = os.environ.get("PYRO_FLOWS_VI_DATA")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: PYRO_FLOWS_VI_DATA names a folder with mnist/ and freyfaces/")
    return folder
