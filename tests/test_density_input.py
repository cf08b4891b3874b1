"""What a density is given by users in a hurry: a clear error or a warning, never a silent number."""

from __future__ import annotations

import math
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from sklearn.datasets import load_breast_cancer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from pyro_flows_vi.cli import main
from pyro_flows_vi.density import FlowDensity, ImageDensity, dequantise
from pyro_flows_vi.density.collinear import require_full_rank
from pyro_flows_vi.density.data import Rows, column_names
from pyro_flows_vi.numerics.errors import NotConverged
from pyro_flows_vi.transforms import SplineCoupling
from pyro_flows_vi.transforms.continuous import Continuous

QUIET: dict[str, Any] = {"progress": False, "seed": 0, "max_epochs": 1}


def density(*dims: int, **options: Any) -> FlowDensity:
    return FlowDensity("realnvp", *dims, num_transforms=2, hidden_dims=(8,), **options)


def images(**options: Any) -> ImageDensity:
    return ImageDensity("realnvp", (2, 2), **{"levels": 4, "num_transforms": 1, "hidden_dims": (8,)} | options)


def rows(count: int = 300, dim: int = 3) -> Tensor:
    return torch.randn(count, dim)


def spoiled(value: float) -> Tensor:
    x = rows()
    x[7, 1] = value
    return x


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[Tensor]:
        return iter(rows())


class Dicts(Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixels": torch.zeros(3), "label": torch.tensor(1)}


class Ragged(Dicts):
    def __getitem__(self, index: int) -> Any:
        return torch.randn(3 if index < 40 else 2)


# -- rows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_row_is_named_by_the_number_that_the_user_knows(value: float) -> None:
    """Although rows are shuffled before they are split."""
    with pytest.raises(
        ValueError, match=r"in x, got 1 that are NaN or infinite .*, in columns 1, first in row 7; drop"
    ):
        density().fit(spoiled(value), **QUIET)
    with pytest.raises(
        ValueError, match=r"in context, got 1 that are NaN or infinite .*, in columns 1, first in row 7"
    ):
        density().fit(rows(), spoiled(value), **QUIET)
    with pytest.raises(ValueError, match=r"in validation x, got 1 that are NaN .*first in row 7"):
        density().fit(rows(), validation=spoiled(value), **QUIET)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (None, "expected x to be a tensor, an array or a data frame, got NoneType"),
        ("data.csv", "expected x to be a tensor, an array or a data frame, got str"),
        ({"a": [1.0, 2.0]}, "expected x to be a tensor, an array or a data frame, got dict"),
        ([[1.0, 2.0], [3.0]], "expected x to be rows of one length, got list"),
        (np.array(["2020-01-01"] * 9, "datetime64[D]")[:, None], r"numeric, got ndarray of datetime64\[D\]; turn"),
        (np.array([[1.0, "a"]] * 9, object), "numeric, got ndarray of object with columns that are not: 1: could not"),
        (rows().to_sparse(), r"expected x to be a dense tensor, got a torch.sparse_coo one; convert it with .to_dense"),
        (rows().to("meta"), "expected x to be a dense tensor, got one without values"),
        (rows(10, 0), r"expected x of shape \(N, D\) with at least one row, got \(10, 0\)"),
        (torch.randn(10, 3, 4), r"got \(10, 3, 4\); flatten images and the like, x.flatten\(1\)"),
        (rows().double() * 1e300, r"NaN or infinite \(in torch.float32\)"),
        (torch.cat([rows(), 1e6 + 1e-3 * rows()], 1), r"constant columns 3, 4, 5 \(in torch.float32\)"),
        (rows(6, 9), r"more training rows than columns, got 5 of 9 columns"),
        (rows(6, 5), r"more training rows than columns, got 5 of 5 columns"),
    ],
)
def test_what_is_no_table_of_numbers_is_refused(x: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        density().fit(x, **QUIET)


def test_columns_of_a_frame_that_are_no_numbers_are_named() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(rows().numpy(), columns=["a", "b", "c"])
    fitted = density()
    fitted.fit(frame, **QUIET)
    assert fitted.log_prob(frame).shape == (300,)
    for column, name in (
        (["x", "y", "z"] * 100, "city"),
        (pandas.Categorical(["x", "y", "z"] * 100), "kind"),
        (pandas.date_range("2020", periods=300), "when"),
        (pandas.array([1, 2, None] * 100, dtype="Int64"), "count"),
    ):
        with pytest.raises(ValueError, match=rf"DataFrame of object with columns that are not: '{name}': .*; encode"):
            density().fit(frame.assign(**{name: column}), **QUIET)


def test_values_that_come_often_are_warned_about() -> None:
    """Also where they are no whole numbers, as intensities between 0 and 1 are."""
    pixels = torch.randint(16, (300, 2)) / 15.0
    with pytest.warns(UserWarning, match=r"columns 0, 1 hold few values, each of them often.*likelihood diverges"):
        density().fit(pixels, **QUIET)
    with pytest.warns(UserWarning, match=r"columns 0, 1 hold few values"):
        density(2).fit(DataLoader(TensorDataset(pixels), batch_size=20), validation=None, **QUIET)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        density().fit(rows()[torch.randint(300, (300,))], **QUIET)  # a bootstrap sample of real numbers


def test_rows_that_require_a_gradient_are_only_read() -> None:
    x = rows().requires_grad_()
    density().fit(x, validation=x, batch_size=50, **QUIET)
    assert x.grad is None


# -- widths and contexts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dims", "context", "message"),
    [
        ((5,), None, "expected x of 5 columns, as the density was made for, got 3"),
        ((3, 4), rows(), "expected context of 4 columns, as the density was made for, got 3"),
        ((3, 4), None, "expected context of 4 columns, as the density was made for, got none"),
        ((3,), rows(), "expected no context, as the density was made without one, got 3"),
    ],
)
def test_other_widths_are_refused_in_words(dims: tuple[int, ...], context: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        density(*dims).fit(rows(), context, **QUIET)


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (lambda: DataLoader(Stream(), batch_size=20), r"knows how many batches it has, got one of a stream .Stream."),
        (lambda: DataLoader(Dicts(), batch_size=20), r"\(x, context\), got dicts of pixels, label; pick .* collate_fn"),
        (lambda: DataLoader(Ragged(), batch_size=20), "expected x of 3 columns throughout, got 2"),
        (lambda: DataLoader(TensorDataset(spoiled(math.nan)), batch_size=5), "in columns 1, first in row 7"),
        (lambda: DataLoader(TensorDataset(rows()), batch_size=999, drop_last=True), "at least one row in x, got none"),
    ],
)
def test_loaders_are_looked_through(loader: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        density().fit(loader(), validation=None, **QUIET)


def test_a_loader_of_images_and_labels_is_one_of_images() -> None:
    loader = DataLoader(TensorDataset(rows(), torch.arange(300)), batch_size=50)
    assert density().fit(loader, validation=None, **QUIET).epochs == 1


def test_wrong_options_are_found_before_the_data_are_read() -> None:
    with pytest.raises(ValueError, match=r"unknown option 'hidden' of flow 'maf' .did you mean 'hidden_dims'"):
        FlowDensity("maf", hidden=(8,))


# -- scoring and drawing ---------------------------------------------------------------------------------


def test_scoring_and_drawing_say_what_they_want() -> None:
    made = density(3)
    with pytest.raises(ValueError, match=r"shape \(N, D\) with at least one row, got \(0, 3\)"):
        made.evaluate(rows(0))
    with pytest.raises(ValueError, match=r"shape \(N, D\) with at least one row, got \(3,\)"):
        made.evaluate(rows()[0])
    for wrong in (-1, 0, 2.5, (2, -1), True, "3"):
        with pytest.raises(ValueError, match="expected sample_shape to be a number of draws or a tuple of them"):
            made.sample(wrong)  # type: ignore[arg-type]
    assert made.sample(torch.Size([2])).shape == (2, 3)


def test_draws_that_overflow_are_told() -> None:
    """As those of affine flows do where their scales explode."""
    made = density(2)
    made.scaling.measure(torch.zeros(2), torch.full((2,), 1e38))
    with pytest.warns(
        UserWarning, match=r"\d+ of 500 draws overflow and are not finite: the scales of the flow explode"
    ):
        made.sample(500)
    pixels = images()
    pixels.scaling.measure(torch.full((4,), math.nan), torch.ones(4))
    with pytest.warns(UserWarning, match=r"5 of 5 draws overflow"):
        pixels.sample(5)


# -- images ----------------------------------------------------------------------------------------------


PIXELS = torch.arange(400).reshape(100, 4) % 4


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (PIXELS * 2, "expected pixel values from 0 to 3, got values from 0 to 6"),
        (PIXELS - 1, "expected pixel values from 0 to 3, got values from -1 to 2"),
        (PIXELS / 3, "expected pixel values to be whole numbers from 0 to 3, got others such as 0.333"),
        (torch.where(PIXELS == 3, math.nan, PIXELS), "NaN or infinite"),
        (torch.where(PIXELS == 3, math.inf, PIXELS), "NaN or infinite"),
        (PIXELS.reshape(100, 2, 2), r"got \(100, 2, 2\); flatten images"),
        (torch.cat([PIXELS, PIXELS], 1), "expected x of 4 columns, as the density was made for, got 8"),
    ],
)
def test_pixels_are_checked(x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        images().fit(x, **QUIET)


def test_arguments_of_image_densities_are_checked() -> None:
    for shape in ((4,), 4, None):
        with pytest.raises(ValueError, match=r"expected the shape of an image, \(H, W\) or \(C, H, W\), got"):
            ImageDensity("realnvp", shape)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected num_samples to be a positive integer, got 0"):
        images().bits_per_dim(PIXELS, num_samples=0)


# -- fits that come to nothing ---------------------------------------------------------------------------


def test_a_flow_that_does_nothing_where_the_data_are() -> None:
    """A spline is the identity outside of its box, and has nothing to learn from there."""
    far = 100.0 + 5.0 * rows()
    with pytest.warns(UserWarning, match=r"standardise=False, and columns 0, 1, 2 have means.*Leave standardise on"):
        bare = FlowDensity(SplineCoupling(3), standardise=False)
        with pytest.raises(ValueError, match=r"expected a gradient in the first step, got exactly zero"):
            bare.fit(far, **QUIET)
    inside = FlowDensity(SplineCoupling(3))
    inside.fit(far, **QUIET)  # the same flow behind the scale of the data
    norm = FlowDensity("glow", num_transforms=1, standardise=False)
    norm.fit(far, **QUIET)  # an ActNorm starts from the data, and there is nothing to warn about


@pytest.mark.parametrize("name", ["nsf", "nsf-ar", "nsf-iaf"])
def test_spline_recipes_learn_from_points_outside_of_their_boxes(name: str) -> None:
    """By their linear layers: a step along the gradient comes closer."""
    made, far = FlowDensity(name, 2, num_transforms=2), 20.0 + rows(50, 2)
    before = -made.log_prob(far).mean()
    before.backward()
    with torch.no_grad():
        for parameter in made.parameters():
            assert parameter.grad is not None
            parameter -= 1e-4 * parameter.grad
    assert -made.log_prob(far).mean() < before - 1.0


def test_validation_rows_far_away_give_no_silent_number() -> None:
    with pytest.raises(ValueError, match=r"expected a finite validation likelihood in some epoch, got none in 1; look"):
        density().fit(rows(), validation=1e25 * rows(50), **QUIET)


def test_a_solver_that_does_not_converge_is_told(tmp_path: Path) -> None:
    stiff = FlowDensity("ffjord", num_transforms=1, hidden_dims=(4,), max_steps=1)
    with pytest.raises(NotConverged, match=r"dopri5 does not get from 1 to 0 .*: more than 1 steps"):
        stiff.fit(rows(40, 2), **QUIET | {"learning_rate": 1.0})  # near the identity a single step does
    words = [
        "density",
        "train",
        "breast_cancer",
        "--flow",
        "ffjord",
        "--num-transforms",
        "1",
        "--flow-option",
        "max_steps=1",
        "--set",
        "learning_rate=1",
    ]
    result = CliRunner().invoke(main, [*words, "--out", str(tmp_path)])
    assert result.exit_code == 2 and "more than 1 steps" in result.stderr and "Traceback" not in result.stderr


# -- data frames --------------------------------------------------------------------------------------------


class Frame:
    """What a density knows of a data frame: names, and how to become an array."""

    def __init__(self, **columns: Tensor) -> None:
        self.columns, self.values = list(columns), torch.stack(list(columns.values()), 1).numpy()

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.values if dtype is None else self.values.astype(dtype)


def test_data_frames_have_the_columns_that_the_density_knows(tmp_path: Path) -> None:
    a, b, c = rows().unbind(1)
    made = density()
    made.fit(Frame(a=a, b=b), Frame(c=c), validation=(Frame(a=a, b=b), Frame(c=c)), **QUIET)
    expected = made.log_prob(torch.stack([a, b], 1), c[:, None])
    torch.testing.assert_close(made.log_prob(Frame(a=a, b=b), Frame(c=c)), expected)
    made.save(tmp_path / "density")
    for known in (made, FlowDensity.load(tmp_path / "density")):
        for x, context, said in (
            (Frame(b=b, a=a), Frame(c=c), "x with the columns a, b, in this order, .* got b, a; select them by name"),
            (Frame(a=a, b=b), Frame(d=c), "context with the columns c, in this order, .* got d"),
        ):
            for call in (known.log_prob, known.evaluate, known.fit):
                with pytest.raises(ValueError, match=said):
                    call(x, context)
    with pytest.raises(ValueError, match="validation x with the columns a, b"):
        density().fit(Frame(a=a, b=b), validation=Frame(b=b, a=a), **QUIET)


# -- columns that determine each other --------------------------------------------------------------------


def collinear(kind: str, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Rows and a context in which something is a linear function of something else."""
    x = torch.randn(300, 3, dtype=dtype)
    made = {
        "copy": torch.cat([x, x[:, :1]], 1),
        "other units": torch.cat([x, 1000.0 - 0.01 * x[:, 1:2]], 1),
        "sum": torch.cat([x, x.sum(1, keepdim=True)], 1),
        "shares": x.softmax(1),
        "two": torch.cat([x, x[:, :1] - x[:, 1:2], x[:, 2:]], 1),
        "context": torch.cat([x[:, :1], x[:, 2:]], 1),
    }
    return made[kind], x if kind == "context" else None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("copy", "columns 0, 3, of which 1 linear combination is constant"),
        ("other units", "columns 1, 3, of which 1 linear combination is constant"),
        ("sum", "columns 0, 1, 2, 3, of which 1 linear combination is constant"),
        ("shares", "columns 0, 1, 2, of which 1 linear combination is constant"),
        ("two", "of which 2 linear combinations are constant"),
        ("context", "columns 0, 1 and 0, 2 of the context, of which 2 linear combinations are constant"),
    ],
)
def test_columns_that_determine_each_other_are_refused(kind: str, said: str, dtype: torch.dtype) -> None:
    x, context = collinear(kind, dtype)
    made = FlowDensity("realnvp", x.shape[1], None if context is None else 3, num_transforms=1).to(dtype)
    with pytest.raises(ValueError, match=said):
        made.fit(x, context, **QUIET)
    loader = DataLoader(TensorDataset(x) if context is None else TensorDataset(x, context), batch_size=100)
    with pytest.raises(ValueError, match=said):
        made.fit(loader, validation=None, **QUIET)


def test_merely_correlated_columns_are_not() -> None:
    x, noise = torch.randn(300, 1), torch.randn(300, 1)
    breast_cancer = load_breast_cancer().data  # correlations up to 0.998
    for values in (torch.cat([x, x + 1e-4 * noise], 1), torch.cat([x + 1e3, x + 1e3 + 0.01 * noise], 1), breast_cancer):
        require_full_rank(Rows(torch.as_tensor(values, dtype=torch.float32), None, 100).in_order)
    classes = torch.eye(3)[torch.randint(3, (300,))]  # which add up to one, among themselves
    density().fit(rows(), classes, **QUIET)
    density().fit(rows(), rows(300, 400), **QUIET)  # a context wide enough to determine anything


def test_columns_that_part_later_on_are_not_refused() -> None:
    x = torch.randn(6000, 1)
    later = torch.cat([x[:4500], torch.randn(1500, 1)])
    density().fit(torch.cat([x, later], 1), validation=None, **QUIET)


# -- regularisation --------------------------------------------------------------------------------------


def kinetic_energy(kinetic: float) -> float:
    torch.manual_seed(0)
    made = FlowDensity("ffjord", 2, num_transforms=1, hidden_dims=(8,), solver="rk4", num_steps=4, kinetic=kinetic)
    x = torch.randn(200, 2)
    x[:, 1] += x[:, 0] ** 2
    result = made.fit(x, progress=False, seed=0, max_epochs=8, batch_size=50, learning_rate=0.02)
    made.train()
    assert result.curves["train"][-1] == pytest.approx(made.evaluate(x).mean, abs=1.0)  # of the likelihood alone
    step = next(module for module in made.modules() if isinstance(module, Continuous))
    z = made.scaling.inverse_and_log_det(x)[0]
    return float(step.eval().energies(step.inverse_and_log_det(z)[0]).kinetic.mean().detach())


def test_penalties_of_a_continuous_flow_shorten_its_paths() -> None:
    assert kinetic_energy(5.0) < 0.3 * kinetic_energy(0.0)


def test_columns_with_a_spread_of_few_roundings_are_not_blamed_on_each_other() -> None:
    coarse = 1e6 + 0.1 * torch.randn(300, 2)
    with pytest.raises(ValueError, match=r"spread of few roundings of torch.float32 in columns 0, 1: subtract"):
        require_full_rank(lambda: iter([(coarse, None)]))


def test_columns_that_are_no_names_are_no_names() -> None:
    pandas = pytest.importorskip("pandas")
    table = types.SimpleNamespace(columns=[np.zeros(3), np.ones(3)])  # as some have it, whose columns are the data
    assert column_names(table) is None
    assert column_names(pandas.DataFrame(np.zeros((2, 2)))) is None
    assert column_names(pandas.DataFrame({"a": [1.0], "b": [2.0]})) == ["a", "b"]


def test_arrays_of_numpy_that_torch_does_not_know(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(50, 2))
    density = FlowDensity("maf", 2)
    expected = density.log_prob(x)
    for other in (x.astype(">f8"), x.astype(np.longdouble), np.ma.masked_array(x)):
        torch.testing.assert_close(density.log_prob(other), expected)
    with pytest.raises(ValueError, match="without missing entries, got 1 that are masked"):
        density.fit(np.ma.masked_array(x, mask=np.arange(100).reshape(50, 2) == 7))
    whole = np.arange(6).reshape(3, 2)
    noisy = dequantise(whole)
    assert noisy.floor().tolist() == whole.tolist() and not torch.equal(noisy, noisy.floor())
    with pytest.raises(ValueError, match="expected checkpoint to be a file, got the folder"):
        density.fit(x, checkpoint=tmp_path)
