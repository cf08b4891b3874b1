"""Sylvester flow, in its orthogonal, Householder and triangular forms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from pyro_flows_vi.nets.parameters import ParameterNet
from pyro_flows_vi.numerics.linear import compact_form, matvec, reflect, vecmat
from pyro_flows_vi.numerics.roots import solve_tanh
from pyro_flows_vi.numerics.stable import slope_from
from pyro_flows_vi.numerics.tracing import is_traced
from pyro_flows_vi.transforms._door import positive
from pyro_flows_vi.transforms.base import Flow

__all__ = ["Sylvester", "conditional_sylvester", "sylvester"]

Form = Literal["orthogonal", "householder", "triangular"]

#: after so many rounds of the inverse its roots are found one by one
ROUNDS = 16


class Sylvester(Flow):
    r"""Sylvester flow: M tanh ridges in an orthonormal basis.

    .. math::
        y = x + Q R \tanh(\tilde R Q^\top x + b), \qquad
        \log|\det J| = \sum_{i=1}^{M} \log\bigl(1 + r_{ii} \tilde r_{ii} \tanh'_i\bigr)

    with :math:`Q \in \mathbb{R}^{D \times M}` orthonormal and R and R-tilde upper triangular, whose diagonals are
    hyperbolic tangents, so that :math:`r_{ii} \tilde r_{ii} > -1`. The forms differ in Q:

    * ``"orthogonal"``: the Q of a QR decomposition of a free D x M matrix, O(D M^2);
    * ``"householder"``: the first M columns of a product of reflections, applied without being formed, O(D) each;
    * ``"triangular"``: the identity, or the reversal of the coordinates (``reverse=True``).

    Forward is a few matrix products. The inverse is back-substitution through the triangular system, M scalar
    roots one after the other; the part outside the span of Q is copied.

    Source: Sylvester normalizing flows for variational inference (van den Berg et al., 2018), arXiv:1803.05649.

    Args:
        input_dim: D.
        context_dim: C; then all of Q, R, R-tilde and b are functions of the context.
        hidden_dims: hidden layers of that function; empty for a linear map, as in the paper.
        form: one of the three.
        rank: M; by default D // 2 rounded up for the orthogonal form and D for the others.
        num_reflections: the number of reflections of the Householder form; by default min(D, 8).
        reverse: whether the triangular form reverses the coordinates.

    Raises:
        ValueError: for an unknown form, or a rank that is not in 1, ..., D.
    """

    def __init__(
        self,
        input_dim: int,
        context_dim: int | None = None,
        hidden_dims: Sequence[int] = (),
        form: Form = "orthogonal",
        rank: int | None = None,
        num_reflections: int | None = None,
        reverse: bool = False,
    ) -> None:
        super().__init__(input_dim, context_dim)
        if form not in get_args(Form):
            raise ValueError(f"expected form to be one of {', '.join(get_args(Form))}; got {form!r}")
        rank = (-(-input_dim // 2) if form == "orthogonal" else input_dim) if rank is None else positive("rank", rank)
        if rank > input_dim:
            raise ValueError(f"expected rank to be at most input_dim={input_dim}, got {rank}")
        count = min(input_dim, 8) if num_reflections is None else positive("num_reflections", num_reflections)
        self.form, self.rank, self.reverse = form, rank, reverse
        init = {
            "r": 0.01 * torch.randn(rank, rank),  # the upper half is R's, the lower half R-tilde's
            "inner_diagonal": torch.ones(rank),
            "b": 0.01 * torch.randn(rank),
        }
        if form == "orthogonal":
            init["q"] = torch.randn(input_dim, rank)
        elif form == "householder":
            init["v"] = torch.randn(count, input_dim)
        self.params = ParameterNet(init, context_dim, hidden_dims)

    def _onto_basis(self, p: dict[str, Tensor], x: Tensor) -> Tensor:
        """Q' x, ``(*batch, M)``."""
        if "q" in p:
            return vecmat(x, p["q"])
        if self.form == "triangular":
            return (x.flip(-1) if self.reverse else x)[..., : self.rank]
        return reflect(x, p["v"], compact=p.get("compact"))[..., : self.rank]

    def _from_basis(self, p: dict[str, Tensor], v: Tensor) -> Tensor:
        """Q v, ``(*batch, D)``."""
        if "q" in p:
            return matvec(p["q"], v)
        x = pad(v, (0, self.input_dim - self.rank))
        if self.form == "triangular":
            return x.flip(-1) if self.reverse else x
        return reflect(x, p["v"], reverse=True, compact=p.get("compact"))

    def _constrained(self, context: Tensor | None) -> dict[str, Tensor]:
        """The parameters, with orthonormal directions, the parts of R and R-tilde, and 1 + their diagonal products."""
        p = self.params(context)
        if self.form == "orthogonal":
            precise = torch.promote_types(p["q"].dtype, torch.float32)  # there is no bfloat16 QR
            p["q"] = torch.linalg.qr(p["q"].to(precise))[0].to(p["q"].dtype)
        elif self.form == "householder":
            compact = compact_form(p["v"])
            if compact is not None and 2 * len(compact) >= self.input_dim:  # so many that a matrix is cheaper
                identity = torch.eye(self.input_dim, dtype=compact.dtype, device=compact.device)
                p["q"] = torch.addmm(identity, p["v"].mT, compact, alpha=-1)[:, : self.rank]
            elif compact is not None:
                p["compact"] = compact
        outer, inner = torch.tanh(p["r"].diagonal(dim1=-2, dim2=-1)), torch.tanh(p["inner_diagonal"])
        gain = 1.0 + outer * inner  # 0 where the product rounds to -1
        # R-tilde is kept transposed, as the lower half of one matrix whose upper half is R.
        upper, lower = torch.triu(p["r"], 1), torch.tril(p["r"], -1)
        return p | {"outer": outer, "inner": inner, "upper": upper, "lower": lower, "gain": gain}

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """O(D M + M^2) per point, and Q."""
        p = self._constrained(context)
        v = self._onto_basis(p, x)
        tanh = torch.tanh(_product(p["lower"].mT, p["inner"], v, p["b"]))
        y = x + self._from_basis(p, _product(p["upper"], p["outer"], tanh))
        return y, slope_from(tanh, p["gain"]).sum(-1)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """M scalar roots, all together in rounds until they settle, or in sequence where a graph is wanted."""
        p = self._constrained(context)
        rest = self._onto_basis(p, y)  # what the rows below leave of Q' y
        settled = None if torch.is_grad_enabled() or is_traced(y) else self._settle(p, rest)
        tanh = self._substitute(p, rest) if settled is None else settled
        x = y - self._from_basis(p, _product(p["upper"], p["outer"], tanh))
        return x, slope_from(tanh, p["gain"]).sum(-1)

    def _settle(self, p: dict[str, Tensor], onto: Tensor) -> Tensor | None:
        """The values of tanh by Jacobi's iteration on the triangular system, or ``None`` if it goes on."""
        gain, tanh = p["gain"].expand(onto.shape), torch.zeros_like(onto)
        tolerance = 4.0 * torch.finfo(onto.dtype).eps
        for _ in range(ROUNDS):
            target = onto - matvec(p["upper"], tanh)
            v = target - p["outer"] * tanh
            before = matvec(p["lower"].mT, v) + p["b"]
            last = tanh
            tanh = torch.tanh(solve_tanh(torch.addcmul(before, p["inner"].expand(onto.shape), target), gain))
            if bool((tanh - last).abs().max() <= tolerance):
                return tanh
        return None

    def _substitute(self, p: dict[str, Tensor], rest: Tensor) -> Tensor:
        outer, inner, gain, before = (p[name].expand(rest.shape) for name in ("outer", "inner", "gain", "b"))
        tanhs: list[Tensor] = []
        for i in reversed(range(self.rank)):
            target = rest[..., i]
            tanh = torch.tanh(solve_tanh(inner[..., i] * target + before[..., i], gain[..., i]))
            rest = rest - p["upper"][..., i] * tanh[..., None]
            before = before + p["lower"][..., i, :] * (target - outer[..., i] * tanh)[..., None]
            tanhs.insert(0, tanh)
        return torch.stack(tanhs, dim=-1)

    def extra_repr(self) -> str:
        """The dimensions, form and rank, for ``repr``."""
        return f"{super().extra_repr()}, form={self.form!r}, rank={self.rank}"


def _product(matrix: Tensor, diagonal: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """A triangular matrix, of which the diagonal is given apart, times v, and a bias."""
    if matrix.dim() == 2:
        return linear(v, matrix + diagonal.diag_embed(), bias)
    product = torch.addcmul(matvec(matrix, v), diagonal, v)
    return product if bias is None else product + bias


def sylvester(input_dim: int, count_transforms: int | None = None) -> Sylvester:
    """A Householder Sylvester flow, with Pyro's signature and its default of D // 2 + 1 reflections."""
    return Sylvester(
        input_dim,
        form="householder",
        num_reflections=input_dim // 2 + 1 if count_transforms is None else count_transforms,
    )


def conditional_sylvester(
    input_dim: int, context_dim: int, hidden_dims: Sequence[int] = (), count_transforms: int | None = None
) -> Sylvester:
    """A Householder Sylvester flow with a context; Pyro has none."""
    return Sylvester(
        input_dim,
        context_dim,
        hidden_dims,
        form="householder",
        num_reflections=input_dim // 2 + 1 if count_transforms is None else count_transforms,
    )
