"""The suite: each posterior by its name, with its model, its data, its twin in NumPyro and its record of truth."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import data, hierarchies, regressions, structures

RECORDS = Path(__file__).parents[3] / "docs" / "records" / "posteriors" / "truth"


@dataclass(frozen=True)
class Posterior:
    """A model and its data.

    Attributes:
        name: the key in ``SUITE`` and the name of the record.
        model: the Pyro model.
        data: gives the model's arguments as numpy arrays.
        kind: what makes it hard, in a few words.
        note: where model and data come from.
        decentre: sites that the reference run takes in non-centred coordinates, and whose draws it maps back.
    """

    name: str
    model: Callable[..., None]
    data: Callable[[], data.Arrays]
    kind: str
    note: str
    decentre: tuple[str, ...] = ()

    @property
    def args(self) -> tuple[Tensor, ...]:
        """The model's arguments; floating columns have torch's default dtype at the time of asking."""
        tensors = (torch.as_tensor(array) for array in self.data())
        return tuple(t.to(torch.get_default_dtype()) if t.is_floating_point() else t for t in tensors)

    @property
    def numpyro_model(self) -> Callable[..., None]:
        """The same model in NumPyro, which is imported here and not before; its arguments are ``data()``."""
        rooms = self.model.__module__.rpartition(".")
        twins = importlib.import_module(f"{rooms[0]}.twins.{rooms[2]}")
        return getattr(twins, self.model.__name__)


def truth(name: str) -> dict[str, Any]:
    """The record of a posterior's reference run, as ``truth.py`` wrote it.

    ``record["sites"][site]`` holds the site's ``shape`` and, flattened in row-major order, ``mean``, ``sd``, ``q05``,
    ``q50``, ``q95``, ``mcse_mean``, ``mcse_sd``, ``ess`` and ``rhat`` of its values in the constrained space. A value
    that cannot vary, such as the corner of a correlation's Cholesky factor, has sd 0 and no ``ess`` or ``rhat``.
    """
    if name not in SUITE:
        raise ValueError(f"no posterior is called {name!r}: expected one of {', '.join(SUITE)}")
    path = RECORDS / f"{name}.json"
    if not path.is_file():
        raise FileNotFoundError(f"{name} has no record yet: python -m examples.benchmarks.posteriors.truth {name}")
    return json.loads(path.read_text(encoding="utf-8"))


def scalars(record: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Every scalar of a record that varies, by a name such as ``theta[3]``, with its summaries."""
    table: dict[str, dict[str, float]] = {}
    for site, columns in record["sites"].items():
        summaries = {key: column for key, column in columns.items() if key != "shape"}
        for i, sd in enumerate(columns["sd"]):
            if sd > 0:
                label = f"{site}[{i}]" if columns["shape"] else site
                table[label] = {key: column[i] for key, column in summaries.items()}
    return table


SUITE: dict[str, Posterior] = {
    posterior.name: posterior
    for posterior in (
        Posterior(
            "eight_schools_centred",
            hierarchies.eight_schools_centred,
            data.eight_schools,
            "hierarchy, funnel",
            "Rubin (1981); priors of Gelman et al., Bayesian Data Analysis",
            decentre=("theta",),
        ),
        Posterior(
            "eight_schools_noncentred",
            hierarchies.eight_schools_noncentred,
            data.eight_schools,
            "hierarchy, non-centred",
            "the twin of eight_schools_centred",
        ),
        Posterior(
            "rats",
            hierarchies.rats,
            data.rats,
            "hierarchy of 65 dimensions, raw scale",
            "Gelfand et al. (1990), BUGS; half-Cauchy scales in place of inverse gamma variances",
            decentre=("level", "rate"),
        ),
        Posterior(
            "radon_like",
            hierarchies.radon_like,
            data.radon_like,
            "hierarchy of 70 dimensions, centred",
            "synthetic data in the manner of Gelman and Hill (2007), chapter 12",
            decentre=("intercept", "slope"),
        ),
        Posterior(
            "diabetes_raw",
            regressions.diabetes_raw,
            data.diabetes,
            "linear regression, raw columns",
            "scikit-learn's diabetes table, Efron et al. (2004)",
        ),
        Posterior(
            "linnerud_flat",
            regressions.linnerud_flat,
            data.linnerud,
            "linear regression, flat improper priors",
            "scikit-learn's linnerud table; the marginals are known in closed form",
        ),
        Posterior(
            "breast_cancer_logistic",
            regressions.breast_cancer_logistic,
            data.breast_cancer,
            "logistic regression, raw columns",
            "scikit-learn's breast-cancer table, Street et al. (1993)",
        ),
        Posterior(
            "breast_cancer_perimeter",
            regressions.breast_cancer_perimeter,
            data.breast_cancer_perimeter,
            "linear regression, far from the origin",
            "scikit-learn's breast-cancer table, Street et al. (1993)",
        ),
        Posterior(
            "stack_loss_student",
            regressions.stack_loss_student,
            data.stack_loss,
            "robust regression, unknown degrees of freedom",
            "Brownlee (1960); the prior of nu is Juarez and Steel's (2010)",
        ),
        Posterior(
            "diabetes_horseshoe",
            regressions.diabetes_horseshoe,
            data.diabetes_standardised,
            "sparse regression, heavy-tailed scales, centred",
            "Carvalho et al. (2010) with the local half-t scales that Piironen and Vehtari (2017) discuss",
            decentre=("slope",),
        ),
        Posterior(
            "diabetes_ordinal",
            regressions.diabetes_ordinal,
            data.diabetes_grades,
            "ordered logit",
            "fifths of the progression in scikit-learn's diabetes table",
        ),
        Posterior(
            "insect_sprays",
            regressions.insect_sprays,
            data.insect_sprays,
            "negative binomial counts, overdispersion",
            "Beall (1942), R's InsectSprays",
        ),
        Posterior(
            "remission_weibull",
            regressions.remission_weibull,
            data.remission,
            "censored survival, data-dependent bounds",
            "Freireich et al. (1963), the 6-MP trial",
        ),
        Posterior(
            "blood_types",
            structures.blood_types,
            data.blood_types,
            "simplex",
            "Clarke et al. (1959), allele frequencies of the ABO system",
        ),
        Posterior(
            "wine_correlation",
            structures.wine_correlation,
            data.wine,
            "correlation matrix, raw columns",
            "scikit-learn's wine table, Forina et al. (1991)",
        ),
        Posterior(
            "coal_mining_process",
            structures.coal_mining_process,
            data.coal_mining,
            "latent Gaussian process, Poisson counts",
            "Jarrett (1979), the British coal-mining disasters",
        ),
        Posterior(
            "galaxies_mixture",
            structures.galaxies_mixture,
            data.galaxies,
            "mixture with ordered means and weights on a simplex",
            "Roeder (1990), velocities of galaxies",
        ),
        Posterior(
            "earthquakes_states",
            structures.earthquakes_states,
            data.earthquakes,
            "hidden Markov model, marginalised",
            "Zucchini and MacDonald (2009), annual counts of major earthquakes",
        ),
        Posterior(
            "lynx_arma",
            structures.lynx_arma,
            data.lynx,
            "time series that explodes outside |theta| < 1",
            "Elton and Nicholson (1942), ARMA(2, 1) by its recursion",
        ),
    )
}
