"""Published results that our rows may stand beside, with where each number was read."""

from __future__ import annotations

import dataclasses

__all__ = ["PUBLISHED", "Number", "Published", "published"]


@dataclasses.dataclass(frozen=True)
class Number:
    """A published value in nats, with its spread over repeated runs where one was given."""

    value: float
    spread: float | None = None
    #: ``"second-hand"``: read in a later paper or in notes that quote the table; ``"recalled"``: not read at
    #: all, so that it is kept here for whoever checks it, and not printed unless asked for
    reading: str = "second-hand"


@dataclasses.dataclass(frozen=True)
class Published:
    """A row of a published table."""

    protocol: str
    data: str
    binarisation: str
    posterior: str
    source: str
    negative_elbo: Number | None = None
    nll: Number | None = None
    #: importance samples of the NLL
    num_samples: int | None = None


_SYLVESTER = "arXiv:1803.05649, Table 1"


def _sylvester(posterior: str, negative_elbo: Number, nll: Number) -> Published:
    return Published("gated-conv", "static_mnist", "static", posterior, _SYLVESTER, negative_elbo, nll, 5000)


#: The -ELBO column of the Sylvester rows was read in FFJORD's Table 3 (arXiv:1810.01367), which quotes one
#: row "Sylvester"; that it is the orthogonal form is recalled.
PUBLISHED: tuple[Published, ...] = (
    Published(
        "mlp",
        "mnist",
        "dynamic",
        "diagonal",
        "Exemplar VAE, arXiv:2004.04795, Table 1",
        nll=Number(84.45),
        num_samples=5000,
    ),
    _sylvester("diagonal", Number(86.55, 0.06), Number(82.14, 0.07, "recalled")),
    _sylvester("planar", Number(86.06, 0.31), Number(81.91, 0.22, "recalled")),
    _sylvester("IAF", Number(84.20, 0.17), Number(80.79, 0.12, "recalled")),
    _sylvester("Sylvester, orthogonal", Number(83.32, 0.06), Number(80.22, 0.03, "recalled")),
    _sylvester("Sylvester, Householder", Number(83.40, 0.01, "recalled"), Number(80.29, 0.02, "recalled")),
    _sylvester("Sylvester, triangular", Number(83.40, 0.10, "recalled"), Number(80.28, 0.06, "recalled")),
)


def published(protocol: str, data: str, binarisation: str | None, *, recalled: bool = False) -> list[Published]:
    """The published rows of one protocol, data set and binarisation.

    Args:
        protocol: name of the preset.
        data: name of the data set.
        binarisation: ``"static"``, ``"dynamic"`` or ``None``; results of different binarisations differ by
            about two nats, so rows of another are never given.
        recalled: whether to include numbers that nobody has read in a source yet.
    """

    def kept(number: Number | None) -> Number | None:
        return number if number is not None and (recalled or number.reading != "recalled") else None

    same = [r for r in PUBLISHED if (r.protocol, r.data, r.binarisation) == (protocol, data, binarisation)]
    rows = [dataclasses.replace(r, negative_elbo=kept(r.negative_elbo), nll=kept(r.nll)) for r in same]
    return [r for r in rows if r.negative_elbo is not None or r.nll is not None]
