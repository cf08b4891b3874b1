"""Sum-of-squares polynomials against numpy's polynomial arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.polynomial import Polynomial

from pyro_flows_vi.numerics.tempered import temper
from pyro_flows_vi.transforms.elementwise import SumOfSquares


def _params(m: SumOfSquares, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(m.num_params, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("degree", [1, 3, 6])
@pytest.mark.parametrize("polynomials", [1, 3])
def test_the_expanded_polynomial(degree: int, polynomials: int) -> None:
    m = SumOfSquares(degree, polynomials)
    params = _params(m)
    terms = temper(params[2:], k=2.0).numpy().reshape(polynomials, degree + 1)
    terms = terms / [math.factorial(l) for l in range(degree + 1)]
    slope = sum((Polynomial(row) ** 2 for row in terms), start=Polynomial([float(temper(params[1], k=2.0).exp())]))
    value = slope.integ(k=float(params[0]))
    x = torch.linspace(-4.0, 4.0, 9, dtype=torch.float64)
    y, log_slope = m.forward_and_log_slope(x, params)
    assert value.degree() == 2 * degree + 1
    np.testing.assert_allclose(y, value(x.numpy()), rtol=1e-11)
    np.testing.assert_allclose(log_slope, np.log(slope(x.numpy())), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("scale", [0.5, 3.0, 30.0])
def test_the_slope_has_a_positive_floor(scale: float) -> None:
    m = SumOfSquares(3)
    params = _params(m, scale)
    x = torch.linspace(-50.0, 50.0, 2001, dtype=torch.float64)
    y, log_slope = m.forward_and_log_slope(x, params)
    assert (log_slope >= temper(params[1], k=2.0) - 1e-12).all()
    assert (y.diff() > 0).all()


def test_gradients() -> None:
    m = SumOfSquares(2, 2)
    x = torch.tensor([-2.0, 0.0, 1.3], dtype=torch.float64, requires_grad=True)
    params = _params(m).requires_grad_()
    assert torch.autograd.gradcheck(m.forward_and_log_slope, (x, params))
    assert torch.autograd.gradgradcheck(m.forward_and_log_slope, (x, params))
    assert torch.autograd.gradcheck(m.inverse_and_log_slope, (x, params))


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e4), (torch.float64, 1e30)])
def test_far_tails(dtype: torch.dtype, size: float) -> None:
    m = SumOfSquares(4)
    params = _params(m).to(dtype)
    x = torch.tensor([-size, -10.0, 10.0, size], dtype=dtype)
    y, log_slope = m.forward_and_log_slope(x, params)
    assert y.isfinite().all() and log_slope.isfinite().all()
    back, _ = m.inverse_and_log_slope(y, params)
    torch.testing.assert_close(back, x, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("bad", [{"degree": 0}, {"polynomials": -1}])
def test_bad_settings(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="positive integer"):
        SumOfSquares(**bad)
