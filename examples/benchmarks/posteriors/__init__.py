"""Real posteriors with known answers: Pyro models, their data, their twins in NumPyro and their long reference runs.

>>> from examples.benchmarks.posteriors import SUITE, truth
>>> posterior = SUITE["eight_schools_centred"]
>>> posterior.model(*posterior.args)
>>> truth(posterior.name)["sites"]["tau"]["sd"]
[3.2706104]
"""

from __future__ import annotations

from .registry import RECORDS, SUITE, Posterior, scalars, truth

__all__ = ["RECORDS", "SUITE", "Posterior", "scalars", "truth"]
