"""The tables behind the posteriors, as numpy arrays: small published sets typed in here, and scikit-learn's own."""

from __future__ import annotations

from functools import cache

import numpy as np
from sklearn import datasets

Array = np.ndarray
Arrays = tuple[Array, ...]


def standardised(columns: Array) -> Array:
    return (columns - columns.mean(0)) / columns.std(0)


@cache
def eight_schools() -> Arrays:
    """Effects of coaching on test scores and their standard errors: Rubin (1981), "Estimation in parallel randomized
    experiments"."""
    effects = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    errors = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    return errors, effects


@cache
def rats() -> Arrays:
    """Weights of 30 young rats at five ages in days: Gelfand et al. (1990), the BUGS example "Rats"."""
    days = np.array([8.0, 15.0, 22.0, 29.0, 36.0])
    rows = """
    151 199 246 283 320  145 199 249 293 354  147 214 263 312 328  155 200 237 272 297  135 188 230 280 323
    159 210 252 298 331  141 189 231 275 305  159 201 248 297 338  177 236 285 350 376  134 182 220 260 296
    160 208 261 313 352  143 188 220 273 314  154 200 244 289 325  171 221 270 326 358  163 216 242 281 312
    160 207 248 288 324  142 187 234 280 316  156 203 243 283 317  157 212 259 307 336  152 203 246 286 321
    154 205 253 298 334  139 190 225 267 302  146 191 229 272 302  157 211 250 285 323  132 185 237 286 331
    160 207 257 303 345  169 216 261 295 333  157 205 248 289 316  137 180 219 258 291  153 200 244 286 324
    """
    return days, np.array(rows.split(), dtype=float).reshape(30, 5)


@cache
def radon_like() -> Arrays:
    """Counties of very unequal size with an intercept and a slope each, in the manner of Gelman and Hill's radon data.

    Made here from the seed 20 with numpy's default generator: 32 counties of 2 to 40 houses, a floor indicator,
    uranium as the counties' predictor.
    """
    rng = np.random.default_rng(20)
    sizes = np.clip(np.exp(rng.normal(1.8, 0.9, 32)).astype(int), 2, 40)
    county = np.repeat(np.arange(32), sizes)
    uranium = rng.normal(0.0, 0.4, 32)
    intercept = 1.5 + 0.7 * uranium + 0.25 * rng.normal(size=32)
    slope = -0.65 + 0.3 * rng.normal(size=32)
    floor = (rng.random(county.size) < 0.25).astype(float)
    log_radon = intercept[county] + slope[county] * floor + 0.75 * rng.normal(size=county.size)
    return county, uranium, floor, log_radon


@cache
def diabetes() -> Arrays:
    """Ten raw columns of 442 patients and the progression after a year: Efron et al. (2004), scikit-learn's table."""
    table = datasets.load_diabetes(scaled=False)
    return table.data.astype(float), table.target.astype(float)


@cache
def diabetes_standardised() -> Arrays:
    columns, target = diabetes()
    return standardised(columns), standardised(target)


@cache
def diabetes_grades() -> Arrays:
    """The fifths of the progression (0 to 4), with body mass, blood pressure, sex and s5 as standardised predictors."""
    columns, target = diabetes()
    grade = np.searchsorted(np.quantile(target, [0.2, 0.4, 0.6, 0.8]), target)
    return standardised(columns[:, [1, 2, 3, 8]]), grade


@cache
def linnerud() -> Arrays:
    """The weights in pounds of 20 men and what they did in chins, sit-ups and jumps: scikit-learn's linnerud table."""
    table = datasets.load_linnerud()
    return table.data.astype(float), table.target[:, 0].astype(float)


@cache
def breast_cancer() -> Arrays:
    """The ten raw "mean" columns of 569 tumours and whether each was benign: scikit-learn's breast-cancer table."""
    table = datasets.load_breast_cancer()
    return table.data[:, :10].astype(float), table.target.astype(float)


@cache
def breast_cancer_perimeter() -> Arrays:
    """Radius, area, compactness and concavity of the tumours, raw, and their perimeter."""
    columns, _ = breast_cancer()
    return columns[:, [0, 3, 5, 6]], columns[:, 2]


@cache
def blood_types() -> Arrays:
    """Counts of the blood types A, B, AB and O among 521 patients: Clarke et al. (1959)."""
    return (np.array([186, 38, 13, 284]),)


@cache
def wine() -> Arrays:
    """Alcohol, ash, magnesium, flavanoids and proline of 178 wines, raw: scikit-learn's wine table."""
    return (datasets.load_wine().data[:, [0, 2, 4, 6, 12]].astype(float),)


@cache
def coal_mining() -> Arrays:
    """Disasters in British coal mines from 1851 to 1962 in 28 spans of four years: Jarrett (1979)."""
    rows = """
    4 5 4 1 0 4 3 4 0 6 3 3 4 0 2 6 3 3 5 4 5 3 1 4 4 1 5 5 3 4 2 5 2 2 3 4 2 1 3 2 2 1 1 1 1 3 0 0 1 0 1 1 0 0 3 1
    0 3 2 2 0 1 1 1 0 1 0 1 0 0 0 2 1 0 0 0 1 1 0 2 3 3 1 1 2 1 1 1 1 2 4 2 0 0 0 1 4 0 0 0 1 0 0 0 0 0 1 0 0 1 0 1
    """
    counts = np.array(rows.split(), dtype=int).reshape(28, 4).sum(1)
    return np.arange(28) * 0.4, counts  # the inputs in decades


@cache
def galaxies() -> Arrays:
    """Velocities of 82 galaxies in 1000 km/s: Roeder (1990)."""
    rows = """
    9.172 9.350 9.483 9.558 9.775 10.227 10.406 16.084 16.170 18.419 18.552 18.600 18.927 19.052 19.070 19.330 19.343
    19.349 19.440 19.473 19.529 19.541 19.547 19.663 19.846 19.856 19.863 19.914 19.918 19.973 19.989 20.166 20.175
    20.179 20.196 20.215 20.221 20.415 20.629 20.795 20.821 20.846 20.875 20.986 21.137 21.492 21.701 21.814 21.921
    21.960 22.185 22.209 22.242 22.249 22.314 22.374 22.495 22.746 22.747 22.888 22.914 23.206 23.241 23.263 23.484
    23.538 23.542 23.666 23.706 23.711 24.129 24.285 24.289 24.366 24.717 24.990 25.633 26.690 26.995 32.065 32.789
    34.279
    """
    return (np.array(rows.split(), dtype=float),)


@cache
def earthquakes() -> Arrays:
    """Earthquakes of magnitude 7 and more in each year from 1900 to 2006: Zucchini and MacDonald (2009)."""
    rows = """
    13 14 8 10 16 26 32 27 18 32 36 24 22 23 22 18 25 21 21 14 8 11 14 23 18 17 19 20 22 19 13 26 13 14 22 24 21 22 26
    21 23 24 27 41 31 27 35 26 28 36 39 21 17 22 17 19 15 34 10 15 22 18 15 20 15 22 19 16 30 27 29 23 20 16 21 21 25
    16 18 15 18 14 10 15 8 15 6 11 8 7 18 16 13 12 13 20 15 16 12 18 15 16 13 15 16 11 11
    """
    return (np.array(rows.split(), dtype=int),)


@cache
def lynx() -> Arrays:
    """The base-10 logarithm of the lynx trapped each year from 1821 to 1934: Elton and Nicholson (1942)."""
    rows = """
    269 321 585 871 1475 2821 3928 5943 4950 2577 523 98 184 279 409 2285 2685 3409 1824 409 151 45 68 213 546 1033
    2129 2536 957 361 377 225 360 731 1638 2725 2871 2119 684 299 236 245 552 1623 3311 6721 4254 687 255 473 358 784
    1594 1676 2251 1426 756 299 201 229 469 736 2042 2811 4431 2511 389 73 39 49 59 188 377 1292 4031 3495 587 105 153
    387 758 1307 3465 6991 6313 3794 1836 345 382 808 1388 2713 3800 3091 2985 3790 674 81 80 108 229 399 1132 2432
    3574 2935 1537 529 485 662 1000 1590 2657 3396
    """
    return (np.log10(np.array(rows.split(), dtype=float)),)


@cache
def stack_loss() -> Arrays:
    """Air flow, water temperature and acid of 21 days of a plant, raw, and the ammonia lost: Brownlee (1960)."""
    flow = [80, 80, 75, 62, 62, 62, 62, 62, 58, 58, 58, 58, 58, 58, 50, 50, 50, 50, 50, 56, 70]
    water = [27, 27, 25, 24, 22, 23, 24, 24, 23, 18, 18, 17, 18, 19, 18, 18, 19, 19, 20, 20, 20]
    acid = [89, 88, 90, 87, 87, 87, 93, 93, 87, 80, 89, 88, 82, 93, 89, 86, 72, 79, 80, 82, 91]
    loss = [42, 37, 37, 28, 18, 18, 19, 20, 15, 14, 14, 13, 11, 12, 8, 7, 8, 8, 9, 15, 15]
    return np.array([flow, water, acid], dtype=float).T, np.array(loss, dtype=float)


@cache
def insect_sprays() -> Arrays:
    """Insects left on twelve plots under each of six sprays: Beall (1942)."""
    rows = """
    10 7 20 14 14 12 10 23 17 20 14 13  11 17 21 11 16 14 17 17 19 21 7 13  0 1 7 2 3 1 2 1 3 0 1 4
    3 5 12 6 4 3 5 5 5 5 2 4  3 5 3 5 3 6 1 1 3 2 6 4  11 9 15 22 15 16 13 10 26 26 24 13
    """
    return np.repeat(np.arange(6), 12), np.array(rows.split(), dtype=int)


@cache
def remission() -> Arrays:
    """Weeks of remission in leukaemia under placebo (0) and 6-MP (1), and whether its end was seen: Freireich et al.
    (1963). With them the first week at which an end or a censoring is on record, for each arm."""
    placebo = [1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23]
    treated = [6, 6, 6, 6, 7, 9, 10, 10, 11, 13, 16, 17, 19, 20, 22, 23, 25, 32, 32, 34, 35]
    censored = {3, 5, 7, 8, 11, 12, 13, 16, 17, 18, 19, 20}  # positions among the treated
    weeks = np.array(placebo + treated, dtype=float)
    seen = np.array([True] * 21 + [position not in censored for position in range(21)])
    arm = np.repeat([0, 1], 21)
    return arm, weeks, seen, np.array([weeks[arm == a].min() for a in (0, 1)])
