"""Published likelihoods that our rows may stand beside, with where each number was read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

__all__ = ["PUBLISHED", "Number", "Published", "published"]


@dataclasses.dataclass(frozen=True)
class Number:
    """A published value, with its bar and what the bar is, where one was given."""

    value: float
    bar: float | None = None
    #: ``"two standard errors"`` of one fit, or a spread over runs: papers differ
    bar_is: str | None = None
    #: ``"primary"``: read in the paper; ``"authors' page"``; ``"second-hand"``: read in a later paper or in notes that
    #: quote the table; ``"recalled"``: not read at all, so that it is not printed unless asked for
    reading: str = "second-hand"


@dataclasses.dataclass(frozen=True)
class Published:
    """A row of a published table.

    Protocols: ``"uci"``: nats a row of the test set, in the preprocessing of arXiv:1705.07057. ``"maf"``: nats of
    logits with level 1e-6 and uniform noise, and bits per pixel. ``"bits"``: bits per dimension, with uniform
    noise and whatever else the paper does to the pixels; beside these stand our flows for images.
    """

    data: str
    protocol: str
    model: str
    source: str
    nats: Number | None = None
    bits: Number | None = None


_NAMES = ("power", "gas", "hepmass", "miniboone", "bsds300")
#: where the rows of a paper were read, how, and what its bars are
_SOURCES = {
    "1705.07057": ("arXiv:1705.07057, Table 1", "second-hand", "two standard errors"),
    "1801.09819": ("arXiv:1801.09819, official README", "authors' page", "one standard error"),
    "1810.01367": ("arXiv:1810.01367, Tables 2 and 6", "primary", "sd over 3 runs"),
    "1804.00779": ("arXiv:1804.00779, Table 2", "second-hand", "two sds over 5 runs"),
    "1908.05164": ("arXiv:1908.05164, Table 1", "authors' page", "spread over runs"),
    "1905.02325": ("arXiv:1905.02325, Table 1", "second-hand", "spread over runs"),
    "1906.02145": ("arXiv:1906.02145, Table 1", "second-hand", "two standard errors"),
    "1906.04032": ("arXiv:1906.04032, Table 1", "second-hand", "two standard errors"),
    "1904.04676": ("arXiv:1904.04676, as quoted in arXiv:1906.04032, Table 1", "second-hand", "spread over runs"),
    "2012.05942": ("arXiv:2012.05942, tabular table", "recalled", "spread over runs"),
}
#: model, paper, and for each of the five data sets a value and its bar
_TABLES = """
Gaussian | 1705.07057 | -7.74 0.02 -3.58 0.75 -27.93 0.02 -37.24 1.07 96.67 0.25
MADE | 1705.07057 | -3.08 0.03 3.56 0.04 -20.98 0.02 -15.59 0.5 148.85 0.28
MADE MoG | 1705.07057 | 0.4 0.01 8.47 0.02 -15.15 0.02 -12.27 0.47 153.71 0.28
RealNVP (5) | 1705.07057 | -0.02 0.01 4.78 1.8 -19.62 0.02 -13.55 0.49 152.97 0.28
RealNVP (10) | 1705.07057 | 0.17 0.01 8.33 0.14 -18.71 0.02 -13.84 0.52 153.28 1.78
MAF (5) | 1705.07057 | 0.14 0.01 9.07 0.02 -17.7 0.02 -11.75 0.44 155.69 0.28
MAF (10) | 1705.07057 | 0.24 0.01 10.08 0.02 -17.73 0.02 -12.24 0.45 154.93 0.28
MAF MoG (5) | 1705.07057 | 0.3 0.01 9.59 0.02 -17.39 0.02 -11.68 0.44 156.36 0.28
TAN | 1801.09819 | 0.6 0.01 12.06 0.02 -13.78 0.02 -11.01 0.48 159.8 0.07
FFJORD | 1810.01367 | 0.46 0.01 8.59 0.12 -14.92 0.08 -10.43 0.04 157.4 0.19
Glow (FFJORD implementation) | 1810.01367 | 0.17 0.01 8.15 0.4 -18.92 0.08 -11.35 0.07 155.07 0.03
NAF-DDSF (5) | 1804.00779 | 0.62 0.01 11.91 0.13 -15.09 0.4 -8.86 0.15 157.73 0.04
NAF-DDSF (10) | 1804.00779 | 0.6 0.02 11.96 0.33 -15.32 0.23 -9.01 0.01 157.43 0.3
UMNN-MAF | 1908.05164 | 0.63 0.01 10.89 0.7 -13.99 0.21 -9.67 0.13 157.98 0.01
SOS (7) | 1905.02325 | 0.6 0.01 11.99 0.41 -15.15 0.1 -8.9 0.11 157.48 0.41
Cubic spline | 1906.02145 | 0.65 0.01 13.14 0.02 -14.59 0.02 -9.06 0.48 157.24 0.07
Glow (NSF codebase) | 1906.04032 | 0.42 0.01 12.24 0.03 -16.99 0.02 -10.55 0.45 156.95 0.28
MAF (NSF codebase: ResMADE + LU) | 1906.04032 | 0.45 0.01 12.35 0.02 -17.03 0.02 -10.92 0.46 156.95 0.28
Q-NSF (C) | 1906.04032 | 0.64 0.01 12.8 0.02 -15.35 0.02 -9.35 0.44 157.65 0.28
Q-NSF (AR) | 1906.04032 | 0.66 0.01 12.91 0.02 -14.67 0.03 -9.72 0.47 157.42 0.28
RQ-NSF (C) | 1906.04032 | 0.64 0.01 13.09 0.02 -14.75 0.03 -9.67 0.47 157.54 0.28
RQ-NSF (AR) | 1906.04032 | 0.66 0.01 13.09 0.02 -14.01 0.03 -9.22 0.48 157.31 0.28
B-NAF | 1904.04676 | 0.61 0.01 12.06 0.09 -14.71 0.38 -8.95 0.07 157.36 0.03
CP-Flow | 2012.05942 | 0.52 0.01 10.36 0.03 -16.93 0.08 -10.58 0.07 154.99 0.08
"""
_MAF = "arXiv:1705.07057, Table 2"
_SURVEY = ", as quoted in arXiv:1908.09257, Table 5"


def _tables() -> Iterator[Published]:
    for line in _TABLES.strip().splitlines():
        model, paper, numbers = line.split(" | ")
        source, reading, bar_is = _SOURCES[paper]
        values = [float(word) for word in numbers.split()]
        for name, value, bar in zip(_NAMES, values[::2], values[1::2], strict=True):
            yield Published(name, "uci", model, source, nats=Number(value, bar, bar_is, reading))


def _maf(model: str, nats: float, bar: float, bits: Number | None) -> Published:
    return Published("mnist", "maf", model, _MAF, Number(nats, bar, "two standard errors"), bits)


PUBLISHED: tuple[Published, ...] = (
    *_tables(),
    _maf("Gaussian", -1366.9, 1.4, None),
    _maf("MADE", -1380.8, 4.8, Number(2.0, reading="recalled")),
    _maf("MADE MoG", -1038.5, 1.8, Number(1.41, reading="recalled")),
    _maf("RealNVP (5)", -1323.2, 6.6, Number(1.93, reading="recalled")),
    _maf("RealNVP (10)", -1370.7, 10.1, Number(2.02, reading="recalled")),
    _maf("MAF (5)", -1300.5, 1.7, Number(1.89)),
    _maf("MAF (10)", -1313.1, 2.0, Number(1.91, reading="recalled")),
    _maf("MAF MoG (5)", -1100.3, 1.6, Number(1.52, reading="recalled")),
    Published("mnist", "bits", "RealNVP", "arXiv:1605.08803" + _SURVEY, bits=Number(1.06)),
    Published("mnist", "bits", "Glow", "arXiv:1807.03039" + _SURVEY, bits=Number(1.05)),
    Published("mnist", "bits", "MAF", "arXiv:1705.07057" + _SURVEY, bits=Number(1.89)),
    Published("mnist", "bits", "FFJORD (multiscale)", "arXiv:1810.01367" + _SURVEY, bits=Number(0.99)),
    Published("mnist", "bits", "SOS", "arXiv:1905.02325" + _SURVEY, bits=Number(1.81)),
    Published(
        "mnist",
        "bits",
        "UMNN",
        "arXiv:1908.05164" + _SURVEY,
        bits=Number(1.13, 0.02, "spread over runs", reading="authors' page"),
    ),
    Published("mnist", "bits", "i-ResNet", "arXiv:1811.00995" + _SURVEY, bits=Number(1.06)),
    Published("mnist", "bits", "Residual Flow", "arXiv:1906.02735" + _SURVEY, bits=Number(0.97)),
    Published(
        "mnist", "bits", "FFJORD, single scale", "arXiv:1810.01367, Table 2", bits=Number(1.05, reading="primary")
    ),
    Published("mnist", "bits", "CP-Flow", "arXiv:2012.05942, image table", bits=Number(1.02, reading="recalled")),
    Published("mnist", "bits", "TAN", "arXiv:1801.09819, as quoted by UMNN", bits=Number(1.19)),
)


def published(data: str, protocol: str, *, recalled: bool = False) -> list[Published]:
    """The published rows of one data set and protocol; those of another protocol are never given.

    Args:
        data: name of the data set.
        protocol: one of those of :class:`Published`.
        recalled: whether to include numbers that nobody has read in a source yet.
    """

    def kept(number: Number | None) -> Number | None:
        return number if number is not None and (recalled or number.reading != "recalled") else None

    same = [r for r in PUBLISHED if (r.data, r.protocol) == (data, protocol)]
    rows = [dataclasses.replace(r, nats=kept(r.nats), bits=kept(r.bits)) for r in same]
    return [r for r in rows if r.nats is not None or r.bits is not None]
